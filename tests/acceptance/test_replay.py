"""Recorded data replays exactly: every reading once, at the right instant in UTC."""

from __future__ import annotations

import csv
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from tests.acceptance.process import BridgeProcess

DATA = Path(__file__).parents[1] / "data"
LOCAL = ZoneInfo("America/Los_Angeles")
FORMATS = {"sf-temps": "%Y/%m/%d %H:%M:%S", "seattle-temps": "%Y/%m/%d %H:%M"}


def recorded(path: Path, form: str) -> list[tuple[float, float]]:
    """What the file says, read without the bridge: (Unix seconds, temperature), in order of time."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    moments = [datetime.strptime(row["date"], form).replace(tzinfo=LOCAL).astimezone(UTC) for row in rows]
    return sorted((moment.timestamp(), float(row["temp"])) for moment, row in zip(moments, rows, strict=True))


@pytest.mark.parametrize("station", FORMATS)
def test_replay_is_exact(bridge: BridgeProcess, station: str) -> None:
    path = DATA / f"{station}-excerpt.csv"
    expected = recorded(path, FORMATS[station])
    assert len({ts for ts, _ in expected}) == len(expected) >= 48

    def replay() -> None:
        arguments = [
            "--replay",
            str(path),
            "--device",
            station,
            "--speed",
            "max",
            "--port",
            str(bridge.mqtt_port),
        ]
        replayed = bridge.run("simulate", *arguments, "--timezone", "America/Los_Angeles", timeout=60)
        assert replayed.returncode == 0, replayed.stdout + replayed.stderr

    replay()
    query = "SELECT ts, json_extract(payload, '$.temp') FROM telemetry WHERE device_id = ? ORDER BY ts"
    assert bridge.rows(query, station) == expected
    replay()
    assert bridge.rows(query, station) == expected, "a second replay adds nothing"
    assert bridge.settled_ledger()["deduplicated"] == len(expected)
