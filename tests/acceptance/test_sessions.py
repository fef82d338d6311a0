"""The broker's own promises after `kill -9`: what was acknowledged is there when the bridge is."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from tests.acceptance.clients import Device, packet, text
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


class Writer:
    """Publishes with QoS 2 in a session that is kept, to the letter of the standard (4.3.3, 4.4).

    Not paho: after an attempt to connect that failed it publishes once more what it has already released.
    """

    def __init__(self, bridge: BridgeProcess) -> None:
        self._port = bridge.mqtt_port
        self._socket: socket.socket
        self._last_id = 0
        self.unfinished: dict[int, bytes | None] = {}
        """By packet id: the payload until its PUBREC has come, None until its PUBCOMP has."""

    def connect(self) -> None:
        """Connect, and send again what is unfinished."""
        self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=10)
        self._socket.sendall(packet(0x10, text(b"MQTT") + bytes([4, 0, 0, 60]) + text(b"writer")))
        assert self._socket.recv(4)[::3] == b"\x20\0"
        for packet_id, payload in self.unfinished.items():
            self._send(packet_id, payload, dup=True)

    def publish(self, payload: bytes) -> None:
        """Publish without waiting."""
        self._last_id += 1
        self.unfinished[self._last_id] = payload
        self._send(self._last_id, payload)

    def handle(self) -> bool:
        """Wait for an answer and handle it; False when the connection is gone."""
        try:
            answer = self._socket.recv(4, socket.MSG_WAITALL)
        except ConnectionResetError:
            answer = b""
        if len(answer) < 4:
            self._socket.close()
            return False
        packet_id = int.from_bytes(answer[2:], "big")
        if answer[0] == 0x50:
            self.unfinished[packet_id] = None
            self._send(packet_id, None)
        else:
            assert answer[0] == 0x70
            assert self.unfinished.pop(packet_id) is None
        return True

    def close(self) -> None:
        """Go without a word."""
        self._socket.close()

    def _send(self, packet_id: int, payload: bytes | None, *, dup: bool = False) -> None:
        number = packet_id.to_bytes(2, "big")
        data = packet(0x62, number) if payload is None else packet(0x34 | dup << 3, text(b"notes/a") + number + payload)
        # The bridge may be gone already: `handle` sees it.
        with contextlib.suppress(ConnectionError):
            self._socket.sendall(data)


@pytest.mark.parametrize("answers", [1, 150, 390])
def test_qos_2_to_a_kept_session_arrives_once_through_kills(bridge: BridgeProcess, answers: int) -> None:
    """The bridge is killed while messages are on their way, each time when the writer has heard so many answers: of 200
    messages it hears 400."""
    reader = Reader(bridge)
    reader.reconnect_delay_set(1, 1)
    until(lambda: reader.session_present is not None, "the connection")
    reader.subscribe([("notes/#", 2)])
    assert reader.subscribed.wait(10)
    writer = Writer(bridge)
    writer.connect()
    count = 0
    for _ in range(2):
        for _ in range(200):
            writer.publish(b"%d" % count)
            count += 1
        for _ in range(answers):
            assert writer.handle()
        bridge.kill()
        while writer.handle():
            pass
        bridge.start()
        writer.connect()
    while writer.unfinished:
        assert writer.handle()
    until(lambda: len(reader.got) >= count, "all arrived", 30)
    until(lambda: bridge.rows("SELECT count(*) FROM session_messages") == [(0,)], "nothing left to deliver")
    assert list(map(int, reader.got)) == list(range(count))
    assert bridge.rows("SELECT count(*) FROM inbound_once") == [(0,)]
    reader.end()
    writer.close()
