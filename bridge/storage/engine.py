"""SQLAlchemy engines as the bridge needs them, the same for migrations and for the running bridge."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal, cast

from sqlalchemy import Connection, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from bridge.errors import StartError
from bridge.storage import lock

Dialect = Literal["sqlite", "postgresql"]

SQLITE_BUSY_TIMEOUT: Final = 1.0
"""Seconds that SQLite itself waits for a lock; after that our own retry waits, which can be stopped."""
CONNECT_TIMEOUT: Final = 5.0
COMMAND_TIMEOUT: Final = 30.0
"""Seconds for one statement on PostgreSQL. A server that has stopped answering must not hold the writer for good."""

_DRIVERS: Final = {"sqlite": "aiosqlite", "postgresql": "asyncpg"}


def parse(url: str) -> URL:
    """The URL of a database, checked. Raises StartError that says which URLs there are."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise StartError(_usage("it is not a URL")) from error
    backend = parsed.get_backend_name()
    if _DRIVERS.get(backend) != parsed.get_driver_name():
        raise StartError(_usage(f"{parsed.drivername} is not supported"))
    if backend == "sqlite" and sqlite_path(parsed) is None:
        raise StartError(_usage("an SQLite database needs a file"))
    return parsed


def _usage(problem: str) -> str:
    # The URL itself is not shown: it may hold a password.
    return (
        f"database URL: {problem}; use sqlite+aiosqlite:////path/to/file.db"
        " or postgresql+asyncpg://user:password@host/database"
    )


def dialect_of(url: URL) -> Dialect:
    """The name of the database's dialect."""
    return cast("Dialect", url.get_backend_name())


def sqlite_path(url: URL) -> Path | None:
    """The database file of an SQLite URL, None for one in memory."""
    name = url.database
    return None if not name or name == ":memory:" or name.startswith("file:") else Path(name)


def reader_engine(url: URL, pool_size: int) -> AsyncEngine:
    """A pool of connections that cannot write."""
    if dialect_of(url) == "postgresql":
        return _postgres_engine(url, {"default_transaction_read_only": "on"}, pool_size)
    engine = _sqlite_engine(url, pool_size)

    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        # No BEGIN: every SELECT is a transaction of its own, which saves three hops to the connection's thread.
        _pragmas(connection, "query_only = ON")

    return engine


def writer_engine(url: URL, *, exclusive: bool) -> AsyncEngine:
    """The one connection that writes. `exclusive`: a PostgreSQL session that is not the only bridge on its database
    is refused, at every connect: a writer that lost its session must not go on beside a new bridge."""
    if dialect_of(url) == "postgresql":
        engine = _postgres_engine(url, {}, 1)

        @event.listens_for(engine.sync_engine, "connect")
        def connected(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
            _durable(connection)
            if exclusive:
                lock.acquire_advisory(connection)
            connection.commit()

        return engine

    engine = _sqlite_engine(url, 1)

    @event.listens_for(engine.sync_engine, "connect")
    def tuned(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        # A batch touches a page of the telemetry index per device. With 32 MiB of cache, and checkpoints for many
        # batches together (see checkpoints), such pages are taken to the disk once: 1.5 times the rows per second.
        # With 64 MiB in the log SQLite makes a checkpoint itself, inside a COMMIT: that is the log's limit.
        _pragmas(connection, "wal_autocheckpoint = 16000", "cache_size = -32768")

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        # IMMEDIATE: to wait for another writer at the beginning, where nothing is lost yet.
        cast("Any", connection.connection.dbapi_connection).run_async(_begin_immediate)

    return engine


async def _begin_immediate(connection: Any) -> None:
    # The driver's own method: one hop to the connection's thread where a cursor takes three.
    await connection.execute("BEGIN IMMEDIATE")


def _sqlite_engine(url: URL, pool_size: int) -> AsyncEngine:
    # No reset when a connection goes back into the pool: readers have no transaction, the writer always ends its own.
    engine = create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_reset_on_return=None,
        connect_args={"timeout": SQLITE_BUSY_TIMEOUT},
    )

    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        # The driver must not open transactions on its own: it does so before some statements and not before DDL.
        cast("Any", connection).isolation_level = None
        _pragmas(
            connection,
            "journal_mode = WAL",
            # FULL: in WAL mode NORMAL does not sync at COMMIT, and PUBACK means committed.
            "synchronous = FULL",
            "temp_store = MEMORY",
            # A WAL that once grew under a long read is cut back to 64 MiB.
            "journal_size_limit = 67108864",
        )

    return engine


def _pragmas(connection: DBAPIConnection, *pragmas: str) -> None:
    cursor = connection.cursor()
    for pragma in pragmas:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _postgres_engine(url: URL, settings: dict[str, str], pool_size: int) -> AsyncEngine:
    return create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        # The driver hands JSON through as text (see tables).
        json_deserializer=str,
        connect_args={
            "timeout": CONNECT_TIMEOUT,
            "command_timeout": COMMAND_TIMEOUT,
            "server_settings": {"application_name": lock.whoami(), **settings},
        },
    )


def _durable(connection: DBAPIConnection) -> None:
    cursor = connection.cursor()
    # A server that answers before its own disk has the commit cannot carry "PUBACK means committed".
    cursor.execute(
        "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
    )
    cursor.close()
