"""A field over time, on both databases: raw, in buckets, from rollups, and whatever else devices send."""

from __future__ import annotations

import pytest

from bridge.storage.database import Database
from bridge.storage.rollups import Rollups
from bridge.storage.series import path_of, series
from bridge.storage.writer import Writer

START = 1_764_000_000.0


async def store(writer: Writer, readings: list[tuple[float, str]]) -> None:
    """Committed readings of `fridge-7`."""
    rows: list[tuple[str, str, float, float, str | None, str]] = [
        ("fridge-7", "default", ts, ts, None, payload) for ts, payload in readings
    ]
    for first in range(0, len(rows), 1000):
        writer.add_readings(rows[first : first + 1000], None)
    await writer.barrier()


async def test_few_readings_are_shown_as_they_are(database: Database, writer: Writer) -> None:
    await store(writer, [(START + n, f'{{"t": {n}, "on": true, "in": {{"a.b": {n * 2}}}}}') for n in range(5)])
    found = await database.read(lambda c: series(c, "fridge-7", "default", "t", START, START + 4, 100))
    assert (found.step, found.source, found.truncated) == (0.0, "readings", False)
    assert found.ts == [START, START + 1, START + 2, START + 3], "until is not part of it"
    assert found.min == found.max == found.mean == found.last == [0.0, 1.0, 2.0, 3.0]
    nested = await database.read(lambda c: series(c, "fridge-7", "default", "/in/a.b", START, START + 4, 100))
    assert nested.last == [0.0, 2.0, 4.0, 6.0]
    switch = await database.read(lambda c: series(c, "fridge-7", "default", "on", START, START + 4, 100))
    assert switch.last == [1.0] * 4
    nothing = await database.read(lambda c: series(c, "fridge-7", "default", "no", START, START + 4, 100))
    assert nothing.ts == []


async def test_many_readings_become_buckets(database: Database, writer: Writer) -> None:
    await store(writer, [(START + n, f'{{"t": {n % 10}}}') for n in range(100)])
    found = await database.read(lambda c: series(c, "fridge-7", "default", "t", START, START + 100, 10))
    assert (found.step, found.source) == (10.0, "readings")
    assert found.ts == [START + 10 * n for n in range(10)]
    assert found.min == [0.0] * 10
    assert found.max == found.last == [9.0] * 10
    assert found.mean == [4.5] * 10
    assert found.counts == [10] * 10


async def test_a_long_range_comes_from_the_rollups(database: Database, writer: Writer) -> None:
    await store(writer, [(START + 30 * n, f'{{"t": {n}}}') for n in range(2_880)])
    rollups = Rollups(database)
    while await rollups.advance():
        pass
    day = await database.read(lambda c: series(c, "fridge-7", "default", "t", START, START + 86_400, 720))
    assert (day.source, day.step, sum(day.counts)) == ("minutes", 120.0, 2_880)
    assert (day.last[0], day.max[-1]) == (3.0, 2_879.0)
    month = await database.read(lambda c: series(c, "fridge-7", "default", "t", START, START + 30 * 86_400, 500))
    assert (month.source, month.step) == ("hours", 7_200.0)
    assert sum(month.counts) == 2_880
    assert month.mean[0] == sum(range(month.counts[0])) / month.counts[0]


async def test_what_is_no_number_is_left_out(database: Database, writer: Writer) -> None:
    """Each of these once made one of the databases refuse the whole plot, or could have."""
    payloads = [
        '{"t": 1}', '{"t": "1"}', '{"t": null}', '{"t": [1]}', '{"t": 1e999}', '{"t": 1e-999}', '{"other": 1}', "[1]",
        "1", '"t"', '{"t": 1, "note": "\\u0000"}', '{"t": 1, "note": "\\ud800"}', '{"t": 3, "note": "\\ud83d\\ude00"}',
        '{"t": 4, "t": 4}', '{"t": ' + "9" * 400 + "}", '{"t": -2.5e1}',
    ]  # fmt: skip
    await store(writer, [(START + n, payload) for n, payload in enumerate(payloads)])
    for points in (2, 100):
        found = await database.read(
            lambda c, points=points: series(c, "fridge-7", "default", "t", START, START + 100, points)  # type: ignore[misc]
        )
        assert set(found.last) <= {0.0, 1.0, 3.0, 4.0, -25.0}
        assert -25.0 in found.min
        assert max(found.max) == 4.0


@pytest.mark.parametrize("field", ["", "/", 'a"b', "a\\b", "/a//b", "a\0", "/a" * 9, "a\nb"])
def test_what_is_no_field(field: str) -> None:
    with pytest.raises(ValueError, match="a field is"):
        path_of(field)


def test_a_pointer_leads_through_objects() -> None:
    assert path_of("/motor/rpm~1min/a~0b") == ["motor", "rpm/min", "a~b"]
    assert path_of("motor.rpm") == ["motor.rpm"]
