"""Foreign devices: recorded messages of Tasmota and Zigbee2MQTT, by settings alone."""

from __future__ import annotations

from bridge.commands import CommandRequest
from bridge.receipts import Outcome, Receipt
from bridge.settings import Settings
from bridge.storage import commands as stored
from bridge.storage import registry, telemetry
from tests.integration.agents.house import House, Line, house
from tests.waiting import eventually

PROFILES = Settings(
    profiles={
        "tasmota": {
            "topics": {
                "tele/%id%/SENSOR": {"telemetry": "default"},
                "tele/%id%/STATE": {"telemetry": "state", "fields": {"POWER": "power", "Wifi.Signal": "signal"}},
                "tele/%id%/LWT": {"presence": {"Online": True, "Offline": False}},
                "stat/%id%/RESULT": {"response": True, "error_field": "Command"},
            },
            "requests": {"*": {"topic": "cmnd/%id%/%name%", "payload": "%args.value%", "answered": True}},
        },
        "zigbee": {
            "topics": {
                "zigbee2mqtt/%id%": {"telemetry": "default"},
                "zigbee2mqtt/%id%/availability": {
                    "presence": {"online": True, "offline": False},
                    "state_field": "state",
                },
            },
            "requests": {"set": {"topic": "zigbee2mqtt/%id%/set"}},
        },
    }
).complete_profiles()
SENSOR = b'{"Time":"2024-02-24T22:20:38","Switch1":"ON"}'
STATE = b'{"Time":"2024-02-24T22:20:38","UptimeSec":611,"POWER":"OFF","Wifi":{"AP":1,"RSSI":44,"Signal":-78}}'


async def receive(house: House, topic: str, payload: bytes) -> Receipt:
    receipt = house.receive(topic, payload)
    await eventually(lambda: receipt.outcome)
    return receipt


async def readings(house: House, device_id: str, stream: str) -> list[str]:
    rows = await house.database.read(lambda c: telemetry.readings(c, device_id, stream))
    return [row.payload for row in rows]


async def test_tasmota(url: str) -> None:
    async with house(url, profiles=PROFILES) as h:
        h.router.attached("plug", Line(), listening=True)
        for topic, payload in (("LWT", b"Online"), ("SENSOR", SENSOR), ("STATE", STATE)):
            assert (await receive(h, f"tele/plug/{topic}", payload)).outcome is Outcome.COMMITTED
        assert await readings(h, "plug", "default") == [SENSOR.decode()]
        assert await readings(h, "plug", "state") == ['{"power":"OFF","signal":-78}']
        await h.writer.barrier()
        described = await h.database.read(lambda c: registry.describe(c, ["plug"]))
        assert described["plug"].profile == "tasmota"
        # Commands are answered one after the other, by a topic that does not say which.
        ids = [
            (await h.router.send("plug", CommandRequest(name, {"value": "ON"}), "test"))[0].command_id
            for name in ("POWER", "Powr")
        ]
        await eventually(lambda: len([sent for sent in h.sent if sent.topic.startswith("cmnd/")]) == 2)
        assert [(s.topic, s.body) for s in h.sent if s.topic.startswith("cmnd/")] == [
            ("cmnd/plug/POWER", "ON"),
            ("cmnd/plug/Powr", "ON"),
        ]
        await receive(h, "stat/plug/RESULT", b'{"POWER":"ON"}')
        await receive(h, "stat/plug/RESULT", b'{"Command":"Unknown"}')
        found = [await h.database.read(lambda c, i=i: stored.get_command(c, i)) for i in ids]  # type: ignore[misc]
        assert [(c.status, c.result, c.error) for c in found if c is not None] == [
            ("succeeded", {"POWER": "ON"}, None),
            ("failed", {"Command": "Unknown"}, "Command: Unknown"),
        ]
        # One that nobody has asked for says what happened at the device.
        await receive(h, "stat/plug/RESULT", b'{"POWER":"OFF"}')
        assert await readings(h, "plug", "event/response") == ['{"result":{"POWER":"OFF"}}']
        await receive(h, "tele/plug/LWT", b"Offline")
        assert [body["status"] for body in h.bodies("devices/plug/presence")] == ["online", "offline"]


async def test_zigbee2mqtt(url: str) -> None:
    async with house(url, profiles=PROFILES) as h:
        gateway = Line("zigbee2mqtt")
        device_id = "Temperatur:20Balkon"
        h.router.attached(device_id, gateway, listening=True)
        await receive(h, "zigbee2mqtt/Temperatur Balkon/availability", b'{"state":"online"}')
        await receive(h, "zigbee2mqtt/Temperatur Balkon", b'{"temperature":27.34,"humidity":44.72}')
        assert await readings(h, device_id, "default") == ['{"temperature":27.34,"humidity":44.72}']
        await h.router.send(device_id, CommandRequest("set", {"state": "OFF"}), "test")
        await eventually(lambda: h.bodies("zigbee2mqtt/Temperatur Balkon/set") == [{"state": "OFF"}])
        await eventually(lambda: h.bodies(f"devices/{device_id}/command/status")[-1]["status"] == "succeeded")
        await receive(h, "zigbee2mqtt/Temperatur Balkon/availability", b"offline")
        await receive(h, "zigbee2mqtt/Temperatur Balkon/availability", b"perhaps")
        assert h.bodies(f"devices/{device_id}/presence")[-1]["status"] == "offline"
        assert h.bodies(f"devices/{device_id}/error")[-1]["reason"] == "bad_presence"
