"""Devices are provisioned from a file, get credentials, lose them: with the real command and a client of others."""

from __future__ import annotations

import json

from tests.acceptance.clients import Device, mosquitto_pub
from tests.acceptance.conftest import MakeBridge
from tests.acceptance.process import BridgeProcess
from tests.waiting import until

PROFILES = '{"freezer": {"match": ["fz-*"], "ping_interval": 10}}'


def test_ten_thousand_devices_from_a_file(make_bridge: MakeBridge) -> None:
    bridge = make_bridge(BRIDGE_PROFILES=PROFILES).start()
    file = bridge.folder / "devices.csv"
    rows = [f'fz-{n:05},,cold cellar,"{{""shelf"": {n}}}",Berlin' for n in range(10_000)]
    file.write_text("\n".join(["device_id,profile,tags,metadata,site", *rows]) + "\n")
    dry = bridge.run("devices", "import", "devices.csv", "--dry-run")
    assert dry.stdout == "10,000 devices can be imported.\n", dry.stderr
    assert bridge.rows("SELECT count(*) FROM devices") == [(0,)]
    for new in ("10,000", "0"):
        done = bridge.run("devices", "import", "devices.csv", timeout=60)
        assert done.stdout == f"10,000 devices imported, {new} of them new.\n", done.stderr
    assert bridge.rows("SELECT count(*) FROM device_tags") == [(20_000,)]
    shown = json.loads(bridge.run("devices", "show", "fz-00007", "--json").stdout)
    assert {name: shown[name] for name in ("device_id", "profile", "tags", "metadata")} == {
        "device_id": "fz-00007",
        "profile": "freezer",
        "tags": ["cellar", "cold"],
        "metadata": {"shelf": 7, "site": "Berlin"},
    }
    exported = bridge.run("devices", "export").stdout
    assert len(exported.splitlines()) == 10_000
    (bridge.folder / "again.json").write_text(exported)
    assert "10,000 devices imported, 0 of them new." in bridge.run("devices", "import", "again.json", timeout=60).stdout
    assert bridge.get("/api/v1/devices?limit=2")["devices"][1]["device_id"] == "fz-00001"


def test_what_is_wrong_in_a_file_is_named_by_line_and_column(bridge: BridgeProcess) -> None:
    def said(text: str) -> str:
        (bridge.folder / "wrong").write_text(text)
        done = bridge.run("devices", "import", "wrong")
        assert done.returncode == 1, done.stdout
        return done.stderr

    assert "wrong, line 3, column 2 (profile): there is no profile 'freezr'" in said(
        "device_id,profile\na,\nb,freezr\n"
    )
    assert "wrong, line 2, column 1 (device_id): 'a b'" in said("device_id\na b\n")
    assert "wrong, line 3: a stands in wrong, line 2 already" in said("device_id\na\na\n")
    assert "wrong, line 2: 2 columns; the header has 1" in said("device_id\na,b\n")
    assert "wrong, line 2, column 2 (metadata): not JSON" in said("device_id,metadata\na,{\n")
    assert "device_id among them" in said("id\na\n")
    assert "wrong, line 2: Object contains unknown field `tag`" in said(
        '{"device_id":"a"}\n{"device_id":"b","tag":1}\n'
    )
    assert bridge.rows("SELECT count(*) FROM devices") == [(0,)]


def test_a_credential_lets_in_until_it_is_revoked(make_bridge: MakeBridge) -> None:
    bridge = make_bridge(BRIDGE_MQTT__ALLOW_ANONYMOUS="false").start()
    (bridge.folder / "one.csv").write_text("device_id\ndoor-1\n")
    assert bridge.run("devices", "import", "one.csv").returncode == 0
    issued = bridge.run("devices", "issue", "door-1")
    token = issued.stdout.strip()
    assert token
    assert token.encode() not in (bridge.data / "bridge.db").read_bytes()
    with Device(bridge, "x", username="door-1", password=token[:-1]) as stranger:
        assert stranger.refused is not None
    with Device(bridge, "x", username="door-1", password=token) as device:
        assert device.refused is None
        device.publish_acknowledged("devices/door-1/telemetry", '{"open": true}')
        device.connected.clear()
        revoked = bridge.run("devices", "revoke", "door-1")
        assert revoked.stdout == "1 revoked.\n", revoked.stderr
        # The connection is closed; the client comes back by itself, and stays outside.
        until(lambda: device.refused is not None, "a refusal")
    assert bridge.rows("SELECT device_id FROM telemetry") == [("door-1",)]
    assert bridge.run("devices", "credentials", "door-1").stdout == "door-1 has no credentials.\n"


def test_a_device_in_quarantine_is_approved(make_bridge: MakeBridge) -> None:
    bridge = make_bridge(BRIDGE_REGISTRY__UNKNOWN="quarantine").start()
    mosquitto_pub(bridge, "devices/new-1/telemetry", '{"t": 1}', "-q", "1")
    until(lambda: bridge.rows("SELECT reason FROM dead_letters") == [("quarantined",)], "the dead letter")
    assert bridge.run("devices", "approve", "new-1").returncode == 0
    mosquitto_pub(bridge, "devices/new-1/telemetry", '{"t": 2}', "-q", "1")
    assert bridge.rows("SELECT payload FROM telemetry") == [('{"t": 2}',)]
    assert bridge.run("devices", "delete", "new-1").stdout == "new-1 is deleted.\n"
    assert bridge.rows("SELECT count(*) FROM telemetry") == bridge.rows("SELECT count(*) FROM devices") == [(0,)]


def test_where_unknown_devices_are_refused_only_registered_ones_come_in(make_bridge: MakeBridge) -> None:
    bridge = make_bridge(BRIDGE_REGISTRY__UNKNOWN="refuse", BRIDGE_MQTT__ALLOW_ANONYMOUS="false")
    bridge.folder.mkdir()
    for name in ("door-1", "stranger"):
        typed = bridge.run("passwd", "users", name, "--password-stdin", typed="cold enough\n")
        assert typed.returncode == 0, typed.stderr
    bridge.environment["BRIDGE_MQTT__PASSWORD_FILE"] = "users"
    bridge.start()
    (bridge.folder / "one.csv").write_text("device_id\ndoor-1\n")
    assert bridge.run("devices", "import", "one.csv").returncode == 0
    with Device(bridge, "s", username="stranger", password="cold enough") as stranger:
        assert stranger.refused is not None, "its password is right, but nobody has registered it"
    with Device(bridge, "d", username="door-1", password="cold enough") as device:
        device.publish_acknowledged("devices/door-1/telemetry", '{"open": true}')
    assert bridge.rows("SELECT device_id FROM telemetry") == [("door-1",)]
    assert bridge.rows("SELECT device_id FROM devices") == [("door-1",)]
