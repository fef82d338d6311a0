"""What a newcomer does first: start, look, send a command, stop, start again; and what goes wrong most often."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.clients import Device
from tests.acceptance.conftest import MakeBridge
from tests.acceptance.process import BridgeProcess, free_port
from tests.waiting import until

ROOT = Path(__file__).parents[2]


@pytest.fixture
def simulated(make_bridge: MakeBridge) -> BridgeProcess:
    """A bridge with three simulated devices, all of them connected."""
    bridge = make_bridge().start("--simulate", "3")
    until(lambda: len(online(bridge)) == 3, "three simulated devices", 30)
    return bridge


def online(bridge: BridgeProcess) -> list[str]:
    devices = bridge.get("/api/v1/devices?limit=100")["devices"]
    return [device["device_id"] for device in devices if device["status"] == "online"]


def test_a_command_shows_each_status_until_it_succeeded(simulated: BridgeProcess) -> None:
    device = online(simulated)[0]
    sent = simulated.run("send", device, "reboot")
    assert sent.returncode == 0, sent.stderr
    positions = [
        sent.stdout.find(status) for status in ("queued", "sent", "delivered", "in_progress", "succeeded")
    ]
    assert -1 not in positions, sent.stdout
    assert positions == sorted(positions), sent.stdout
    assert simulated.rows("SELECT device_id, name, status FROM commands") == [(device, "reboot", "succeeded")]


def test_a_command_to_nobody_expires(bridge: BridgeProcess) -> None:
    sent = bridge.run("send", "nobody", "reboot", "--ttl", "1")
    assert sent.returncode == 3, sent.stdout + sent.stderr
    assert "expired" in sent.stdout


def test_one_idempotency_key_is_executed_once(simulated: BridgeProcess) -> None:
    device = online(simulated)[0]
    first, second = (simulated.run("send", device, "reboot", "--id", "key-1", "--json") for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert simulated.rows("SELECT count(*) FROM commands") == [(1,)]
    assert simulated.rows("SELECT count(*) FROM command_events WHERE status = 'sent'") == [(1,)]


def test_devices_are_listed(simulated: BridgeProcess) -> None:
    listed = simulated.run("devices", "--json")
    assert listed.returncode == 0, listed.stderr
    assert all(device in listed.stdout for device in online(simulated))


def test_ctrl_c_ends_the_bridge_and_its_devices(make_bridge: MakeBridge) -> None:
    """As in a terminal: everything in the foreground gets the SIGINT."""
    bridge = make_bridge().start("--simulate", "3")
    until(lambda: len(online(bridge)) == 3, "three simulated devices", 30)
    assert bridge.process is not None
    children = children_of(bridge.process.pid)
    assert children
    for pid in [*children, bridge.process.pid]:
        os.kill(pid, signal.SIGINT)
    assert bridge.wait() == 0
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), "the simulated devices to end")
    assert "Traceback" not in bridge.output()


def test_a_simulation_does_not_outlive_a_killed_bridge(make_bridge: MakeBridge) -> None:
    bridge = make_bridge().start("--simulate", "3")
    until(lambda: len(online(bridge)) == 3, "three simulated devices", 30)
    assert bridge.process is not None
    children = children_of(bridge.process.pid)
    assert children
    bridge.kill()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), "the simulated devices to end")


def children_of(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def test_the_second_start_finds_what_the_first_left(make_bridge: MakeBridge) -> None:
    bridge = make_bridge().start()
    with Device(bridge, "fridge-7") as device:
        device.publish_acknowledged("devices/fridge-7/telemetry", '{"id": "first", "temperature": 4.2}')
    assert bridge.terminate() == 0
    bridge.start()
    with Device(bridge, "fridge-7") as device:
        device.publish_acknowledged("devices/fridge-7/telemetry", '{"id": "second", "temperature": 4.3}')
    assert bridge.stored_ids() == {"first", "second"}
    (found,) = bridge.get("/api/v1/devices?limit=10")["devices"]
    assert (found["device_id"], found["messages"]) == ("fridge-7", 2)


def test_after_a_restart_an_absent_device_is_unknown(make_bridge: MakeBridge) -> None:
    """P7: that the bridge was away says nothing about the device."""
    bridge = make_bridge().start()
    with Device(bridge, "fridge-7") as device:
        device.publish_acknowledged("devices/fridge-7/telemetry", "{}")
        assert bridge.terminate() == 0
    bridge.start()
    (found,) = bridge.get("/api/v1/devices?limit=10")["devices"]
    assert found["status"] == "unknown"


@pytest.mark.parametrize("setting", ["BRIDGE_MQTT__PORT", "BRIDGE_HTTP__PORT"])
def test_a_port_that_is_taken_is_named(make_bridge: MakeBridge, setting: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        bridge = make_bridge(**{setting: port})
        assert bridge.launch().wait(20) == 1
    said = bridge.output()
    assert port in said
    assert setting in said
    assert str(os.getpid()) in said, "it can be known who has the port: this process"
    assert "Traceback" not in said


def test_anonymous_clients_are_refused_beyond_loopback(make_bridge: MakeBridge) -> None:
    bridge = make_bridge(BRIDGE_MQTT__HOST="0.0.0.0")  # noqa: S104 - what is refused here
    assert bridge.launch().wait(20) in (1, 2)
    assert "anonymous" in bridge.output()
    assert "Traceback" not in bridge.output()


def test_an_unknown_setting_names_the_nearest(make_bridge: MakeBridge) -> None:
    bridge = make_bridge(BRIDGE_MQTT__PROT="1883")
    assert bridge.launch().wait(20) == 2
    assert "BRIDGE_MQTT__PROT" in bridge.output()
    assert re.search("mqtt.port|BRIDGE_MQTT__PORT", bridge.output())


def test_two_bridges_do_not_share_a_database(make_bridge: MakeBridge) -> None:
    first = make_bridge().start()
    second = make_bridge(BRIDGE_DATA_DIR=str(first.data))
    assert second.launch().wait(20) == 1
    assert str(first.process and first.process.pid) in second.output(), "it says who has the database"
    assert first.status("/readyz") == 200


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    """A copy of the working tree with this environment in it, as `make` leaves it: nothing is left to install."""
    copy = tmp_path / "checkout"
    shutil.copytree(
        ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "data", ".*_cache", "__pycache__")
    )
    environment = copy / ".venv"
    (environment / "bin").mkdir(parents=True)
    for program, module in {"python": "", "mqtt-bridge": "-m bridge "}.items():
        script = environment / "bin" / program
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module}"$@"\n')
        script.chmod(0o755)
    for stamp in (".python", ".runtime"):
        (environment / stamp).touch()
    yield copy


def test_make_run_in_a_terminal(checkout: Path) -> None:
    """The live summary, what to type next, and Ctrl-C without an error from make."""
    terminal, side = pty.openpty()
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("BRIDGE_", "MAKE"))
    }
    environment |= {
        "BRIDGE_MQTT__PORT": str(free_port()),
        "BRIDGE_HTTP__PORT": str(free_port()),
        "TERM": "xterm",
        "COLUMNS": "160",
        "LINES": "50",
    }
    process = subprocess.Popen(
        ["make", "run", "DEVICES=3"],
        cwd=checkout,
        env=environment,
        stdin=side,
        stdout=side,
        stderr=side,
        start_new_session=True,
        # The terminal's Ctrl-C reaches the whole foreground group, as a shell's job would get it.
        preexec_fn=lambda: os.tcsetpgrp(0, os.getpgrp()) if take_terminal() else None,
    )
    os.close(side)
    screen = bytearray()

    def read() -> None:
        while True:
            try:
                more = os.read(terminal, 65536)
            except OSError:  # EIO: the last process on the terminal has ended
                return
            screen.extend(more)

    reader = threading.Thread(target=read)
    reader.start()
    try:

        def plain() -> str:
            return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.decode(errors="replace"))

        def shown() -> bool:
            assert process.poll() is None, plain()
            return all(word in plain() for word in ("mosquitto_pub", "mqtt-bridge send", "committed"))

        until(shown, "the summary and what to type", 30)
        until(lambda: re.search(r"online\D*3\b|\b3\D{0,20}online", plain()), "three devices online", 30)
        os.write(terminal, b"\x03")
        assert process.wait(15) == 0, plain()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        reader.join(10)
        os.close(terminal)
    assert "***" not in plain(), "make complains"
    assert "Traceback" not in plain()


def take_terminal() -> bool:
    """Make standard input the controlling terminal of this new session."""
    import fcntl  # noqa: PLC0415 - between fork and exec only
    import termios  # noqa: PLC0415

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    return True


def test_the_summary_without_a_terminal_is_plain_lines(make_bridge: MakeBridge) -> None:
    bridge = make_bridge().start("--simulate", "2", "--summary")
    until(lambda: "committed" in bridge.output(), "a line of the summary", 30)
    assert "\x1b[" not in bridge.output()
    assert json.loads(json.dumps(bridge.get("/api/v1/summary")))["ledger"]["difference"] == 0
