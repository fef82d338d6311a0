"""When to look at a connection again: one timer for all of them instead of one each. Pure: it is told the time."""

from __future__ import annotations

from typing import Final, Protocol, final

TICK: Final = 0.25
"""Seconds."""


def ticks(seconds: float) -> int:
    """So many ticks that at least `seconds` have passed, wherever in a tick they began."""
    return int(seconds / TICK) + 2


class Watched(Protocol):
    """A connection, as the wheel knows it."""

    due: int
    """The tick in which it is looked at; 0 when it is not in the wheel."""

    def look(self) -> None:
        """It is due."""


@final
class Wheel:
    """Each connection is in at most one bucket, that of the tick in which it is due. Moving it costs two looks into
    dictionaries, however many connections there are."""

    __slots__ = ("_buckets", "tick")

    def __init__(self) -> None:
        self._buckets: dict[int, set[Watched]] = {}
        self.tick = 1

    def put(self, connection: Watched, tick: int) -> None:
        """Have a connection looked at in a tick to come, and not before."""
        if connection.due:
            self.take(connection)
        due = max(tick, self.tick + 1)
        connection.due = due
        bucket = self._buckets.get(due)
        if bucket is None:
            self._buckets[due] = {connection}
        else:
            bucket.add(connection)

    def take(self, connection: Watched) -> None:
        """Forget a connection."""
        bucket = self._buckets.get(connection.due)
        if bucket is not None:
            bucket.discard(connection)
            if not bucket:
                del self._buckets[connection.due]
        connection.due = 0

    def turn(self) -> set[Watched]:
        """A tick has passed: take out and return the connections that are due."""
        self.tick += 1
        due = self._buckets.pop(self.tick, set())
        for connection in due:
            connection.due = 0
        return due

    def __len__(self) -> int:
        return sum(map(len, self._buckets.values()))
