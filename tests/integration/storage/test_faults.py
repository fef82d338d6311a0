"""What befalls databases: nothing that was acknowledged is missing, and nothing is stored twice."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.breaker import Breaker, State
from bridge.errors import CircuitOpenError, StorageUnavailableError
from bridge.receipts import Ledger, Outcome, Receipt
from bridge.storage import database as database_module
from bridge.storage import engine
from bridge.storage.database import Database
from bridge.storage.writer import Writer
from tests.integration.conftest import plain
from tests.integration.storage.witness import Witness, nothing
from tests.servers import Postgres
from tests.waiting import eventually


def add(writer: Writer, number: int, receipt: Receipt | None, message_id: str | None = None) -> None:
    writer.add_reading("d1", "default", float(number), 1e9, message_id, f'{{"n": {number}}}', receipt)


async def count_up(connection: AsyncConnection) -> int:
    """A change that must not be applied twice."""
    if (await connection.execute(text("UPDATE retained SET qos = qos + 1 WHERE topic = 'count'"))).rowcount == 0:
        await connection.execute(text("INSERT INTO retained VALUES ('count', 'x', 1, 0)"))
    return int((await connection.execute(text("SELECT qos FROM retained WHERE topic = 'count'"))).scalar_one())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breakers that open for a short time, so that tests of long outages are not long tests."""

    def impatient(name: str, **settings: Any) -> Breaker:
        return Breaker(name, **(settings | {"open_for": 0.05, "max_open": 0.2}))

    monkeypatch.setattr(database_module, "Breaker", impatient)
    monkeypatch.setattr(engine, "SQLITE_BUSY_TIMEOUT", 0.05)


@pytest.fixture
def lost_answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`lost_answers(n)`: the next n COMMITs take place, and their answers never arrive."""
    left = 0
    original = Database.transact

    async def transact(self: Database, fn: Callable[[AsyncConnection], Awaitable[Any]]) -> Any:
        nonlocal left
        result = await original(self, fn)
        if left:
            left -= 1
            raise ConnectionResetError("the answer is lost")
        return result

    monkeypatch.setattr(Database, "transact", transact)

    def lose(count: int) -> None:
        nonlocal left
        left = count

    return lose


@pytest.mark.parametrize("lost", [1, 3])
async def test_rows_are_stored_once_when_the_answer_to_the_commit_is_lost(
    writer: Writer, ledger: Ledger, witness: Witness, lost_answers: Callable[[int], None], lost: int
) -> None:
    lost_answers(lost)
    receipts = [ledger.receipt(qos=1) for _ in range(30)]
    for number, receipt in enumerate(receipts):
        add(writer, number, receipt, "same" if number in (3, 4) else None)
    await eventually(lambda: ledger.in_flight == 0, "the commit")
    assert writer.stats.retries == lost
    # Number 4 is a duplicate of 3, and only that: a row that is there from the first attempt is not.
    duplicates = [n for n, receipt in enumerate(receipts) if receipt.outcome is Outcome.DEDUPLICATED]
    assert duplicates == [4]
    assert ledger.committed == 29
    assert await witness.rows("SELECT count(*) FROM telemetry") == [(29,)]


@pytest.mark.parametrize("lost", [1, 3])
async def test_changes_take_effect_once_when_the_answer_to_the_commit_is_lost(
    writer: Writer, witness: Witness, lost_answers: Callable[[int], None], lost: int
) -> None:
    for expected in (1, 2, 3):
        lost_answers(lost)
        assert await writer.submit(count_up) == expected
    assert await witness.rows("SELECT qos FROM retained") == [(3,)]


async def test_poison_is_kept_once_when_the_answer_to_the_commit_is_lost(
    writer: Writer, ledger: Ledger, witness: Witness, lost_answers: Callable[[int], None]
) -> None:
    lost_answers(2)
    for number in range(10):
        add(writer, number, ledger.receipt(qos=1), "\ud800" if number == 6 else None)
    await eventually(lambda: ledger.in_flight == 0, "the commit")
    assert (ledger.committed, ledger.dead_lettered) == (9, 1)
    assert await witness.rows("SELECT count(*) FROM telemetry") == [(9,)]
    assert await witness.rows("SELECT count(*) FROM dead_letters") == [(1,)]


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
@pytest.mark.usefixtures("quick")
async def test_sqlite_locked_by_another_program(url: str, ledger: Ledger, witness: Witness) -> None:
    database = await Database.open(url)
    writer = Writer(database)
    await writer.start()
    await witness.execute("BEGIN IMMEDIATE")
    for number in range(100):
        add(writer, number, ledger.receipt(qos=1))
    await eventually(lambda: database.breaker.opened > 0, "the breaker")
    assert ledger.in_flight == 100
    await witness.execute("COMMIT")
    await eventually(lambda: ledger.committed == 100, "the commit")
    assert database.breaker.state is State.CLOSED
    assert await witness.rows("SELECT count(*) FROM telemetry") == [(100,)]
    await writer.stop(5.0)
    await database.close()


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
@pytest.mark.usefixtures("quick")
async def test_what_cannot_be_committed_until_stop_stays_with_its_sender(
    url: str, ledger: Ledger, witness: Witness
) -> None:
    database = await Database.open(url)
    writer = Writer(database, batch_rows=10)
    await writer.start()
    await witness.execute("BEGIN IMMEDIATE")
    receipts = [ledger.receipt(qos=1) for _ in range(25)]
    for number, receipt in enumerate(receipts):
        add(writer, number, receipt)
    future = writer.submit(nothing)
    await eventually(lambda: writer.stats.retries > 0, "the first attempt")
    await writer.stop(0.2)
    assert {receipt.outcome for receipt in receipts} == {Outcome.RETRY}
    assert writer.pending == 0
    with pytest.raises(StorageUnavailableError):
        await future
    await witness.execute("COMMIT")
    assert await witness.rows("SELECT count(*) FROM telemetry") == [(0,)]
    await database.close()


@pytest.mark.parametrize("kind", [pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True)
@pytest.mark.parametrize("end", ["stop", "kill"])
@pytest.mark.usefixtures("quick")
async def test_postgres_goes_and_comes_back_under_load(url: str, postgres: Postgres, ledger: Ledger, end: str) -> None:
    database = await Database.open(url)
    writer = Writer(database, batch_rows=200)
    await writer.start()
    receipts: list[Receipt] = []
    sending = True

    async def send() -> None:
        for number in itertools.count():
            receipts.append(ledger.receipt(qos=1))
            add(writer, number, receipts[-1])
            if number % 20 == 0:
                await asyncio.sleep(0)
            if not sending or writer.congested:
                return

    sender = asyncio.create_task(send())
    try:
        await eventually(lambda: ledger.committed > 500, "the first commits")
        await asyncio.to_thread(getattr(postgres, end))
        await eventually(lambda: database.breaker.opened > 0, "the breaker")
        with pytest.raises(StorageUnavailableError):
            await database.read(lambda connection: connection.execute(text("SELECT 1")))
    finally:
        await asyncio.to_thread(postgres.start)
    await eventually(lambda: database.breaker.state is State.CLOSED, "the breaker to close")
    sending = False
    await sender
    await eventually(lambda: ledger.in_flight == 0, "the commits after the outage", 30.0)
    await writer.stop(5.0)
    await database.close()
    connection = await asyncpg.connect(plain(url))
    stored = [ts for (ts,) in await connection.fetch("SELECT ts FROM telemetry ORDER BY ts")]
    await connection.close()
    assert stored == [float(number) for number in range(len(receipts))]
    assert ledger.committed == len(receipts)


@pytest.mark.parametrize("kind", [pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True)
@pytest.mark.usefixtures("quick")
async def test_a_postgres_that_answers_nothing_does_not_hold_the_writer_for_good(
    url: str, postgres: Postgres, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "COMMAND_TIMEOUT", 0.3)
    monkeypatch.setattr(engine, "CONNECT_TIMEOUT", 0.3)
    database = await Database.open(url)
    writer = Writer(database)
    await writer.start()
    await asyncio.to_thread(postgres.pause)
    try:
        for number in range(20):
            add(writer, number, ledger.receipt(qos=1))
        counted = writer.submit(count_up)
        await eventually(lambda: database.breaker.opened > 0, "the breaker", 20.0)
        assert ledger.in_flight == 20
    finally:
        await asyncio.to_thread(postgres.resume)
    await eventually(lambda: ledger.committed == 20, "the commit", 20.0)
    assert await counted == 1
    await writer.stop(5.0)
    await database.close()
    connection = await asyncpg.connect(plain(url))
    assert await connection.fetchval("SELECT count(*) FROM telemetry") == 20
    assert await connection.fetchval("SELECT qos FROM retained") == 1
    await connection.close()


@pytest.mark.parametrize("kind", [pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True)
async def test_stopping_does_not_wait_for_a_postgres_that_answers_nothing(
    url: str, postgres: Postgres, ledger: Ledger
) -> None:
    database = await Database.open(url)
    await database.ping()
    writer = Writer(database)
    await writer.start()
    receipt = ledger.receipt(qos=1)
    await asyncio.to_thread(postgres.pause)
    try:
        add(writer, 1, receipt)
        async with asyncio.timeout(8.0):
            await writer.stop(0.5)
            await database.close()
    finally:
        await asyncio.to_thread(postgres.resume)
    assert receipt.outcome is Outcome.RETRY


@pytest.mark.parametrize("kind", [pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True)
@pytest.mark.usefixtures("quick")
async def test_a_writer_that_lost_its_session_does_not_write_beside_another_bridge(url: str, ledger: Ledger) -> None:
    database = await Database.open(url)
    writer = Writer(database)
    await writer.start()
    administrator = await asyncpg.connect(plain(url))
    await administrator.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid <> pg_backend_pid()"
    )
    other = await Database.open(url)
    add(writer, 1, ledger.receipt(qos=1))
    await eventually(lambda: writer.stats.retries > 1, "two attempts")
    assert ledger.in_flight == 1
    await other.close()
    await eventually(lambda: ledger.committed == 1, "the commit", 20.0)
    await writer.stop(5.0)
    await database.close()
    await administrator.close()


async def test_an_open_breaker_fails_reads_at_once(database: Database) -> None:
    def sick() -> None:
        raise ConnectionRefusedError("nobody there")

    async def read(_connection: AsyncConnection) -> None:
        sick()

    with pytest.raises(CircuitOpenError):
        await database.read(read)
    assert database.breaker.state is State.OPEN
    calls = database.breaker.rejected
    with pytest.raises(CircuitOpenError):
        await database.ping()
    assert database.breaker.rejected == calls + 1


async def test_a_database_that_refuses_everything_costs_no_message(
    writer: Writer, ledger: Ledger, witness: Witness
) -> None:
    """Not even the mark can be written: no message is to blame, so none is acknowledged, and it heals."""
    await witness.execute("ALTER TABLE telemetry RENAME TO telemetry_away")
    await witness.execute("ALTER TABLE commit_marks RENAME TO commit_marks_away")
    add(writer, 1, ledger.receipt(qos=1))
    await eventually(lambda: writer.stats.retries > 0, "the first attempt")
    assert ledger.in_flight == 1
    await witness.execute("ALTER TABLE telemetry_away RENAME TO telemetry")
    await witness.execute("ALTER TABLE commit_marks_away RENAME TO commit_marks")
    await eventually(lambda: ledger.committed == 1, "the commit")
