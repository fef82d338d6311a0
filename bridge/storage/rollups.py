"""Rollups: what a field's readings of a minute and of an hour amount to, kept from the committed telemetry.

A cursor says up to which row (in the order of the commits) everything is rolled up. A portion of rows and the cursor
move in one transaction, so each row counts once, whatever fails; a late reading is added to its own minute.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, final

import structlog
from sqlalchemy import BigInteger, bindparam, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.errors import StorageError, StorageUnavailableError
from bridge.storage.database import Database
from bridge.storage.tables import cursors, telemetry

log = structlog.get_logger(__name__)

CURSOR: Final = "rollups"
PORTION: Final = 200
"""Rows in one transaction: with five fields each 10 to 20 milliseconds on SQLite, and so long a batch may have to wait
for it."""
SHARE: Final = 0.1
"""Of the time that may be spent on it while there is more to do; what is left over is done when there is less."""
SHARE_WHEN_BUSY: Final = 0.02
"""The same while readings come as fast as they can be committed: each commit waits for it."""
IDLE: Final = 2.0
"""Seconds to the next look when everything is rolled up: how old a rollup is at least."""
AGAIN_AFTER: Final = 5.0
"""Seconds to the next try when the database is away."""

_WIDTHS: Final = {"telemetry_minute": 60, "telemetry_hour": 3_600}

# Numbers at the top level of the payload, but not what the bridge itself reads in it.
_FIELDS: Final = {
    "sqlite": (
        "SELECT t.id, t.device_id, t.stream, t.ts, j.key AS field, CAST(j.value AS REAL) AS value"
        " FROM telemetry t, json_each(t.payload) j WHERE t.id > :after AND t.id <= :upto"
        " AND json_type(t.payload) = 'object' AND j.type IN ('integer', 'real') AND j.key NOT IN ('ts', 'id')"
        # Half a surrogate pair, which no reader could decode, is U+FFFD to GLOB.
        " AND j.key NOT GLOB '*' || char(65533) || '*' AND instr(j.key, char(0)) = 0"
    ),
    # A number may be larger than a double precision: NULL, and left out below.
    "postgresql": (
        "SELECT t.id, t.device_id, t.stream, t.ts, j.key AS field,"
        " CASE WHEN abs((j.value #>> '{}')::numeric) < 1e308 THEN (j.value #>> '{}')::float8 END AS value"
        " FROM telemetry t CROSS JOIN LATERAL"
        " json_each(CASE WHEN json_typeof(t.payload) = 'object' THEN t.payload ELSE '{}'::json END) j"
        " WHERE t.id > :after AND t.id <= :upto AND json_typeof(j.value) = 'number' AND j.key NOT IN ('ts', 'id')"
    ),
}
_START: Final = {
    "sqlite": "(CAST(ts AS INTEGER) / {width} * {width})",
    "postgresql": "(floor(ts / {width})::bigint * {width})",
}
_LESS, _MORE = {"sqlite": "min", "postgresql": "least"}, {"sqlite": "max", "postgresql": "greatest"}


def _statement(dialect: str, table: str, width: int) -> str:
    start = _START[dialect].format(width=width)
    group = "device_id, stream, field"
    return (
        f"WITH fields AS MATERIALIZED ({_FIELDS[dialect]}),"  # noqa: S608 - constants of this module alone
        f" ranked AS (SELECT *, {start} AS start,"
        f" row_number() OVER (PARTITION BY {group}, {start} ORDER BY ts DESC, id DESC) AS newest"
        f" FROM fields WHERE value IS NOT NULL AND abs(value) < 1e308)"
        f" INSERT INTO {table} ({group}, start, count, min, max, sum, last_ts, last)"
        f" SELECT {group}, start, count(*), min(value), max(value), sum(value), max(ts),"
        " max(CASE WHEN newest = 1 THEN value END)"
        f" FROM ranked WHERE true GROUP BY {group}, start"
        f" ON CONFLICT ({group}, start) DO UPDATE SET count = {table}.count + excluded.count,"
        f" min = {_LESS[dialect]}({table}.min, excluded.min), max = {_MORE[dialect]}({table}.max, excluded.max),"
        f" sum = {table}.sum + excluded.sum,"
        f" last = CASE WHEN excluded.last_ts >= {table}.last_ts THEN excluded.last ELSE {table}.last END,"
        f" last_ts = {_MORE[dialect]}({table}.last_ts, excluded.last_ts)"
    )


_STATEMENTS: Final = {
    dialect: [
        text(_statement(dialect, table, width)).bindparams(
            bindparam("after", type_=BigInteger), bindparam("upto", type_=BigInteger)
        )
        for table, width in _WIDTHS.items()
    ]
    for dialect in ("sqlite", "postgresql")
}
_MOVE: Final = text(
    "INSERT INTO cursors (name, position) VALUES (:name, :position)"
    " ON CONFLICT (name) DO UPDATE SET position = excluded.position"
).bindparams(bindparam("position", type_=BigInteger))


@final
class Rollups:
    """Keeps the rollups up to date. `busy` says whether intake could use all of the database at the moment."""

    def __init__(self, database: Database, busy: Callable[[], bool] = lambda: False) -> None:
        self.rows = 0
        """Rows rolled up since the start."""
        self.skipped = 0
        """Rows of which the database could make no numbers."""
        self._database = database
        self._busy = busy

    async def run(self) -> None:
        """Roll up what is committed, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                done = await self.advance()
            except (StorageUnavailableError, StorageError) as error:
                log.warning("rollups wait for the database", error=str(error))
                await asyncio.sleep(AGAIN_AFTER)
                continue
            share = SHARE_WHEN_BUSY if self._busy() else SHARE
            await asyncio.sleep((loop.time() - began) / share if done == PORTION else IDLE)

    async def advance(self, portion: int = PORTION) -> int:
        """Roll up the next rows, at most `portion`; returns how many there were."""
        try:
            done = await self._database.maintain(lambda connection: _advance(connection, portion))
        except StorageError as error:
            if portion > 1:
                return await self.advance(portion // 2)
            # As a text that is JSON for us and that the database cannot read. It is left out, not in the way.
            log.warning("a reading could not be rolled up", error=str(error))
            self.skipped += 1
            done = await self._database.maintain(lambda connection: _advance(connection, 1, skip=True))
        self.rows += done
        return done

    async def behind(self) -> int:
        """How many committed rows are not rolled up yet, counted up to 100,000."""
        return await self._database.read(_behind)


async def position(connection: AsyncConnection, name: str) -> int:
    """How far a reader of committed rows has come; 0 at the beginning."""
    found = await connection.execute(select(cursors.c.position).where(cursors.c.name == name))
    return int(found.scalar() or 0)


async def _advance(connection: AsyncConnection, portion: int, *, skip: bool = False) -> int:
    after = await position(connection, CURSOR)
    ids = select(telemetry.c.id).where(telemetry.c.id > after).order_by(telemetry.c.id).limit(portion).subquery()
    upto, count = (await connection.execute(select(func.max(ids.c.id), func.count()).select_from(ids))).one()
    if not count:
        return 0
    if not skip:
        for statement in _STATEMENTS[connection.dialect.name]:
            await connection.execute(statement, {"after": after, "upto": upto})
    await connection.execute(_MOVE, {"name": CURSOR, "position": upto})
    return int(count)


async def _behind(connection: AsyncConnection) -> int:
    after = await position(connection, CURSOR)
    some = select(telemetry.c.id).where(telemetry.c.id > after).limit(100_000).subquery()
    return int((await connection.execute(select(func.count()).select_from(some))).scalar_one())
