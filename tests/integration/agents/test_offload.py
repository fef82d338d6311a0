"""Offloaded work: in real processes and threads, while other devices are served."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import pytest
import pytest_asyncio

from bridge import Agent, on
from bridge.agents.offload import Offload
from bridge.agents.services import Rules
from bridge.receipts import Outcome
from tests.integration.agents.house import house
from tests.integration.agents.test_logic import send, settled
from tests.waiting import eventually

BUSY = 1.0


def busy(seconds: float) -> int:
    """Keeps a processor, and in this process the interpreter, busy; says in which process."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        sum(range(1000))
    return os.getpid()


def fail(text: str) -> None:
    raise LookupError(text)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest_asyncio.fixture
async def offload() -> AsyncIterator[Offload]:
    """One worker of each kind; none is left at the end."""
    made = Offload(1)
    yield made
    await made.stop()
    assert multiprocessing.active_children() == []


async def test_results_and_errors_come_back_from_a_process_and_a_broken_one_is_replaced(offload: Offload) -> None:
    assert await offload(busy, 0.0) != os.getpid()
    with pytest.raises(LookupError, match="not there"):
        await offload(fail, "not there")
    with pytest.raises(BrokenProcessPool):
        await offload(die)
    assert await offload(busy, 0.0) != os.getpid()
    assert (offload.running, offload.waiting) == (0, 0)


async def test_a_thread_is_a_thread_and_callers_wait_their_turn(offload: Offload) -> None:
    release = threading.Event()
    order: list[int] = []

    async def call(number: int) -> None:
        await offload(release.wait, 10, threads=True)
        order.append(number)

    calls = [asyncio.create_task(call(n)) for n in range(4)]
    await eventually(lambda: offload.waiting == 3)
    calls[1].cancel()
    await eventually(lambda: offload.waiting == 2)
    release.set()
    await asyncio.gather(*calls, return_exceptions=True)
    assert order == [0, 2, 3]


async def test_a_cancelled_caller_s_worker_stays_taken_until_it_is_done(offload: Offload) -> None:
    release = threading.Event()
    gone = asyncio.create_task(offload(release.wait, 10, threads=True))
    await eventually(lambda: offload.running == 1)
    gone.cancel()
    after = asyncio.create_task(offload(os.getpid, threads=True))
    await eventually(lambda: gone.cancelled())
    assert (offload.running, after.done()) == (1, False)
    release.set()
    assert await after == os.getpid()


async def test_stopping_does_not_wait_for_a_function_that_does_not_end() -> None:
    offload = Offload(1)
    endless = asyncio.create_task(offload(busy, 60.0))
    await eventually(lambda: bool(multiprocessing.active_children()), timeout=60.0)
    began = time.monotonic()
    await offload.stop()
    assert time.monotonic() - began < 10
    with pytest.raises((BrokenProcessPool, asyncio.CancelledError)):
        await endless


class Analyst(Agent):
    @on.telemetry("heavy")
    async def heavy(self, m: Any) -> None:
        await self.offload(busy, BUSY)

    @on.telemetry("light")
    async def light(self, m: Any) -> None:
        await self.publish(self.topic("seen"), m)


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_other_devices_are_served_while_one_computes(url: str) -> None:
    async with house(url, Rules(offload_workers=1), Analyst) as built:
        warm = send(built, {}, "telemetry/heavy", device="warm")  # starting the process takes what it takes
        await eventually(lambda: warm.outcome, timeout=60.0)
        heavy = send(built, {}, "telemetry/heavy", device="busy")
        served = 0
        while heavy.outcome is None:
            assert await settled(send(built, {"n": served}, "telemetry/light", device="free")) == {Outcome.COMMITTED}
            served += 1
        # One after the other, each with a commit of its own; with the loop blocked it would have been one.
        assert served >= 5
        assert heavy.outcome is Outcome.COMMITTED
