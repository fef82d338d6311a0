"""So much of one kind of work in each turn of the event loop: what comes all at once is spread over several."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, final

PORTION: Final = 100
"""Connections that are let in or ended in one turn: about 10 ms. The event loop hands over everything that has come at
once, and when ten thousand devices drop and come back, that is half a second in which nobody else is served."""


@final
class Portions:
    """Work is done at once, in the order in which it comes, until there was a portion of it in this turn; the rest
    waits for the next turns. As many can wait as there are connections."""

    __slots__ = ("_left", "_loop", "_size", "_turning", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop, size: int = PORTION) -> None:
        self._loop = loop
        self._size = size
        self._left = size
        self._turning = False
        self._waiting: deque[Callable[[], None]] = deque()

    def do(self, work: Callable[[], None]) -> bool:
        """Do it now, or in a later turn; False if it has to wait."""
        if not self._turning:
            self._turning = True
            self._loop.call_soon(self._turn)
        if self._left and not self._waiting:
            self._left -= 1
            work()
            return True
        self._waiting.append(work)
        return False

    def _turn(self) -> None:
        self._left = self._size
        # Before any work, which may raise: the rest must have its turn.
        self._turning = bool(self._waiting)
        if self._turning:
            self._loop.call_soon(self._turn)
        while self._waiting and self._left:
            self._left -= 1
            self._waiting.popleft()()
