"""The way out of the spool: its batches, oldest first, into the database."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, final

from bridge.errors import StorageUnavailableError
from bridge.storage.batch import Batch
from bridge.storage.commit import Commit
from bridge.storage.diversion import Diversion
from bridge.storage.spool import FORWARD_ROWS

SOON: Final = 0.02


@final
class Forwarding:
    """Commits what a `diversion` has put into its spool. `slow`: seconds after which rows that wait for the end of the
    spool wait no longer."""

    def __init__(
        self,
        diversion: Diversion,
        commit_of: Callable[[Sequence[Batch]], Commit],
        slow: float,
        clock: Callable[[], float],
    ) -> None:
        self.diversion: Final = diversion
        self._spool = diversion.spool
        self._commit_of = commit_of
        self._slow = slow
        self._clock = clock
        self._forwarded = 0
        """The last batch of the spool that is committed, and perhaps not removed yet."""

    async def everything(self) -> None:
        """Commit all that is in the spool. Raises StorageUnavailableError."""
        while not self._spool.empty:
            await self._first()

    async def one(self, *, hurry: bool) -> float:
        """Commit the oldest batch of the spool, and return when the next one is due, in event-loop time. `hurry`:
        others can wait. Raises StorageUnavailableError."""
        loop = asyncio.get_running_loop()
        diversion, spool = self.diversion, self._spool
        began = loop.time()
        if spool.empty:
            # The first batches are on their way into it.
            return began + SOON
        before = spool.rows
        waited_since = spool.oldest
        # Should it take long, no message is to wait for it.
        slow = loop.call_later(self._slow, partial(diversion.hold, holding=False))
        try:
            await self._first()
        except StorageUnavailableError:
            diversion.hold(holding=False)
            raise
        finally:
            slow.cancel()
        now = loop.time()
        if waited_since is not None:
            diversion.waits.observe(self._clock() - waited_since)
        left = spool.rows
        diversion.hold(holding=left <= FORWARD_ROWS)
        # A third of the time belongs to others, unless more comes in than goes out, or the end is near.
        hurry = hurry or left <= FORWARD_ROWS or left > before - FORWARD_ROWS / 4
        return now if hurry else now + (now - began) / 2

    async def _first(self) -> None:
        last, batch = await self._spool.first()
        if last > self._forwarded:
            commit = self._commit_of([batch])
            await commit.attempt()
            for part in commit.parts[batch]:
                part.settle()
            self._forwarded = last
        await self._spool.remove(last)
