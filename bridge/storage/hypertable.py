"""Telemetry in TimescaleDB's chunks, one for each day, instead of in partitions of our own.

Decided once, when a database's tables are made: on a server that has TimescaleDB loaded `telemetry` becomes a
hypertable, which makes its chunks itself as rows come. Nothing else of TimescaleDB is used, and nothing else changes:
columns, indexes and names are those of the partitioned table. A table that is partitioned already stays so.
"""

from __future__ import annotations

from typing import Final

import structlog
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.errors import StartError
from bridge.storage.faults import is_retriable, wrap

log = structlog.get_logger(__name__)

# Not every role may see shared_preload_libraries, but settings of a library that is loaded; and to create the extension
# where the library is not loaded ends the session.
_LOADED: Final = "EXISTS (SELECT FROM pg_settings WHERE name = 'timescaledb.max_background_workers')"
_USABLE: Final = text(
    "SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'timescaledb') AND " + _LOADED  # noqa: S608 - constant
)
_SCHEMA: Final = text(
    "SELECT quote_ident(nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace"
    " WHERE extname = 'timescaledb'"
)
# A partitioned table's indexes are parents of its partitions' indexes.
_INDEXES: Final = text(
    "SELECT child.relname, parent.relname FROM pg_inherits i JOIN pg_index x ON x.indexrelid = i.inhparent"
    " JOIN pg_class child ON child.oid = i.inhrelid JOIN pg_class parent ON parent.oid = i.inhparent"
    " WHERE x.indrelid = 'telemetry'::regclass"
)
_THERE: Final = text("SELECT relkind = 'r' FROM pg_class WHERE oid = 'telemetry'::regclass")
_LAYOUT: Final = text(
    "SELECT c.relkind = 'r' AS there, e.extversion, " + _LOADED + " AS loaded"  # noqa: S608 - constant
    " FROM pg_class c LEFT JOIN pg_extension e ON e.extname = 'timescaledb' WHERE c.oid = 'telemetry'::regclass"
)


def make(connection: Connection) -> None:
    """Make a hypertable of the empty `telemetry` that the migrations have made, if the server can. What keeps
    TimescaleDB from it is logged, and the partitioned table stays."""
    if not connection.execute(_USABLE).scalar_one():
        return
    try:
        with connection.begin_nested():
            _make(connection)
    except DBAPIError as error:
        if is_retriable(error):
            raise  # the server is gone, and with it the transaction
        log.warning("TimescaleDB cannot be used, telemetry goes into partitions", error=str(wrap(error)))


def _make(connection: Connection) -> None:
    connection.execute(text("CREATE EXTENSION IF NOT EXISTS timescaledb"))
    schema = connection.execute(_SCHEMA).scalar_one()
    # The default partition has the columns and indexes of the whole, those of later migrations too.
    indexes = connection.execute(_INDEXES).all()
    connection.execute(text("ALTER TABLE telemetry DETACH PARTITION telemetry_other"))
    connection.execute(text("DROP TABLE telemetry"))
    connection.execute(text("ALTER TABLE telemetry_other RENAME TO telemetry"))
    for name, wanted in indexes:
        connection.execute(text(f'ALTER INDEX "{name}" RENAME TO "{wanted}"'))
    connection.execute(
        text(
            f"SELECT {schema}.create_hypertable('telemetry', {schema}.by_range('received_at', INTERVAL '1 day',"
            " 'to_timestamp(double precision)'\\:\\:regprocedure), create_default_indexes => false)"
        )
    )


async def there(connection: AsyncConnection) -> bool:
    """Whether telemetry is in a hypertable."""
    return bool((await connection.execute(_THERE)).scalar_one())


async def layout(connection: AsyncConnection) -> str:
    """Where telemetry is, for people. Raises StartError if it is in a hypertable that the server cannot serve."""
    found, version, loaded = (await connection.execute(_LAYOUT)).one()
    if not found:
        return "partitions by day"
    if version is None or not loaded:
        raise StartError(
            "telemetry is in a hypertable of TimescaleDB, which this server does not load: add timescaledb to its"
            " shared_preload_libraries and restart it"
        )
    return f"chunks by day (TimescaleDB {version})"


async def drop_before(connection: AsyncConnection, before: float) -> list[str]:
    """Drop the chunks that hold only what was received before `before`; returns their names."""
    schema = (await connection.execute(_SCHEMA)).scalar_one()
    drop = text(f"SELECT {schema}.drop_chunks('telemetry', older_than => to_timestamp(:before))")
    return list((await connection.execute(drop, {"before": before})).scalars())
