"""The store of sessions on both databases: what comes back is what was handed over, in few statements."""

from __future__ import annotations

import asyncio
import time

from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.receipts import Ledger, Outcome, Receipt
from bridge.storage.database import Database
from bridge.storage.sessions import (
    CAPACITY,
    PAGE_ROWS,
    SessionStore,
    StoredMessage,
    StoredRetained,
    StoredSession,
)
from bridge.storage.writer import Writer
from tests.integration.storage.witness import Witness


def message(seq: int, client_id: str = "c", state: str = "queued", packet_id: int | None = None) -> StoredMessage:
    return StoredMessage(client_id, seq, f"töpic/{seq}", b"\0\xff", 1, seq % 2 == 0, packet_id, state, None)


async def stored(store: SessionStore) -> None:
    """Everything handed over is committed."""
    done = asyncio.Event()
    store.then(done.set)
    async with asyncio.timeout(10):
        await done.wait()


async def test_everything_comes_back(database: Database, writer: Writer) -> None:
    store = SessionStore(database, writer)
    sessions = [StoredSession("c", None, {"a/+": 1, "b": 2}, 12.5), StoredSession("ü", "user", {}, 13.0)]
    for session in sessions:
        store.save_session(session)
    messages = [message(store.next_seq()) for _ in range(3)]
    for each in messages:
        store.save_message(each)
    store.add_once("c", 7)
    store.retain(StoredRetained("r", b"last", 1))
    await stored(store)
    again = SessionStore(database, writer)
    found = await again.load()
    assert sorted(found.sessions) == sessions
    assert found.messages == messages
    assert found.once == [("c", 7)]
    assert found.retained == [StoredRetained("r", b"last", 1)]
    assert again.next_seq() == messages[-1].seq + 1


async def test_the_last_change_wins_within_a_page_and_over_pages(
    database: Database, writer: Writer, witness: Witness
) -> None:
    store = SessionStore(database, writer)
    for separate in (False, True):

        async def step(separate: bool = separate) -> None:
            if separate:
                await stored(store)

        seqs = [store.next_seq() for _ in range(4)]
        for seq in seqs:
            store.save_message(message(seq))
        await step()
        store.save_message(message(seqs[0], state="sent", packet_id=5))
        store.delete_message("c", seqs[1])
        store.retain(StoredRetained("r", b"1", 0))
        store.retain(StoredRetained("s", b"1", 0))
        store.add_once("c", 1)
        store.add_once("c", 2)
        store.save_session(StoredSession("c", None, {}, 1.0))
        await step()
        store.retain(StoredRetained("r", b"2", 1))
        store.retain(StoredRetained("s", b"", 0))
        store.delete_once("c", 1)
        store.delete_message("c", seqs[2])
        store.save_session(StoredSession("c", None, {"a": 1}, 2.0))
        await stored(store)
        found = await store.load()
        assert found.messages == [message(seqs[0], state="sent", packet_id=5), message(seqs[3])]
        assert found.retained == [StoredRetained("r", b"2", 1)]
        assert found.once == [("c", 2)]
        assert found.sessions == [StoredSession("c", None, {"a": 1}, 2.0)]
        store.forget_session("c")
        await stored(store)
        assert await witness.rows("SELECT client_id FROM session_messages") == []
        assert await witness.rows("SELECT client_id FROM inbound_once") == []
        assert await witness.rows("SELECT client_id FROM sessions") == []


async def test_a_session_that_begins_anew_keeps_nothing_of_the_old_one(database: Database, writer: Writer) -> None:
    store = SessionStore(database, writer)
    store.save_session(StoredSession("c", None, {"old": 1}, 1.0))
    store.save_message(message(store.next_seq()))
    store.save_message(message(store.next_seq(), client_id="other"))
    store.forget_session("c")
    store.save_session(StoredSession("c", None, {"new": 1}, 2.0))
    last = message(store.next_seq())
    store.save_message(last)
    await stored(store)
    found = await store.load()
    assert found.sessions == [StoredSession("c", None, {"new": 1}, 2.0)]
    assert found.messages == [last, message(last.seq - 1, client_id="other")]


async def test_a_receipt_is_settled_by_the_commit(database: Database, writer: Writer, ledger: Ledger) -> None:
    store = SessionStore(database, writer)
    at_once = Receipt(ledger)
    store.settle(at_once)
    assert at_once.outcome is Outcome.COMMITTED, "there is nothing to wait for"
    store.retain(StoredRetained("r", b"1", 0))
    later = Receipt(ledger)
    store.settle(later)
    assert later.outcome is None
    await stored(store)
    assert later.outcome is Outcome.COMMITTED
    assert (await store.load()).retained


async def test_what_follows_in_the_writer_is_not_committed_before(
    database: Database, writer: Writer, ledger: Ledger, witness: Witness
) -> None:
    """A reading whose message was also queued for a session is acknowledged with its row: the message must be there."""
    store = SessionStore(database, writer)
    for number in range(200):
        store.save_message(message(store.next_seq()))
        committed = asyncio.Event()
        receipt = Receipt(ledger, Watcher(committed))
        writer.add_reading("d", "s", float(number), 0.0, None, "{}", receipt)
        if number % 20 == 0:
            async with asyncio.timeout(10):
                await committed.wait()
            rows = await witness.rows("SELECT count(*) FROM session_messages")
            assert rows[0][0] >= number + 1
    await stored(store)


class Watcher:
    """Says when a receipt is settled."""

    def __init__(self, settled: asyncio.Event) -> None:
        self._settled = settled

    def receipt_settled(self, receipt: Receipt) -> None:
        self._settled.set()


async def test_what_the_writer_leaves_is_not_acknowledged(database: Database, ledger: Ledger) -> None:
    writer = Writer(database)
    await writer.start()
    store = SessionStore(database, writer)
    await writer.stop(1.0)
    called: list[bool] = []
    store.retain(StoredRetained("r", b"1", 0))
    settled = asyncio.Event()
    receipt = Receipt(ledger, Watcher(settled))
    store.settle(receipt)
    store.then(lambda: called.append(True))
    async with asyncio.timeout(10):
        await settled.wait()
    assert receipt.outcome is Outcome.RETRY
    assert not called
    assert store.pending == 0


async def test_what_comes_while_a_page_is_being_written_is_written_too(database: Database, writer: Writer) -> None:
    store = SessionStore(database, writer)
    early, late = StoredRetained("early", b"1", 0), StoredRetained("late", b"1", 0)
    store.retain(early)

    async def meanwhile(connection: AsyncConnection) -> None:
        # In the same transaction, after the page.
        store.retain(late)

    await writer.submit(meanwhile)
    await stored(store)
    assert sorted((await store.load()).retained) == [early, late]


async def test_presence_of_every_device_costs_one_row_each(database: Database, writer: Writer) -> None:
    store = SessionStore(database, writer)
    batches = writer.stats.batches
    for turn in range(3):
        for device in range(1_000):
            store.retain(StoredRetained(f"devices/d{device}/presence", b"%d" % turn, 1))
    await stored(store)
    assert writer.stats.batches - batches <= 2 + 3_000 // PAGE_ROWS
    found = await store.load()
    assert len(found.retained) == 1_000
    assert {each.payload for each in found.retained} == {b"2"}


async def test_congestion_and_relief(database: Database, writer: Writer) -> None:
    store = SessionStore(database, writer)
    relieved = asyncio.Event()
    store.on_relief = relieved.set
    for number in range(CAPACITY + 1):
        store.retain(StoredRetained(f"t/{number % 10}", b"%d" % number, 0))
    assert store.congested
    async with asyncio.timeout(10):
        await relieved.wait()
    assert not store.congested
    await stored(store)
    assert store.pending == 0


async def test_ten_thousand_sessions_load_in_five_seconds(database: Database, writer: Writer) -> None:
    store = SessionStore(database, writer)
    for number in range(10_000):
        client_id = f"device-{number:05}"
        store.save_session(StoredSession(client_id, client_id, {f"devices/{client_id}/command/request": 1}, 1.0))
        store.save_message(message(store.next_seq(), client_id=client_id))
        store.retain(StoredRetained(f"devices/{client_id}/presence", b'{"status":"online"}', 1))
    await stored(store)
    began = time.monotonic()
    found = await store.load()
    assert time.monotonic() - began < 5.0
    assert len(found.sessions) == len(found.messages) == len(found.retained) == 10_000
