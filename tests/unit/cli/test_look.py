"""What `telemetry`, `top` and `tail` make of what they are given, and that the command line starts quickly."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from bridge.cli import EXIT_CODES, terminal
from bridge.cli.tail import filters
from bridge.cli.telemetry import BARS, moment, sparkline
from bridge.cli.top import view
from tests.unit.cli.conftest import Run

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)


def test_a_line_goes_from_the_lowest_to_the_highest() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == BARS
    assert sparkline([5, 5, 5]) == "▄▄▄"
    assert sparkline([0, 0, 10, 10], width=2) == "▁█"


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=300), st.integers(1, 80))
def test_a_line_fits(numbers: list[float], width: int) -> None:
    line = sparkline(numbers, width)
    assert len(line) == min(len(numbers), width)
    assert set(line) <= set(BARS)


@pytest.mark.parametrize(
    ("text", "ago"),
    [
        ("90s", timedelta(seconds=90)),
        ("15min", timedelta(minutes=15)),
        ("1.5h", timedelta(hours=1.5)),
        ("2d", timedelta(2)),
    ],
)
def test_so_long_ago(text: str, ago: timedelta) -> None:
    assert moment(text, NOW) == NOW - ago


def test_a_moment_may_be_a_date() -> None:
    assert moment("2026-01-02T03:00:00Z", NOW) == datetime(2026, 1, 2, 3, tzinfo=UTC)
    with pytest.raises(typer.BadParameter, match="15min"):
        moment("yesterday", NOW)


def test_tail_subscribes_to_what_is_wanted() -> None:
    assert filters("devices", None, []) == ["devices/#"]
    assert filters("devices", "d1", []) == ["devices/d1/#"]
    assert filters("devices", None, ["telemetry", "error", "error"]) == ["devices/+/telemetry/#", "devices/+/error/#"]
    with pytest.raises(typer.BadParameter, match="telemetry, event"):
        filters("devices", None, ["telemetri"])


def summary(**more: Any) -> dict[str, Any]:
    return {
        "devices": {"known": 1, "online": 1},
        "messages_per_second": 12.0,
        "committed_per_second": 12.0,
        "commands": {},
        "agents": {"awake": 1},
        "ledger": {
            **dict.fromkeys(("received", "committed", "deduplicated", "dead_lettered", "in_flight", "difference"), 0),
            "dropped": {},
        },
        "loop_lag_p99_ms": 1.5,
        "slow_agents": [
            {"device_id": "fridge-7", "reason": "handler", "handler": "on_telemetry", "seconds": 12.5, "messages": 31}
        ],
        "database": {"dialect": "sqlite", "breaker": "open"},
        "spool": {
            "active": True,
            "reason": "a commit takes long",
            "stuck": False,
            "waiting": 7,
            "bytes": 99,
            "dropped": 0,
        },
        "sinks": [
            {
                "name": "web\x1b",
                "delivered": 5,
                "refused": 1,
                "retries": 2,
                "trouble": "503",
                "lag": 3.0,
                "breaker": "closed",
            }
        ],
        **more,
    }


def test_top_says_where_the_trouble_is(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.console().print(view(summary(), {"ts": [1, 2], "commit_ms": [1.0, 9.0]}))
    out = capsys.readouterr().out
    lines = {name: line for name in ("database", "commit ms") for line in out.splitlines() if line.startswith(name)}
    assert "does not answer" in lines["database"]
    assert "7 rows" in lines["database"]
    assert "a commit takes long" in lines["database"]
    assert "503" in out
    assert "fridge-7 waits for 12.5 s (handler on_telemetry), 31 messages behind it" in out
    assert "\x1b" not in out
    assert "▁█" in lines["commit ms"]


def test_the_exit_codes_are_told(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert EXIT_CODES.split(";")[0] in told
    assert "--install-completion" in told
    assert run("nonsense") == 2
    assert run("telemetry", "d1", "--csv", "--json") == 2


def test_nothing_heavy_is_imported_to_show_the_help() -> None:
    """Each of these costs a tenth of a second and more, at every call and every completion."""
    heavy = (
        "structlog",
        "msgspec",
        "httpx",
        "rich.console",
        "rich.live",
        "pydantic",
        "sqlalchemy",
        "fastapi",
        "uvicorn",
        "aiomqtt",
    )
    script = f"import sys, bridge.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
