"""Device logic as its author has it: classes named in the settings, a real bridge, clients that others wrote."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from bridge.testing import harness
from docs.examples.cold_chain import ColdChain
from tests.acceptance.clients import Device, Load
from tests.acceptance.conftest import MakeBridge
from tests.acceptance.counting import EVERY
from tests.acceptance.process import ROOT, BridgeProcess
from tests.acceptance.test_production import Database, database, server
from tests.waiting import until

EXAMPLES = ROOT / "docs" / "examples"

__all__ = ["database", "server"]  # fixtures


@pytest.fixture
def bridge(make_bridge: MakeBridge) -> BridgeProcess:
    """A bridge with the examples, started in their folder."""
    bridge = make_bridge()
    bridge.working_directory = EXAMPLES
    return bridge.start("--config", "bridge.toml")


@contextmanager
def listening(bridge: BridgeProcess, device_id: str, *names: str) -> Iterator[tuple[Device, list[tuple[str, Any]]]]:
    """A device that has subscribed to some of its topics, and what it has received: the name and the body of each."""
    received: list[tuple[str, Any]] = []
    subscribed: list[Any] = []
    prefix = f"devices/{device_id}/"
    with Device(bridge, device_id) as device:
        device.on_message = lambda client, data, m: received.append(
            (m.topic.removeprefix(prefix), json.loads(m.payload))
        )
        device.on_subscribe = lambda client, data, mid, codes, properties: subscribed.append(mid)
        device.subscribe([(prefix + name, 1) for name in names])
        until(lambda: subscribed, "the subscription")
        yield device, received


def first(received: list[tuple[str, Any]], name: str, which: Callable[[Any], bool] = bool) -> Any:
    """Wait for a message."""
    return until(lambda: next((body for n, body in received if n == name and which(body)), None), name, 30)


def test_the_cold_chain_commands_its_compressor_and_answers_an_operator(bridge: BridgeProcess) -> None:
    topics = ("command/request", "command/status", "alarm")
    with listening(bridge, "cold-1", *topics) as (device, received):
        device.publish_acknowledged("devices/cold-1/telemetry", '{"temperature": -20.5}')
        device.publish_acknowledged("devices/cold-1/telemetry", '{"temperature": -3}')
        request = first(received, "command/request")
        assert (request["name"], request["args"]) == ("compressor", {"on": True})
        answer = {"id": request["id"], "status": "failed", "error": "jammed"}
        device.publish_acknowledged("devices/cold-1/command/response", json.dumps(answer))
        assert first(received, "alarm")["text"] == "compressor: jammed"
        assert bridge.rows("SELECT json_extract(state, '$.cooling') FROM agent_states") == [(0,)]
        device.publish_acknowledged("devices/cold-1/telemetry", '{"temperature": -20.5}')
        sent = bridge.run("send", "cold-1", "defrost", "--args", '{"minutes": 5}')
        assert (sent.returncode, "succeeded" in sent.stdout) == (0, True), sent.stdout + sent.stderr


def test_the_anomaly_detector_computes_elsewhere(bridge: BridgeProcess) -> None:
    with listening(bridge, "machine-1", "anomaly") as (device, received):
        for n in range(12):
            samples = [(-1) ** i * (1 + n % 3 / 100) for i in range(1000)]
            device.publish_acknowledged("devices/machine-1/telemetry/vibration", json.dumps({"samples": samples}))
        assert received == []
        assert bridge.children(), "no worker process"
        loud = [(-1) ** i * 5.0 for i in range(1000)]
        device.publish_acknowledged("devices/machine-1/telemetry/vibration", json.dumps({"samples": loud}))
        assert first(received, "anomaly")["level"] == pytest.approx(25.0)


def test_the_chat_bot_remembers_also_over_a_kill(bridge: BridgeProcess) -> None:
    with listening(bridge, "person-1", "says") as (device, received):
        device.publish_acknowledged("devices/person-1/event/said", '{"text": "my name is Ada"}')
        assert first(received, "says") == {"text": "Hello Ada!"}
        device.publish_acknowledged("devices/person-1/event/said", '{"text": "remind me in 1 s: tea"}')
    bridge.kill()
    bridge.start("--config", "bridge.toml")
    with listening(bridge, "person-1", "says") as (device, received):
        device.publish_acknowledged("devices/person-1/event/said", '{"text": "who am I?"}')
        assert first(received, "says", lambda body: "You are" in body["text"]) == {"text": "You are Ada."}


async def test_the_cold_chain_in_the_harness() -> None:
    async with harness(ColdChain, device_id="cold-1") as device:
        await device.telemetry({"temperature": -3})
        await device.telemetry({"temperature": -2})
        assert device.commands == [("compressor", {"on": True}, 30)]
        await device.respond("compressor", {"rpm": 3000})
        await device.advance(minutes=5)
        assert [p.payload["text"] for p in device.published] == ["warmer than -15 °C for 5 minutes"]
        with pytest.raises(RuntimeError, match="too warm already"):
            await device.command("defrost", {"minutes": 10})
        await device.telemetry({"temperature": -18})
        assert await device.command("defrost", {"minutes": 10}) == {"until": device.now + 600}
        await device.advance(minutes=20)
        assert device.published[-1].payload["text"] == "no reading for ten minutes"


def test_the_examples_pass_mypy_in_strict_mode() -> None:
    examples = sorted(EXAMPLES.glob("*.py"))
    assert len(examples) == 3
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", *map(str, examples)],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def counter(make_bridge: MakeBridge, folder: Path, **settings: str) -> BridgeProcess:
    """A bridge whose devices are counted by an agent."""
    config = folder / "counting.toml"
    config.write_text('[profiles.default]\nagent = "tests.acceptance.counting:Counter"\n')
    return make_bridge(BRIDGE_CONFIG=str(config), **settings)


def run_into_kills(bridge: BridgeProcess, check: Callable[[], None], kills: int) -> None:
    """Load on three devices, and in its midst `kill -9`, after each of which `check` must hold."""
    bridge.start()
    with ExitStack() as stack:
        loads = [stack.enter_context(Load(bridge, f"load-{n}")) for n in range(3)]

        def acknowledged() -> int:
            return sum(len(load.acknowledged) for load in loads)

        for _ in range(kills):
            before = acknowledged()
            until(lambda before=before: acknowledged() > before + 150, "the load to run", 30)  # type: ignore[misc]  # mypy wants the default's type
            bridge.kill()
            check()
            bridge.start()
        for load in loads:
            load.stop()
        until(lambda: acknowledged() == sum(len(load.sent) for load in loads), "what is left to be sent again", 60)
    check()


TABLES = (
    "SELECT device_id, count(*), {total} FROM telemetry GROUP BY device_id ORDER BY device_id",
    "SELECT device_id, {count_of}, {total_of} FROM agent_states ORDER BY device_id",
    "SELECT device_id, count(*) FROM commands GROUP BY device_id ORDER BY device_id",
)


def agree(readings: list[Any], states: list[Any], commands: list[Any]) -> None:
    """For each device: its agent has counted what is stored, and has sent a command for every so many."""
    assert [tuple(row) for row in states] == [tuple(row) for row in readings]
    wanted = [(row[0], row[1] // EVERY) for row in readings if row[1] >= EVERY]
    assert [tuple(row) for row in commands] == wanted


def test_kill_9_leaves_state_commands_and_readings_in_agreement(make_bridge: MakeBridge, tmp_path: Path) -> None:
    bridge = counter(make_bridge, tmp_path)
    names = {
        "total": "sum(json_extract(payload, '$.n'))",
        "count_of": "json_extract(state, '$.count')",
        "total_of": "json_extract(state, '$.total')",
    }

    def check() -> None:
        bridge.stored_ids()
        agree(*(bridge.rows(query.format(**names)) for query in TABLES))

    run_into_kills(bridge, check, kills=2)


@pytest.mark.postgres
def test_kill_9_with_postgresql(make_bridge: MakeBridge, tmp_path: Path, database: Database) -> None:
    bridge = counter(make_bridge, tmp_path, BRIDGE_DATABASE__URL=database.url)
    names = {
        "total": "sum((payload->>'n')::bigint)",
        "count_of": "(state->>'count')::bigint",
        "total_of": "(state->>'total')::bigint",
    }

    def check() -> None:
        database.stored_ids()
        agree(*(database._query(database.url, query.format(**names)) for query in TABLES))

    run_into_kills(bridge, check, kills=1)


def test_the_page_s_own_code_runs_and_is_typed(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "device-logic.md").read_text()
    blocks = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", page, re.DOTALL)
    assert [name for name, _ in blocks] == ["freezer.py", "test_freezer.py"]
    for name, code in blocks:
        (tmp_path / name).write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for command in (["test_freezer.py"], ["-m", "mypy", "--strict", "freezer.py", "test_freezer.py"]):
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
        )
        assert done.returncode == 0, done.stdout + done.stderr
