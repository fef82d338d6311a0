"""Wake-ups: each sample is the time until what was asked for next runs, and there are few of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, cast

from bridge.agents.wakeups import WakeUps


async def test_a_sample_ends_where_the_woken_one_runs() -> None:
    loop = asyncio.get_running_loop()
    wakeups = WakeUps(loop)
    samples: asyncio.Future[int] = loop.create_future()
    loop.call_soon(time.sleep, 0.02)  # the loop is busy with something else first
    wakeups.look()
    loop.call_soon(lambda: samples.set_result(wakeups.seconds.count))
    assert await samples == 1
    assert 0.02 <= wakeups.seconds.total < 10.0


class ByHand:
    """A loop whose calls are made by the test."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []
        self.later: list[Callable[[], None]] = []

    def call_soon(self, call: Callable[..., None], *args: Any) -> None:
        self.soon.append(lambda: call(*args))

    def call_later(self, _delay: float, call: Callable[[], None]) -> None:
        self.later.append(call)


def test_the_next_sample_is_due_a_beat_after_the_last() -> None:
    loop = ByHand()
    wakeups = WakeUps(cast("asyncio.AbstractEventLoop", loop))
    assert wakeups.due
    wakeups.look()
    assert not wakeups.due
    loop.soon.pop()()
    assert not wakeups.due
    loop.later.pop()()
    assert wakeups.due
    assert wakeups.seconds.count == 1
