"""Foreign devices: recorded messages of Tasmota and Zigbee2MQTT, and what the bridge makes of them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import RefusedError
from bridge.mapping import Request, Rule, escape, unescape
from bridge.messages import Kind
from bridge.topics import Topics

SENSOR = Rule("tele/%id%/SENSOR", Kind.TELEMETRY, stream="default")
LWT = Rule("tele/%id%/LWT", Kind.PRESENCE, states={"Online": True, "Offline": False})
AVAILABILITY = Rule(
    "zigbee2mqtt/%id%/availability", Kind.PRESENCE, states={"online": True, "offline": False}, state_field="state"
)
LAMP = Rule("zigbee2mqtt/%id%", Kind.TELEMETRY, stream="default", listens=True)
TOPICS = Topics("devices", (SENSOR, LWT, AVAILABILITY, LAMP), {"lamp": {"*": Request("zigbee2mqtt/%id%/set")}})


def test_foreign_topics_lead_to_devices() -> None:
    found = TOPICS.parse("tele/tasmota_9CF9D1/SENSOR")
    assert found is not None
    assert (found.device_id, found.kind, found.stream) == ("tasmota_9CF9D1", Kind.TELEMETRY, "default")
    named = TOPICS.parse("zigbee2mqtt/Temperatur Balkon")
    assert named is not None
    assert named.device_id == "Temperatur:20Balkon"
    assert LAMP.topic_of(named.device_id) == "zigbee2mqtt/Temperatur Balkon"
    for ordinary in ("zigbee2mqtt", "zigbee2mqtt/bridge/state", "tele/x/INFO1", "zigbee2mqtt/a/b/availability"):
        assert TOPICS.parse(ordinary) is None
    with pytest.raises(RefusedError, match="device id"):
        TOPICS.parse("zigbee2mqtt/" + "x" * 65)


def test_a_device_may_use_its_own_foreign_topics() -> None:
    assert "tele/d-1/SENSOR" in TOPICS.device_may_publish("d-1")
    assert "zigbee2mqtt/d-1/set" in TOPICS.device_may_subscribe("d-1")


@given(st.text())
def test_every_name_can_be_found_again(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        return
    assert unescape(escape(name)) == name


@pytest.mark.parametrize(
    ("rule", "payload", "there"),
    [
        (LWT, b"Online", True),
        (LWT, b"Offline", False),
        (AVAILABILITY, b"online", True),
        (AVAILABILITY, b'{"state":"offline"}', False),
    ],
)
def test_presence(rule: Rule, payload: bytes, there: bool) -> None:
    assert rule.is_there(payload) is there


def test_what_says_nothing_about_presence_is_refused() -> None:
    for payload in (b"", b"perhaps", b'{"other":1}', b"\xff"):
        with pytest.raises(RefusedError):
            AVAILABILITY.is_there(payload)


def test_fields_are_chosen_and_renamed() -> None:
    recorded = b'{"Time":"2024-02-24T22:20:38","AM2301":{"Temperature":21.4,"Humidity":48.0},"TempUnit":"C"}'
    assert SENSOR.readings(recorded) is recorded
    chosen = Rule(
        "x/%id%", Kind.TELEMETRY, fields={"AM2301.Temperature": "temperature", "TempUnit": "unit", "no": "no"}
    )
    assert json.loads(chosen.readings(recorded)) == {"temperature": 21.4, "unit": "C"}
    with pytest.raises(RefusedError, match="none of"):
        chosen.readings(b"{}")
    wrapped = Rule("stat/%id%/POWER", Kind.TELEMETRY, wrap="power")
    assert wrapped.readings(b"ON") == b'{"power":"ON"}'


def test_commands_are_written_as_the_device_reads_them() -> None:
    power = Request("cmnd/%id%/%name%", "%args.value%")
    assert power.render("tasmota_9CF9D1", "POWER", {"value": "ON"}) == ("cmnd/tasmota_9CF9D1/POWER", b"ON")
    assert power.render("t", "Dimmer", {"value": 40})[1] == b"40"
    assert power.render("t", "Status", None)[1] == b""
    lamp = Request("zigbee2mqtt/%id%/set")
    assert lamp.render("Living:20room", "set", {"state": "ON"}) == ("zigbee2mqtt/Living room/set", b'{"state":"ON"}')
    with pytest.raises(RefusedError, match="topic"):
        power.render("t", "a/#", None)


def test_an_answer_may_be_a_failure() -> None:
    result = Rule("stat/%id%/RESULT", Kind.RESPONSE, error_field="Command")
    assert result.failure({"POWER": "ON"}) is None
    assert result.failure({"Command": "Unknown"}) == "Command: Unknown"
