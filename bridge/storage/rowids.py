"""The ids that rows are stored with: they grow in the order of the hand-over, and over restarts too."""

from __future__ import annotations

from typing import Final, final

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.storage.database import Database
from bridge.storage.tables import commit_marks, dead_letters, telemetry

UNASKED: Final = 10_000_000_000
"""More ids than one writer gives away between two starts: a thousand a second for four months."""


@final
class RowIds:
    """Gives away ids, above all that were ever given to this database."""

    __slots__ = ("last",)

    def __init__(self) -> None:
        self.last = 0
        """The last one given away. Who has many rows raises it by as many."""

    def next(self) -> int:
        """An id that nobody else has."""
        self.last += 1
        return self.last

    def pass_clock(self, now: float) -> None:
        """Go on above what a former writer can have given away by `now` (Unix seconds): the microseconds of the clock
        are ahead of that, so ids grow even when the newest rows have been deleted."""
        self.last = max(self.last, int(now * 1_000_000))

    def pass_unasked(self, known: int) -> None:
        """Go on above all that a former writer can have given away after `known`, whatever has become of the clock
        since: for a database that cannot be asked."""
        self.last = max(self.last, known + UNASKED)

    async def pass_stored(self, database: Database) -> None:
        """Go on above what is stored, over a clock that was set back. Raises StorageUnavailableError or
        StorageError."""
        self.last = max(self.last, await database.read(_last_stored))


async def _last_stored(connection: AsyncConnection) -> int:
    columns = (telemetry.c.id, dead_letters.c.id, commit_marks.c.batch)
    query = select(*(func.coalesce(select(func.max(column)).scalar_subquery(), 0) for column in columns))
    ids: list[int] = list((await connection.execute(query)).one())
    return max(ids)
