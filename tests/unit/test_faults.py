"""What is said of the database's errors, and which may go away by themselves."""

from __future__ import annotations

import sqlite3

import pytest

from bridge.errors import StorageError, StorageUnavailableError
from bridge.storage.faults import wrap


def sqlite(code: int, text: str) -> sqlite3.Error:
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (TimeoutError(), StorageUnavailableError, "the database did not answer in time"),
        (ConnectionRefusedError(111, "refused"), StorageUnavailableError, "[Errno 111] refused"),
        (sqlite(sqlite3.SQLITE_FULL, "database or disk is full"), StorageUnavailableError, "database or disk is full"),
        (sqlite(sqlite3.SQLITE_BUSY | 2 << 8, "database is locked"), StorageUnavailableError, "database is locked"),
        (sqlite(sqlite3.SQLITE_CONSTRAINT, "CHECK failed\nmore"), StorageError, "CHECK failed"),
    ],
)
def test_an_error_of_the_driver(error: Exception, kind: type[Exception], text: str) -> None:
    wrapped = wrap(error)
    assert (type(wrapped), str(wrapped)) == (kind, text)
