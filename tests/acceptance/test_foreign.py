"""Foreign devices by settings alone: recorded messages, sent by Mosquitto's client to the real command."""

from __future__ import annotations

import json
import subprocess

from tests.acceptance.clients import Device, mosquitto_pub
from tests.acceptance.conftest import MakeBridge
from tests.waiting import until

SETTINGS = """
[profiles.tasmota.topics]
"tele/%id%/SENSOR" = { telemetry = "default" }
"tele/%id%/STATE" = { telemetry = "state", fields = { POWER = "power", "Wifi.Signal" = "signal" } }
"tele/%id%/LWT" = { presence = { Online = true, Offline = false } }
"stat/%id%/RESULT" = { response = true, error_field = "Command" }
[profiles.tasmota.requests]
"*" = { topic = "cmnd/%id%/%name%", payload = "%args.value%", answered = true }

[profiles.zigbee.topics]
"zigbee2mqtt/%id%" = { telemetry = "default" }
"zigbee2mqtt/%id%/availability" = { presence = { online = true, offline = false }, state_field = "state" }
[profiles.zigbee.requests]
set = { topic = "zigbee2mqtt/%id%/set" }
"""
SENSOR = '{"Time":"2024-02-24T22:20:38","Switch1":"ON"}'
STATE = (
    '{"Time":"2024-02-24T22:20:38","Uptime":"0T00:10:11","UptimeSec":611,"Heap":24,"SleepMode":"Dynamic","Sleep":50,'
    '"LoadAvg":19,"MqttCount":1,"POWER":"OFF","Wifi":{"AP":1,"SSId":"ESP-Network","BSSId":"E6:8D:8C:4B:BE:F7",'
    '"Channel":3,"Mode":"11n","RSSI":44,"Signal":-78,"LinkCount":1,"Downtime":"0T00:00:05"}}'
)


def test_tasmota(make_bridge: MakeBridge) -> None:
    bridge = make_bridge(BRIDGE_CONFIG="bridge.toml")
    bridge.folder.mkdir(parents=True, exist_ok=True)
    (bridge.folder / "bridge.toml").write_text(SETTINGS)
    bridge.start()
    base = "tasmota_9CF9D1"
    with Device(bridge, "DVES_9CF9D1") as plug:

        def answer(client: object, data: object, message: object) -> None:
            topic, payload = message.topic, message.payload.decode()  # type: ignore[attr-defined]  # paho's message
            name = topic.rpartition("/")[2]
            known = {"POWER": {"POWER": payload}}.get(name, {"Command": "Unknown"})
            plug.publish(f"stat/{base}/RESULT", json.dumps(known))

        plug.on_message = answer
        plug.subscribe(f"cmnd/{base}/#")
        plug.publish_acknowledged(f"tele/{base}/LWT", "Online")
        mosquitto_pub(bridge, f"tele/{base}/SENSOR", SENSOR, "-q", "1")
        mosquitto_pub(bridge, f"tele/{base}/STATE", STATE, "-q", "1")
        rows = bridge.rows("SELECT stream, payload FROM telemetry WHERE device_id = ? ORDER BY stream", base)
        assert rows == [("default", SENSOR), ("state", '{"power":"OFF","signal":-78}')]
        assert bridge.rows("SELECT profile, status FROM devices") == [("tasmota", "online")]
        sent = bridge.run("send", base, "POWER", "--arg", "value=ON")
        assert "succeeded" in sent.stdout, sent.stdout + sent.stderr
        refused = bridge.run("send", base, "Powr", "--arg", "value=ON")
        assert refused.returncode == 3, refused.stdout + refused.stderr
        assert bridge.rows("SELECT result FROM commands WHERE name = 'POWER'") == [('{"POWER":"ON"}',)]
        assert bridge.rows("SELECT error FROM commands WHERE status = 'failed'") == [("Command: Unknown",)]
        mosquitto_pub(bridge, f"tele/{base}/LWT", "Offline", "-q", "1")
        until(lambda: bridge.rows("SELECT status FROM devices") == [("offline",)], "offline")
    assert bridge.settled_ledger()["dead_lettered"] == 0


def test_zigbee2mqtt(make_bridge: MakeBridge) -> None:
    bridge = make_bridge(BRIDGE_CONFIG="bridge.toml")
    bridge.folder.mkdir(parents=True, exist_ok=True)
    (bridge.folder / "bridge.toml").write_text(SETTINGS)
    bridge.start()
    taken: list[tuple[str, str]] = []
    with Device(bridge, "zigbee2mqtt") as gateway:
        gateway.on_message = lambda _c, _d, message: taken.append((message.topic, message.payload.decode()))
        gateway.subscribe("zigbee2mqtt/+/set")
        gateway.publish_acknowledged("zigbee2mqtt/bridge/state", '{"state":"online"}')
        gateway.publish_acknowledged("zigbee2mqtt/Temperatur Balkon/availability", '{"state":"online"}')
        gateway.publish_acknowledged("zigbee2mqtt/Temperatur Balkon", '{"temperature":27.34,"humidity":44.72}')
        gateway.publish_acknowledged("zigbee2mqtt/lamp", '{"state":"ON","brightness":215,"color_temp":325}')
        assert bridge.rows("SELECT device_id, payload FROM telemetry ORDER BY id") == [
            ("Temperatur:20Balkon", '{"temperature":27.34,"humidity":44.72}'),
            ("lamp", '{"state":"ON","brightness":215,"color_temp":325}'),
        ]
        sent = bridge.run("send", "lamp", "set", "--args", '{"state":"OFF"}')
        assert sent.returncode == 0, sent.stdout + sent.stderr
        until(lambda: taken == [("zigbee2mqtt/lamp/set", '{"state":"OFF"}')], "the command")
        gateway.publish_acknowledged("zigbee2mqtt/lamp/availability", '{"state":"offline"}')
        states = "SELECT device_id, profile, status FROM devices ORDER BY device_id"
        wanted = [("Temperatur:20Balkon", "zigbee", "online"), ("lamp", "zigbee", "offline")]
        until(lambda: bridge.rows(states) == wanted, "the states")
    assert bridge.settled_ledger()["dead_lettered"] == 0


def test_other_subscribers_still_get_foreign_messages(make_bridge: MakeBridge) -> None:
    bridge = make_bridge(BRIDGE_CONFIG="bridge.toml")
    bridge.folder.mkdir(parents=True, exist_ok=True)
    (bridge.folder / "bridge.toml").write_text(SETTINGS)
    bridge.start()
    mosquitto_pub(bridge, "tele/t/LWT", "Online", "-q", "1", "-r")
    heard = subprocess.run(
        ["mosquitto_sub", "-p", str(bridge.mqtt_port), "-t", "tele/+/LWT", "-C", "1", "-W", "10"],
        capture_output=True, text=True, timeout=20, check=True,
    )  # fmt: skip
    assert heard.stdout == "Online\n"
