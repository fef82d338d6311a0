"""Twins from outside: Mosquitto's and paho's clients, the API, and `kill -9`."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.request
from typing import Any

import pytest
from paho.mqtt.client import MQTTMessage

from tests.acceptance.clients import Device, mosquitto_pub
from tests.acceptance.process import BridgeProcess
from tests.waiting import until

STATE = "devices/pump-1/state"


class Watcher(Device):
    """An operator's client that collects what is published on some topics."""

    def __init__(self, bridge: BridgeProcess, *topics: str, client_id: str = "watcher") -> None:
        super().__init__(bridge, client_id)
        self.bodies: list[tuple[str, Any]] = []
        self.topics = topics
        self.granted = 0
        self.on_message = self._collect
        self.on_subscribe = self._count

    def __enter__(self) -> Watcher:
        super().__enter__()
        for topic in self.topics:
            self.subscribe(topic, 1)
        until(lambda: self.granted == len(self.topics), "the subscriptions")
        return self

    def _count(self, *_arguments: Any) -> None:
        self.granted += 1

    def _collect(self, client: Any, userdata: Any, message: MQTTMessage) -> None:
        self.bodies.append((message.topic, json.loads(message.payload)))

    def of(self, topic: str) -> list[Any]:
        return [body for name, body in self.bodies if name == topic]


def patch(bridge: BridgeProcess, body: Any, **headers: str) -> tuple[int, Any, Any]:
    """PATCH the twin: status, headers, answer."""
    request = urllib.request.Request(  # noqa: S310 - our own loopback URL
        bridge.url("/api/v1/devices/pump-1/twin"),
        data=json.dumps(body).encode(),
        method="PATCH",
        headers={"Content-Type": "application/merge-patch+json", **headers},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310 - our own loopback URL
            return response.status, response.headers, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, json.load(error)


@pytest.mark.mosquitto
def test_a_twin_over_mqtt_and_http_through_a_kill(bridge: BridgeProcess) -> None:
    with Watcher(bridge, f"{STATE}/delta", f"{STATE}/rejected") as watcher:
        mosquitto_pub(bridge, f"{STATE}/desired", '{"interval": 60, "led": "on"}', "-q", "1")
        until(lambda: watcher.of(f"{STATE}/delta"), "the delta")
        assert watcher.of(f"{STATE}/delta") == [{"version": 1, "delta": {"interval": 60, "led": "on"}}]
        mosquitto_pub(bridge, f"{STATE}/desired", '{"interval": 5, "version": 7}', "-q", "1")
        until(lambda: watcher.of(f"{STATE}/rejected"), "the answer")
        assert watcher.of(f"{STATE}/rejected")[0]["version"] == 1
        mosquitto_pub(bridge, f"{STATE}/reported", '{"interval": 60}', "-q", "1")
        until(lambda: len(watcher.of(f"{STATE}/delta")) == 2, "what is left")
        assert watcher.of(f"{STATE}/delta")[1] == {"version": 1, "delta": {"led": "on"}}
    code, headers, answer = patch(bridge, {"led": None}, **{"If-Match": '"1"'})
    assert (code, headers["ETag"], answer["desired"], answer["delta"]) == (200, '"2"', {"interval": 60}, {})
    code, headers, answer = patch(bridge, {"led": "off"}, **{"If-Match": '"1"'})
    assert (code, headers["ETag"], answer["title"]) == (412, '"2"', "Precondition failed")
    assert patch(bridge, {"led": "off", "version": 1})[0] == 409
    assert patch(bridge, {"a": "x" * 40_000})[0] == 422
    bridge.kill()
    bridge.start()
    twin = bridge.get("/api/v1/devices/pump-1/twin")
    assert (twin["desired"], twin["reported"]) == ({"interval": 60}, {"interval": 60})
    assert (twin["desired_version"], twin["reported_version"]) == (2, 1)
    shown = subprocess.run(
        ["mosquitto_sub", "-p", str(bridge.mqtt_port), "-t", STATE, "-C", "1", "-W", "10"],
        capture_output=True,
        check=True,
        timeout=20,
    )
    assert json.loads(shown.stdout)["desired_version"] == 2, "retained"
    history = bridge.get("/api/v1/devices/pump-1/twin/history")["changes"]
    assert [(step["version"], step["patch"]) for step in history] == [
        (2, {"led": None}), (1, {"interval": 60, "led": "on"}),
    ]  # fmt: skip
    # A device that has kept its last version asks for what it misses.
    with Watcher(bridge, f"{STATE}/delta") as device:
        device.publish_acknowledged(f"{STATE}/reported", '{"version": 1}')
        until(lambda: device.of(f"{STATE}/delta"), "what it misses")
        assert device.of(f"{STATE}/delta") == [{"version": 2, "since": 1, "delta": {"led": None}}]
    assert bridge.status("/api/v1/devices/nobody/twin") == 404
