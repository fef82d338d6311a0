"""Starting: the second time as well as the first, and what is said when it cannot be."""

from __future__ import annotations

import os
import re
import socket

import pytest

from tests.acceptance.clients import Device
from tests.acceptance.conftest import MakeBridge
from tests.waiting import until


def test_the_second_start_finds_what_the_first_left(make_bridge: MakeBridge) -> None:
    bridge = make_bridge().start()
    with Device(bridge, "fridge-7") as device:
        device.publish_acknowledged("devices/fridge-7/telemetry", '{"id": "first", "temperature": 4.2}')
    assert bridge.terminate() == 0
    bridge.start()
    with Device(bridge, "fridge-7") as device:
        device.publish_acknowledged("devices/fridge-7/telemetry", '{"id": "second", "temperature": 4.3}')
    assert bridge.stored_ids() == {"first", "second"}

    def messages() -> int:
        (found,) = bridge.get("/api/v1/devices?limit=10")["devices"]
        assert found["device_id"] == "fridge-7"
        return int(found["messages"])

    # The list comes from the database, where an agent saves its state every `agent.snapshot_interval`.
    until(lambda: messages() == 2, "both messages to be counted", 15)


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
        assert bridge.refuse() == 1
    said = bridge.output()
    assert port in said
    assert setting in said
    assert str(os.getpid()) in said, "it can be known who has the port: this process"
    assert "Traceback" not in said


def test_anonymous_clients_are_refused_beyond_loopback(make_bridge: MakeBridge) -> None:
    bridge = make_bridge(BRIDGE_MQTT__HOST="0.0.0.0")  # noqa: S104 - what is refused here
    assert bridge.refuse() in (1, 2)
    assert "anonymous" in bridge.output()
    assert "Traceback" not in bridge.output()


def test_an_unknown_setting_names_the_nearest(make_bridge: MakeBridge) -> None:
    bridge = make_bridge(BRIDGE_MQTT__PROT="1883")
    assert bridge.refuse() == 2
    assert "BRIDGE_MQTT__PROT" in bridge.output()
    assert re.search("mqtt.port|BRIDGE_MQTT__PORT", bridge.output())


def test_two_bridges_do_not_share_a_database(make_bridge: MakeBridge) -> None:
    first = make_bridge().start()
    second = make_bridge(BRIDGE_DATA_DIR=str(first.data))
    assert second.refuse() == 1
    assert str(first.process and first.process.pid) in second.output(), "it says who has the database"
    assert first.status("/readyz") == 200
