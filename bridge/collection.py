"""When Python's garbage collector may look for cycles, and for how long it stops the event loop.

Nearly everything here is freed by its reference count: connects, readings, commands and pages leave no cycle behind
(device logic, and the rarer ways of some libraries, may). The collector does not know that. After so many new objects
it looks at all of them, and those that live on, as agents do that have just been woken, cost it time. So it is given
what is new in small portions, every fifth of a second; what has been looked at once is looked at again once an hour, in
a moment in which nothing happens. A cycle that lives longer than one portion and dies then is freed within two hours.

First messages of 1,000 evicted agents a second: two pauses of 16 to 46 ms in three seconds before, 14 of at most 1.4 ms
since, and a sixth of the time in all. The look at everything takes 120 to 170 ms with 9,000 devices connected.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from typing import Any, Final, final

from bridge.histogram import Histogram

YOUNG: Final = 50_000
"""New objects after which Python collects on its own, whatever the time. Every message makes a few objects that are
free again after its commit: at Python's default of 700 the collector took half of the time spent on a message."""
NEVER: Final = 2**31 - 1
"""How often Python has to do that until it looks at older objects on its own: that is done here."""
STEP: Final = 0.2
"""Seconds between two portions."""
LEAST: Final = 1_000
"""New objects that are not worth a portion; so few in one step mean that nothing happens."""
MOST: Final = 15_000
"""New objects that are too many for one: most of them are messages on their way, which are free in a moment."""
OLD_EVERY: Final = 3_600.0
"""Seconds between two looks at everything that has come since the start. If there is no quiet moment, twice that."""


@final
class Collection:
    """The policy at work; `pauses` are the seconds that each collection stopped the process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.pauses: Final = Histogram()
        self._clock = clock
        self._old_at = clock()
        self._began = 0.0

    def begin(self) -> None:
        """From now on the collector goes by this policy. What is there now is never looked at again."""
        gc.collect()
        gc.freeze()
        gc.set_threshold(YOUNG, NEVER, NEVER)
        gc.callbacks.append(self._watch)

    def end(self) -> None:
        """Leave the thresholds as they are, and watch no longer."""
        gc.callbacks.remove(self._watch)

    async def run(self) -> None:
        """Collect in portions until cancelled."""
        while True:
            await asyncio.sleep(STEP)
            self.step()

    def step(self) -> None:
        """One portion, if it is worth one; or all, if it is time for that."""
        new = gc.get_count()[0]
        since = self._clock() - self._old_at
        if since > OLD_EVERY and (new < LEAST or since > 2 * OLD_EVERY):
            self._old_at = self._clock()
            gc.collect()
        elif LEAST <= new <= MOST:
            gc.collect(0)

    def _watch(self, phase: str, _info: dict[str, Any]) -> None:
        if phase == "start":
            self._began = time.perf_counter()
        else:
            self.pauses.observe(time.perf_counter() - self._began)
