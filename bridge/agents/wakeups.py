"""How long a message waits for its agent's coroutine: from the wake-up until it runs."""

from __future__ import annotations

import asyncio
import time
from typing import Final, final

from bridge.histogram import Histogram

BEAT: Final = 0.05
"""Seconds from one sample to the next at least."""
BOUNDS: Final = (
    0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0,
)  # fmt: skip
"""Upper bounds in seconds: an idle event loop takes microseconds, a busy one as long as one of its turns."""


@final
class WakeUps:
    """Looks at one wake-up of a waiting agent in BEAT seconds, whichever it is: the others cost the question whether
    they are the one."""

    __slots__ = ("_loop", "due", "seconds")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.due = True
        """Whether the next wake-up is to be looked at."""
        self.seconds: Final = Histogram(BOUNDS)

    def look(self) -> None:
        """Call just before an agent is woken."""
        self.due = False
        # The loop calls in the order of asking: this is called where the coroutine is just about to run.
        self._loop.call_soon(self._running, time.perf_counter())

    def _running(self, woken_at: float) -> None:
        self.seconds.observe(time.perf_counter() - woken_at)
        self._loop.call_later(BEAT, self._again)

    def _again(self) -> None:
        self.due = True
