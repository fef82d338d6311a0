"""Many rows in few statements, for both databases.

SQLite: `executemany` lets go of Python's interpreter lock and takes it back for every row, and beside a busy event loop
each taking waits; so the rows of a batch go as one statement, and all statements of a batch in one visit to the
connection's thread. Statements come in sizes of powers of two, which the driver keeps prepared, and are filled up with
rows of NULLs that the statement leaves out: a fill costs less than the wait for a second statement.

PostgreSQL: one array per column through `unnest`, which unlike COPY knows ON CONFLICT.
"""

from __future__ import annotations

import sqlite3
from typing import Any, Final, final

from sqlalchemy import BigInteger, Column, Double, Integer, LargeBinary, Table, Text
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.storage import tables
from bridge.storage.direct import DirectConnection

_PARAMETERS: Final = 32_766
"""SQLite's limit for one statement (https://www.sqlite.org/limits.html, 9)."""

_POSTGRES_TYPES: Final[dict[type[Any], str]] = {
    BigInteger: "bigint",
    Integer: "integer",
    Double: "double precision",
    LargeBinary: "bytea",
    Text: "text",
}


@final
class Insert:
    """An INSERT of any number of rows; `conflict` is its ON CONFLICT clause."""

    def __init__(self, table: Table, columns: tuple[str, ...], conflict: str) -> None:
        self.width: Final = len(columns)
        names = ", ".join(columns)
        one = f"({', '.join('?' * self.width)})"
        head = f"INSERT INTO {table.name} ({names})"
        largest = _PARAMETERS // self.width
        # Only our own tables' and columns' names go into the text.
        self._sqlite: Final = [
            (2**n, f"{head} SELECT * FROM (VALUES {', '.join([one] * 2**n)}) WHERE column1 IS NOT NULL {conflict}")  # noqa: S608
            for n in range(largest.bit_length())
            if 2**n <= largest
        ]
        arrays = ", ".join(f"${i}::{_postgres_type(table.c[c])}[]" for i, c in enumerate(columns, 1))
        values = ", ".join(f"u.{c}::json" if table.c[c].type is tables.JSON else f"u.{c}" for c in columns)
        rows = f"unnest({arrays}) AS u({names})"
        self._postgres: Final = (
            _telemetry_on_postgres(head, values, rows)
            if table is tables.telemetry
            else f"{head} SELECT {values} FROM {rows} {conflict}"  # noqa: S608 - our own tables and columns
        )

    def on_sqlite(self, connection: sqlite3.Connection, flat: list[Any]) -> int:
        """Insert the rows whose values follow each other in `flat`; returns how many the database took."""
        taken = 0
        largest = self._sqlite[-1][0] * self.width
        for position in range(0, len(flat), largest):
            part = flat[position : position + largest]
            rows, sql = next(sized for sized in self._sqlite if sized[0] * self.width >= len(part))
            part += [None] * (rows * self.width - len(part))
            taken += connection.execute(sql, part).rowcount
        return taken

    async def on_postgres(self, connection: AsyncConnection, flat: list[Any]) -> int:
        """The same on PostgreSQL."""
        columns = tuple(flat[column :: self.width] for column in range(self.width))
        result = await connection.exec_driver_sql(self._postgres, columns)
        return result.rowcount


def _telemetry_on_postgres(head: str, values: str, rows: str) -> str:
    """Rows whose message id is known are left out; the others' message ids become known. One statement, so that a batch
    without message ids pays nothing but a look at its nulls."""
    return (
        f"WITH u AS MATERIALIZED (SELECT * FROM {rows}), fresh AS ("  # noqa: S608 - our own tables and columns
        "INSERT INTO message_ids SELECT device_id, stream, message_id, received_at FROM ("
        "SELECT DISTINCT ON (device_id, stream, message_id) * FROM u WHERE message_id IS NOT NULL"
        " ORDER BY device_id, stream, message_id, id) AS first"
        " ON CONFLICT DO NOTHING RETURNING device_id, stream, message_id)"
        f" {head} SELECT {values} FROM u WHERE u.message_id IS NULL UNION ALL"
        f" SELECT {values} FROM (SELECT DISTINCT ON (device_id, stream, message_id) u.* FROM u"
        " JOIN fresh USING (device_id, stream, message_id)"
        " ORDER BY device_id, stream, message_id, id) AS u ON CONFLICT DO NOTHING"
    )


def _postgres_type(column: Column[Any]) -> str:
    return next(name for kind, name in _POSTGRES_TYPES.items() if isinstance(column.type, kind))


async def insert(connection: AsyncConnection, work: list[tuple[Insert, list[Any]]]) -> list[int]:
    """Run several inserts in order; for each, how many rows the database took."""
    if connection.dialect.name == "postgresql":
        return [await statement.on_postgres(connection, flat) for statement, flat in work]

    def visit(raw: sqlite3.Connection) -> list[int]:
        return [statement.on_sqlite(raw, flat) for statement, flat in work]

    if isinstance(connection, DirectConnection):
        return visit(connection.raw)
    return await _in_thread(connection, visit)


async def _in_thread(connection: AsyncConnection, visit: Any) -> list[int]:
    driver: Any = (await connection.get_raw_connection()).driver_connection
    # Not public in aiosqlite, whose version is bounded for it: its public methods cost one hop to the thread per
    # statement, and a hop beside a busy loop costs more than the statement. A test fails when it changes.
    result: list[int] = await driver._execute(visit, driver._conn)
    return result


TELEMETRY: Final = Insert(
    tables.telemetry,
    ("id", "device_id", "stream", "ts", "received_at", "message_id", "payload"),
    "ON CONFLICT DO NOTHING",
)

INBOUND_ONCE: Final = Insert(tables.inbound_once, ("client_id", "packet_id"), "ON CONFLICT DO NOTHING")

DEVICES: Final = Insert(
    tables.devices,
    ("device_id", "profile", "first_seen", "last_seen", "messages", "status", "epoch", "state", "admission"),
    # A snapshot may be older than the last transition: status and epoch never go back. And older than a change of the
    # profile, which overtakes it: that column is the registry's.
    "ON CONFLICT (device_id) DO UPDATE SET first_seen = excluded.first_seen,"
    " last_seen = excluded.last_seen, messages = excluded.messages, state = excluded.state,"
    " status = CASE WHEN excluded.epoch >= devices.epoch THEN excluded.status ELSE devices.status END,"
    " epoch = CASE WHEN excluded.epoch >= devices.epoch THEN excluded.epoch ELSE devices.epoch END",
)

DEVICE_STATUS: Final = Insert(
    tables.devices,
    ("device_id", "first_seen", "last_seen", "status", "epoch"),
    "ON CONFLICT (device_id) DO UPDATE SET status = excluded.status, epoch = excluded.epoch"
    " WHERE excluded.epoch >= devices.epoch",
)

PRESENCE: Final = Insert(tables.presence, ("device_id", "epoch", "status", "cause", "at"), "ON CONFLICT DO NOTHING")

AGENT_STATES: Final = Insert(
    tables.agent_states,
    ("device_id", "agent", "version", "state", "timers", "due"),
    "ON CONFLICT (device_id, agent) DO UPDATE SET version = excluded.version, state = excluded.state,"
    " timers = excluded.timers, due = excluded.due",
)
DEAD_LETTERS: Final = Insert(
    tables.dead_letters,
    ("id", "at", "topic", "device_id", "reason", "error", "payload", "size"),
    "ON CONFLICT DO NOTHING",
)
