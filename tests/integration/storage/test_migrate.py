"""Migrations: from nothing to the tables that the code means, or back to where it was."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

import bridge
from bridge.errors import StartError
from bridge.storage import engine, migrate
from bridge.storage.database import Database
from bridge.storage.tables import metadata

BROKEN = '''"""A migration that fails half-way."""

import sqlalchemy as sa
from alembic import op

revision = "broken"
down_revision = "HEAD"


def upgrade() -> None:
    op.create_table("half", sa.Column("id", sa.Integer()))
    op.add_column("devices", sa.Column("half", sa.Text()))
    op.execute("INSERT INTO there_is_no_such_table VALUES (1)")
'''


async def broken(text: str = BROKEN) -> str:
    """A migration that follows the present head."""
    return text.replace("HEAD", await migrate.head())


async def test_the_head_is_the_one_that_alembic_finds() -> None:
    assert await migrate.head() == ScriptDirectory.from_config(migrate.config()).get_current_head()


async def test_from_empty_to_head_and_again(empty_url: str) -> None:
    assert await migrate.current(empty_url) is None
    head = await migrate.head()
    assert await migrate.upgrade(empty_url) == head
    assert await migrate.current(empty_url) == head
    assert await migrate.upgrade(empty_url) == head


async def test_the_migrations_make_the_tables_that_the_code_means(url: str) -> None:
    def differences(connection: Connection) -> list[object]:
        # PostgreSQL cannot compare two values of type json, which is how Alembic compares defaults there.
        defaults = connection.dialect.name == "sqlite"
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": defaults}
        )
        return list(compare_metadata(context, metadata))

    sql_engine = engine.reader_engine(engine.parse(url), 1)
    try:
        async with sql_engine.connect() as connection:
            found = await connection.run_sync(differences)
            names = await connection.run_sync(lambda c: set(inspect(c).get_table_names()))
    finally:
        await sql_engine.dispose()
    # Telemetry's partitions, their indexes, and its primary key are what PostgreSQL alone has.
    own = {name for name in names if name.startswith("telemetry_") and name not in metadata.tables}
    if engine.parse(url).get_backend_name() == "sqlite":
        assert own == set()
        assert [str(d) for d in found if "message_ids" not in str(d)] == []
        assert names == {*metadata.tables, "alembic_version"} - {"message_ids"}
    else:
        assert [d for d in found if "telemetry" not in str(d)] == []
        assert names == {*metadata.tables, "alembic_version", *own}


async def test_a_failed_migration_leaves_the_old_schema(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = tmp_path / "100%migrations"
    shutil.copytree(migrate.folder(), scripts, ignore=shutil.ignore_patterns("__pycache__"))
    (scripts / "versions" / "9999_broken.py").write_text(await broken())
    head = await migrate.head()
    with monkeypatch.context() as patched:
        patched.setattr(migrate, "folder", lambda: scripts)
        with pytest.raises(StartError, match="there_is_no_such_table"):
            await migrate.upgrade(url)
        assert await migrate.current(url) == head
    await test_the_migrations_make_the_tables_that_the_code_means(url)


async def test_a_newer_database_is_refused(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = tmp_path / "migrations"
    shutil.copytree(migrate.folder(), scripts, ignore=shutil.ignore_patterns("__pycache__"))
    newer = BROKEN.replace("there_is_no_such_table VALUES (1)", "half VALUES (1)")
    (scripts / "versions" / "9999_newer.py").write_text(await broken(newer))
    with monkeypatch.context() as patched:
        patched.setattr(migrate, "folder", lambda: scripts)
        assert await migrate.upgrade(url) == "broken"
    with pytest.raises(StartError, match="newer"):
        await migrate.upgrade(url)


async def test_a_running_bridge_is_not_migrated_under_its_feet(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = tmp_path / "migrations"
    shutil.copytree(migrate.folder(), scripts, ignore=shutil.ignore_patterns("__pycache__"))
    (scripts / "versions" / "9999_broken.py").write_text(await broken())
    database = await Database.open(url)
    assert await migrate.upgrade(url) == await migrate.head()
    with monkeypatch.context() as patched:
        patched.setattr(migrate, "folder", lambda: scripts)
        with pytest.raises(StartError, match="in use"):
            await migrate.upgrade(url)
    await database.close()


async def test_two_that_migrate_at_once_do_not_meet(empty_url: str) -> None:
    results = await asyncio.gather(*(migrate.upgrade(empty_url) for _ in range(2)), return_exceptions=True)
    head = await migrate.head()
    assert head in results
    assert all(isinstance(result, StartError | str) for result in results)
    assert await migrate.current(empty_url) == head


def test_the_wheels_folder_comes_before_the_checkouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "bridge"
    monkeypatch.setattr(migrate, "_PACKAGE", package)
    with pytest.raises(StartError, match="missing"):
        migrate.folder()
    for folder in (tmp_path / "migrations", package / "migrations"):
        folder.mkdir(parents=True)
        (folder / "env.py").touch()
        assert migrate.folder() == folder
    monkeypatch.undo()
    assert migrate.folder().parent in (Path(bridge.__file__).parent, Path(bridge.__file__).parents[1])
