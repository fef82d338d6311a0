"""The schema's migrations, by Alembic: from any earlier version of the bridge to this one, all of it or nothing.

Alembic is imported when there is something to migrate. Most starts have nothing, and are a quarter of a second faster
and 9 MB smaller without it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from sqlalchemy import Connection, inspect, text
from sqlalchemy.ext.asyncio import AsyncConnection

import bridge
from bridge.errors import StartError
from bridge.storage import engine, hypertable
from bridge.storage.faults import is_driver_error, wrap_at_start
from bridge.storage.lock import ADVISORY_KEY, FileLock

if TYPE_CHECKING:
    from alembic.config import Config

T = TypeVar("T")

_REVISION: Final = re.compile(r'^(down_)?revision = "(\w+)"$', re.MULTILINE)
_STORED: Final = text("SELECT version_num FROM alembic_version")
_PACKAGE: Final = Path(bridge.__file__).parent


def folder() -> Path:
    """Where the migrations are: in an installed wheel inside the package, in a checkout beside it."""
    for candidate in (_PACKAGE / "migrations", _PACKAGE.parent / "migrations"):
        if (candidate / "env.py").is_file():
            return candidate
    raise StartError(f"the migrations are missing beside or in {_PACKAGE}: install the package again")


def config(connection: Connection | None = None) -> Config:
    """Alembic's configuration, without a file."""
    from alembic.config import Config

    result = Config()
    # Alembic reads its options with %-interpolation.
    result.set_main_option("script_location", str(folder()).replace("%", "%%"))
    result.attributes["connection"] = connection
    return result


async def head() -> str:
    """The revision that this version of the bridge needs: the one that no other one follows."""
    revisions: set[str] = set()
    followed: set[str] = set()
    for file in (folder() / "versions").glob("*.py"):
        for down, name in _REVISION.findall(file.read_text()):
            (followed if down else revisions).add(name)
    if len(heads := revisions - followed) != 1:
        raise StartError(f"{folder()} holds {len(heads) or 'no'} last migrations: install the package again")
    return heads.pop()


async def current(url: str) -> str | None:
    """The revision of the database, None for an empty one. Makes no file. Raises StartError."""
    parsed = engine.parse(url)
    if engine.dialect_of(parsed) == "sqlite":
        path = engine.sqlite_path(parsed)
        if path is not None and not path.exists():
            return None
    return await _run(url, _revision)


async def stored(connection: AsyncConnection) -> str | None:
    """The revision of a database that has been migrated."""
    found: str | None = (await connection.execute(_STORED)).scalar_one_or_none()
    return found


async def upgrade(url: str, *, timescaledb: bool = True) -> str:
    """Bring the schema to `head` and return it. All migrations run in one transaction: one that fails leaves the
    old schema. `timescaledb`: whether an empty database may use it (see hypertable), where the server has it.

    Raises StartError: the database cannot be reached (DatabaseAwayError), belongs to a newer bridge, is in use by a
    running bridge (when there is something to do), or a migration failed.
    """
    wanted = await head()
    if await current(url) == wanted:
        return wanted
    parsed = engine.parse(url)
    path = engine.sqlite_path(parsed) if engine.dialect_of(parsed) == "sqlite" else None
    if path is None:
        await _run(url, partial(_upgrade, timescaledb=timescaledb))
        return wanted
    if not path.absolute().parent.is_dir():
        raise StartError(f"database: the folder {path.absolute().parent} does not exist")
    lock = FileLock(path)
    lock.acquire()
    try:
        await _run(url, partial(_upgrade, timescaledb=False))
    finally:
        lock.release()
    return wanted


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(_STORED).scalar_one_or_none()


def _upgrade(connection: Connection, *, timescaledb: bool) -> None:
    from alembic import command
    from alembic.util.exc import CommandError

    if connection.dialect.name == "postgresql":
        locked = connection.execute(text(f"SELECT pg_try_advisory_xact_lock({ADVISORY_KEY})")).scalar_one()
        if not locked:
            raise StartError("the database is in use by a running bridge: stop it before it is migrated")
    empty = _revision(connection) is None
    try:
        command.upgrade(config(connection), "head")
    except CommandError as error:
        raise StartError(
            f"the database's schema is not known to this version, it may be from a newer one: {error}"
        ) from error
    if empty and timescaledb:
        hypertable.make(connection)


async def _run(url: str, fn: Callable[[Connection], T]) -> T:
    sql_engine = engine.writer_engine(engine.parse(url), exclusive=False)
    try:
        async with sql_engine.begin() as connection:
            return await connection.run_sync(fn)
    except Exception as error:
        if not is_driver_error(error):
            raise
        raise wrap_at_start(error, "database migration") from error
    finally:
        await sql_engine.dispose()
