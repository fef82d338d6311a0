"""Copies of an SQLite database: made while the bridge runs, checked before they count, put back when it does not."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from bridge.errors import StartError, StorageError, StorageUnavailableError
from bridge.storage.faults import wrap
from bridge.storage.lock import FileLock

BESIDE = ("-wal", "-shm")
"""What SQLite keeps beside a database: an old one beside a restored file would be taken for its newest changes."""


def backup(database: Path, target: Path) -> int:
    """Copy a database, running or not, into `target`, which must not be there; returns its size in bytes.

    The copy is as the database was at one moment, with all that had been acknowledged by then. It is a reader: the
    bridge goes on committing meanwhile. The file appears under its name when it is complete, checked, and on the disk.

    Raises StorageError or StorageUnavailableError: there is no such database, no room, or the copy is not sound.
    """
    if target.exists():
        raise StorageError(f"{target} is there already: choose another name, or remove it first")
    if not database.is_file():
        raise StorageError(f"there is no database {database}")
    part = target.with_name(target.name + ".part")
    part.unlink(missing_ok=True)
    try:
        with _wrapped(f"backup of {database} into {target}"):
            with contextlib.closing(sqlite3.connect(database)) as source:
                source.execute("VACUUM INTO ?", (str(part),))
            check(part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(target)
        _sync_folder(target.parent)
    finally:
        part.unlink(missing_ok=True)
    return target.stat().st_size


def restore(source: Path, database: Path) -> Path | None:
    """Put a backup in the place of a database that no bridge uses; returns where the old one is now, if there was one.

    Raises StartError when a bridge runs on it, StorageError when the backup is not sound.
    """
    with _wrapped(f"restore of {source}"):
        check(source)
    database.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(database)
    lock.acquire()
    try:
        part = database.with_name(database.name + ".part")
        with _wrapped(f"restore of {source}"), contextlib.closing(sqlite3.connect(source)) as copy:
            part.unlink(missing_ok=True)
            copy.execute("VACUUM INTO ?", (str(part),))
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        aside = _set_aside(database)
        part.replace(database)
        _sync_folder(database.parent)
    finally:
        lock.release()
    return aside


def check(path: Path) -> None:
    """Raises StorageError when `path` is no sound database of a bridge."""
    if not path.is_file():
        raise StorageError(f"there is no file {path}")
    with contextlib.closing(sqlite3.connect(f"file:{_quoted(path)}?mode=ro", uri=True)) as connection:
        try:
            found = [row[0] for row in connection.execute("PRAGMA integrity_check(10)")]
            tables = connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'alembic_version'").fetchone()
        except sqlite3.DatabaseError as error:
            raise StorageError(f"{path} is no SQLite database, or is damaged: {error}") from error
    if found != ["ok"]:
        raise StorageError(f"{path} is damaged: {'; '.join(found)}")
    if tables != (1,):
        raise StorageError(f"{path} is not the database of a bridge")


def _set_aside(database: Path) -> Path | None:
    """Rename the old database and what belongs to it, so that nothing of it is mistaken for the new one's."""
    if not database.exists():
        for suffix in BESIDE:
            database.with_name(database.name + suffix).unlink(missing_ok=True)
        return None
    number = 1
    while (aside := database.with_name(f"{database.name}.before-restore-{number}")).exists():
        number += 1
    # The log first: a database without its log is an older one, a log without its database is nothing.
    for suffix in (*BESIDE, ""):
        old = database.with_name(database.name + suffix)
        if old.exists():
            old.rename(aside.with_name(aside.name + suffix))
    return aside


@contextlib.contextmanager
def _wrapped(what: str) -> Iterator[None]:
    try:
        yield
    except (StartError, StorageError, StorageUnavailableError):
        raise
    except (sqlite3.Error, OSError) as error:
        raise StorageError(f"{what}: {wrap(error)}") from error


def _quoted(path: Path) -> str:
    """A path for an SQLite URI, in which ? # and % have a meaning."""
    return str(path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def _sync_folder(folder: Path) -> None:
    """A rename is on the disk when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
