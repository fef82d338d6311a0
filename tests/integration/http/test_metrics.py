"""What a real bridge tells Prometheus, and that the dashboard and the alert rules ask for nothing else."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from bridge.errors import StorageUnavailableError
from tests.integration.http.house import House
from tests.servers import program

ROOT = Path(__file__).parents[3]
DASHBOARD = ROOT / "docker/grafana-dashboard.json"
ALERTS = ROOT / "docker/alerts.yaml"
NAME = re.compile(r"\b(?:bridge|process|python)_[a-z_]+\b")
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


async def scraped(house: House) -> dict[str, Metric]:
    text = (await house.client.get("/metrics")).text
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(families: dict[str, Metric], family: str, suffix: str = "", **labels: str) -> float:
    found = [
        s.value for s in families[family].samples if s.name == family + suffix and labels.items() <= s.labels.items()
    ]
    assert len(found) == 1, f"{family}{suffix} {labels}: {found}"
    return found[0]


async def test_times_are_sampled_once_per_batch(open_house: House) -> None:
    before = await scraped(open_house)
    await open_house.receive("devices/fridge-7/telemetry", b'{"temperature": 4}')
    await open_house.receive("devices/fridge-8/telemetry", b'{"temperature": 4}')
    sent = await open_house.client.post("/api/v1/devices/fridge-7/commands", json={"name": "reboot"})
    await open_house.client.post(f"/api/v1/commands/{sent.json()['command_id']}/cancel")
    await open_house.committed()
    after = await scraped(open_house)
    for family in ("bridge_message_commit_seconds", "bridge_message_settle_seconds", "bridge_commit_seconds"):
        assert value(after, family, "_count") - value(before, family, "_count") >= 2
        assert value(after, family, "_bucket", le="10.0") == value(after, family, "_count")
    assert value(after, "bridge_command_step_seconds", "_count", status="cancelled") == 1
    assert value(after, "bridge_command_step_seconds", "_count", status="sent") == 0


async def test_wake_ups_are_sampled(open_house: House) -> None:
    # The first message makes the agent; only one that waits can be woken.
    for _ in range(2):
        await open_house.receive("devices/fridge-7/telemetry", b'{"temperature": 4}')
        await open_house.committed()
    families = await scraped(open_house)
    assert value(families, "bridge_agent_wakeup_seconds", "_count") >= 1
    assert value(families, "bridge_agent_wakeup_seconds", "_bucket", le="1.0") >= 1


async def test_the_process_and_its_database(open_house: House) -> None:
    families = await scraped(open_house)
    assert value(families, "process_resident_memory_bytes") > 1e6
    assert "python_gc_collections" in families
    assert value(families, "bridge_breaker_open", backend="database") == 0
    assert value(families, "bridge_database_pool_size") >= 1
    assert value(families, "bridge_database_pool_in_use") <= value(families, "bridge_database_pool_size")


async def test_a_breaker_that_opens_shows(open_house: House) -> None:
    breaker = open_house.bridge.database.breaker
    for _ in range(5):
        breaker.leave(breaker.enter(), StorageUnavailableError("away"))
    families = await scraped(open_house)
    assert value(families, "bridge_breaker_open", backend="database") == 1
    assert value(families, "bridge_breaker_opened", "_total", backend="database") == 1


async def test_no_label_names_a_device(open_house: House) -> None:
    await open_house.receive("devices/fridge-7/telemetry", b'{"temperature": 4}')
    await open_house.receive("devices/fridge-7/telemetry", b"no JSON")
    await open_house.client.post("/api/v1/devices/fridge-7/commands", json={"name": "reboot"})
    labels = {
        label for family in (await scraped(open_house)).values() for s in family.samples for label in s.labels.items()
    }
    assert labels
    assert not [label for label in labels if "fridge" in label[1]]


async def test_what_is_asked_for_is_there(open_house: House) -> None:
    families = await scraped(open_house)
    there = {f"{family.name}{suffix}" for family in families.values() for suffix in SUFFIXES.get(family.type, ("",))}
    for file in (DASHBOARD, ALERTS):
        asked = set().union(*(NAME.findall(expression) for expression in expressions(file)))
        assert len(asked) > 10
        assert asked <= there, f"{file.name} asks for {sorted(asked - there)}"


def expressions(file: Path) -> Iterator[str]:
    """What a dashboard or a file of rules asks for; of the rules also what their runbooks name."""
    if file == ALERTS:
        yield re.sub(r'"[^"]*"', "", file.read_text())
        return
    for panel in json.loads(file.read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_each_alert_says_what_to_do() -> None:
    rules = ALERTS.read_text().split("- alert: ")[1:]
    assert len(rules) > 10
    for rule in rules:
        assert "summary: " in rule
        assert "runbook: " in rule
        assert re.search(r"severity: (critical|warning)\n", rule)


@pytest.mark.promtool
def test_prometheus_accepts_the_rules() -> None:
    checked = promtool("rules", str(ALERTS))
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.promtool
async def test_prometheus_finds_no_fault_with_the_names(open_house: House) -> None:
    text = (await open_house.client.get("/metrics")).text
    checked = promtool("metrics", text=text)
    assert (checked.returncode, checked.stderr) == (0, ""), checked.stdout + checked.stderr


def promtool(what: str, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """`promtool check`."""
    return subprocess.run(
        [program("promtool"), "check", what, *arguments],
        input=text,
        text=True,
        capture_output=True,
        timeout=30,
        check=False,
    )
