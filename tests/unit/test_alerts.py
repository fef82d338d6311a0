"""The alert rules on data: each fires when it should, and does not when it should not."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import pytest
import yaml

from tests.servers import program

ALERTS: Final = Path(__file__).parents[2] / "docker/alerts.yaml"
Series = dict[str, str]


class Case(NamedTuple):
    """Series in promtool's notation, a value every 15 seconds; what is right at the time `at`; and the labels that the
    alert takes from them."""

    fires: Series
    quiet: Series
    at: str
    labels: Mapping[str, str] = MappingProxyType({})


def waits(name: str, quick: float, slow: float, *, late: int) -> Series:
    """A histogram of which `late` of a hundred are above `quick`, and all below `slow`."""
    counts = {f"{quick:g}": 100 - late, f"{slow:g}": 100, "+Inf": 100}
    return {f'{name}_bucket{{le="{le}"}}': f"0+{count}x80" for le, count in counts.items()}


CASES: Final = {
    "BridgeDown": Case(
        {'up{job="mqtt-agent-bridge"}': "1x4 0x40"},
        {'up{job="mqtt-agent-bridge"}': "1x6 0x2 1x40", 'up{job="another"}': "0x40"},
        "3m",
        {"job": "mqtt-agent-bridge"},
    ),
    "BridgeDatabaseAway": Case(
        {'bridge_breaker_open{backend="database"}': "1x40"},
        {'bridge_breaker_open{backend="database"}': "0x40", 'bridge_breaker_open{backend="sink cloud"}': "1x40"},
        "2m",
        {"backend": "database"},
    ),
    "BridgeSpoolFilling": Case({"bridge_spool_active": "1x40"}, {"bridge_spool_active": "1x15 0x1 1x24"}, "6m"),
    "BridgeReadingsDropped": Case(
        {"bridge_spool_dropped_readings_total": "5x10 9x30"}, {"bridge_spool_dropped_readings_total": "5x40"}, "5m"
    ),
    "BridgeLedgerDiffers": Case({"bridge_ledger_difference": "-1x40"}, {"bridge_ledger_difference": "0x40"}, "3m"),
    "BridgeCommitsSlow": Case(
        waits("bridge_message_commit_seconds", 1.0, 5.0, late=3),
        waits("bridge_message_commit_seconds", 1.0, 5.0, late=0),
        "15m",
    ),
    "BridgeLoopLate": Case(
        waits("bridge_loop_lag_seconds", 0.25, 1.0, late=3), waits("bridge_loop_lag_seconds", 0.25, 1.0, late=0), "15m"
    ),
    "BridgeMessagesRefused": Case(
        {"bridge_messages_dead_lettered_total": "0+3x80"}, {"bridge_messages_dead_lettered_total": "0+2x80"}, "15m"
    ),
    "BridgeSinkBehind": Case(
        {'bridge_sink_lag_seconds{sink="cloud"}': "301x40"},
        {'bridge_sink_lag_seconds{sink="cloud"}': "900x15 2x1 900x24"},
        "6m",
        {"sink": "cloud"},
    ),
    "BridgeSinkWillMiss": Case(
        {'bridge_sink_endangered{sink="cloud"}': "0x10 1x40"},
        {'bridge_sink_endangered{sink="cloud"}': "0x40"},
        "15m",
        {"sink": "cloud"},
    ),
    "BridgeSinkRefuses": Case(
        {'bridge_sink_refused_total{sink="cloud"}': "7x10 8x40"},
        {'bridge_sink_refused_total{sink="cloud"}': "7x40"},
        "5m",
        {"sink": "cloud"},
    ),
    "BridgeManyDevicesGone": Case(
        {'bridge_devices{status="offline"}': "10x40 40x40", 'bridge_devices{status="silent"}': "0x40 21x40"},
        {'bridge_devices{status="offline"}': "900x40 950x40", 'bridge_devices{status="online"}': "0x40 900x40"},
        "14m",
    ),
    "BridgeCommandsFail": Case(
        {'bridge_commands_total{status="expired"}': "0+1x80"},
        {'bridge_commands_total{status="succeeded"}': "0+9x80", 'bridge_commands_total{status="failed"}': "0x40 8x40"},
        "16m",
        {"status": "expired"},
    ),
    "BridgeFilesNearLimit": Case(
        {"process_open_fds": "910x40", "process_max_fds": "1000x40"},
        {"process_open_fds": "900x40", "process_max_fds": "1000x40"},
        "6m",
    ),
}


def rules() -> dict[str, dict[str, Any]]:
    """The rules by name."""
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def test_each_rule_has_its_case() -> None:
    assert list(CASES) == list(rules())


@pytest.mark.promtool
def test_each_fires_when_it_should_and_only_then(tmp_path: Path) -> None:
    def told(text: str, labels: Mapping[str, str]) -> str:
        return re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: labels[found[1]], text)

    tests = []
    for name, rule in rules().items():
        case = CASES[name]
        expected = {
            "exp_labels": {**rule["labels"], **case.labels},
            "exp_annotations": {key: told(text, case.labels) for key, text in rule["annotations"].items()},
        }
        for series, alerts in ((case.fires, [expected]), (case.quiet, [])):
            tests.append(
                {
                    "name": f"{name} {'fires' if alerts else 'is quiet'}",
                    "interval": "15s",
                    "input_series": [{"series": one, "values": values} for one, values in series.items()],
                    "alert_rule_test": [{"eval_time": case.at, "alertname": name, "exp_alerts": alerts}],
                }
            )
    path = tmp_path / "tests.yaml"
    path.write_text(json.dumps({"rule_files": [str(ALERTS)], "evaluation_interval": "15s", "tests": tests}))
    done = subprocess.run(
        [program("promtool"), "test", "rules", str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout
