"""Which errors of the database may go away by themselves. Decided here, and nowhere else, for both drivers."""

from __future__ import annotations

import sqlite3
from typing import Final

from sqlalchemy.exc import DBAPIError, PendingRollbackError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from bridge.errors import BridgeError, DatabaseAwayError, StartError, StorageError, StorageUnavailableError

_SQLITE_RETRIABLE: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_PROTOCOL,
        # The next are cured by a person, not by time. They are still no fault of the data: nothing may be
        # acknowledged or thrown away because the disk is full or broken.
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
    }
)

# https://www.postgresql.org/docs/15/errcodes-appendix.html
_POSTGRES_RETRIABLE_CLASSES: Final = frozenset(
    {
        "08",  # connection exception
        "53",  # insufficient resources: disk full, out of memory, too many connections
        "58",  # system error: I/O and the like
        "XX",  # internal error, corrupted data or index
    }
)
_POSTGRES_RETRIABLE: Final = frozenset(
    {
        "25006",  # read-only transaction: a server that has just become a replica
        "40001",  # serialization failure
        "40P01",  # deadlock detected
        "40003",  # statement completion unknown
        "55006",  # object in use
        "55P03",  # lock not available
        "57014",  # query canceled: statement_timeout, or a person
        "57P01",  # admin shutdown
        "57P02",  # crash shutdown
        "57P03",  # cannot connect now: starting up or shutting down
        "57P05",  # idle session timeout
    }
)


def is_retriable(error: BaseException) -> bool:
    """Whether the same statements may succeed later without anybody changing them."""
    if isinstance(error, BridgeError):
        return isinstance(error, StorageUnavailableError)
    if isinstance(error, DBAPIError):
        if error.connection_invalidated:
            return True
        return error.orig is not None and is_retriable(error.orig)
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", None)
        if code is None:
            # aiosqlite's own: its connection was closed under us.
            return isinstance(error, sqlite3.OperationalError)
        return (code & 0xFF) in _SQLITE_RETRIABLE
    sqlstate = getattr(error, "sqlstate", None)
    if isinstance(sqlstate, str):
        return sqlstate[:2] in _POSTGRES_RETRIABLE_CLASSES or sqlstate in _POSTGRES_RETRIABLE
    # OSError holds refused, reset and unresolved connections, TimeoutError asyncpg's command_timeout too.
    return isinstance(error, OSError | TimeoutError | PoolTimeoutError | PendingRollbackError)


def is_driver_error(error: BaseException) -> bool:
    """Whether `error` came from below: the database, its driver or the network. Such errors are wrapped."""
    return isinstance(error, SQLAlchemyError | sqlite3.Error | OSError) or hasattr(error, "sqlstate")


def wrap(error: Exception) -> BridgeError:
    """The bridge's error for a driver's error. Raise it `from` the original."""
    if isinstance(error, BridgeError):
        return error
    origin = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    text = str(origin).strip().partition("\n")[0] or (
        "the database did not answer in time" if isinstance(origin, TimeoutError) else type(origin).__name__
    )
    return StorageUnavailableError(text) if is_retriable(error) else StorageError(text)


def wrap_at_start(error: Exception, what: str) -> StartError:
    """The same for what ends a start; DatabaseAwayError if it may go away by itself."""
    wrapped = wrap(error)
    kind = DatabaseAwayError if isinstance(wrapped, StorageUnavailableError) else StartError
    return kind(f"{what}: {wrapped}")
