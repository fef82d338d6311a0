"""SQLite's log is carried into the database file beside the commits.

SQLite does it by itself inside a COMMIT, when there is enough in the log, and whoever waits for that commit waits for
the whole: a tenth of a second and more for 32 MiB. Here another connection does it in a thread of its own. What the
commits bring meanwhile stays in the log, which would grow for ever; so when it is large, and little of it is left to
carry, that little is carried while no commit runs, and the next one begins the log anew.
"""

from __future__ import annotations

import asyncio
from typing import Final, final

import structlog

from bridge.storage.database import Database
from bridge.storage.faults import is_driver_error

log = structlog.get_logger(__name__)

ROWS: Final = 3_000
"""Committed rows and changes after which there is something to carry. One may touch five pages of 4 KiB or share one
with twenty others, so this is a few MiB at most."""
PAUSE: Final = 1.5
"""Seconds between two rounds at least: a page that every commit touches is carried once for many of them."""
LARGE: Final = 8_000
"""Pages in the log from which on it is to begin anew."""
LITTLE: Final = 500
"""Pages that may be carried while commits wait."""
TRIES: Final = 2
"""How often the rest is carried beside the commits before they wait for it all the same."""


@final
class Checkpoints:
    """There is a task while something is carried, and none else."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._rows = 0
        self._not_before = 0.0
        self._task: asyncio.Task[None] | None = None

    def committed(self, rows: int) -> None:
        """So many more rows and changes are in the log."""
        self._rows += rows
        if self._rows >= ROWS and self._task is None and self._database.dialect == "sqlite":
            loop = asyncio.get_running_loop()
            if loop.time() >= self._not_before:
                self._rows = 0
                self._task = loop.create_task(self._carry(), name="checkpoint")

    async def stop(self, timeout: float) -> None:
        """Wait for the round under way, for at most `timeout` seconds. (It needs no end: nothing depends on it.)"""
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=timeout)

    async def _carry(self) -> None:
        try:
            await self._round()
        except Exception as error:
            if not is_driver_error(error):
                raise
            # Nothing is lost: the log is as durable as the file, and SQLite tries by itself at the log's limit.
            log.warning("the database's log cannot be carried into its file", error=str(error))
        finally:
            self._not_before = asyncio.get_running_loop().time() + PAUSE
            self._task = None

    async def _round(self) -> None:
        pages, carried = await self._database.checkpoint()
        if pages < LARGE:
            return
        for _ in range(TRIES):
            before = carried
            pages, carried = await self._database.checkpoint()
            if carried - before <= LITTLE:
                break
        await self._database.checkpoint(alone=True)
