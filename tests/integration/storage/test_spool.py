"""Store and forward: what is acknowledged while the database is away is in it afterwards, once, and in order."""

from __future__ import annotations

import asyncio
import gc
import itertools
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from bridge.errors import StartError, StorageUnavailableError
from bridge.receipts import Ledger, Outcome
from bridge.storage.agents import AgentState
from bridge.storage.batch import Batch
from bridge.storage.database import Database
from bridge.storage.deadletters import DeadLetter
from bridge.storage.devices import DeviceSnapshot
from bridge.storage.sessions import SessionStore, unpack_changes
from bridge.storage.spool import Spool
from bridge.storage.writer import Writer
from tests.integration.storage.test_faults import add, count_up, lost_answers, quick
from tests.integration.storage.witness import Witness, nothing
from tests.waiting import eventually

__all__ = ["lost_answers", "quick"]

pytestmark = pytest.mark.usefixtures("quick")


async def open_spool(folder: Path, *, max_bytes: int = 1 << 30, drop_oldest: bool = False) -> Spool:
    ticks = itertools.count(1_000)
    return await Spool.open(
        folder / "spool.db",
        max_bytes=max_bytes,
        drop_oldest=drop_oldest,
        unpack={"sessions": unpack_changes},
        clock=lambda: float(next(ticks)),
    )


@pytest_asyncio.fixture
async def spool(tmp_path: Path) -> AsyncIterator[Spool]:
    opened = await open_spool(tmp_path)
    yield opened
    await opened.close()


@pytest_asyncio.fixture
async def spooling(database: Database, spool: Spool) -> AsyncIterator[Writer]:
    """A running writer with a spool, which is soon tired of waiting."""
    writer = Writer(database, spool=spool, spool_after=0.5, patience=0.3)
    await writer.start()
    yield writer
    await writer.stop(5.0)


@asynccontextmanager
async def away(witness: Witness, kind: str) -> AsyncIterator[None]:
    """Nothing can be committed."""
    await witness.execute("BEGIN IMMEDIATE" if kind == "sqlite" else "BEGIN")
    if kind == "postgresql":
        await witness.execute("LOCK TABLE telemetry, devices, presence, dead_letters, retained, commit_marks")
    try:
        yield
    finally:
        await witness.execute("COMMIT")


async def drained(writer: Writer) -> None:
    await eventually(lambda: not writer.diverting, "the spool to be empty", 20.0)


def batch(*numbers: int) -> Batch:
    made = Batch()
    for number in numbers:
        made.rows += (number, "d1", "default", float(number), 1e9, None, f'{{"n": {number}}}')
        made.order.append(None)
        made.size += 1
    return made


# ---------------------------------------------------------------------- the file


async def test_batches_come_out_as_they_went_in_also_after_a_restart(tmp_path: Path) -> None:
    spool = await open_spool(tmp_path)
    await spool.append([batch(1, 2), batch(3)])
    await spool.append([batch(4)])
    await spool.close()
    again = await open_spool(tmp_path)
    assert (again.rows, again.oldest) == (4, 1_000.0)
    last, whole = await again.first()
    assert whole.rows == batch(1, 2, 3, 4).rows
    assert whole.order == [None] * 4
    await again.append([batch(5)])
    await again.remove(last)
    assert again.rows == 1
    last, whole = await again.first()
    assert whole.rows == batch(5).rows
    await again.remove(last)
    assert again.empty
    assert again.bytes == 0
    await again.close()


async def test_a_spool_has_one_owner(tmp_path: Path, spool: Spool) -> None:
    with pytest.raises(StartError, match="in use"):
        await open_spool(tmp_path)


async def test_a_file_that_is_no_spool_is_named(tmp_path: Path) -> None:
    (tmp_path / "spool.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(StartError, match=r"spool\.db"):
        await open_spool(tmp_path)


async def test_at_its_limit_it_takes_nothing_more(tmp_path: Path) -> None:
    spool = await open_spool(tmp_path, max_bytes=2_000)
    await spool.append([batch(*range(20))])
    with pytest.raises(StorageUnavailableError, match="full"):
        await spool.append([batch(*range(20, 60))])
    assert spool.rows == 20
    last, _ = await spool.first()
    await spool.remove(last)
    await spool.append([batch(*range(20, 40))])
    await spool.close()


async def test_at_its_limit_the_oldest_readings_go_if_the_user_said_so(tmp_path: Path) -> None:
    spool = await open_spool(tmp_path, max_bytes=4_000, drop_oldest=True)
    for start in range(0, 200, 20):
        await spool.append([batch(*range(start, start + 20))])
    assert spool.bytes <= 4_000
    assert spool.dropped > 0
    assert spool.rows + spool.dropped == 200
    _, whole = await spool.first()
    assert whole.rows[::7] == list(range(spool.dropped, 200))
    await spool.close()


# ---------------------------------------------------------------------- the writer with it


async def test_readings_are_acknowledged_while_the_database_is_away(
    spooling: Writer, spool: Spool, ledger: Ledger, witness: Witness, kind: str
) -> None:
    receipts = [ledger.receipt(qos=1) for _ in range(300)]
    async with away(witness, kind):
        for number, receipt in enumerate(receipts):
            add(spooling, number, receipt, f"m{number}")
            if number % 50 == 0:
                await asyncio.sleep(0)
        await eventually(lambda: ledger.in_flight == 0, "the acknowledgements", 20.0)
        assert {receipt.outcome for receipt in receipts} == {Outcome.COMMITTED}
        assert spool.rows == 300
        assert spooling.diverting
    await drained(spooling)
    assert await witness.rows("SELECT ts FROM telemetry ORDER BY id") == [(float(n),) for n in range(300)]
    assert spool.forwarded == spool.appended == 300
    # And then it is as before.
    add(spooling, 300, ledger.receipt(qos=1))
    await eventually(lambda: ledger.in_flight == 0, "the commit")
    assert spool.appended == 300


async def test_row_ids_grow_in_the_order_of_the_commits(
    spooling: Writer, spool: Spool, ledger: Ledger, witness: Witness, kind: str
) -> None:
    """Readers with a cursor rely on it: a row that waits in the spool is not overtaken by a later one."""
    seen: list[int] = []
    async with away(witness, kind):
        for number in range(50):
            add(spooling, number, ledger.receipt(qos=1))
        await eventually(lambda: spool.rows >= 50, "the spool")
    number = 50
    while spooling.diverting or number < 200:
        add(spooling, number, ledger.receipt(qos=1))
        number += 1
        await asyncio.sleep(0.002)
        rows = [row[0] for row in await witness.rows("SELECT ts FROM telemetry")]
        assert sorted(rows) == [float(n) for n in range(len(rows))], "a later row was committed before an earlier one"
        seen.append(len(rows))
    await eventually(lambda: ledger.in_flight == 0, "the commits")
    assert await witness.rows("SELECT count(*) FROM telemetry") == [(number,)]


async def test_what_was_committed_and_not_removed_is_not_stored_twice(
    database: Database, spool: Spool, ledger: Ledger, witness: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ended between the commit and the removal."""
    await spool.append([batch(1, 2)])
    writer = Writer(database, spool=spool)
    removed = Spool.remove

    async def lost(self: Spool, last: int) -> None:
        raise StorageUnavailableError("killed here")

    monkeypatch.setattr(Spool, "remove", lost)
    with pytest.raises(StorageUnavailableError, match="killed here"):
        await writer.start()
    assert await witness.rows("SELECT count(*) FROM telemetry") == [(2,)]
    monkeypatch.setattr(Spool, "remove", removed)
    again = Writer(database, spool=spool)
    await again.start()
    assert spool.empty
    assert await witness.rows("SELECT id FROM telemetry ORDER BY id") == [(1,), (2,)]
    await again.stop(5.0)


async def test_everything_that_belongs_to_messages_goes_the_same_way(
    database: Database, spooling: Writer, spool: Spool, ledger: Ledger, witness: Witness, kind: str
) -> None:
    sessions = SessionStore(database, spooling)
    spooling.save_device(DeviceSnapshot("d1", messages=1, first_seen=1.0, epoch=1))
    await spooling.barrier()
    once = ledger.receipt(qos=2, once=("client", 7))
    refused = ledger.receipt(qos=1)
    logic = ledger.receipt(qos=1)
    async with away(witness, kind):
        spooling.save_device(DeviceSnapshot("d1", messages=2, first_seen=1.0, epoch=2))
        spooling.add_presence("d1", 2, "online", "connect", 2.0)
        spooling.add_dead_letter(DeadLetter(1.0, "t\0", "d1", "not_json", "?", b"\xff"), refused)
        add(spooling, 1, once)
        state = AgentState("d1", "counter", 1, '{"n": 1}', "[]", None)
        handled = spooling.add_together([("d1", "default", 2.0, 1e9, None, "{}")], None, state, logic)
        stored = sessions.retain("house/x", b"\x00", 1, 5.0)
        await eventually(lambda: stored.done() and handled.done() and spool.rows > 0, "the spool", 20.0)
        spooling.save_device(DeviceSnapshot("d1", messages=3, first_seen=1.0, epoch=2))
        cleared = sessions.retain("house/x", b"", 1, 6.0)
        await cleared
    await drained(spooling)
    spooling.save_device(DeviceSnapshot("d1", messages=4, first_seen=1.0, epoch=2))
    await spooling.barrier()
    assert (once.outcome, refused.outcome, logic.outcome) == (
        Outcome.COMMITTED, Outcome.DEAD_LETTERED, Outcome.COMMITTED,
    )  # fmt: skip
    assert await witness.rows("SELECT messages, epoch FROM devices") == [(4, 2)]
    assert await witness.rows("SELECT epoch, status FROM presence") == [(2, "online")]
    assert await witness.rows("SELECT reason FROM dead_letters") == [("not_json",)]
    assert await witness.rows("SELECT count(*) FROM telemetry") == [(2,)]
    assert await witness.rows("SELECT client_id, packet_id FROM inbound_once") == [("client", 7)]
    assert await witness.rows("SELECT agent, version FROM agent_states") == [("counter", 1)]
    assert await witness.rows("SELECT topic FROM retained") == []


async def test_who_needs_the_database_is_told_in_time(
    spooling: Writer, ledger: Ledger, witness: Witness, kind: str
) -> None:
    asked, in_order = ledger.receipt(qos=1), ledger.receipt(qos=1)
    async with away(witness, kind):
        patient = spooling.submit(count_up, patient=True)
        impatient = spooling.submit(count_up, asked)
        with pytest.raises(StorageUnavailableError, match="not answered"):
            await asyncio.wait_for(impatient, 10.0)
        assert asked.outcome is Outcome.RETRY
        add(spooling, 1, ledger.receipt(qos=1))
        await eventually(lambda: spooling.diverting, "the diversion", 20.0)
        with pytest.raises(StorageUnavailableError, match="cannot be spooled"):
            await asyncio.wait_for(spooling.add_change(nothing, in_order), 10.0)
        assert in_order.outcome is Outcome.RETRY
        with pytest.raises(StorageUnavailableError):
            await spooling.barrier()
        for _ in range(20):
            ignored = spooling.submit(count_up)
            ignored.add_done_callback(lambda done: done.exception())
        assert not patient.done()
        await eventually(lambda: ignored.done(), "the answer")
        # What was given up takes no room.
        assert spooling.pending <= 3
    assert await asyncio.wait_for(patient, 20.0) in (1, 2)
    await drained(spooling)


async def test_a_start_commits_the_spool_before_anybody_reads(
    database: Database, spool: Spool, witness: Witness
) -> None:
    await spool.append([batch(n) for n in range(1, 5_000)])
    writer = Writer(database, spool=spool)
    await writer.start()
    assert spool.empty
    assert await witness.rows("SELECT count(*) FROM telemetry") == [(4_999,)]
    await writer.stop(5.0)


async def test_a_writer_begins_without_its_database(
    database: Database, spool: Spool, ledger: Ledger, witness: Witness
) -> None:
    """Where another has begun before: its ids are larger than any that was given, also by a clock that was ahead."""
    strange = Writer(database, spool=spool)
    with pytest.raises(StorageUnavailableError, match="belongs"):
        await strange.stand_by("away")
    before = Writer(database, spool=spool, clock=lambda: 5e9)
    await before.start()
    add(before, 1, ledger.receipt(qos=1))
    await before.stop(5.0)
    for number in (2, 3):  # killed meanwhile
        writer = Writer(database, spool=spool, clock=lambda: 1e9)
        await writer.stand_by("away")
        receipt = ledger.receipt(qos=1)
        add(writer, number, receipt)
        await eventually(lambda: receipt.outcome is Outcome.COMMITTED, "the spool")  # noqa: B023 - awaited here
        assert await witness.rows("SELECT count(*) FROM telemetry") == [(1,)]
        if number == 2:
            await writer.stop(5.0)
    writer.reached()
    await drained(writer)
    assert await witness.rows("SELECT ts FROM telemetry ORDER BY id") == [(1.0,), (2.0,), (3.0,)]
    await writer.stop(5.0)


async def test_an_outage_costs_no_memory(spooling: Writer, spool: Spool, witness: Witness, kind: str) -> None:
    """What is in the spool is nowhere else, but for a batch or two."""
    rows, row_bytes = 24_000, 250
    async with away(witness, kind):
        spooling.add_reading("d1", "default", 0.0, 1e9, None, '{"n": 0}', None)
        await eventually(lambda: spool.appended > 0, "the diversion", 20.0)
        tracemalloc.start()
        try:
            for start in range(0, rows, 1_000):
                for number in range(start, start + 1_000):
                    spooling.add_reading("d1", "default", float(number), 1e9 + number, None, f'{{"n": {number}}}', None)
                await eventually(lambda: spooling.pending == 0, "the spool", 20.0)
            gc.collect()
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert spool.rows > rows
        assert kept < rows * row_bytes / 2, f"{kept:,} bytes"
    await drained(spooling)


async def test_a_full_spool_stops_the_intake_and_loses_nothing(
    database: Database, tmp_path: Path, ledger: Ledger, witness: Witness, kind: str
) -> None:
    spool = await open_spool(tmp_path, max_bytes=3_000)
    writer = Writer(database, spool=spool, spool_after=0.3, capacity=100)
    await writer.start()
    receipts = [ledger.receipt(qos=1) for _ in range(500)]
    async with away(witness, kind):
        for number, receipt in enumerate(receipts):
            add(writer, number, receipt)
            if number % 20 == 0:
                await asyncio.sleep(0.01)
        await eventually(lambda: writer.diversion is not None and writer.diversion.stuck != "", "the limit", 20.0)
        assert writer.congested
        assert {receipt.outcome for receipt in receipts} <= {None, Outcome.COMMITTED}
    await eventually(lambda: ledger.in_flight == 0, "the commits", 20.0)
    await drained(writer)
    assert not writer.congested
    assert await witness.rows("SELECT ts FROM telemetry ORDER BY id") == [(float(n),) for n in range(500)]
    await writer.stop(5.0)
    await spool.close()


async def test_poison_in_the_spool_becomes_a_dead_letter(database: Database, spool: Spool, witness: Witness) -> None:
    bad = batch(1, 2, 3)
    bad.rows[7 + 3] = None  # the second one's time
    await spool.append([bad, batch(4)])
    writer = Writer(database, spool=spool)
    await writer.start()
    assert await witness.rows("SELECT id FROM telemetry ORDER BY id") == [(1,), (3,), (4,)]
    assert await witness.rows("SELECT reason FROM dead_letters") == [("not_storable",)]
    await writer.stop(5.0)


async def test_a_stop_during_the_outage_leaves_it_to_the_next_start(
    database: Database, spool: Spool, ledger: Ledger, witness: Witness, kind: str
) -> None:
    writer = Writer(database, spool=spool, spool_after=0.3)
    await writer.start()
    async with away(witness, kind):
        add(writer, 0, ledger.receipt(qos=1))
        await eventually(lambda: writer.diverting, "the diversion", 20.0)
        for number in range(1, 100):
            add(writer, number, ledger.receipt(qos=1))
        await writer.stop(5.0)
        assert ledger.committed == 100
    again = Writer(database, spool=spool)
    await again.start()
    assert await witness.rows("SELECT count(*) FROM telemetry") == [(100,)]
    await again.stop(5.0)


async def test_what_cannot_be_spooled_waits_for_the_database(
    spooling: Writer, ledger: Ledger, witness: Witness, kind: str
) -> None:
    receipts = [ledger.receipt(qos=1) for _ in range(10)]
    async with away(witness, kind):
        for number, receipt in enumerate(receipts):
            add(spooling, number, receipt, "\ud800" if number == 5 else None)
        await eventually(lambda: spooling.diversion is not None and spooling.diversion.stuck != "", "the spool", 20.0)
        assert not spooling.task.done()
    await eventually(lambda: ledger.in_flight == 0, "the commits", 20.0)
    assert (ledger.committed, ledger.dead_lettered) == (9, 1)
    assert await witness.rows("SELECT count(*) FROM telemetry") == [(9,)]


async def test_a_change_takes_effect_once_when_the_answer_to_a_commit_with_rows_is_lost(
    spooling: Writer, ledger: Ledger, witness: Witness, lost_answers: Callable[[int], None]
) -> None:
    """The rows go into the spool, the change is tried again without them; and both are there already."""
    receipts = [ledger.receipt(qos=1) for _ in range(3)]
    lost_answers(1)
    for number, receipt in enumerate(receipts):
        add(spooling, number, receipt)
    assert await spooling.submit(count_up, patient=True) == 1
    assert spooling.diverting
    assert await witness.rows("SELECT count(*) FROM telemetry") == [(3,)]
    await drained(spooling)
    assert [receipt.outcome for receipt in receipts] == [Outcome.COMMITTED] * 3
    assert await witness.rows("SELECT qos FROM retained") == [(1,)]
    assert await witness.rows("SELECT count(*) FROM telemetry") == [(3,)]
