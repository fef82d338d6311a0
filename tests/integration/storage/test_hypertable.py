"""TimescaleDB, on a server that has it: used for a new database, never in the way. See docs/postgresql.md."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from sqlalchemy import text

from bridge.errors import StartError
from bridge.storage import hypertable, migrate
from bridge.storage.database import Database
from bridge.storage.retention import DAY, Keep, Retention
from bridge.storage.writer import Writer
from tests.integration.conftest import create, plain
from tests.integration.storage.witness import Witness, committed
from tests.servers import Postgres, program

NOW = 1_800_000_000.0
COLUMNS = (
    "SELECT column_name, data_type, is_nullable FROM information_schema.columns"
    " WHERE table_name = 'telemetry' ORDER BY ordinal_position"
)
INDEXES = "SELECT indexname, replace(indexdef, ' ONLY ', ' ') FROM pg_indexes WHERE tablename = 'telemetry' ORDER BY 1"
EXTENSION = "SELECT count(*) FROM pg_extension WHERE extname = 'timescaledb'"

pytestmark = pytest.mark.postgres


@pytest.fixture
def kind() -> str:
    return "postgresql"


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    """The database, closed whatever happens."""
    database = await Database.open(url)
    try:
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """A connection of the driver."""
    connection = await asyncpg.connect(plain(url))
    try:
        yield connection
    finally:
        await connection.close()


@pytest_asyncio.fixture
async def partitioned(empty_url: str) -> AsyncIterator[Database]:
    """A database that was set up without it, on the same server."""
    await migrate.upgrade(empty_url, timescaledb=False)
    async with opened(empty_url) as database:
        yield database


async def all_of(database: Database, query: str) -> list[Any]:
    """The rows of a query."""
    return list((await database.read(lambda connection: connection.execute(text(query)))).all())


async def test_a_hypertable_has_the_columns_and_indexes_of_the_partitioned_table(
    database: Database, partitioned: Database
) -> None:
    assert "chunks by day (TimescaleDB 2." in await database.read(hypertable.layout)
    assert await partitioned.read(hypertable.layout) == "partitions by day"
    for query in (COLUMNS, INDEXES):
        assert await all_of(database, query) == await all_of(partitioned, query)


async def test_a_database_with_partitions_keeps_them(
    empty_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await migrate.upgrade(empty_url, timescaledb=False)
    scripts = tmp_path / "migrations"
    shutil.copytree(migrate.folder(), scripts, ignore=shutil.ignore_patterns("__pycache__"))
    newer = f'revision = "newer"\ndown_revision = "{await migrate.head()}"\n\n\ndef upgrade() -> None:\n    pass\n'
    (scripts / "versions" / "9999_newer.py").write_text(newer)
    monkeypatch.setattr(migrate, "folder", lambda: scripts)
    assert await migrate.upgrade(empty_url) == "newer"
    async with opened(empty_url) as database:
        assert await database.read(hypertable.layout) == "partitions by day"
        assert await all_of(database, EXTENSION) == [(0,)]
        await Retention(database, Keep(telemetry=1.0), lambda: NOW).sweep()


async def test_chunks_come_with_their_rows_and_go_whole(database: Database, writer: Writer, witness: Witness) -> None:
    chunks = "SELECT count(*) FROM show_chunks('telemetry')"
    await Retention(database, Keep(), lambda: NOW).sweep()
    assert await witness.rows(chunks) == [(0,)]
    midnight = NOW // DAY * DAY
    for at in (midnight - DAY, midnight - 0.001, midnight, midnight + DAY - 0.001):
        writer.add_reading("d1", "s", 1.0, at, None, "{}", None)
    await committed(writer)
    assert await witness.rows(chunks) == [(2,)]
    assert await database.maintain(partial(hypertable.drop_before, before=midnight - 0.001)) == []
    assert len(await database.maintain(partial(hypertable.drop_before, before=midnight))) == 1
    assert await witness.rows("SELECT min(received_at), count(*) FROM telemetry") == [(midnight, 2)]


async def test_an_owner_of_the_database_who_is_no_superuser_gets_it(empty_url: str) -> None:
    assert await set_up_as(empty_url, owner=True) == (True, 1)


async def test_who_may_not_make_the_extension_gets_partitions(empty_url: str) -> None:
    assert await set_up_as(empty_url, owner=False) == (False, 0)


async def set_up_as(url: str, *, owner: bool) -> tuple[bool, int]:
    """Whether telemetry of a database that a plain role has set up is in a hypertable, and whether there is the
    extension. A role that does not own the database may make tables in it."""
    name = url.rpartition("/")[2]
    role = f"role_{name}"
    async with connected(url) as connection:
        await connection.execute(f"CREATE ROLE {role} LOGIN")
        await connection.execute(
            f"ALTER DATABASE {name} OWNER TO {role}" if owner else f"GRANT ALL ON SCHEMA public TO {role}"
        )
    await migrate.upgrade(url.replace("bridge@", f"{role}@"))
    async with opened(url) as database:
        return await database.read(hypertable.there), (await all_of(database, EXTENSION))[0][0]


async def test_what_fails_half_way_leaves_the_partitioned_table(
    empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hypertable, "_SCHEMA", text("SELECT 'nowhere'"))
    await migrate.upgrade(empty_url)
    async with opened(empty_url) as database:
        assert await all_of(database, EXTENSION) == [(0,)]
        await Retention(database, Keep(telemetry=1.0), lambda: NOW).sweep()
        assert await database.read(hypertable.layout) == "partitions by day"


async def test_a_dump_is_restored(
    database: Database, writer: Writer, url: str, postgres: Postgres, tmp_path: Path
) -> None:
    for day in range(3):
        writer.add_reading("d1", "s", 1.0, NOW + day * DAY, f"m{day}", '{"t":1}', None)
    await committed(writer)
    other = await create(postgres, "template1")
    dump = tmp_path / "dump"
    await asyncio.to_thread(
        subprocess.run, [program("pg_dump"), "-Fc", "-f", str(dump), plain(url)], check=True, capture_output=True
    )
    # As docs/postgresql.md says.
    async with connected(other) as connection:
        await connection.execute("CREATE EXTENSION timescaledb")
        await connection.execute("SELECT timescaledb_pre_restore()")
    await asyncio.to_thread(
        subprocess.run, [program("pg_restore"), "-d", plain(other), str(dump)], check=True, capture_output=True
    )
    async with connected(other) as connection:
        await connection.execute("SELECT timescaledb_post_restore()")
    async with opened(other) as restored:
        assert await all_of(restored, "SELECT message_id FROM telemetry ORDER BY id") == [("m0",), ("m1",), ("m2",)]
        assert len(await restored.maintain(partial(hypertable.drop_before, before=NOW + DAY))) == 1


async def test_a_server_that_no_longer_loads_it_is_named() -> None:
    with Postgres(durable=False, timescaledb=True) as server:
        await migrate.upgrade(server.url)
        await asyncio.to_thread(server.stop)
        server.timescaledb = False
        await asyncio.to_thread(server.start)
        async with opened(server.url) as database:
            with pytest.raises(StartError, match="shared_preload_libraries"):
                await database.read(hypertable.layout)
