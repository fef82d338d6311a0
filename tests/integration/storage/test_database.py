"""Opening, sharing and asking the database."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.breaker import State
from bridge.errors import StartError, StorageError, StorageUnavailableError
from bridge.storage import bulk, tables
from bridge.storage import database as database_module
from bridge.storage.database import Database
from bridge.storage.lock import HeldError
from tests.integration.storage.witness import Witness


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("nonsense", "not a URL"),
        ("mysql://localhost/x", "not supported"),
        ("sqlite:///x.db", "not supported"),
        ("sqlite+aiosqlite://", "needs a file"),
        ("sqlite+aiosqlite:///:memory:", "needs a file"),
        ("sqlite+aiosqlite:////no/such/folder/x.db", "does not exist"),
        ("postgresql+asyncpg://bridge:secret@127.0.0.1:1/x", "refused|connect"),
    ],
)
async def test_a_wrong_url_is_explained_without_its_password(url: str, problem: str) -> None:
    with pytest.raises(StartError, match=f"(?i){problem}") as caught:
        await Database.open(url)
    assert "secret" not in str(caught.value)


async def test_a_second_bridge_is_told_who_is_there(
    url: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "_TAKEOVER_FOR", 0.0)
    with pytest.raises(HeldError, match=r"in use by mqtt-bridge process [0-9]+ on"):
        await Database.open(url)
    await database.ping()
    beside = await Database.open(url, exclusive=False)
    await beside.ping()
    await beside.close()
    await database.close()
    again = await Database.open(url)
    await again.close()


async def test_reads_cannot_write(database: Database) -> None:
    # Retried like every answer of a database that has just become a replica, until the breaker says enough.
    with pytest.raises(StorageUnavailableError):
        await database.read(lambda c: c.execute(text("INSERT INTO commit_marks VALUES (1, 1)")))


async def test_what_is_wrong_for_good_is_not_tried_again(database: Database) -> None:
    calls = 0

    async def wrong(connection: AsyncConnection) -> None:
        nonlocal calls
        calls += 1
        await connection.execute(text("SELECT * FROM nowhere"))

    with pytest.raises(StorageError, match="nowhere"):
        await database.read(wrong)
    with pytest.raises(StorageError, match="nowhere"):
        await database.write(wrong)
    assert calls == 2
    assert database.breaker.state is State.CLOSED


async def test_exceptions_of_the_callers_own_pass_through(database: Database, witness: Witness) -> None:
    async def fail(connection: AsyncConnection) -> None:
        if connection.get_isolation_level is None:
            raise AssertionError
        raise KeyError("mine")

    async def fail_after_insert(connection: AsyncConnection) -> None:
        await connection.execute(text("INSERT INTO commit_marks VALUES (1, 1)"))
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await database.read(fail)
    with pytest.raises(KeyError, match="mine"):
        await database.write(fail_after_insert)
    assert await witness.rows("SELECT * FROM commit_marks") == []


async def test_what_goes_away_by_itself_is_tried_again(database: Database) -> None:
    calls = 0

    async def flaky(connection: AsyncConnection) -> int:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise ConnectionResetError("gone")
        return int((await connection.execute(text("SELECT 42"))).scalar_one())

    assert await database.read(flaky) == 42
    calls = 0
    assert await database.write(flaky) == 42


async def test_more_reads_than_connections_wait_their_turn(url: str) -> None:
    database = await Database.open(url, pool_size=2)

    async def one(connection: AsyncConnection) -> int:
        return int((await connection.execute(text("SELECT 1"))).scalar_one())

    assert sum(await asyncio.gather(*(database.read(one) for _ in range(50)))) == 50
    await database.close()


async def test_a_cancelled_write_leaves_a_working_database(database: Database, witness: Witness) -> None:
    inserted = asyncio.Event()

    async def hang(connection: AsyncConnection) -> None:
        await connection.execute(text("INSERT INTO commit_marks VALUES (1, 1)"))
        inserted.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(database.write(hang))
    await inserted.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await witness.rows("SELECT * FROM commit_marks") == []

    async def insert(connection: AsyncConnection) -> None:
        await connection.execute(text("INSERT INTO commit_marks VALUES (1, 2)"))

    await database.write(insert)
    assert await witness.rows("SELECT batch FROM commit_marks") == [(2,)]


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
async def test_sqlite_syncs_at_every_commit_in_wal_mode(database: Database) -> None:
    async def pragmas(connection: AsyncConnection) -> list[object]:
        names = ("journal_mode", "synchronous")
        return [(await connection.execute(text(f"PRAGMA {name}"))).scalar_one() for name in names]

    assert await database.write(pragmas) == ["wal", 2]


@pytest.mark.parametrize("kind", [pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True)
async def test_postgres_that_does_not_wait_for_its_disk_is_made_to(url: str, witness: Witness) -> None:
    ((name,),) = await witness.rows("SELECT current_database()")
    await witness.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    database = await Database.open(url)

    async def setting(connection: AsyncConnection) -> object:
        return (await connection.execute(text("SHOW synchronous_commit"))).scalar_one()

    assert await database.write(setting) == "on"
    await database.close()


async def test_the_one_hop_into_aiosqlite_is_still_there(tmp_path: Path) -> None:
    """bulk.insert relies on `Connection._execute` and `_conn`, which aiosqlite does not promise."""
    async with aiosqlite.connect(tmp_path / "x.db") as connection:
        untyped: Any = connection
        result = await untyped._execute(lambda raw: raw.execute("SELECT 42").fetchone(), untyped._conn)
    assert result == (42,)


@pytest.mark.parametrize("rows", [0, 1, 3, 1023, 1024, 1025, 5000])
def test_any_number_of_rows_is_inserted_in_few_statements(rows: int) -> None:
    statements: list[str] = []
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE inbound_once (client_id, packet_id, PRIMARY KEY (client_id, packet_id))")
    connection.set_trace_callback(statements.append)
    flat: list[object] = []
    for number in range(rows):
        flat += ("c", number)
    assert bulk.INBOUND_ONCE.on_sqlite(connection, flat) == rows
    assert bulk.INBOUND_ONCE.on_sqlite(connection, flat) == 0
    connection.set_trace_callback(None)
    assert connection.execute(f"SELECT count(*) FROM {tables.inbound_once.name}").fetchone() == (rows,)
    inserts = sum(statement.startswith("INSERT") for statement in statements) / 2
    assert inserts <= rows // 1024 + 15
    connection.close()
