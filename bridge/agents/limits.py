"""How often something may happen: restarts of an agent, lines in the log, pings. Pure: the clock is passed in."""

from __future__ import annotations

from collections import deque
from typing import Final, final

MAX_WAIT: Final = 3_600.0
"""A turn that is further away than this many seconds is a mistake of the clock."""


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


@final
class Pacer:
    """Turns, `rate` a second: whoever asks gets the next one, now or later. There is no saving up: after a quiet hour
    a thousand who ask at once still go one after the other."""

    __slots__ = ("_free_at", "_gap")

    def __init__(self, rate: float) -> None:
        self._gap = 1 / rate
        self._free_at = 0.0

    def reserve(self, now: float) -> float:
        """The time of a turn, which is taken from then on: `now` if there is one."""
        if self._free_at - now > MAX_WAIT:
            self._free_at = now  # the clock was set back
        turn = max(now, self._free_at)
        self._free_at = turn + self._gap
        return turn
