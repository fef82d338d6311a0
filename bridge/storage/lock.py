"""Only one bridge works on a database: two would give the same ids and acknowledge each other's work."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path
from typing import Any, Final, final

from sqlalchemy.engine.interfaces import DBAPIConnection

from bridge.errors import StartError

# "mqttbrdg" as a big-endian integer. Advisory locks count per database.
ADVISORY_KEY: Final = int.from_bytes(b"mqttbrdg", "big")

_HOLDER: Final = """
SELECT coalesce(a.application_name, '') || ', server process ' || l.pid
    || coalesce(', from ' || host(a.client_addr), '')
FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
    AND (l.classid::bigint << 32 | l.objid::bigint) = $1
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


class HeldError(StartError):
    """Another bridge holds the lock."""


@final
class FileLock:
    """The lock of an SQLite database: `flock` on a file beside it, gone with the process that holds it."""

    def __init__(self, database: Path) -> None:
        self.path: Final = database.with_name(database.name + ".lock")
        self._fd = -1

    def acquire(self) -> None:
        """Raises HeldError naming the holder, StartError if the file cannot be made."""
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StartError(f"cannot make the lock file {self.path}: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(fd, 200).decode(errors="replace").strip() or "another process"
            os.close(fd)
            raise HeldError(f"the database beside {self.path} is in use by {holder}") from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{whoami()}\n".encode(), 0)
        self._fd = fd

    def release(self) -> None:
        """The file stays: to remove it would let two processes lock two files of the same name."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def whoami() -> str:
    """How this process is named to others, on a lock or in pg_stat_activity."""
    return f"mqtt-bridge process {os.getpid()} on {socket.gethostname()}"[:63]


def acquire_advisory(connection: DBAPIConnection) -> None:
    """Lock a PostgreSQL database for as long as this session lives. Raises HeldError naming the holder."""
    cursor: Any = connection.cursor()
    try:
        cursor.execute(f"SELECT pg_try_advisory_lock({ADVISORY_KEY})")
        if cursor.fetchone()[0]:
            return
        cursor.execute(_HOLDER, (ADVISORY_KEY,))
        row = cursor.fetchone()
    finally:
        cursor.close()
    raise HeldError(f"the database is in use by {row[0] if row else 'another bridge'}")
