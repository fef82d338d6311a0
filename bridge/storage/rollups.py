"""Rollups: what a field's readings of a minute and of an hour amount to, kept from the committed telemetry.

Rows are read in the order of the commits and gathered in memory by minute, so that the many readings of a minute cost
the database one row. What is gathered is stored in portions, short ones, because on SQLite a batch waits for each. A
cursor says up to which row everything is stored, a second one how many groups of what follows are: the groups of the
same rows are always the same, in the same order, so each row counts once, whatever fails in between. A late reading is
added to its own minute.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final, final

import msgspec
import structlog
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.errors import StorageError, StorageUnavailableError
from bridge.storage import bulk, committed
from bridge.storage.database import Database
from bridge.storage.tables import cursors, telemetry, telemetry_hour, telemetry_minute

log = structlog.get_logger(__name__)

CURSOR: Final = "rollups"
UPTO: Final = "rollups:upto"
"""The last row of what is being stored."""
DONE: Final = "rollups:done"
"""How many of its groups are stored."""
PORTION: Final = 1_000
"""Rows that are read at once."""
GROUPS: Final = 500
"""Groups that are stored in one transaction: on SQLite some milliseconds, which is how long a batch may wait for it."""
MOST_GROUPS: Final = 100_000
"""Groups that are gathered in memory at most; then they are stored."""
FRESH: Final = 5.0
"""Seconds after which gathered groups are stored; a second more for each GROUPS_A_SECOND of them."""
GROUPS_A_SECOND: Final = 1_000
SHARE: Final = 0.1
"""Of the time that may be spent on it while there is more to do; what is left over is done when there is less."""
SHARE_WHEN_BUSY: Final = 0.02
"""The same while readings come as fast as they can be committed: each commit waits for it."""
IDLE: Final = 2.0
"""Seconds to the next look when everything has been read."""
AGAIN_AFTER: Final = 5.0
"""Seconds to the next try when the database is away."""
LARGEST: Final = 1e308
"""Larger numbers are left out: their sum would be infinite."""

Key = tuple[str, str, str, int]
"""Device, stream, field, and the Unix second at which the minute or hour begins."""
Minute = tuple[str, str, int]
"""Device, stream, and the Unix second at which the minute begins."""
Group = tuple[int, float, float, float, float, float]
"""Count, minimum, maximum, sum, time of the last reading, its value."""

_decode: Final = msgspec.json.Decoder().decode
_COLUMNS: Final = ("device_id", "stream", "field", "start", "count", "min", "max", "sum", "last_ts", "last")


def _upsert(table: Any) -> bulk.Insert:
    name = table.name
    return bulk.Insert(
        table,
        _COLUMNS,
        f"ON CONFLICT (device_id, stream, field, start) DO UPDATE SET count = {name}.count + excluded.count,"
        f" min = CASE WHEN excluded.min < {name}.min THEN excluded.min ELSE {name}.min END,"
        f" max = CASE WHEN excluded.max > {name}.max THEN excluded.max ELSE {name}.max END,"
        f" sum = {name}.sum + excluded.sum,"
        f" last = CASE WHEN excluded.last_ts >= {name}.last_ts THEN excluded.last ELSE {name}.last END,"
        f" last_ts = CASE WHEN excluded.last_ts >= {name}.last_ts THEN excluded.last_ts ELSE {name}.last_ts END",
    )


_MINUTES: Final = _upsert(telemetry_minute)
_HOURS: Final = _upsert(telemetry_hour)


@final
class Rollups:
    """Keeps the rollups up to date. `busy` says whether intake needs the database for itself at the moment."""

    def __init__(self, database: Database, busy: Callable[[], bool] = lambda: False) -> None:
        self.rows = 0
        """Rows rolled up since the start."""
        self.skipped = 0
        """Rows that hold no JSON object that could be read."""
        self._database = database
        self._busy = busy
        self._groups: dict[Minute, dict[str, Group]] = {}
        """By field within a minute: one key for each group would be most of the memory."""
        self._count = 0
        """Groups in `_groups`."""
        self._gathered = 0
        """Rows in `_groups`."""
        self._read_upto = -1
        """The last row that was read; -1 before the first look."""
        self._since = 0.0
        """Monotonic: when the first row in `_groups` was gathered."""

    async def run(self) -> None:
        """Roll up what is committed, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                read = await self._gather(PORTION)
                waited = loop.time() - self._since
                if self._gathered and (self._count >= MOST_GROUPS or waited >= FRESH + self._count / GROUPS_A_SECOND):
                    await self._store()
                    began = loop.time()  # it has kept to its share by itself
            except (StorageUnavailableError, StorageError) as error:
                log.warning("rollups wait for the database", error=str(error))
                await asyncio.sleep(AGAIN_AFTER)
                continue
            await asyncio.sleep((loop.time() - began) / self._share if read == PORTION else IDLE)

    async def advance(self, portion: int = PORTION) -> int:
        """Roll up the next rows, at most `portion`, at once; returns how many there were."""
        read = await self._gather(portion)
        await self._store()
        return read

    async def behind(self) -> int:
        """How many committed rows are not rolled up yet, counted up to 100,000."""
        return await self._database.read(_behind)

    @property
    def _share(self) -> float:
        return SHARE_WHEN_BUSY if self._busy() else SHARE

    # ------------------------------------------------------------------ reading

    async def _gather(self, portion: int) -> int:
        """Read the next rows and add them to the groups; returns how many there were."""
        if self._read_upto < 0:
            await self._finish()
        after = self._read_upto
        rows = await self._database.read(partial(_rows, after=after, upto=None, limit=portion))
        if rows and not self._gathered:
            self._since = asyncio.get_running_loop().time()
        self._add(rows)
        if rows:
            self._read_upto = rows[-1][0]
        return len(rows)

    def _add(self, rows: list[tuple[Any, ...]]) -> None:
        groups = self._groups
        for _id, device_id, stream, ts, payload in rows:
            try:
                values = _decode(payload)
            except (msgspec.DecodeError, RecursionError):
                values = None
            if not isinstance(values, dict):
                self.skipped += 1
                continue
            minute = device_id, stream, int(ts) // 60 * 60
            fields = groups.get(minute)
            for field, value in values.items():
                if (type(value) is not float and type(value) is not int) or field in ("ts", "id"):
                    continue
                if not -LARGEST < value < LARGEST or "\0" in field:
                    continue
                if fields is None:
                    fields = groups[minute] = {}
                group = fields.get(field)
                self._count += group is None
                number = float(value)
                fields[field] = _merged(group, (1, number, number, number, ts, number))
        self._gathered += len(rows)

    # ------------------------------------------------------------------ storing

    async def _finish(self) -> None:
        """Take up where the last run ended, in the middle of what it was storing or not."""
        cursor, upto, done = await self._database.read(_positions)
        self._read_upto = cursor
        if done and upto > cursor:
            while rows := await self._database.read(partial(_rows, after=self._read_upto, upto=upto, limit=PORTION)):
                self._add(rows)
                self._read_upto = rows[-1][0]
            await self._store(done)

    async def _store(self, done: int = 0) -> None:
        """Store the groups, from the one with the number `done` on, and then the cursor. What fails is tried again with
        the same groups."""
        loop = asyncio.get_running_loop()
        groups = self._groups
        keys = sorted(
            (device_id, stream, field, start)
            for (device_id, stream, start), fields in groups.items()
            for field in fields
        )
        while True:
            began = loop.time()
            some = {key: groups[key[0], key[1], key[3]][key[2]] for key in keys[done : done + GROUPS]}
            last = done + len(some) == len(keys)
            await self._again(partial(self._store_some, some, done, last))
            done += len(some)
            if last:
                break
            await asyncio.sleep((loop.time() - began) / self._share)
        self.rows += self._gathered
        self._groups, self._count, self._gathered = {}, 0, 0

    async def _again(self, work: Callable[[AsyncConnection], Awaitable[None]]) -> None:
        # Not given up: what is gathered in memory goes with what is stored already.
        while True:
            try:
                await self._database.maintain(work)
            except (StorageUnavailableError, StorageError) as error:
                log.warning("rollups wait for the database", error=str(error))
                await asyncio.sleep(AGAIN_AFTER)
            else:
                return

    async def _store_some(self, some: Mapping[Key, Group], done: int, last: bool, connection: AsyncConnection) -> None:
        upto = self._read_upto
        cursor, stored_upto, stored_done = await _positions(connection)
        if cursor >= upto or (stored_upto == upto and stored_done >= done + len(some) and some):
            return  # the answer to its COMMIT was lost
        if some:
            hours: dict[Key, Group] = {}
            for (device_id, stream, field, start), group in some.items():
                key = device_id, stream, field, start // 3_600 * 3_600
                hours[key] = _merged(hours.get(key), group)
            await bulk.insert(connection, [(_MINUTES, _flat(some)), (_HOURS, _flat(hours))])
        positions = {UPTO: upto, DONE: 0 if last else done + len(some)}
        await committed.move(connection, {**positions, CURSOR: upto} if last else positions)


def _merged(group: Group | None, other: Group) -> Group:
    """Both; of two readings of the same moment the one of `other` is the last."""
    if group is None:
        return other
    count, low, high, total, last_ts, last = group
    other_count, other_low, other_high, other_total, other_ts, other_last = other
    later = other_ts >= last_ts
    return (
        count + other_count,
        other_low if other_low < low else low,
        other_high if other_high > high else high,
        total + other_total,
        other_ts if later else last_ts,
        other_last if later else last,
    )


def _flat(groups: Mapping[Key, Group]) -> list[Any]:
    return [value for key, group in groups.items() for value in (*key, *group)]


async def _rows(connection: AsyncConnection, *, after: int, upto: int | None, limit: int) -> list[tuple[Any, ...]]:
    query = (
        select(telemetry.c.id, telemetry.c.device_id, telemetry.c.stream, telemetry.c.ts, telemetry.c.payload)
        .where(telemetry.c.id > after)
        .order_by(telemetry.c.id)
        .limit(limit)
    )
    if upto is not None:
        query = query.where(telemetry.c.id <= upto)
    return [tuple(row) for row in await connection.execute(query)]


async def _positions(connection: AsyncConnection) -> tuple[int, int, int]:
    """The cursor, and how far the storing of what follows has come."""
    query = select(cursors.c.name, cursors.c.position).where(cursors.c.name.in_((CURSOR, UPTO, DONE)))
    found = {name: int(position) for name, position in await connection.execute(query)}
    return found.get(CURSOR, 0), found.get(UPTO, 0), found.get(DONE, 0)


async def _behind(connection: AsyncConnection) -> int:
    cursor, _, _ = await _positions(connection)
    some = select(telemetry.c.id).where(telemetry.c.id > cursor).limit(100_000).subquery()
    return int((await connection.execute(select(func.count()).select_from(some))).scalar_one())
