"""The bridge is killed with a command in each of its states: started again, each command comes to its right end."""

from __future__ import annotations

import json
import threading
from typing import Any

import httpx

from tests.acceptance.clients import Device
from tests.acceptance.conftest import MakeBridge
from tests.acceptance.process import BridgeProcess
from tests.waiting import until


class Doer(Device):
    """A device that acknowledges, or does not, and answers when it is told to."""

    def __init__(self, bridge: BridgeProcess, device_id: str, *, acknowledges: bool = True) -> None:
        super().__init__(bridge, device_id)
        self.id = device_id
        self.manual_ack_set(not acknowledges)
        self.requests: list[str] = []
        self.cancelled: list[str] = []
        self.subscribed = threading.Event()
        self.on_message = self._take
        self.on_connect = self._subscribe
        self.on_subscribe = lambda *_: self.subscribed.set()

    def _subscribe(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        self.subscribe([(f"devices/{self.id}/command/request", 1), (f"devices/{self.id}/command/cancel", 1)])
        self._connected(client, userdata, flags, reason, properties)

    def _take(self, _client: Any, _userdata: Any, message: Any) -> None:
        command_id = json.loads(message.payload)["id"]
        if message.topic.endswith("cancel"):
            self.cancelled.append(command_id)
        else:
            self.requests.append(command_id)

    def answer(self, command_id: str, status: str) -> None:
        self.publish(
            f"devices/{self.id}/command/response", json.dumps({"id": command_id, "status": status}), qos=1
        ).wait_for_publish(10)


STATES = {
    "queued": (1, "succeeded"),
    "sent": (1, "succeeded"),
    "delivered": (0, "succeeded"),
    "in_progress": (0, "succeeded"),
    "succeeded": (0, "succeeded"),
    "failed": (0, "failed"),
    "expired": (0, "expired"),
    "cancelled": (0, "cancelled"),
}
"""State at the kill → how many requests the device is sent after it (what it has acknowledged is not sent again), and
the end after the device has answered that it succeeded."""


def post(bridge: BridgeProcess, path: str, body: Any = None) -> Any:
    response = httpx.post(bridge.url(f"/api/v1/{path}"), json=body, timeout=20, trust_env=False)
    assert response.is_success, response.text
    return response.json()


def send(bridge: BridgeProcess, state: str) -> str:
    """The command of the device that is called as the state is, always under the same key."""
    ttl = 0.2 if state == "expired" else 300.0
    command = post(bridge, f"devices/{state}/commands", {"name": "open", "id": "key-1", "ttl": ttl})
    return str(command["command_id"])


def status_of(bridge: BridgeProcess, state: str) -> str:
    rows = bridge.rows("SELECT status FROM commands WHERE device_id = ?", state)
    assert len(rows) <= 1, f"{state}: a second command"
    return str(rows[0][0]) if rows else ""


def reach(bridge: BridgeProcess, state: str) -> str:
    """Bring a command into `state`; its id."""
    if state in ("queued", "expired"):
        command_id = send(bridge, state)
    else:
        with Doer(bridge, state, acknowledges=state != "sent") as device:
            assert device.subscribed.wait(20)
            command_id = send(bridge, state)
            until(lambda: device.requests, f"{state}: the request", 30)
            if state in ("in_progress", "succeeded", "failed"):
                device.answer(command_id, state)
            if state == "cancelled":
                post(bridge, f"commands/{command_id}/cancel")
                until(lambda: device.cancelled == [command_id], "the device to be told", 30)
            until(lambda: status_of(bridge, state) == state, f"the command to be {state}", 30)
    until(lambda: status_of(bridge, state) == state, f"the command to be {state}", 30)
    return command_id


def test_a_killed_bridge_takes_up_each_command_where_it_was(make_bridge: MakeBridge) -> None:
    bridge = make_bridge().start()
    commands = {state: reach(bridge, state) for state in STATES}
    bridge.kill()
    assert {state: status_of(bridge, state) for state in STATES} == {state: state for state in STATES}
    bridge.start()
    for state, (requests, end) in STATES.items():
        command_id = commands[state]
        with Doer(bridge, state) as device:
            assert device.subscribed.wait(20)
            until(lambda: len(device.requests) == requests, f"{state}: the request", 30)  # noqa: B023 - awaited at once
            # The answer of a device that has worked on it meanwhile, or is too late.
            device.answer(command_id, "succeeded")
            until(lambda: status_of(bridge, state) == end, f"{state}: the end {end}", 30)  # noqa: B023 - awaited at once
            assert send(bridge, state) == command_id, "the same key is the same command, also after its end"
            assert device.requests == [command_id] * requests, state
        assert status_of(bridge, state) == end
        steps = [
            str(row[0])
            for row in bridge.rows(
                "SELECT status FROM command_events WHERE command_id = ? AND cause <> 'late_response' ORDER BY seq",
                command_id,
            )
        ]
        assert (steps[0], steps[-1]) == ("queued", end)
        assert len(set(steps) & {"succeeded", "failed", "expired", "cancelled"}) == 1, steps
