"""Rollups: exact, each row once, late data and rubbish included."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.storage import rollups as rolling
from bridge.storage.database import Database
from bridge.storage.rollups import Rollups
from bridge.storage.writer import Writer
from tests.integration.storage.witness import Witness, committed

COLUMNS = "device_id, stream, field, start, count, min, max, sum, last_ts, last"


def expected(rows: list[tuple[str, float, dict[str, Any]]], width: int) -> dict[tuple[str, str, int], tuple[Any, ...]]:
    """The rollups of rows (device, ts, values) computed the plain way."""
    groups: dict[tuple[str, str, int], list[tuple[float, int, float]]] = defaultdict(list)
    for number, (device, ts, values) in enumerate(rows):
        for field, value in values.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and field not in ("ts", "id"):
                groups[device, field, int(ts) // width * width].append((ts, number, float(value)))
    return {
        key: (
            len(found),
            min(v for _, _, v in found),
            max(v for _, _, v in found),
            math.fsum(v for _, _, v in found),
            max(found)[0],
            max(found)[2],
        )
        for key, found in groups.items()
    }


async def stored_of(witness: Witness, table: str) -> dict[tuple[str, str, int], tuple[Any, ...]]:
    rows = await witness.rows(f"SELECT {COLUMNS} FROM {table}")
    return {(device, field, start): tuple(rest) for device, _stream, field, start, *rest in rows}


def same(found: dict[Any, tuple[Any, ...]], wanted: dict[Any, tuple[Any, ...]]) -> None:
    assert found.keys() == wanted.keys()
    for key, (count, low, high, total, last_ts, last) in wanted.items():
        assert found[key][:3] == (count, low, high)
        assert math.isclose(found[key][3], total, rel_tol=1e-9, abs_tol=1e-6)
        assert found[key][4:] == (last_ts, last)


def hand_over(writer: Writer, rows: list[tuple[str, float, dict[str, Any]]]) -> None:
    for device, ts, values in rows:
        writer.add_reading(device, "s", ts, ts, None, json.dumps(values), None)


async def test_late_and_mixed_readings_are_counted_once_each(
    database: Database, writer: Writer, witness: Witness
) -> None:
    rows: list[tuple[str, float, dict[str, Any]]] = [
        ("d1", 1_700_000_000.0, {"t": 1, "on": True, "name": "x", "ts": 5, "deep": {"a": 1}}),
        ("d1", 1_700_000_001.5, {"t": -2.5, "h": 7}),
        ("d2", 1_700_000_059.9, {"t": 3}),
        ("d1", 1_700_003_601.0, {"t": 10}),
    ]
    rollups = Rollups(database)
    assert await rollups.advance() == 0
    hand_over(writer, rows)
    await committed(writer)
    assert await rollups.behind() == 4
    assert await rollups.advance(portion=3) == 3
    assert await rollups.advance(portion=3) == 1
    late: list[tuple[str, float, dict[str, Any]]] = [
        ("d1", 1_700_000_000.5, {"t": 100}),
        ("d1", 1_699_999_990.0, {"t": -100}),
    ]
    hand_over(writer, late)
    await committed(writer)
    while await rollups.advance(portion=1):
        pass
    same(await stored_of(witness, "telemetry_minute"), expected(rows + late, 60))
    same(await stored_of(witness, "telemetry_hour"), expected(rows + late, 3600))
    assert rollups.rows == 6
    assert await rollups.behind() == 0


async def test_what_the_database_cannot_read_is_left_out_and_in_nobodys_way(
    database: Database, writer: Writer, witness: Witness
) -> None:
    payloads = ['{"a": 1}', '{"\\ud800": 1, "a": 1}', '{"a\\u0000": 2}', '{"a": 1e999}', "[1]", "7", '{"a": 3}']
    for number, payload in enumerate(payloads):
        writer.add_reading("d1", "s", 60.0 + number, 60.0, None, payload, None)
    await committed(writer)
    rollups = Rollups(database)
    for _ in payloads:
        await rollups.advance()
    assert await rollups.behind() == 0
    found = await stored_of(witness, "telemetry_minute")
    count, low, high, *_ = found["d1", "a", 60]
    assert (low, high) == (1.0, 3.0)
    assert count + rollups.skipped >= 2


async def test_any_numbers_make_the_same_rollups_as_the_plain_way(
    database: Database, writer: Writer, witness: Witness
) -> None:
    numbers = st.one_of(st.integers(-(10**6), 10**6), st.floats(-1e6, 1e6, allow_nan=False))
    row = st.tuples(
        st.sampled_from(["d1", "d2"]),
        st.floats(1e9, 1e9 + 8000).map(lambda ts: round(ts, 3)),
        st.dictionaries(st.sampled_from(["a", "b", "ts"]), numbers, max_size=3),
    )
    rows: list[tuple[str, float, dict[str, Any]]] = []

    # Hypothesis runs no coroutines: it only makes the rows.
    @settings(max_examples=30, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(row, max_size=20))
    def make(some: list[tuple[str, float, dict[str, Any]]]) -> None:
        rows.extend(some)

    make()
    hand_over(writer, rows)
    await committed(writer)
    rollups = Rollups(database)
    while await rollups.advance(portion=97):
        pass
    same(await stored_of(witness, "telemetry_minute"), expected(rows, 60))
    same(await stored_of(witness, "telemetry_hour"), expected(rows, 3600))


@pytest.mark.parametrize("stored", [0, 1, 4, 7])
@pytest.mark.parametrize("answered", [True, False], ids=["before a commit", "after a commit whose answer was lost"])
async def test_an_end_in_the_middle_of_storing_counts_nothing_twice(
    database: Database, writer: Writer, witness: Witness, monkeypatch: pytest.MonkeyPatch, stored: int, answered: bool
) -> None:
    monkeypatch.setattr(rolling, "GROUPS", 2)
    rows: list[tuple[str, float, dict[str, Any]]] = [
        (f"d{number % 5}", 1_700_000_000.0 + number * 7, {"a": number, "b": -number}) for number in range(40)
    ]
    hand_over(writer, rows)
    await committed(writer)
    maintain = database.maintain
    left = stored

    async def dying(work: Any) -> Any:
        nonlocal left
        if left == 0 and answered:
            raise KeyboardInterrupt
        result = await maintain(work)
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        return result

    monkeypatch.setattr(database, "maintain", dying)
    with pytest.raises(KeyboardInterrupt):
        await Rollups(database).advance()
    monkeypatch.setattr(database, "maintain", maintain)
    late: list[tuple[str, float, dict[str, Any]]] = [("d1", 1_700_000_003.0, {"a": 1000})]
    hand_over(writer, late)
    await committed(writer)
    again = Rollups(database)
    while await again.advance():
        pass
    same(await stored_of(witness, "telemetry_minute"), expected(rows + late, 60))
    same(await stored_of(witness, "telemetry_hour"), expected(rows + late, 3600))
    assert await again.behind() == 0
