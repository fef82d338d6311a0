"""What is kept for how long, and the housekeeping that sees to it: in small portions, so that nobody waits for it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, cast, final

import structlog
from sqlalchemy import ColumnElement, FromClause, MetaData, Select, Table, and_, delete, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.commands import CommandStatus
from bridge.errors import StorageError, StorageUnavailableError
from bridge.rollout import RolloutStatus
from bridge.schedule import ScheduleStatus
from bridge.storage import hypertable, partitions, tables
from bridge.storage.database import Database

log = structlog.get_logger(__name__)

DAY: Final = 86_400.0
PORTION: Final = 2_000
"""Rows deleted in one transaction: on SQLite some milliseconds, which is how long a batch may have to wait for it."""
SHARE: Final = 0.2
"""Of the time that deleting may take while there is more to delete."""
EVERY: Final = 10.0
"""Seconds between two rounds: how long dead letters may be more than there should be."""

_OTHER: Final = tables.telemetry.to_metadata(MetaData(), name="telemetry_other")
"""PostgreSQL's default partition."""
_FINISHED: Final = [status.value for status in CommandStatus if status.final]


@dataclass(frozen=True, slots=True)
class Keep:
    """For how many days things are kept; 0 keeps them for ever."""

    telemetry: float = 0.0
    """Counted from when it was received."""
    minutes: float = 90.0
    """Rollups by minute."""
    hours: float = 0.0
    """Rollups by hour."""
    presence: float = 90.0
    twins: float = 30.0
    """What twins have been: how far back a device may be and still be told only what it misses."""
    commands: float = 90.0
    """Finished commands and their steps, counted from their deadline; rollouts and schedules that are over."""
    dead_letters: float = 30.0
    dead_letters_max: int = 10_000
    """So many dead letters, the newest."""


@final
class Retention:
    """Deletes what is older than it should be, and makes telemetry's partitions, where it has any, ahead of time."""

    def __init__(self, database: Database, keep: Keep, clock: Callable[[], float]) -> None:
        self.deleted: Final[Counter[str]] = Counter()
        """Rows by table; partitions, or chunks, count as one."""
        self._database = database
        self._keep = keep
        self._clock = clock

    async def prepare(self) -> None:
        """Make the partitions that the first row needs. Raises StorageUnavailableError or StorageError."""
        if self._database.dialect == "postgresql" and not await self._database.read(hypertable.there):
            now = self._clock()
            await self._database.maintain(lambda connection: partitions.make_ahead(connection, now))

    async def run(self) -> None:
        """Keep house, for ever."""
        while True:
            try:
                await self.sweep()
            except (StorageUnavailableError, StorageError) as error:
                log.warning("housekeeping waits for the database", error=str(error))
            await asyncio.sleep(EVERY)

    async def sweep(self) -> None:
        """One round: delete all there is to delete."""
        keep, now = self._keep, self._clock()
        await self.prepare()
        if keep.telemetry:
            before = now - keep.telemetry * DAY
            if self._database.dialect == "postgresql":
                chunked = await self._database.read(hypertable.there)
                drop_before = hypertable.drop_before if chunked else partitions.drop_before
                dropped = await self._database.maintain(partial(drop_before, before=before))
                self.deleted["partitions"] += len(dropped)
                await self._repeat("message_ids", partial(_older, tables.message_ids, "received_at", before))
                if not chunked:
                    await self._repeat("telemetry", partial(_oldest, _OTHER, "received_at", before))
            else:
                await self._repeat("telemetry", partial(_oldest, tables.telemetry, "received_at", before))
        for table, column, days in (
            (tables.telemetry_minute, "start", keep.minutes),
            (tables.telemetry_hour, "start", keep.hours),
            (tables.presence, "at", keep.presence),
            (tables.twin_history, "at", keep.twins),
        ):
            if days:
                await self._repeat(table.name, partial(_older, table, column, now - days * DAY))
        if keep.commands:
            before = now - keep.commands * DAY
            await self._repeat("commands", partial(_commands, before))
            await self._repeat("rollouts", partial(_over, tables.rollouts, RolloutStatus.RUNNING, before))
            await self._repeat("schedules", partial(_over, tables.schedules, ScheduleStatus.ACTIVE, before))
        if keep.dead_letters:
            await self._repeat(
                "dead_letters", partial(_oldest, tables.dead_letters, "at", now - keep.dead_letters * DAY)
            )
        if keep.dead_letters_max:
            await self._repeat("dead_letters", partial(_surplus, tables.dead_letters, keep.dead_letters_max))

    async def _repeat(self, name: str, portion: Callable[[AsyncConnection], Awaitable[int]]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            deleted = await self._database.maintain(portion)
            self.deleted[name] += deleted
            if deleted < PORTION:
                return
            await asyncio.sleep((loop.time() - began) / SHARE)


async def _older(table: FromClause, column: str, before: float, connection: AsyncConnection) -> int:
    """Delete a portion of what is older, found by the index on `column`."""
    return await _delete(connection, table, select(*table.primary_key).where(table.c[column] < before))


async def _oldest(table: FromClause, column: str, before: float, connection: AsyncConnection) -> int:
    """The same where rows are older the smaller their id is, more or less, and `column` has no index."""
    first = select(table.c.id, table.c[column].label("at")).order_by(table.c.id).limit(PORTION).subquery()
    return await _delete(connection, table, select(first.c.id).where(first.c.at < before))


async def _surplus(table: FromClause, most: int, connection: AsyncConnection) -> int:
    """Delete a portion of the rows beyond the newest `most`."""
    newest = select(table.c.id).order_by(table.c.id.desc()).offset(most).limit(1).scalar_subquery()
    return await _delete(connection, table, select(table.c.id).where(table.c.id <= newest).order_by(table.c.id))


async def _over(table: FromClause, going_on: str, before: float, connection: AsyncConnection) -> int:
    """Delete a portion of the rollouts or schedules that began before and do not go on."""
    over = and_(table.c.created_at < before, table.c.status != going_on)
    if table is tables.schedules:
        ids = select(tables.schedules.c.schedule_id).where(over)
        await connection.execute(delete(tables.schedule_runs).where(tables.schedule_runs.c.schedule_id.in_(ids)))
    return await _delete(connection, table, select(*table.primary_key).where(over))


async def _commands(before: float, connection: AsyncConnection) -> int:
    commands, events = tables.commands, tables.command_events
    old = select(commands.c.command_id).where(commands.c.status.in_(_FINISHED), commands.c.expires_at < before)
    ids = list((await connection.execute(old.limit(PORTION))).scalars())
    for table in (events, commands):
        await connection.execute(delete(table).where(table.c.command_id.in_(ids)))
    return len(ids)


async def _delete(connection: AsyncConnection, table: FromClause, keys: Select[Any]) -> int:
    """Delete a portion of the rows whose primary keys are selected."""
    some = keys.limit(PORTION)
    columns = list(table.primary_key)
    key = tuple_(*columns) if len(columns) > 1 else columns[0]
    condition: ColumnElement[bool] = key.in_(some)
    return (await connection.execute(delete(cast("Table", table)).where(condition))).rowcount
