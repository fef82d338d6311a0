"""New commands whose commit was given up. It may have taken place all the same: what was stored must go its way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import final

from bridge.agents.services import Services
from bridge.storage.commands import stored_among


@final
class Doubts:
    """Those of one device. The writer commits in order, so whoever asks after the commit in doubt has the answer; who
    asks waits for the database, with one question at a time."""

    __slots__ = ("_asked", "_services", "_soon", "_waiting")

    def __init__(self, services: Services, soon: Callable[[Callable[[], None]], None]) -> None:
        """`soon` has the device's own coroutine call something."""
        self._services = services
        self._soon = soon
        self._waiting: dict[str, Callable[[], None]] = {}
        self._asked: dict[str, Callable[[], None]] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._asked)

    def add(self, command_id: str, stored: Callable[[], None]) -> None:
        """Have `stored` called if that command turns out to be stored."""
        self._waiting[command_id] = stored
        if not self._asked:
            self._ask()

    def _ask(self) -> None:
        # Only those whose commit was handed over before this: of a later one the answer would say nothing.
        self._asked, self._waiting = self._waiting, {}
        ask = partial(stored_among, command_ids=list(self._asked))
        self._services.writer.submit(ask, patient=True).add_done_callback(self._answered)

    def _answered(self, answer: asyncio.Future[frozenset[str]]) -> None:
        if answer.cancelled() or answer.exception() is not None:
            self._asked.clear()
            self._waiting.clear()
            return  # the writer has stopped: the next start finds what is stored
        found, asked = answer.result(), self._asked
        self._asked = {}
        for command_id, stored in asked.items():
            if command_id in found:
                self._soon(stored)
        if self._waiting:
            self._ask()
