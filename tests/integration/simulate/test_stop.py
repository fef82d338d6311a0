"""Who is told to stop stops, also when that comes together with an answer of the broker.

In Python 3.11 `asyncio.wait_for`, and so aiomqtt, then swallows the cancellation; the tests of the replay do so every
time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import aiomqtt
import pytest

from bridge.simulate import fleet
from bridge.simulate.client import Target
from bridge.simulate.figures import Figures
from bridge.simulate.recording import Recorded
from bridge.simulate.replay import Replay
from bridge.topics import Topics

WITHIN = 10.0
"""Seconds; who has not stopped by then does not."""

Call = Callable[..., Awaitable[Any]]


def swallow_at(monkeypatch: pytest.MonkeyPatch, method: str, told: asyncio.Event) -> None:
    """Let the first call of `method` set `told` when it is done, and swallow the cancellation that follows."""
    original: Call = getattr(aiomqtt.Client, method)

    async def call(*arguments: Any, **options: Any) -> Any:
        result = await original(*arguments, **options)
        if not told.is_set():
            told.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        return result

    monkeypatch.setattr(aiomqtt.Client, method, call)


async def stops(task: asyncio.Task[None], told: asyncio.Event) -> None:
    async with asyncio.timeout(WITHIN):
        await told.wait()
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=WITHIN)
    if not done:
        task.cancel()
        await asyncio.wait([task], timeout=WITHIN)
    assert done, "it goes on"


async def test_devices_whose_broker_says_nothing() -> None:
    """They wait for its first answer, and stop all the same."""
    told = asyncio.Event()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        told.set()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(listen, "127.0.0.1", 0) as server:
        silent = Target("127.0.0.1", server.sockets[0].getsockname()[1])
        await stops(asyncio.create_task(fleet.run(fleet.Plan(devices=2, rate=20), silent, Figures())), told)


@pytest.mark.parametrize("method", ["__aenter__", "publish"])
async def test_a_replay(monkeypatch: pytest.MonkeyPatch, target: Target, method: str) -> None:
    told = asyncio.Event()
    swallow_at(monkeypatch, method, told)
    for_ever = (Recorded(1e9 + number, {"n": number}) for number in range(10**9))
    replay = Replay(for_ever, "a", target, Topics(), Figures(), 1.0)
    await stops(asyncio.create_task(replay.run()), told)
