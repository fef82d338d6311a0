"""Clients that others wrote, and one that sends bytes no good client would send."""

from __future__ import annotations

import itertools
import json
import socket
import struct
import subprocess
import threading
from types import TracebackType
from typing import Any, Self

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from tests.acceptance.process import BridgeProcess

WINDOW = 100
"""Messages that a client sends ahead of their acknowledgements."""


def mosquitto_pub(bridge: BridgeProcess, topic: str, payload: bytes | str, *arguments: str) -> None:
    """Publish once with Mosquitto's client, which returns when the message is acknowledged."""
    subprocess.run(
        ["mosquitto_pub", "-p", str(bridge.mqtt_port), "-t", topic, "-s", *arguments],
        input=payload.encode() if isinstance(payload, str) else payload,
        timeout=20,
        check=True,
    )


class Device(paho.Client):
    """A connected paho client; a context manager."""

    def __init__(self, bridge: BridgeProcess, client_id: str, **credentials: str) -> None:
        super().__init__(CallbackAPIVersion.VERSION2, client_id=client_id)
        self.connected = threading.Event()
        self.refused: str | None = None
        self.on_connect = self._connected
        self.reconnect_delay_set(min_delay=1, max_delay=1)
        self.max_inflight_messages_set(WINDOW)
        if credentials:
            self.username_pw_set(credentials["username"], credentials["password"])
        self.connect_async("127.0.0.1", bridge.mqtt_port, keepalive=30)

    def _connected(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self.refused = str(reason)
        self.connected.set()

    def __enter__(self) -> Self:
        self.loop_start()
        assert self.connected.wait(10), "no CONNACK"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disconnect()
        self.loop_stop()

    def publish_acknowledged(self, topic: str, payload: bytes | str, qos: int = 1) -> None:
        """Publish and wait for the acknowledgement."""
        info = self.publish(topic, payload, qos)
        info.wait_for_publish(10)
        assert info.is_published(), f"{topic} was not acknowledged"


class Load:
    """A device that publishes numbered readings with QoS 1 as fast as they are acknowledged, and goes on
    after the connection broke. It knows which ids it has sent and which were acknowledged."""

    def __init__(self, bridge: BridgeProcess, name: str) -> None:
        self.name = name
        self.sent: set[str] = set()
        self.acknowledged: set[str] = set()
        self._ids: dict[int, str] = {}
        self._stop = threading.Event()
        self._room = threading.Semaphore(WINDOW)
        self._client = Device(bridge, name)
        self._client.on_publish = self._on_publish
        self._thread = threading.Thread(target=self._publish, name=name)

    def __enter__(self) -> Self:
        self._client.__enter__()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._client.__exit__(kind, error, trace)

    def stop(self) -> None:
        """Publish nothing new."""
        self._stop.set()
        self._thread.join()

    def _publish(self) -> None:
        for number in itertools.count():
            while not self._room.acquire(timeout=0.05):
                if self._stop.is_set():
                    return
            if self._stop.is_set():
                return
            message_id = f"{self.name}-{number}"
            self.sent.add(message_id)
            # The acknowledgement may come before publish() has returned, so the packet id is foretold:
            # paho counts from 1, and this client publishes nothing else.
            self._ids[number % 65535 + 1] = message_id
            info = self._client.publish(
                f"devices/{self.name}/telemetry", json.dumps({"id": message_id, "n": number}), qos=1
            )
            assert info.mid == number % 65535 + 1

    def _on_publish(self, client: Any, userdata: Any, mid: int, reason: Any, properties: Any) -> None:
        self.acknowledged.add(self._ids[mid])
        self._room.release()


def packet(kind: int, body: bytes) -> bytes:
    """An MQTT packet: the first byte, the remaining length (2.2.3) and the body."""
    length = bytearray()
    rest = len(body)
    while True:
        rest, digit = divmod(rest, 128)
        length.append(digit | (0x80 if rest else 0))
        if not rest:
            return bytes([kind]) + bytes(length) + body


def text(value: bytes) -> bytes:
    """An MQTT string (1.5.3), of any bytes."""
    return struct.pack("!H", len(value)) + value


class RawClient:
    """Speaks MQTT 3.1.1 byte by byte, so that it can also speak it wrongly; a context manager, connected."""

    def __init__(self, bridge: BridgeProcess, client_id: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", bridge.mqtt_port), timeout=10)
        self.socket.sendall(packet(0x10, text(b"MQTT") + bytes([4, 2, 0, 60]) + text(client_id.encode())))
        assert self.receive(4) == bytes([0x20, 2, 0, 0]), "the connection was not accepted"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def publish(self, topic: bytes, payload: bytes, packet_id: int = 1) -> None:
        """Send a PUBLISH with QoS 1."""
        body = text(topic) + struct.pack("!H", packet_id) + payload
        try:
            self.socket.sendall(packet(0x32, body))
        except OSError:
            # The bridge may close on the first bytes of a packet that is too large; `outcome` sees that.
            return

    def receive(self, count: int) -> bytes:
        """Up to `count` bytes: fewer when the other side closed."""
        received = b""
        while len(received) < count:
            try:
                more = self.socket.recv(count - len(received))
            except ConnectionResetError:
                break
            if not more:
                break
            received += more
        return received

    def outcome(self, packet_id: int = 1) -> str:
        """What became of the last PUBLISH: `acknowledged` or `closed`."""
        answer = self.receive(4)
        if not answer:
            return "closed"
        assert answer == struct.pack("!BBH", 0x40, 2, packet_id), answer
        return "acknowledged"
