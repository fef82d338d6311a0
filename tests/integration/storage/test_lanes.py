"""The writer's two lanes: free changes overtake the rows that wait, and neither starves the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import groupby

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.errors import StorageUnavailableError
from bridge.receipts import Ledger, Receipt
from bridge.storage.database import Database
from bridge.storage.sessions import SessionStore
from bridge.storage.writer import Writer
from tests.integration.storage.witness import Witness, nothing
from tests.waiting import eventually

Change = Callable[[AsyncConnection], Awaitable[None]]


class Log:
    """Says in which order changes were executed and receipts settled."""

    def __init__(self, ledger: Ledger) -> None:
        self.names: list[str] = []
        self._ledger = ledger

    def change(self, name: str) -> Change:
        """A change that is written down."""

        async def change(_connection: AsyncConnection) -> None:
            self.names.append(name)

        return change

    def row(self, writer: Writer, name: str) -> None:
        """Hand over a row whose commit is written down."""
        log = self

        class Owner:
            def receipt_settled(self, _receipt: Receipt) -> None:
                log.names.append(name)

        writer.add_reading("d1", "default", 1.0, 1.0, None, "{}", self._ledger.receipt(Owner(), qos=1))


@asynccontextmanager
async def held(database: Database, writer: Writer) -> AsyncIterator[None]:
    """What is handed over in the block waits: a commit is under way until its end."""
    async with database.transaction():
        number = writer.batch_number
        writer.add_change(nothing)
        await eventually(lambda: writer.batch_number > number, "the batch to be taken")
        yield


async def test_a_change_overtakes_the_rows_that_wait(database: Database, ledger: Ledger) -> None:
    writer, log = Writer(database, batch_rows=2), Log(ledger)
    await writer.start()
    async with held(database, writer):
        for number in range(6):
            log.row(writer, f"row {number}")
        change = writer.submit(log.change("change"))
    await change
    await writer.stop(5.0)
    assert log.names == ["change", *(f"row {number}" for number in range(6))]


async def test_what_waits_in_both_lanes_is_committed_together(database: Database, ledger: Ledger) -> None:
    """Who waits for the second commit would wait for the first one too."""
    writer, log = Writer(database, batch_rows=2), Log(ledger)
    await writer.start()
    async with held(database, writer):
        for number in range(4):
            log.row(writer, f"row {number}")
        change = writer.submit(log.change("change"))
    await change
    await writer.barrier()
    # The one that was under way, the change with the first two rows, the other rows.
    assert writer.stats.batches == 3
    await writer.stop(5.0)


async def test_commits_of_rows_are_short_only_while_changes_are_about(database: Database, ledger: Ledger) -> None:
    writer, log = Writer(database, batch_rows=2_000), Log(ledger)
    await writer.start()
    async with held(database, writer):
        number = writer.batch_number
        for _ in range(1_000):
            log.row(writer, "row")
        assert writer.batch_number == number
        writer.submit(log.change("change"))
        for _ in range(1_000):
            log.row(writer, "row")
        assert writer.batch_number > number
    await writer.stop(5.0)
    assert log.names == ["change", *["row"] * 2_000]


async def test_the_database_is_busy_while_commits_of_rows_are_full(database: Database, ledger: Ledger) -> None:
    writer, log = Writer(database, batch_rows=3), Log(ledger)
    await writer.start()
    log.row(writer, "1")
    await writer.barrier()
    assert not writer.busy
    for _ in range(3):
        log.row(writer, "2")
    committed = writer.barrier()
    busy: list[bool] = []
    committed.add_done_callback(lambda _: busy.append(writer.busy))
    await committed
    await eventually(lambda: not writer.busy, "the database to be free")
    await writer.stop(5.0)
    assert busy == [True]


async def test_a_change_in_order_overtakes_nothing(database: Database, ledger: Ledger) -> None:
    writer, log = Writer(database, batch_rows=2), Log(ledger)
    await writer.start()
    async with held(database, writer):
        log.row(writer, "1")
        log.row(writer, "2")
        writer.add_change(log.change("3"))
        writer.add_change(log.change("4"))
        log.row(writer, "5")
    await writer.stop(5.0)
    assert log.names == ["1", "2", "3", "4", "5"]


async def test_lanes_take_turns_while_both_have_something(database: Database, ledger: Ledger) -> None:
    """However many changes there are, rows go on being committed."""
    writer, log = Writer(database, batch_rows=2), Log(ledger)
    await writer.start()
    async with held(database, writer):
        for _ in range(40):
            log.row(writer, "row")
        for _ in range(200):
            writer.submit(log.change("change"))
    await writer.stop(5.0)
    assert (log.names.count("row"), log.names.count("change")) == (40, 200)
    # A dozen batches of changes, and after each of them one of the twenty batches of rows.
    turns = [name for name, _ in groupby(log.names)]
    assert turns[:6] == ["change", "row"] * 3
    assert log.names[: log.names.index("row")].count("change") < 100


async def test_a_flood_of_changes_does_not_starve_rows(writer: Writer, ledger: Ledger) -> None:
    """Every change is followed by the next one, so that there always is one."""
    running = True

    def again(done: asyncio.Future[None]) -> None:
        if running and not done.cancelled() and done.exception() is None:
            writer.submit(nothing).add_done_callback(again)

    for _ in range(20):
        writer.submit(nothing).add_done_callback(again)
    for number in range(100):
        writer.add_reading("d1", "default", float(number), 1.0, None, "{}", ledger.receipt(qos=1))
    await eventually(lambda: ledger.committed == 100, "the rows")
    running = False


async def test_a_barrier_waits_for_both_lanes(database: Database, writer: Writer, ledger: Ledger) -> None:
    async with held(database, writer):
        writer.add_reading("d1", "default", 1.0, 1.0, None, "{}", ledger.receipt(qos=1))
        change = writer.submit(nothing)
        barrier = writer.barrier()
        await asyncio.sleep(0)
        assert not barrier.done()
    await barrier
    assert change.done()
    assert ledger.committed == 1
    assert writer.barrier().done()


async def test_a_barrier_waits_for_the_commit_that_is_under_way(database: Database, writer: Writer) -> None:
    async with held(database, writer):
        barrier = writer.barrier()
        await asyncio.sleep(0)
        assert not barrier.done()
    await barrier


async def test_a_barrier_of_a_writer_that_stops_fails(database: Database, ledger: Ledger) -> None:
    writer = Writer(database)
    await writer.start()

    turn = database.transaction()
    await turn.__aenter__()
    stuck = writer.submit(nothing)
    receipt = ledger.receipt(qos=1)
    writer.add_reading("d1", "default", 1.0, 1.0, None, "{}", receipt)
    barrier = writer.barrier()
    await writer.stop(0.05)
    await turn.__aexit__(None, None, None)
    for future in (stuck, barrier):
        with pytest.raises(StorageUnavailableError, match="stopping"):
            await future


async def test_a_qos_2_message_of_a_kept_session_does_not_overtake_the_sessions_end(
    database: Database, ledger: Ledger, witness: Witness
) -> None:
    """Else the end of the client's earlier session would take its packet identifier away."""
    writer = Writer(database, batch_rows=1)
    await writer.start()
    store = SessionStore(database, writer)
    async with held(database, writer):
        ended = store.end("c1")
        change = writer.submit(nothing, ledger.receipt(qos=2, packet_id=7, once=("c1", 7)))
    await asyncio.gather(ended, change)
    assert await witness.rows("SELECT client_id, packet_id FROM inbound_once") == [("c1", 7)]
    await writer.stop(5.0)


async def test_no_retained_message_is_durable_before_the_row_that_it_tells_of(
    database: Database, writer: Writer, witness: Witness
) -> None:
    """A change of the broker's memory is under way: what comes meanwhile is another one, behind its row."""
    store = SessionStore(database, writer)
    async with held(database, writer):
        first = store.retain("a", b"1", 1, 1.0)
        await asyncio.sleep(0)
    # Closed and perhaps being committed, with nobody knowing when it will be executed.
    writer.add_presence("d1", 1, "online", "connect", 1.0)
    second = store.retain("devices/d1/presence", b"{}", 1, 1.0)
    query = "SELECT (SELECT count(*) FROM retained WHERE topic <> 'a'), (SELECT count(*) FROM presence)"
    while not second.done():
        ((retained, presence),) = await witness.rows(query)
        assert retained <= presence
    await first
    assert await witness.rows(query) == [(1, 1)]


async def test_the_brokers_memory_of_one_batch_is_one_change(
    database: Database, writer: Writer, witness: Witness
) -> None:
    store = SessionStore(database, writer)
    futures = {store.retain(f"topic/{number}", b"x", 1, 1.0) for number in range(50)}
    assert len(futures) == 1
    assert store.stored in futures
    await futures.pop()
    assert store.stored is None
    assert await witness.rows("SELECT count(*) FROM retained") == [(50,)]
    assert store.retain("topic/1", b"", 1, 2.0) is store.stored
    await writer.barrier()
    assert await witness.rows("SELECT count(*) FROM retained") == [(49,)]


async def test_changes_on_their_own_do_not_wait(database: Database) -> None:
    writer = Writer(database, batch_wait=60.0)
    await writer.start()

    async def one(connection: AsyncConnection) -> int:
        return int((await connection.execute(text("SELECT 1"))).scalar_one())

    async with asyncio.timeout(20.0):
        assert await writer.submit(one) == 1
    await writer.stop(5.0)
