"""The pages for operators: every command in them is run, in its order, with a real bridge."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.acceptance.conftest import MakeBridge
from tests.acceptance.process import ROOT, BridgeProcess
from tests.acceptance.test_production import Database, database, server
from tests.servers import free_port

DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```sh( stopped)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FROM_PROMETHEUS = re.compile(r"- alert: (\w+)")

__all__ = ["database", "server"]  # fixtures


def follow(bridge: BridgeProcess, page: str, instead: Mapping[str, str]) -> str:
    """Do what a page says, in its order, and return what was printed. `instead`: what stands for what is in the page,
    such as ports.

    `mqtt-bridge serve` is the bridge of this test; a block marked `stopped` is run while it is not running.
    """
    bridge.folder.mkdir(parents=True, exist_ok=True)
    command = bridge.folder / "mqtt-bridge"
    command.write_text(f'#!/bin/sh\nexec {shlex.join(bridge.command)} "$@"\n')
    command.chmod(0o755)
    environment = bridge.environment | {"PATH": f"{bridge.folder}:{bridge.environment['PATH']}"}
    printed = []
    for stopped, script in blocks(page):
        for there, here in instead.items():
            script = script.replace(there, here)
        if script.startswith("mqtt-bridge serve"):
            bridge.start(*shlex.split(script)[2:])
            continue
        if stopped and bridge.running:
            assert bridge.terminate() == 0
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=bridge.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        printed.append(done.stdout)
    return "\n".join(printed)


def blocks(page: str) -> Iterator[tuple[bool, str]]:
    """The commands of a page, block after block, and whether the bridge is not to run."""
    found = BLOCK.findall((DOCS / page).read_text())
    assert found, f"no commands in {page}"
    for stopped, script in found:
        yield bool(stopped), script


def ports(bridge: BridgeProcess) -> dict[str, str]:
    return {"1883": str(bridge.mqtt_port), "8883": str(free_port())}


@pytest.mark.mosquitto
def test_the_first_device(make_bridge: MakeBridge) -> None:
    bridge = make_bridge()
    printed = follow(bridge, "first-device.md", ports(bridge))
    assert "4.2 to 4.6" in printed
    assert "kitchen" in printed
    assert "no JSON" in printed
    assert bridge.rows("SELECT count(*) FROM telemetry") == [(2,)]


@pytest.mark.mosquitto
def test_tls(make_bridge: MakeBridge) -> None:
    bridge = make_bridge()
    follow(bridge, "tls.md", ports(bridge))
    assert bridge.rows("SELECT device_id FROM telemetry") == [("fridge-7",)]


def test_upgrade(bridge: BridgeProcess) -> None:
    printed = follow(bridge, "upgrade.md", {})
    assert "before-upgrade.db" in printed


@pytest.mark.postgres
def test_postgresql(make_bridge: MakeBridge, database: Database) -> None:
    bridge = make_bridge(BRIDGE_DATABASE__URL=database.url)
    follow(bridge, "postgresql.md", {"postgresql+asyncpg://bridge:secret@127.0.0.1:5432/bridge": database.url})
    assert bridge.get("/api/v1/summary")["database"]["dialect"] == "postgresql"


def test_alerts(bridge: BridgeProcess) -> None:
    assert "difference 0" in follow(bridge, "alerts.md", {})
    rules = set(FROM_PROMETHEUS.findall(Path(ROOT / "docker/alerts.yaml").read_text()))
    told = set(re.findall(r"^\| `(Bridge\w+)`", (DOCS / "alerts.md").read_text(), re.MULTILINE))
    assert told == rules
