"""What an operator looks at and puts right on the command line, with a real bridge."""

from __future__ import annotations

import csv
import io
import json
import shlex
import subprocess

from tests.acceptance.clients import Device
from tests.acceptance.process import BridgeProcess


def test_readings_as_a_table_csv_and_json(bridge: BridgeProcess) -> None:
    with Device(bridge, "fridge-7") as device:
        for number in (4, 5, 6):
            reading = {"temperature": number, "door": "shut, as it was"}
            device.publish_acknowledged("devices/fridge-7/telemetry", json.dumps(reading))
    table = bridge.run("telemetry", "fridge-7", "--field", "temperature")
    assert table.returncode == 0, table.stderr
    assert [line.split()[-1] for line in table.stdout.splitlines()[:4]] == ["temperature", "4", "5", "6"]
    assert table.stdout.splitlines()[-1] == "temperature  ▁▅█  4 to 6"
    rows = list(csv.DictReader(io.StringIO(bridge.run("telemetry", "fridge-7", "--since", "1h", "--csv").stdout)))
    assert [(row["temperature"], row["door"]) for row in rows] == [(str(n), "shut, as it was") for n in (4, 5, 6)]
    latest = json.loads(bridge.run("telemetry", "fridge-7", "--limit", "1", "--json").stdout)
    assert [reading["values"]["temperature"] for reading in latest] == [6]
    nothing = bridge.run("telemetry", "fridge-7", "--stream", "door")
    assert "has sent nothing to the stream door" in nothing.stdout


def test_one_device_and_the_whole(simulated: BridgeProcess) -> None:
    device = simulated.online()[0]
    assert simulated.run("send", device, "reboot").returncode == 0
    books = {name: simulated.run(name, "--json") for name in ("audit", "ledger", "sinks")}
    assert [run.returncode for run in books.values()] == [0, 0, 0], books
    (line,) = json.loads(books["audit"].stdout)
    assert (line["action"], line["target"]) == ("POST /devices/{device_id}/commands", device)
    assert json.loads(books["ledger"].stdout)["difference"] == 0
    assert json.loads(books["sinks"].stdout) == []
    shown = simulated.run("device", "show", device)
    assert shown.returncode == 0, shown.stderr
    assert "online" in shown.stdout
    assert "reboot succeeded" in shown.stdout
    assert json.loads(simulated.run("devices", "show", device, "--json").stdout)["twin"]["desired"] == {}
    assert simulated.run("devices", "show", "nobody").returncode == 1
    top = simulated.run("top")
    assert top.returncode == 0, top.stderr
    assert "difference 0" in top.stdout
    assert "sqlite, answers" in top.stdout
    assert json.loads(simulated.run("top", "--json").stdout)["ledger"]["difference"] == 0


def test_dead_letters_are_read_replayed_and_dropped(bridge: BridgeProcess) -> None:
    with Device(bridge, "fridge-7") as device:
        for payload in ("no JSON", "neither"):
            device.publish_acknowledged("devices/fridge-7/telemetry", payload)
    listed = json.loads(bridge.run("deadletters", "list", "--json").stdout)
    ids = [str(letter["id"]) for letter in listed]
    shown = bridge.run("deadletters", "show", ids[1])
    assert "fridge-7" in shown.stdout
    assert shown.stdout.endswith("no JSON\n")
    again = bridge.run("deadletters", "replay", ids[1])
    assert (again.returncode, again.stdout) == (3, "1 dead_lettered\n"), "refused again, as nothing was put right"
    assert bridge.run("deadletters", "replay").returncode == 2
    assert bridge.run("deadletters", "drop", ids[0]).stdout == "1 dropped.\n"
    assert bridge.run("deadletters", "drop", ids[0]).returncode == 1, "there is none any more"
    (left,) = json.loads(bridge.run("deadletters", "--json").stdout)
    assert left["payload"] == "no JSON"


def test_bash_completes_commands_options_and_the_ids_of_devices(simulated: BridgeProcess) -> None:
    """Installed as the page says, in a home of its own, and asked as bash asks when Tab is pressed."""
    program = simulated.folder / "mqtt-bridge"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(simulated.command)} "$@"\n')
    program.chmod(0o755)
    script = """
        mqtt-bridge --install-completion > installed && . ~/.bashrc
        tab() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _mqtt_bridge_completion "$1"; echo "${COMPREPLY[*]}"; }
        tab mqtt-bridge dev
        tab mqtt-bridge devices sh
        tab mqtt-bridge tail --ki
        tab mqtt-bridge devices show sim-
        tab mqtt-bridge send sim-0002
        tab mqtt-bridge telemetry nobody
        BRIDGE_URL=http://127.0.0.1:9 tab mqtt-bridge telemetry sim-
    """
    done = subprocess.run(
        ["bash", "--norc", "-euc", f"IFS=' '; {script}"],
        cwd=simulated.folder,
        env=simulated.environment
        | {"HOME": str(simulated.folder), "PATH": f"{simulated.folder}:{simulated.environment['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "devices", "show", "--kind", "sim-0001 sim-0002 sim-0003", "sim-0002", "", "",
    ]  # fmt: skip
