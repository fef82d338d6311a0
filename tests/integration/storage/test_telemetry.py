"""Reading telemetry and dead letters back."""

from __future__ import annotations

from functools import partial

import pytest

from bridge.storage import deadletters, telemetry
from bridge.storage.database import Database
from bridge.storage.deadletters import DeadLetter
from bridge.storage.writer import Writer
from tests.integration.storage.witness import committed


async def test_a_range_of_readings_the_latest_first(writer: Writer, database: Database) -> None:
    for number in range(10):
        writer.add_reading("d1", "s", 100.0 + number, 200.0, f"m{number}", f'{{"n": {number}}}', None)
        writer.add_reading("d1", "other", 100.0 + number, 200.0, None, "{}", None)
    await committed(writer)
    read = partial(telemetry.readings, device_id="d1", stream="s")
    assert [r.ts for r in await database.read(partial(read, since=103.0, until=106.0))] == [105.0, 104.0, 103.0]
    (latest,) = await database.read(partial(read, limit=1))
    assert latest[:4] == (109.0, 200.0, "m9", '{"n": 9}')
    older = await database.read(partial(read, limit=2, last=(latest.ts, latest.id)))
    assert [r.ts for r in older] == [108.0, 107.0]
    assert await database.read(partial(telemetry.count, device_id="d1", stream="s")) == 10
    assert await database.read(partial(read, device_id="d2")) == []


@pytest.mark.parametrize("payload", ['{"a":1.0,  "b" : 1e3, "a": "\\u0000"}', "5.0", "[1, 2]", '"\u00fc"', "null"])
async def test_a_payload_is_kept_as_it_was_sent(writer: Writer, database: Database, payload: str) -> None:
    writer.add_reading("d1", "s", 1_700_000_000.123456, 1.0, None, payload, None)
    await committed(writer)
    (reading,) = await database.read(partial(telemetry.readings, device_id="d1", stream="s"))
    assert reading.payload == payload
    assert reading.ts == 1_700_000_000.123456


async def test_pages_of_dead_letters(writer: Writer, database: Database) -> None:
    for number in range(5):
        writer.add_dead_letter(DeadLetter(float(number), "t", None, "not_json", "why", b"\xff\x00"), None)
    await committed(writer)
    writer.add_dead_letter(DeadLetter(-1.0, "t", None, "not_json", "empty", b""), None)
    await committed(writer)
    (empty,) = await database.read(partial(deadletters.list_dead_letters, limit=1))
    assert empty.payload == b""
    assert await writer.submit(partial(deadletters.delete_dead_letter, letter_id=empty.id))
    first = await database.read(partial(deadletters.list_dead_letters, limit=3))
    second = await database.read(partial(deadletters.list_dead_letters, limit=3, before=first[-1].id))
    assert [letter.at for letter in first + second] == [4.0, 3.0, 2.0, 1.0, 0.0]
    assert first[0].payload == b"\xff\x00"
    wanted = first[1]
    assert await database.read(partial(deadletters.get_dead_letter, letter_id=wanted.id)) == wanted
    assert await writer.submit(partial(deadletters.delete_dead_letter, letter_id=wanted.id))
    assert not await writer.submit(partial(deadletters.delete_dead_letter, letter_id=wanted.id))
    assert await database.read(partial(deadletters.get_dead_letter, letter_id=wanted.id)) is None
    assert await database.read(deadletters.count_dead_letters) == 4
