"""`mqtt-bridge backup` and `restore`: an SQLite database, copied while the bridge runs."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bridge.cli.terminal import ConfigOption
from bridge.errors import SettingsError

if TYPE_CHECKING:
    from bridge.settings import Settings


def backup(
    target: Annotated[
        Path | None, typer.Argument(help="The file to make.", show_default="bridge-TIME.db in this folder")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Copy the SQLite database, while the bridge runs or not: all that was acknowledged by now is in the copy."""
    from bridge.settings import Settings
    from bridge.storage import backup as storage

    database = _database(Settings.load(config), "pg_dump")
    target = target or Path(f"bridge-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.db")
    size = storage.backup(database, target)
    print(f"{target}: {size:,} bytes, checked.")


def restore(
    source: Annotated[Path, typer.Argument(help="A file that `backup` has made.")],
    config: ConfigOption = None,
) -> None:
    """Put a backup in the place of the SQLite database. The bridge must be stopped; the old database is kept aside."""
    from bridge.settings import Settings
    from bridge.storage import backup as storage

    database = _database(Settings.load(config), "pg_restore")
    aside = storage.restore(source, database)
    print(f"{database} is now {source}." + (f" The old one is {aside}." if aside else ""))


def _database(settings: Settings, instead: str) -> Path:
    from bridge.storage import engine

    url = engine.parse(settings.database_url)
    path = engine.sqlite_path(url) if engine.dialect_of(url) == "sqlite" else None
    if path is None:
        raise SettingsError(f"the database is PostgreSQL: use {instead}, which works while the bridge runs")
    return path
