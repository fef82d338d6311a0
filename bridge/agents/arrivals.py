"""Comings and goings of devices' connections, on their way to the agents."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar, final

T = TypeVar("T")

GATHERED_FOR: Final = 0.05
"""Seconds over which they are gathered while there are more of them. What the agents make of them (a row of presence,
the device's own, a retained message) is then one commit for all instead of one for every few, and the clients, whose
answers do not depend on it, have these first."""
TOLD_TOGETHER: Final = 100
"""How many are passed on in one turn of the event loop: about 5 ms."""


@final
class Arrivals(Generic[T]):
    """Passed on in the order in which they come: one alone at once, many together. As many can wait as there are
    connections and devices that speak through them."""

    __slots__ = ("_loop", "_pass_on", "_turn", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop, pass_on: Callable[[T], None]) -> None:
        self._loop = loop
        self._pass_on = pass_on
        self._waiting: deque[T] = deque()
        self._turn: asyncio.Handle | None = None
        """The next look at what waits; None when there was nothing at the last one."""

    def add(self, arrival: T) -> None:
        """Pass it on now, or soon if others have just come."""
        if self._turn is None:
            self._turn = self._loop.call_later(GATHERED_FOR, self._look)
            self._pass_on(arrival)
        else:
            self._waiting.append(arrival)

    def flush(self) -> None:
        """Pass on everything that waits."""
        while self._waiting:
            self._pass_on(self._waiting.popleft())

    def _look(self) -> None:
        waiting = self._waiting
        if not waiting:
            self._turn = None
            return
        more = len(waiting) > TOLD_TOGETHER
        # Before anything is passed on, which may raise: the rest must have its turn.
        self._turn = self._loop.call_soon(self._look) if more else self._loop.call_later(GATHERED_FOR, self._look)
        for _ in range(min(TOLD_TOGETHER, len(waiting))):
            self._pass_on(waiting.popleft())
