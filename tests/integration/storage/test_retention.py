"""Retention: what is too old goes, all of it and nothing else; PostgreSQL's partitions come ahead and go whole."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from bridge.errors import StorageUnavailableError
from bridge.receipts import Ledger, Outcome
from bridge.storage import partitions, retention
from bridge.storage.database import Database
from bridge.storage.deadletters import DeadLetter
from bridge.storage.retention import DAY, Keep, Retention
from bridge.storage.writer import Writer
from tests.integration.storage.witness import Witness, committed

NOW = 1_800_000_000.0
NOTHING = Keep(minutes=0, presence=0, commands=0, dead_letters=0, dead_letters_max=0)


@pytest.fixture(autouse=True)
def small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "PORTION", 7)
    monkeypatch.setattr(retention, "SHARE", 1.0)


@pytest.fixture
def keeper(database: Database) -> Callable[..., Retention]:
    def make(now: float = NOW, **days: Any) -> Retention:
        return Retention(
            database, Keep(**{**{name: getattr(NOTHING, name) for name in NOTHING.__slots__}, **days}), lambda: now
        )

    return make


async def test_old_telemetry_goes_and_the_rest_stays(
    writer: Writer, witness: Witness, keeper: Callable[..., Retention]
) -> None:
    for day in range(20, 0, -1):
        await keeper(NOW - day * DAY).sweep()
        for number in range(3):
            received = NOW - day * DAY + number
            writer.add_reading("d1", "s", 1_000.0 + number, received, f"{day}-{number}", "{}", None)
        await committed(writer)
    await keeper().sweep()
    assert await witness.rows("SELECT count(*) FROM telemetry") == [(60,)]
    await keeper(telemetry=5.0).sweep()
    left = [row[0] for row in await witness.rows("SELECT received_at FROM telemetry ORDER BY 1")]
    # A day's partition goes when all of it is too old.
    assert set(left) >= {NOW - day * DAY + number for day in range(1, 5) for number in range(3)}
    assert min(left) > NOW - 6.5 * DAY


@pytest.mark.partitions
async def test_what_is_received_on_a_day_without_a_partition_is_stored_and_pruned_too(
    writer: Writer, witness: Witness, keeper: Callable[..., Retention]
) -> None:
    for number in range(30):
        writer.add_reading("d1", "s", 1.0, NOW - (30 - number) * DAY, None, "{}", None)
    await committed(writer)
    await keeper(telemetry=10.5).sweep()
    assert await witness.rows("SELECT count(*) FROM telemetry") == [(10,)]


async def test_dead_letters_by_age_and_by_number(
    writer: Writer, witness: Witness, keeper: Callable[..., Retention]
) -> None:
    for number in range(50):
        letter = DeadLetter(NOW - (50 - number) * DAY, "t", None, "not_json", "", b"")
        writer.add_dead_letter(letter, None)
    await committed(writer)
    await keeper(dead_letters=30.5).sweep()
    assert await witness.rows("SELECT count(*) FROM dead_letters") == [(30,)]
    await keeper(dead_letters_max=4).sweep()
    days = await witness.rows("SELECT at FROM dead_letters ORDER BY at")
    assert days == [(NOW - day * DAY,) for day in (4, 3, 2, 1)]


async def test_presence_rollups_and_finished_commands_by_age(
    writer: Writer, witness: Witness, keeper: Callable[..., Retention]
) -> None:
    for epoch in range(1, 21):
        writer.add_presence("d1", epoch, "online", "connect", NOW - (20 - epoch) * DAY)
    await committed(writer)
    for day in range(20):
        at = int(NOW - day * DAY)
        for table in ("telemetry_minute", "telemetry_hour"):
            await witness.execute(f"INSERT INTO {table} VALUES ('d1', 's', 'f', {at}, 1, 1, 1, 1, {at}, 1)")
        for status in ("succeeded", "sent"):
            values = f"'{status}{day}', 'd1', '{status}{day}', 'n', 'null', '{status}', {at}, {at}, {at}, 0, NULL, NULL"
            columns = (
                "command_id, device_id, key, name, args, status, created_at, expires_at, updated_at, attempts, result,"
                " error"
            )
            await witness.execute(f"INSERT INTO commands ({columns}) VALUES ({values})")
            event = f"('{status}{day}', 1, 'queued', {at}, 'api')"
            await witness.execute(f"INSERT INTO command_events (command_id, seq, status, at, cause) VALUES {event}")
        for status in ("running", "finished"):
            row = f"('{status}{day}', '{status}{day}', '{{}}', '{status}', '', 0, {at}, {at}, '', 0)"
            await witness.execute(f"INSERT INTO rollouts VALUES {row}")
    await keeper(presence=9.5, minutes=4.5, commands=2.5).sweep()
    counts = {
        table: (await witness.rows(f"SELECT count(*) FROM {table}"))[0][0]
        for table in ("presence", "telemetry_minute", "telemetry_hour", "commands", "command_events", "rollouts")
    }
    assert counts == {
        "presence": 10, "telemetry_minute": 5, "telemetry_hour": 20, "commands": 23, "command_events": 23,
        "rollouts": 23,
    }  # fmt: skip


@pytest.mark.parametrize("kind", [pytest.param("postgresql", marks=pytest.mark.postgres)])
@pytest.mark.partitions
async def test_partitions_are_made_ahead_and_dropped_whole(database: Database, witness: Witness) -> None:
    made = await database.maintain(partial(partitions.make_ahead, now=NOW))
    assert len(made) == partitions.AHEAD + 1
    assert await database.maintain(partial(partitions.make_ahead, now=NOW)) == []
    assert len(await database.maintain(partial(partitions.make_ahead, now=NOW + DAY))) == 1
    there = await database.read(partitions.listed)
    assert [p.name for p in there][:4] == made
    assert await database.maintain(partial(partitions.drop_before, before=there[1].end)) == made[:2]


@pytest.mark.parametrize("kind", [pytest.param("postgresql", marks=pytest.mark.postgres)])
async def test_a_message_id_is_known_beyond_its_partition(
    writer: Writer, ledger: Ledger, witness: Witness, keeper: Callable[..., Retention]
) -> None:
    await keeper().prepare()
    receipts = [ledger.receipt(qos=1) for _ in range(2)]
    for day, receipt in enumerate(receipts):
        writer.add_reading("d1", "s", 1.0, NOW + day * DAY, "same", "{}", receipt)
        await committed(writer)
    assert [receipt.outcome for receipt in receipts] == [Outcome.COMMITTED, Outcome.DEDUPLICATED]


@pytest.mark.parametrize("kind", [pytest.param("postgresql", marks=pytest.mark.postgres)])
@pytest.mark.partitions
async def test_housekeeping_does_not_wait_for_ever_for_a_table_that_is_in_use(
    database: Database, witness: Witness
) -> None:
    await witness.execute("BEGIN")
    await witness.execute("LOCK TABLE telemetry IN ACCESS SHARE MODE")
    async with asyncio.timeout(10):
        with pytest.raises(StorageUnavailableError):
            await database.maintain(partial(partitions.make_ahead, now=NOW + 100 * DAY))
    await witness.execute("ROLLBACK")
