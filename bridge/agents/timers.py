"""One timer wheel for all agents: a sleeping agent costs an entry in a list, not a task."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, final

import structlog

log = structlog.get_logger(__name__)

TICK: Final = 0.25
"""Seconds between two turns of the wheel: how late a timer may fire."""


@final
class TimerWheel:
    """Calls back after a delay, late by at most one tick. There is no cancelling: whoever is called looks whether
    there is still something to do, which is cheaper than keeping a handle for each of ten thousand agents.

    It goes by monotonic time, so a wall clock that is set does not disturb it.
    """

    __slots__ = ("_clock", "_handle", "_slots", "_turned")

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` gives monotonic seconds."""
        self._clock = clock
        self._slots: dict[int, list[Callable[[], None]]] = {}
        self._turned = int(clock() / TICK)
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to turn, on the running loop."""
        self._handle = asyncio.get_running_loop().call_later(TICK, self._beat)

    def stop(self) -> None:
        """Stop turning; entries that are left are never called."""
        if self._handle is not None:
            self._handle.cancel()
        self._slots.clear()

    def now(self) -> float:
        """The wheel's time, in monotonic seconds."""
        return self._clock()

    def call_after(self, delay: float, callback: Callable[[], None]) -> None:
        """Call `callback` in `delay` seconds or up to a tick later."""
        slot = max(int((self._clock() + delay) / TICK) + 1, self._turned + 1)
        entries = self._slots.get(slot)
        if entries is None:
            self._slots[slot] = [callback]
        else:
            entries.append(callback)

    def turn(self) -> None:
        """Call what is due."""
        now = int(self._clock() / TICK)
        due = [slot for slot in range(self._turned + 1, now + 1) if slot in self._slots]
        self._turned = now
        for slot in due:
            for callback in self._slots.pop(slot):
                try:
                    callback()
                except Exception:
                    # One agent's timer must not stop the wheel that all the others hang on.
                    log.exception("timer failed")

    def _beat(self) -> None:
        self.turn()
        self._handle = asyncio.get_running_loop().call_later(TICK, self._beat)
