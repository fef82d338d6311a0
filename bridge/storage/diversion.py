"""Where the rows go while the database cannot take them: into the spool, and from there to the database, in order.

While anything is in the spool every row goes through it: so each device's rows, and the states and the session changes
among them, reach the database in the order in which they came, and row ids in the order of the commits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, final

import structlog

from bridge.errors import StorageUnavailableError
from bridge.histogram import LONG, Histogram
from bridge.storage.batch import RECEIVED_AT, Batch
from bridge.storage.lane import Lane
from bridge.storage.spool import Spool

log = structlog.get_logger(__name__)

APPENDED_TOGETHER: Final = 64
"""Batches in one transaction of the spool."""
RETRY: Final = 0.5
"""Seconds to the next try when the spool cannot be written: its disk is full, or it holds as much as it may."""

_NOT_SPOOLED: Final = StorageUnavailableError("the database is away, and this cannot be spooled: try again later")


@final
class Diversion:
    """Moves what waits in the lane of the rows into the spool while it is `active`.

    `settled` is called after each batch whose messages are settled.
    """

    def __init__(self, spool: Spool, rows: Lane, settled: Callable[[], None], clock: Callable[[], float]) -> None:
        self.spool: Final = spool
        self.active = False
        self.reason = ""
        """Why rows are or were diverted, for people."""
        self.stuck = ""
        """Why the spool takes nothing; empty while it does."""
        self.begun = 0
        """How often it began."""
        self.refused = 0
        """How often the spool began to take nothing."""
        self.delays: Final = Histogram()
        """Seconds from the arrival of a batch's oldest reading until it is in the spool."""
        self.waits: Final = Histogram(LONG)
        """Seconds that the oldest of what is taken out together was in the spool."""
        self.ended: Final = asyncio.Event()
        """Set while rows go into the database."""
        self.ended.set()
        self._holding = False
        self._rows = rows
        self._settled = settled
        self._clock = clock
        self._moving = False
        self._stopping = False
        self._wake = asyncio.Event()

    def begin(self, reason: str) -> None:
        """From now on rows go into the spool."""
        if self.active:
            return
        self.active = True
        self.ended.clear()
        self.begun += 1
        self.reason = reason
        log.warning("rows go into the spool: the database does not take them", reason=reason)
        self._wake.set()

    def end(self) -> bool:
        """Have rows go into the database again, if nothing is in the spool or on its way there. Whether they do."""
        if self.active and self.spool.empty and not self._moving:
            self.active = self._holding = False
            self.stuck = ""
            self.ended.set()
            log.info("the spool is empty: rows go into the database again", forwarded=self.spool.forwarded)
        return not self.active

    def hold(self, *, holding: bool) -> None:
        """Whether new rows wait a moment instead of going into the spool: so that what is left in it, which is little,
        can be taken to the database, and the spool is empty at last."""
        self._holding = holding
        self._wake.set()

    def rouse(self) -> None:
        """There is something new in the lane."""
        self._wake.set()

    def stop(self) -> None:
        """Move what is in the lane, then let `run` end."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Move batches until `stop`."""
        while True:
            if self.active and not (self._holding and not self._stopping):
                batches = self._rows.waiting()[:APPENDED_TOGETHER]
                if batches:
                    await self._move(batches)
                    continue
            if self._stopping:
                return
            self._wake.clear()
            await self._wake.wait()

    async def _move(self, batches: list[Batch]) -> None:
        for batch in batches:
            batch.withdraw(lambda change: change.packable is None and change.run is not None, _NOT_SPOOLED)
            # Who wants to read back what is stored will not find it in the database.
            batch.release(_NOT_SPOOLED)
        self._moving = True
        try:
            await self.spool.append(batches)
        except StorageUnavailableError as error:
            if not self.stuck:
                self.refused += 1
                log.warning("the spool takes nothing: no message is acknowledged until it does", reason=str(error))
            self.stuck = str(error)
            self._moving = False
            await asyncio.sleep(RETRY)
            return
        finally:
            self._moving = False
        self.stuck = ""
        now = self._clock()
        for batch in batches:
            if batch.rows:
                self.delays.observe(now - batch.rows[RECEIVED_AT])
            self._rows.done()
            batch.settle()
        self._settled()
