"""Presence from outside: epochs through `kill -9`, and what a connection that breaks leaves behind."""

from __future__ import annotations

import json
import socket
from typing import Any

from paho.mqtt.client import MQTTMessage

from tests.acceptance.clients import Device
from tests.acceptance.process import BridgeProcess
from tests.waiting import until

TOPIC = "devices/pump-1/presence"


class Watcher(Device):
    """An operator's client that collects what is said of the pump's presence."""

    def __init__(self, bridge: BridgeProcess) -> None:
        super().__init__(bridge, "watcher")
        self.bodies: list[dict[str, Any]] = []
        self.on_message = self._collect

    def __enter__(self) -> Watcher:
        super().__enter__()
        self.subscribe(TOPIC, 1)
        return self

    def _collect(self, _client: Any, _userdata: Any, message: MQTTMessage) -> None:
        self.bodies.append(json.loads(message.payload))


def newest(bridge: BridgeProcess) -> dict[str, Any]:
    """The pump's last transition that is stored."""
    (transition,) = bridge.get("/api/v1/devices/pump-1/presence?limit=1")["transitions"]
    return dict(transition)


def test_epochs_grow_through_kills_and_none_means_two_things(bridge: BridgeProcess) -> None:
    told: list[dict[str, Any]] = []
    for _ in range(2):
        with Watcher(bridge) as watcher:
            for _ in range(2):
                with Device(bridge, "pump-1") as pump:
                    pump.publish_acknowledged("devices/pump-1/telemetry", "{}")
                    until(lambda: bridge.online() == ["pump-1"], "it is there")
                until(lambda: bridge.online() == [], "it is gone")
            with Device(bridge, "pump-1") as pump:
                pump.publish_acknowledged("devices/pump-1/telemetry", "{}")
                until(lambda: bridge.online() == ["pump-1"], "it is there when the bridge is killed")
                until(lambda: newest(bridge)["status"] == "online", "that to be stored: it is told at once")
                bridge.kill()
            told += watcher.bodies
        bridge.start()
    transitions = bridge.get("/api/v1/devices/pump-1/presence?limit=100")["transitions"]
    epochs = [transition["epoch"] for transition in transitions]
    assert epochs == sorted(set(epochs), reverse=True)
    by_epoch: dict[int, set[tuple[Any, ...]]] = {}
    for body in told:
        by_epoch.setdefault(body["epoch"], set()).add((body["status"], body["cause"], body["at"]))
    assert all(len(meanings) == 1 for meanings in by_epoch.values()), by_epoch
    assert [transition["status"] for transition in transitions[:2]] == ["unknown", "online"]
    assert transitions[0]["cause"] == "restart"


def test_a_connection_that_breaks_with_a_will_is_gone_because_of_it(bridge: BridgeProcess) -> None:
    device = Device(bridge, "pump-1")
    device.will_set("devices/pump-1/event/gone", "{}", qos=1)
    with Watcher(bridge) as watcher, device:
        device.publish_acknowledged("devices/pump-1/telemetry", "{}")
        until(lambda: bridge.online() == ["pump-1"], "its coming")
        device.reconnect_delay_set(60, 60)  # it is not to come back within this test
        sock = device.socket()
        assert isinstance(sock, socket.socket)
        sock.shutdown(socket.SHUT_RDWR)
        until(lambda: any(body["status"] == "offline" for body in watcher.bodies), "its end")
    assert next(body["cause"] for body in watcher.bodies if body["status"] == "offline") == "will"
