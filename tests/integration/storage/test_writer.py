"""The writer on real databases: what is promised when a receipt is settled, and in which order."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.errors import StorageUnavailableError
from bridge.receipts import Ledger, Outcome, Receipt
from bridge.storage.database import Database
from bridge.storage.deadletters import MAX_PAYLOAD, DeadLetter, list_dead_letters
from bridge.storage.devices import DeviceSnapshot
from bridge.storage.writer import Writer
from tests.integration.storage.witness import Witness, committed, nothing
from tests.waiting import eventually


class Owner:
    """A connection that writes down its receipts as they are settled."""

    def __init__(self, look: Callable[[Receipt], None] | None = None) -> None:
        self.settled: list[Receipt] = []
        self._look = look

    def receipt_settled(self, receipt: Receipt) -> None:
        self.settled.append(receipt)
        if self._look is not None:
            self._look(receipt)


def add(writer: Writer, number: int, receipt: Receipt | None, message_id: str | None = None) -> None:
    writer.add_reading("d1", "default", float(number), 1e9, message_id, f'{{"n": {number}}}', receipt)


async def test_a_settled_receipt_is_visible_to_others(writer: Writer, ledger: Ledger, witness: Witness) -> None:
    for number in range(50):
        owner = Owner()
        add(writer, number, ledger.receipt(owner, qos=1))
        await eventually(lambda owner=owner: bool(owner.settled), "the receipt")  # type: ignore[misc]  # bound here
        rows = await witness.rows("SELECT ts, payload FROM telemetry ORDER BY id DESC LIMIT 1")
        assert rows == [(float(number), f'{{"n": {number}}}')]


async def test_nothing_is_settled_before_the_commit(
    database: Database, writer: Writer, ledger: Ledger, witness: Witness
) -> None:
    """Another program holds the database: the rows are handed over, and nothing is settled until they are in."""
    owner = Owner()
    async with database.transaction():
        add(writer, 1, ledger.receipt(owner, qos=1))
        change = writer.submit(nothing)
        number = writer.batch_number
        await eventually(lambda: writer.batch_number > number or writer.pending == 2, "the hand-over")
        assert await witness.rows("SELECT count(*) FROM telemetry") == [(0,)]
        assert owner.settled == []
        assert not change.done()
    await change
    await writer.barrier()
    assert [receipt.outcome for receipt in owner.settled] == [Outcome.COMMITTED]
    assert await witness.rows("SELECT count(*) FROM telemetry") == [(1,)]


async def test_receipts_are_settled_in_the_order_of_the_hand_over(database: Database, ledger: Ledger) -> None:
    writer = Writer(database, batch_rows=7)
    await writer.start()
    owner = Owner()
    receipts = [ledger.receipt(owner, qos=1) for _ in range(100)]
    row = ("d1", "default", 1.0, 1.0, None, "{}")
    for number, receipt in enumerate(receipts):
        match number % 4:
            case 0:
                add(writer, number, receipt, "same" if number % 8 else None)
            case 1:
                writer.add_readings([row] * 3, receipt)
            case 2:
                writer.add_dead_letter(DeadLetter(1.0, "t", None, "not_json", "", b""), receipt)
            case _:
                writer.add_change(nothing, receipt)
    await writer.stop(10.0)
    assert owner.settled == receipts


async def test_a_duplicate_within_a_batch_and_across_batches(writer: Writer, ledger: Ledger, witness: Witness) -> None:
    receipts = [ledger.receipt(qos=1) for _ in range(6)]
    for receipt, message_id in zip(receipts, ["a", "b", "a", None, None, "c"], strict=True):
        add(writer, 1, receipt, message_id)
    await committed(writer)
    new, known = Outcome.COMMITTED, Outcome.DEDUPLICATED
    assert [receipt.outcome for receipt in receipts] == [new, new, known, new, new, new]
    again = [ledger.receipt(qos=1) for _ in range(3)]
    for receipt, message_id in zip(again, ["c", "d", "a"], strict=True):
        add(writer, 2, receipt, message_id)
    await committed(writer)
    assert [receipt.outcome for receipt in again] == [known, new, known]
    assert await witness.rows("SELECT message_id, count(*) FROM telemetry GROUP BY 1 ORDER BY 2, 1") == [
        ("a", 1), ("b", 1), ("c", 1), ("d", 1), (None, 2),
    ]  # fmt: skip


async def test_the_same_message_id_of_another_device_or_stream_is_no_duplicate(writer: Writer, ledger: Ledger) -> None:
    for device_id, stream in (("d1", "a"), ("d1", "b"), ("d2", "a")):
        writer.add_reading(device_id, stream, 1.0, 1.0, "m", "{}", ledger.receipt(qos=1))
    await committed(writer)
    assert (ledger.committed, ledger.deduplicated) == (3, 0)


async def test_a_message_of_many_readings_is_new_if_any_is(writer: Writer, ledger: Ledger, witness: Witness) -> None:
    def batch(*message_ids: str) -> Receipt:
        receipt = ledger.receipt(qos=1)
        writer.add_readings([("d1", "default", 1.0, 1.0, m, "{}") for m in message_ids], receipt)
        return receipt

    first = batch("a", "b")
    await committed(writer)
    partly, wholly = batch("b", "c"), batch("c", "a")
    await committed(writer)
    assert [r.outcome for r in (first, partly, wholly)] == [
        Outcome.COMMITTED, Outcome.COMMITTED, Outcome.DEDUPLICATED,
    ]  # fmt: skip
    assert await witness.rows("SELECT count(*) FROM telemetry") == [(3,)]


async def test_ids_grow_over_restarts_and_with_a_clock_set_back(database: Database, witness: Witness) -> None:
    for now in (2_000_000_000.0, 1_000_000_000.0):
        writer = Writer(database, clock=lambda now=now: now)  # type: ignore[misc]  # bound here
        await writer.start()
        add(writer, int(now), None)
        await writer.stop(5.0)
    (first,), (second,) = await witness.rows("SELECT id FROM telemetry ORDER BY ts DESC")
    assert second > first >= 2_000_000_000_000_000


async def test_a_qos_2_message_is_known_by_its_packet_id_with_its_row(
    writer: Writer, ledger: Ledger, witness: Witness
) -> None:
    add(writer, 1, ledger.receipt(qos=2, packet_id=7, once=("client", 7)))
    writer.add_readings([("d1", "s", 1.0, 1.0, None, "{}")], ledger.receipt(qos=2, packet_id=8, once=("client", 8)))
    letter = DeadLetter(1.0, "t", None, "not_json", "", b"")
    writer.add_dead_letter(letter, ledger.receipt(qos=2, packet_id=9, once=("client", 9)))
    await writer.submit(nothing, ledger.receipt(qos=2, packet_id=10, once=("client", 10)))
    rows = await witness.rows("SELECT client_id, packet_id FROM inbound_once ORDER BY 2")
    assert rows == [("client", 7), ("client", 8), ("client", 9), ("client", 10)]


async def test_of_a_devices_snapshots_the_last_one_in_a_batch_is_stored(writer: Writer, witness: Witness) -> None:
    for messages in (1, 2, 3):
        writer.save_device(DeviceSnapshot("d1", messages=messages, state=f'{{"n": {messages}}}'))
    writer.save_device(DeviceSnapshot("d2", messages=7))
    await committed(writer)
    rows = await witness.rows("SELECT device_id, messages, state FROM devices ORDER BY 1")
    assert rows == [("d1", 3, '{"n": 3}'), ("d2", 7, None)]


async def test_status_and_epoch_never_go_back(writer: Writer, witness: Witness) -> None:
    writer.add_presence("d1", 1, "online", "connect", 10.0)
    writer.add_presence("d1", 2, "offline", "keepalive", 20.0)
    writer.save_device(DeviceSnapshot("d1", first_seen=5.0, status="online", epoch=1, messages=9))
    await committed(writer)
    assert await witness.rows("SELECT status, epoch, messages FROM devices") == [("offline", 2, 9)]
    writer.save_device(DeviceSnapshot("d1", first_seen=5.0, status="online", epoch=1, messages=10))
    writer.add_presence("d2", 1, "online", "connect", 30.0)
    await committed(writer)
    rows = await witness.rows("SELECT device_id, status, epoch, messages, first_seen FROM devices ORDER BY 1")
    assert rows == [("d1", "offline", 2, 10, 5.0), ("d2", "online", 1, 0, 30.0)]
    history = await witness.rows("SELECT device_id, epoch, status, cause, at FROM presence ORDER BY 1, 2")
    assert history == [
        ("d1", 1, "online", "connect", 10.0),
        ("d1", 2, "offline", "keepalive", 20.0),
        ("d2", 1, "online", "connect", 30.0),
    ]


async def test_a_dead_letter_is_kept_whatever_it_holds(database: Database, writer: Writer, ledger: Ledger) -> None:
    receipt = ledger.receipt(qos=1)
    payload = bytes(range(256)) * 400
    error = "NUL \0 and half a pair \ud83d"
    writer.add_dead_letter(DeadLetter(12.5, "devices/\0/telemetry", "d\0", "not_json", error, payload), receipt)
    await committed(writer)
    assert receipt.outcome is Outcome.DEAD_LETTERED
    (letter,) = await database.read(lambda connection: list_dead_letters(connection, 10))
    assert letter.payload == payload[:MAX_PAYLOAD]
    assert letter.size == len(payload)
    assert "\0" not in letter.topic + letter.error
    assert (letter.at, letter.reason) == (12.5, "not_json")


async def test_changes_run_in_order_after_the_rows_and_return_their_results(writer: Writer, ledger: Ledger) -> None:
    async def readings(connection: AsyncConnection) -> int:
        return int((await connection.execute(text("SELECT count(*) FROM telemetry"))).scalar_one())

    async def clear(connection: AsyncConnection) -> str:
        await connection.execute(text("DELETE FROM telemetry"))
        return "cleared"

    receipt = ledger.receipt(qos=1)
    changes = readings, clear, readings
    before, cleared, after = (writer.add_change(change, receipt if change is clear else None) for change in changes)
    add(writer, 1, None)
    assert (await before, await cleared, await after) == (1, "cleared", 0)
    assert receipt.outcome is Outcome.COMMITTED


async def refuse(_connection: AsyncConnection) -> None:
    raise ValueError("no")


POISON: dict[str, Callable[[Writer, Receipt], Any]] = {
    "text that is not Unicode": lambda writer, receipt: add(writer, 13, receipt, "\ud800"),
    "one reading of several": lambda writer, receipt: writer.add_readings(
        [("d1", "default", 13.0, 1.0, m, "{}") for m in ("x", "\ud800", "y")], receipt
    ),
    "a missing value": lambda writer, receipt: writer.add_reading(
        "d1", "default", None, 1.0, None, "{}", receipt  # type: ignore[arg-type]  # what a mistake would hand over
    ),
    "a change that raises": lambda writer, receipt: writer.add_change(
        refuse, receipt, DeadLetter(0.0, "t", "d1", "", "", b"{}")
    ),
}  # fmt: skip


@pytest.mark.parametrize("poison", POISON.values(), ids=POISON)
async def test_poison_becomes_a_dead_letter_and_harms_nobody(
    database: Database, ledger: Ledger, witness: Witness, poison: Callable[[Writer, Receipt], Any]
) -> None:
    writer = Writer(database, topic_of="devices/{}/telemetry/{}".format)
    await writer.start()
    owner = Owner()
    good = [ledger.receipt(owner, qos=1) for _ in range(40)]
    bad = ledger.receipt(owner, qos=2, packet_id=3, once=("client", 3))
    expected = [*good[:23], bad, *good[23:]]
    for number, receipt in enumerate(good[:23]):
        add(writer, number, receipt, f"m{number}")
    result = poison(writer, bad)
    for number, receipt in enumerate(good[23:], 23):
        add(writer, number, receipt, f"m{number}")
    await committed(writer)
    assert owner.settled == expected
    assert {receipt.outcome for receipt in good} == {Outcome.COMMITTED}
    assert bad.outcome is Outcome.DEAD_LETTERED
    assert await witness.rows("SELECT count(*) FROM telemetry") == [(40,)]
    assert await witness.rows("SELECT client_id, packet_id FROM inbound_once") == [("client", 3)]
    (letter,) = await database.read(lambda connection: list_dead_letters(connection, 10))
    assert letter.reason == "not_storable"
    assert letter.device_id == "d1"
    if result is None:
        assert letter.topic == "devices/d1/telemetry/default"
    else:
        assert letter.topic == "t"
        with pytest.raises(ValueError, match="no"):
            await result
    assert writer.stats.refused == 1
    add(writer, 100, ledger.receipt(owner, qos=1))
    await writer.stop(5.0)
    assert owner.settled[-1].outcome is Outcome.COMMITTED


async def test_a_change_that_fails_takes_none_of_its_statements_along(writer: Writer, witness: Witness) -> None:
    async def half(connection: AsyncConnection) -> None:
        await connection.execute(text("INSERT INTO retained VALUES ('half', 'x', 0, 0)"))
        await connection.execute(text("INSERT INTO retained VALUES ('half', 'x', 0, 0)"))

    async def whole(connection: AsyncConnection) -> int:
        await connection.execute(text("INSERT INTO retained VALUES ('whole', 'x', 0, 0)"))
        return 1

    first, broken, last = writer.submit(whole), writer.submit(half), writer.submit(nothing)
    assert await first == 1
    await last
    with pytest.raises(Exception, match=r"(?i)unique"):
        await broken
    assert await witness.rows("SELECT topic FROM retained") == [("whole",)]


async def test_congested_at_capacity_relieved_at_half(database: Database, ledger: Ledger) -> None:
    writer = Writer(database, batch_rows=10, capacity=100)
    pending: list[int] = []
    writer.on_relief = lambda: pending.append(writer.pending)
    await writer.start()
    for number in range(99):
        add(writer, number, ledger.receipt(qos=1))
    assert not writer.congested
    add(writer, 99, ledger.receipt(qos=1))
    assert writer.congested
    add(writer, 100, ledger.receipt(qos=1))
    assert writer.pending == 101
    await eventually(lambda: writer.pending == 0, "the commits")
    assert not writer.congested
    # Once, by the first commit that left half or less; 101 rows are ten full batches and one row.
    assert pending == [41]
    await writer.stop(5.0)


async def test_a_large_hand_over_counts_all_its_rows(database: Database) -> None:
    writer = Writer(database, batch_rows=10, capacity=100)
    await writer.start()
    writer.add_readings([("d1", "s", 1.0, 1.0, None, "{}")] * 250, None)
    assert writer.pending == 250
    assert writer.congested
    await writer.stop(5.0)
    assert writer.stats.rows == 250
    assert not writer.congested


async def test_stop_commits_what_was_handed_over(database: Database, ledger: Ledger, witness: Witness) -> None:
    writer = Writer(database, batch_rows=100, batch_wait=60.0)
    await writer.start()
    for number in range(250):
        add(writer, number, ledger.receipt(qos=1))
    futures = writer.submit(nothing), writer.add_change(nothing), writer.barrier()
    await writer.stop(10.0)
    assert all(future.done() for future in futures)
    assert ledger.committed == 250
    assert await witness.rows("SELECT count(*) FROM telemetry") == [(250,)]


async def test_after_stop_everything_stays_with_its_sender(database: Database, ledger: Ledger) -> None:
    writer = Writer(database)
    await writer.start()
    await writer.stop(5.0)
    receipt, other = ledger.receipt(qos=1), ledger.receipt(qos=1)
    add(writer, 1, receipt)
    futures = writer.submit(nothing, other), writer.add_change(nothing)
    assert (receipt.outcome, other.outcome) == (Outcome.RETRY, Outcome.RETRY)
    for future in futures:
        with pytest.raises(StorageUnavailableError, match="stopping"):
            await future


async def test_a_batch_is_closed_by_size_without_waiting(database: Database, ledger: Ledger) -> None:
    writer = Writer(database, batch_rows=50, batch_wait=60.0)
    await writer.start()
    for number in range(50):
        add(writer, number, ledger.receipt(qos=1))
    await eventually(lambda: ledger.committed == 50, "the full batch")
    assert writer.stats.batches == 1
    await writer.stop(5.0)


async def test_what_comes_during_a_commit_is_the_next_batch(database: Database) -> None:
    writer = Writer(database)
    await writer.start()
    async with database.transaction():
        first = writer.add_change(nothing)
        await eventually(lambda: writer.batch_number == 1, "the first batch to be taken")
        for number in range(500):
            add(writer, number, None)
        last = writer.add_change(nothing)
    await asyncio.gather(first, last)
    assert writer.stats.batches == 2
    assert writer.stats.last_batch == 501
    await writer.stop(5.0)


async def test_a_change_that_waits_for_something_else_is_refused_on_sqlite(writer: Writer, kind: str) -> None:
    async def lazy(_connection: AsyncConnection) -> None:
        await asyncio.sleep(0)

    future = writer.submit(lazy)
    if kind == "sqlite":
        with pytest.raises(RuntimeError, match="wait for nothing but its connection"):
            await future
    else:
        await future


async def test_an_owner_that_raises_costs_nobody_else_a_receipt(writer: Writer, ledger: Ledger) -> None:
    def explode(_receipt: Receipt) -> None:
        raise ZeroDivisionError

    bad, good = ledger.receipt(Owner(explode), qos=1), ledger.receipt(qos=1)
    add(writer, 1, bad)
    add(writer, 2, good)
    await committed(writer)
    assert good.outcome is Outcome.COMMITTED
    assert not writer.task.done()


async def test_commits_and_reads_leave_nothing_to_the_garbage_collector(
    database: Database, writer: Writer, ledger: Ledger
) -> None:
    """Cycles are found by nobody but the collector, which stops the event loop meanwhile. SQLAlchemy leaves a few on
    PostgreSQL; a retrying for each commit and each read would be 4,000."""

    async def one(number: int) -> None:
        add(writer, number, ledger.receipt(qos=1))
        await writer.submit(nothing)
        await writer.barrier()
        await database.look_up(nothing)
        await database.read(nothing)

    await one(0)
    gc.collect()
    gc.disable()
    try:
        for number in range(1, 51):
            await one(number)
        assert gc.collect() < 1_500
    finally:
        gc.enable()
