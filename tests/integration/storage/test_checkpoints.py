"""SQLite's log is carried into the database file beside the commits, and begins anew."""

from __future__ import annotations

import itertools
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.receipts import Ledger, Outcome
from bridge.storage import checkpoints
from bridge.storage.database import Database
from bridge.storage.writer import Writer

pytestmark = pytest.mark.parametrize("kind", ["sqlite"], indirect=True)

_ids = itertools.count()


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints for a test's few rows."""
    monkeypatch.setattr(checkpoints, "ROWS", 10)
    monkeypatch.setattr(checkpoints, "PAUSE", 0.0)
    monkeypatch.setattr(checkpoints, "LARGE", 20)


async def commit_some(writer: Writer, ledger: Ledger) -> None:
    """A commit of a few rows, acknowledged."""
    receipts = [ledger.receipt(qos=1) for _ in range(5)]
    for receipt in receipts:
        writer.add_reading(f"d{next(_ids)}", "default", 1.0, 1.0, None, '{"n": 1}', receipt)
    await writer.barrier()
    assert {receipt.outcome for receipt in receipts} == {Outcome.COMMITTED}


def begun_anew(folder: Path) -> int:
    """How often the log has begun anew (https://www.sqlite.org/fileformat.html, 4.1: checkpoint sequence number)."""
    return int.from_bytes((folder / "bridge.db-wal").read_bytes()[12:16], "big")


@pytest.mark.usefixtures("often")
async def test_the_log_begins_anew_while_commits_go_on(writer: Writer, tmp_path: Path, ledger: Ledger) -> None:
    await commit_some(writer, ledger)
    before = begun_anew(tmp_path)
    for _ in range(500):
        await commit_some(writer, ledger)
        if begun_anew(tmp_path) > before:
            break
    # SQLite by itself would not have begun anew before 16,000 pages.
    assert begun_anew(tmp_path) > before


@pytest.mark.usefixtures("often")
async def test_a_checkpoint_that_fails_harms_no_commit(
    writer: Writer, database: Database, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    async def fail(*, alone: bool = False) -> tuple[int, int]:
        nonlocal tries
        tries += 1
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patched:
        patched.setattr(Database, "checkpoint", lambda _database, **options: fail(**options))
        while tries < 3:  # it is tried again and again
            await commit_some(writer, ledger)
    pages, carried = await database.checkpoint()
    assert pages == carried > 0


@pytest.mark.usefixtures("often")
async def test_stop_waits_for_the_checkpoint_under_way(
    database: Database, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Writer(database)
    await writer.start()
    running = 0
    original = Database.checkpoint

    async def watched(self: Database, *, alone: bool = False) -> tuple[int, int]:
        nonlocal running
        running += 1
        try:
            return await original(self, alone=alone)
        finally:
            running -= 1

    monkeypatch.setattr(Database, "checkpoint", watched)
    while not running:
        await commit_some(writer, ledger)
    await writer.stop(5.0)
    assert not running


async def test_a_lookup_goes_on_with_a_new_connection_after_an_error(database: Database) -> None:
    seen: list[object] = []

    async def look(connection: AsyncConnection) -> int:
        seen.append(connection)
        if len(seen) == 1:
            raise sqlite3.OperationalError("disk I/O error")
        return int((await connection.exec_driver_sql("SELECT 7")).scalar_one())

    assert await database.look_up(look) == 7
    assert await database.look_up(look) == 7
    assert seen[0] is not seen[1] is seen[2]
