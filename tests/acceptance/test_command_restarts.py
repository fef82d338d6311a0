"""The bridge is killed with a command in each of its states: started again, the command comes to its right end."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from tests.acceptance.clients import Device
from tests.acceptance.conftest import MakeBridge
from tests.acceptance.process import BridgeProcess
from tests.waiting import until


class Doer(Device):
    """A device that acknowledges and answers when it is told to, and carries out each id once."""

    def __init__(self, bridge: BridgeProcess, *, acknowledges: bool) -> None:
        super().__init__(bridge, "doer")
        self.manual_ack_set(not acknowledges)
        self.requests: list[str] = []
        self.executed: set[str] = set()
        self.cancelled: list[str] = []
        self.subscribed = threading.Event()
        self.on_message = self._take
        self.on_connect = self._subscribe
        self.on_subscribe = lambda *_: self.subscribed.set()

    def _subscribe(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        self.subscribe([("devices/doer/command/request", 1), ("devices/doer/command/cancel", 1)])
        self._connected(client, userdata, flags, reason, properties)

    def _take(self, _client: Any, _userdata: Any, message: Any) -> None:
        command_id = json.loads(message.payload)["id"]
        if message.topic.endswith("cancel"):
            self.cancelled.append(command_id)
        else:
            self.requests.append(command_id)
            self.executed.add(command_id)

    def answer(self, command_id: str, status: str) -> None:
        self.publish(
            "devices/doer/command/response", json.dumps({"id": command_id, "status": status}), qos=1
        ).wait_for_publish(10)


def status_of(bridge: BridgeProcess) -> str:
    rows = bridge.rows("SELECT status FROM commands")
    return str(rows[0][0]) if rows else ""


def send(bridge: BridgeProcess, *arguments: str) -> str:
    sent = bridge.run("send", "doer", "open", "--id", "key-1", "--no-wait", *arguments)
    assert sent.returncode == 0, sent.stderr
    return sent.stdout.strip()


def reach(bridge: BridgeProcess, state: str) -> str:
    """Bring the one command into `state`; its id."""
    if state == "queued":
        return send(bridge)
    if state == "expired":
        command_id = send(bridge, "--ttl", "0.2")
    else:
        with Doer(bridge, acknowledges=state != "sent") as device:
            assert device.subscribed.wait(10)
            command_id = send(bridge)
            until(lambda: device.requests, "the request")
            if state in ("in_progress", "succeeded", "failed"):
                device.answer(command_id, state)
            if state == "cancelled":
                assert bridge.run("cancel", command_id).returncode == 0
                until(lambda: device.cancelled == [command_id], "the device to be told")
            until(lambda: status_of(bridge) == state, f"the command to be {state}")
    until(lambda: status_of(bridge) == state, f"the command to be {state}")
    return command_id


@pytest.mark.parametrize(
    ("state", "requests", "end"),
    [
        ("queued", 1, "succeeded"),
        ("sent", 1, "succeeded"),
        ("delivered", 0, "succeeded"),
        ("in_progress", 0, "succeeded"),
        ("succeeded", 0, "succeeded"),
        ("failed", 0, "failed"),
        ("expired", 0, "expired"),
        ("cancelled", 0, "cancelled"),
    ],
)
def test_a_killed_bridge_takes_up_a_command_where_it_was(
    make_bridge: MakeBridge, state: str, requests: int, end: str
) -> None:
    """`requests`: how many the device is sent after the restart; what it has acknowledged is not sent again."""
    bridge = make_bridge().start()
    command_id = reach(bridge, state)
    bridge.kill()
    assert status_of(bridge) == state, "what was seen was durable"
    bridge.start()
    with Doer(bridge, acknowledges=True) as device:
        assert device.subscribed.wait(10)
        until(lambda: len(device.requests) == requests, "the request")
        # The answer of a device that has worked on it meanwhile, or is too late.
        device.answer(command_id, "succeeded")
        until(lambda: status_of(bridge) == end, f"the command to be {end}")
        assert send(bridge) == command_id, "the same key is the same command, also after its end"
        assert device.requests == [command_id] * requests
    assert status_of(bridge) == end
    steps = [
        row[0] for row in bridge.rows("SELECT status FROM command_events WHERE cause <> 'late_response' ORDER BY seq")
    ]
    assert steps[0] == "queued"
    assert steps[-1] == end
    assert len([step for step in steps if step in ("succeeded", "failed", "expired", "cancelled")]) == 1
