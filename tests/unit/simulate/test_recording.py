"""Reading recorded data: columns by name, local times to UTC, and what is said of a file that cannot be read."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from bridge.readings import Reading, decode
from bridge.simulate.recording import Recorded, RecordingError, read

DATA = Path(__file__).parents[2] / "data"
LOCAL = ZoneInfo("America/Los_Angeles")


def utc(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def lines(tmp_path: Path, text: str | bytes) -> list[Recorded]:
    path = tmp_path / "recorded.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return list(read(path, LOCAL))


@pytest.mark.parametrize(
    ("station", "first", "skipped_hour"), [("sf-temps", 47.8, 50.8), ("seattle-temps", 39.4, 43.0)]
)
def test_the_excerpts(station: str, first: float, skipped_hour: float) -> None:
    found = {reading.ts: reading.values["temp"] for reading in read(DATA / f"{station}-excerpt.csv", LOCAL)}
    assert len(found) == 56
    assert found[utc("2010-01-01T08:00")] == first
    assert max(found) == utc("2011-01-01T07:00")
    assert found[utc("2010-03-14T10:00")] == skipped_hour
    spring = [utc(f"2010-03-14T{hour:02}:00") for hour in range(8, 24)]
    assert all(ts in found for ts in spring), "no hour of UTC is missing"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2010/07/01 12:00", "2010-07-01T19:00"),
        ("2010/07/01 12:00:30", "2010-07-01T19:00:30"),
        ("2010-07-01T12:00:30.5", "2010-07-01T19:00:30.500"),
        ("2010-07-01T12:00:00Z", "2010-07-01T12:00"),
        ("2010-07-01T12:00:00+02:00", "2010-07-01T10:00"),
        ("2010/01/01 12:00", "2010-01-01T20:00"),
        ("1277985600", "2010-07-01T12:00"),
    ],
)
def test_times(tmp_path: Path, text: str, expected: str) -> None:
    (reading,) = lines(tmp_path, f"date,temp\n{text},1\n")
    assert reading.ts == utc(expected)


def test_an_hour_that_comes_twice_goes_on_from_the_line_before(tmp_path: Path) -> None:
    hours = ["00:30", "01:00", "01:30", "01:00", "01:30", "02:00"]
    found = lines(tmp_path, "time,v\n" + "".join(f"2010/11/07 {hour},1\n" for hour in hours))
    expected = ["07:30", "08:00", "08:30", "09:00", "09:30", "10:00"]
    assert [reading.ts for reading in found] == [utc(f"2010-11-07T{hour}") for hour in expected]


def test_columns_are_known_by_name(tmp_path: Path) -> None:
    (reading,) = lines(tmp_path, "\ufeffroom, Timestamp ,temp,flow,note\nA 1,2010/07/01 12:00,20.5,,nan\n")
    assert reading.values == {"room": "A 1", "temp": 20.5}


@pytest.mark.parametrize(
    ("text", "value"),
    [("7", 7), ("-7", -7), ("7.0", 7.0), ("1e3", 1000.0), ("1_000", "1_000"), ("inf", "inf"), ("1e999", "1e999")],
)
def test_values(tmp_path: Path, text: str, value: float | str) -> None:
    (reading,) = lines(tmp_path, f"v,date\n{text},2010/07/01 12:00\n")
    assert reading.values["v"] == value
    assert type(reading.values["v"]) is type(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "one column must be the time"),
        ("temp\n1\n", "one column must be the time"),
        ("date,time,temp\n", "date, time"),
        ("date,temp,temp\n", "a name of its own"),
        ("date,id\n", "rename the column 'id'"),
        ("date,temp\n2010/07/01 12:00\n", "line 2: 1 fields, the header has 2"),
        ("date,temp\n2010/07/01 12:00,1\n\nyesterday,1\n", "line 4: 'yesterday' is no time"),
        ("date,temp\n2010/13/01 12:00,1\n", "line 2: '2010/13/01 12:00' is no time"),
        ('date,temp\n"2010/07/01 12:00,1\n', "not CSV"),
        (b"date,temp\n2010/07/01 12:00,\xff\n", "not UTF-8"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(RecordingError, match=said) as caught:
        lines(tmp_path, text)
    assert "recorded.csv" in str(caught.value)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"nothing\.csv: No such file"):
        list(read(tmp_path / "nothing.csv", LOCAL))


def test_the_bridge_takes_the_payload_as_it_is() -> None:
    recorded = Recorded(1_262_332_800.5, {"temp": 47.8, "note": "dry"})
    payload = recorded.payload()
    reading = decode(payload, 1_800_000_000.0)
    assert isinstance(reading, Reading)
    assert reading.ts == recorded.ts
    assert json.loads(payload)["temp"] == 47.8


def test_ids_differ_when_anything_does_and_only_then() -> None:
    readings = [
        Recorded(1.0, {"temp": 1, "flow": 2}),
        Recorded(2.0, {"temp": 1, "flow": 2}),
        Recorded(1.0, {"temp": 2, "flow": 2}),
        Recorded(1.0, {"flow": 2, "temp": 1}),
    ]
    ids = [json.loads(reading.payload())["id"] for reading in readings]
    assert ids[3] == ids[0]
    assert len(set(ids)) == 3
