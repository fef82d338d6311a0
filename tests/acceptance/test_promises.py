"""P1 and P2 from outside: what is acknowledged is stored, once, however the process ends."""

from __future__ import annotations

import json
import sqlite3
import threading
from contextlib import ExitStack
from typing import Any

import pytest
from paho.mqtt.client import MQTTMessage

from tests.acceptance.clients import Device, Load, RawClient, mosquitto_pub, packet
from tests.acceptance.conftest import MakeBridge
from tests.acceptance.process import BridgeProcess
from tests.waiting import until

TELEMETRY = "devices/fridge-7/telemetry"


@pytest.mark.mosquitto
def test_the_row_is_there_when_the_publisher_returns(bridge: BridgeProcess) -> None:
    mosquitto_pub(bridge, TELEMETRY, '{"temperature": 4.2}', "-q", "1")
    rows = bridge.rows("SELECT device_id, stream, payload FROM telemetry")
    assert [(device, stream, json.loads(payload)) for device, stream, payload in rows] == [
        ("fridge-7", "default", {"temperature": 4.2})
    ]


def test_no_acknowledgement_while_the_commit_waits(make_bridge: MakeBridge) -> None:
    """A second writer holds the database: the acknowledgement must wait for the commit, a ping must not."""
    bridge = make_bridge(BRIDGE_SPOOL__ENABLED="false").start()
    other = sqlite3.connect(bridge.data / "bridge.db", isolation_level=None)
    try:
        with RawClient(bridge, "fridge-7") as client:
            other.execute("BEGIN IMMEDIATE")
            client.publish(TELEMETRY.encode(), b'{"id": "held", "temperature": 4.2}')
            client.socket.sendall(packet(0xC0, b""))
            # Answers leave in the order they are made: an acknowledgement before the commit would be first.
            assert client.receive(2) == bytes([0xD0, 0]), "a ping is answered while the database is locked"
            assert bridge.get("/api/v1/ledger")["in_flight"] == 1
            other.execute("COMMIT")
            assert client.outcome() == "acknowledged"
            assert bridge.stored_ids() == {"held"}
    finally:
        other.close()


def test_qos_2_is_stored_once(bridge: BridgeProcess) -> None:
    """[MQTT-4.3.3-2]: a PUBLISH that is sent again before PUBREL is not received again."""
    publish = b"\x34" + packet(0, b"\x00\x1adevices/fridge-7/telemetry\x00\x05" + b'{"temperature": 4.2}')[1:]
    with RawClient(bridge, "fridge-7") as client:
        client.socket.sendall(publish)
        assert client.receive(4) == b"\x50\x02\x00\x05"
        assert bridge.rows("SELECT count(*) FROM telemetry") == [(1,)], "stored before PUBREC"
        client.socket.sendall(b"\x3c" + publish[1:])
        assert client.receive(4) == b"\x50\x02\x00\x05"
        client.socket.sendall(b"\x62\x02\x00\x05")
        assert client.receive(4) == b"\x70\x02\x00\x05"
        assert bridge.rows("SELECT count(*) FROM telemetry") == [(1,)]
        # After PUBCOMP the packet id is free: the same bytes are a new message.
        client.socket.sendall(publish)
        assert client.receive(4) == b"\x50\x02\x00\x05"
        assert bridge.rows("SELECT count(*) FROM telemetry") == [(2,)]


def test_qos_2_with_paho(bridge: BridgeProcess) -> None:
    with Device(bridge, "fridge-7") as device:
        for number in range(20):
            device.publish_acknowledged(TELEMETRY, json.dumps({"n": number}), qos=2)
    assert [json.loads(row[0])["n"] for row in bridge.rows("SELECT payload FROM telemetry ORDER BY id")] == [*range(20)]


def test_a_reading_sent_again_is_a_duplicate(bridge: BridgeProcess) -> None:
    with Device(bridge, "fridge-7") as device:
        for _ in range(3):
            device.publish_acknowledged(TELEMETRY, '{"id": "a", "temperature": 4.2}')
    assert bridge.stored_ids() == {"a"}
    ledger = bridge.settled_ledger()
    assert (ledger["committed"], ledger["deduplicated"]) == (1, 2)


def test_a_batch_is_one_message(bridge: BridgeProcess) -> None:
    with Device(bridge, "fridge-7") as device:
        device.publish_acknowledged(TELEMETRY, json.dumps([{"id": f"b{n}", "n": n} for n in range(50)]))
    assert len(bridge.stored_ids()) == 50
    assert bridge.settled_ledger()["committed"] == 1


def test_other_topics_pass_as_on_any_broker(bridge: BridgeProcess) -> None:
    received: list[tuple[str, bytes]] = []
    arrived = threading.Event()
    subscribed = threading.Event()

    def keep(client: Any, userdata: Any, message: MQTTMessage) -> None:
        received.append((message.topic, bytes(message.payload)))
        if len(received) == 2:
            arrived.set()

    with Device(bridge, "listener") as listener, Device(bridge, "speaker") as speaker:
        listener.on_message = keep
        listener.on_subscribe = lambda *_: subscribed.set()
        listener.subscribe([("house/#", 1), (TELEMETRY, 1)])
        assert subscribed.wait(10)
        speaker.publish_acknowledged("house/kitchen", b"\x00\xff not JSON at all")
        speaker.publish_acknowledged(TELEMETRY, b'{"temperature": 4.2}')
        assert arrived.wait(10)
    assert received == [("house/kitchen", b"\x00\xff not JSON at all"), (TELEMETRY, b'{"temperature": 4.2}')]
    assert bridge.rows("SELECT count(*) FROM telemetry") == [(1,)]
    assert bridge.rows("SELECT count(*) FROM dead_letters") == [(0,)]


def test_sigterm_under_load_leaves_acknowledged_equal_to_stored(make_bridge: MakeBridge) -> None:
    bridge = make_bridge().start()
    with ExitStack() as stack:
        loads = [stack.enter_context(Load(bridge, f"load-{n}")) for n in range(5)]
        until(lambda: all(len(load.acknowledged) > 500 for load in loads), "the load to run")
        assert bridge.terminate() == 0
        for load in loads:
            load.stop()
    acknowledged = set().union(*(load.acknowledged for load in loads))
    stored = bridge.stored_ids()
    assert acknowledged <= stored, f"{len(acknowledged - stored)} acknowledged messages are lost"
    assert stored <= set().union(*(load.sent for load in loads))
    # What was stored was also acknowledged: the last answers leave before the connections close.
    assert stored == acknowledged


def test_kill_9_under_load_loses_nothing_acknowledged(make_bridge: MakeBridge) -> None:
    bridge = make_bridge().start()
    with ExitStack() as stack:
        loads = [stack.enter_context(Load(bridge, f"load-{n}")) for n in range(3)]

        def acknowledged() -> set[str]:
            return set().union(*(load.acknowledged.copy() for load in loads))

        for _ in range(3):
            before = len(acknowledged())
            until(lambda before=before: len(acknowledged()) > before + 1000, "the load to run")  # type: ignore[misc]  # mypy wants the default's type
            bridge.kill()
            promised = acknowledged()
            assert promised <= bridge.stored_ids()
            bridge.start()
        for load in loads:
            load.stop()
        sent = set().union(*(load.sent for load in loads))
        until(lambda: acknowledged() == sent, "what was not acknowledged to be sent again", 20)
    assert bridge.stored_ids() == sent, "and nothing is stored twice"
