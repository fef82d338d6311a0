"""The broker's own promises after `kill -9`: what was acknowledged is there when the bridge is."""

from __future__ import annotations

import threading
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from tests.acceptance.clients import Device
from tests.acceptance.process import BridgeProcess
from tests.waiting import until


class Reader(paho.Client):
    """A client whose session is kept."""

    def __init__(self, bridge: BridgeProcess) -> None:
        super().__init__(CallbackAPIVersion.VERSION2, client_id="reader", clean_session=False)
        self.got: list[str] = []
        self.session_present: bool | None = None
        self.subscribed = threading.Event()
        self.on_connect = self._connected
        self.on_message = lambda _client, _userdata, message: self.got.append(message.payload.decode())
        self.on_subscribe = lambda *_: self.subscribed.set()
        self.connect_async("127.0.0.1", bridge.mqtt_port)
        self.loop_start()

    def _connected(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        self.session_present = flags.session_present

    def end(self) -> None:
        """Go away without unsubscribing."""
        self.disconnect()
        self.loop_stop()


def test_sessions_queues_and_retained_messages_survive_a_kill(bridge: BridgeProcess) -> None:
    reader = Reader(bridge)
    until(lambda: reader.session_present is not None, "the connection")
    assert not reader.session_present
    reader.subscribe([("notes/#", 2)])
    assert reader.subscribed.wait(10)
    reader.end()
    with Device(bridge, "writer") as writer:
        infos = [writer.publish("notes/a", str(number), qos=1 + number % 2) for number in range(300)]
        infos.append(writer.publish("kept", "last words", qos=1, retain=True))
        for info in infos:
            info.wait_for_publish(10)
            assert info.is_published()
    bridge.kill()
    bridge.start()
    reader = Reader(bridge)
    until(lambda: len(reader.got) >= 300, "all that was acknowledged")
    assert reader.session_present
    assert sorted(map(int, reader.got)) == list(range(300)), "each once: the reader had none of them yet"
    for parity in (0, 1):
        numbers = [number for number in map(int, reader.got) if number % 2 == parity]
        assert numbers == sorted(numbers)
    reader.subscribe("kept", 1)
    until(lambda: "last words" in reader.got, "the retained message")
    until(lambda: bridge.rows("SELECT count(*) FROM session_messages") == [(0,)], "nothing left to deliver")
    reader.end()


def test_qos_2_to_a_kept_session_arrives_once_through_kills(bridge: BridgeProcess) -> None:
    """The bridge is killed while messages are on their way; both clients come back by themselves."""
    reader = Reader(bridge)
    reader.reconnect_delay_set(1, 1)
    until(lambda: reader.session_present is not None, "the connection")
    reader.subscribe([("notes/#", 2)])
    assert reader.subscribed.wait(10)
    writer = paho.Client(CallbackAPIVersion.VERSION2, client_id="writer", clean_session=False)
    writer.reconnect_delay_set(1, 1)
    writer.connect("127.0.0.1", bridge.mqtt_port)
    writer.loop_start()
    count = 0
    infos: list[paho.MQTTMessageInfo] = []
    for _ in range(3):
        until(writer.is_connected, "the writer")
        for _ in range(200):
            infos.append(writer.publish("notes/a", str(count), qos=2))
            count += 1
        seen = len(reader.got)
        until(lambda seen=seen: len(reader.got) > seen, "some of them")  # type: ignore[misc]  # mypy cannot infer it
        bridge.kill()
        bridge.start()
    until(lambda: all(info.is_published() for info in infos), "all acknowledged", 30)
    until(lambda: len(reader.got) >= count, "all arrived", 30)
    until(lambda: bridge.rows("SELECT count(*) FROM session_messages") == [(0,)], "nothing left to deliver")
    assert list(map(int, reader.got)) == list(range(count))
    for client in (reader, writer):
        client.disconnect()
        client.loop_stop()
