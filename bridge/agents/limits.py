"""How often something may happen: restarts of an agent, lines in the log. Pure: the clock is passed in."""

from __future__ import annotations

from collections import deque
from typing import final


@final
class Limit:
    """At most `count` events within `window` seconds."""

    __slots__ = ("_count", "_times", "_window", "passed_over")

    def __init__(self, count: int, window: float) -> None:
        self._count = count
        self._window = window
        self._times: deque[float] = deque(maxlen=count)
        self.passed_over = 0
        """Events over the limit since the last one that was let through."""

    def reached(self, now: float) -> bool:
        """Whether `count` events lie within the last `window` seconds."""
        return len(self._times) == self._count and now - self._times[0] < self._window

    def record(self, now: float) -> None:
        """An event has happened."""
        self._times.append(now)

    def allow(self, now: float) -> bool:
        """Record the event unless the limit is reached; whether it may happen."""
        if self.reached(now):
            self.passed_over += 1
            return False
        self._times.append(now)
        return True
