"""A broker on a real socket, and in the agents' place a desk that writes down what comes and settles when told to."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from bridge.broker.broker import BrokerConfig, EmbeddedBroker
from bridge.broker.login import Credentials
from bridge.broker.packets import remaining_length
from bridge.messages import Link, Message
from bridge.receipts import Ledger, Outcome, Receipt
from bridge.storage.sessions import SessionStore
from bridge.topics import Topics

PATIENCE = 10.0
"""Seconds until a test gives up."""

PINGREQ, PINGRESP = b"\xc0\x00", b"\xd0\x00"
DISCONNECT = b"\xe0\x00"
ACCEPTED, RESUMED = b"\x20\x02\x00\x00", b"\x20\x02\x01\x00"


class Desk:
    """Implements `Intake`. `settles`: with what a receipt is settled at once; None to have the test do it."""

    def __init__(self) -> None:
        self.congested = False
        self.on_relief: Callable[[], None] | None = None
        self.settles: Outcome | None = Outcome.COMMITTED
        self.messages: list[Message] = []
        self.refused: list[tuple[str, str]] = []
        self.on_listening: Callable[[], object] | None = None
        self.links: list[tuple[Any, ...]] = []
        """("attached", device, client, listening) and ("detached", device, client, cause), in order."""

    def deliver(self, messages: Sequence[Message]) -> None:
        """Write them down."""
        self.messages += messages
        if self.settles is not None:
            for message in messages:
                message.receipt.settle(self.settles)

    def refuse(self, topic: str, payload: bytes, reason: str, text: str, receipt: Receipt) -> None:
        """Write it down."""
        self.refused.append((topic, reason))
        receipt.settle(Outcome.DEAD_LETTERED)

    def attached(self, device_id: str, link: Link, *, listening: bool) -> None:
        """Write it down."""
        self.links.append(("attached", device_id, link.client_id, listening))
        if listening and self.on_listening is not None:
            self.on_listening()

    def detached(self, device_id: str, link: Link, cause: str) -> None:
        """Write it down."""
        self.links.append(("detached", device_id, link.client_id, cause))

    @property
    def payloads(self) -> list[bytes]:
        """Of all messages, in order."""
        return [message.payload for message in self.messages]


class House:
    """A running broker."""

    def __init__(self, broker: EmbeddedBroker, desk: Desk) -> None:
        self.broker = broker
        self.desk = desk
        self.raws: list[Raw] = []

    async def raw(self, port: int | None = None, **more: Any) -> Raw:
        """A socket on which nothing has been said yet."""
        raw = await Raw.open(self.broker.bound_port if port is None else port, **more)
        self.raws.append(raw)
        return raw

    async def client(self, client_id: str = "c", *, clean: bool = True, answer: bytes = ACCEPTED, **more: Any) -> Raw:
        """A connected client."""
        raw = await self.raw()
        raw.send(connect(client_id, clean=clean, **more))
        await raw.expect(answer)
        return raw


class Raw:
    """A client that sends and expects bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int, **more: Any) -> Raw:
        """Connect to a port of the loopback."""
        return cls(*await asyncio.open_connection("127.0.0.1", port, **more))

    def send(self, data: bytes) -> None:
        """Write, without waiting for anything."""
        self.writer.write(data)

    async def expect(self, data: bytes) -> None:
        """Exactly these bytes come next."""
        got = b""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while len(got) < len(data):
                    more = await self.reader.read(len(data) - len(got))
                    if not more:
                        break
                    got += more
        assert got == data

    async def quiet(self) -> None:
        """Nothing comes before the answer to a ping."""
        self.send(PINGREQ)
        await self.expect(PINGRESP)

    async def closed(self, after: bytes = b"") -> None:
        """The broker closes the connection, having sent exactly `after`."""
        async with asyncio.timeout(PATIENCE):
            try:
                rest = await self.reader.read(-1)
            except ConnectionResetError:
                rest = b""
        assert rest == after
        await self.close()

    async def close(self) -> None:
        """Close the socket without a DISCONNECT."""
        self.writer.close()
        with contextlib.suppress(ConnectionError, TimeoutError):
            await self.writer.wait_closed()

    def reset(self) -> None:
        """Cut the line."""
        self.writer.transport.abort()

    async def leave(self) -> None:
        """Say goodbye."""
        self.send(DISCONNECT)
        await self.closed()


def text(value: bytes | str) -> bytes:
    """A string with its two length bytes (1.5.3)."""
    data = value.encode() if isinstance(value, str) else value
    return len(data).to_bytes(2, "big") + data


def packet(first: int, body: bytes) -> bytes:
    """A control packet."""
    return bytes((first,)) + remaining_length(len(body)) + body


def connect(
    client_id: str | bytes = "c",
    *,
    clean: bool = True,
    keepalive: int = 60,
    will: tuple[str | bytes, bytes, int, bool] | None = None,
    username: str | None = None,
    password: str | None = None,
) -> bytes:
    """CONNECT (3.1). `will`: topic, payload, QoS, retain."""
    flags = clean << 1
    payload = text(client_id)
    if will is not None:
        topic, message, qos, retain = will
        flags |= 4 | qos << 3 | retain << 5
        payload += text(topic) + text(message)
    if username is not None:
        flags |= 0x80
        payload += text(username)
    if password is not None:
        flags |= 0x40
        payload += text(password)
    return packet(0x10, text("MQTT") + bytes((4, flags)) + keepalive.to_bytes(2, "big") + payload)


def publish(
    topic: str | bytes,
    payload: bytes = b"x",
    qos: int = 0,
    packet_id: int = 1,
    *,
    dup: bool = False,
    retain: bool = False,
) -> bytes:
    """PUBLISH (3.3)."""
    body = text(topic) + (packet_id.to_bytes(2, "big") if qos else b"") + payload
    return packet(0x30 | dup << 3 | qos << 1 | retain, body)


def subscribe(*wanted: tuple[str, int], packet_id: int = 1) -> bytes:
    """SUBSCRIBE (3.8)."""
    return packet(0x82, packet_id.to_bytes(2, "big") + b"".join(text(f) + bytes((q,)) for f, q in wanted))


def unsubscribe(*filters: str, packet_id: int = 1) -> bytes:
    """UNSUBSCRIBE (3.10)."""
    return packet(0xA2, packet_id.to_bytes(2, "big") + b"".join(text(f) for f in filters))


def suback(*codes: int, packet_id: int = 1) -> bytes:
    """SUBACK (3.9)."""
    return packet(0x90, packet_id.to_bytes(2, "big") + bytes(codes))


def ack(kind: str, packet_id: int = 1) -> bytes:
    """PUBACK, PUBREC, PUBREL, PUBCOMP or UNSUBACK."""
    first = {"puback": 0x40, "pubrec": 0x50, "pubrel": 0x62, "pubcomp": 0x70, "unsuback": 0xB0}[kind]
    return bytes((first, 2)) + packet_id.to_bytes(2, "big")


@asynccontextmanager
async def running(
    store: SessionStore | None = None,
    clock: Callable[[], float] = time.time,
    credentials: Credentials | None = None,
    restored: bool = True,
    **config: Any,
) -> AsyncIterator[House]:
    """A broker that must have nothing left when it has stopped. `restored`: whether it knows what the last run left."""
    desk = Desk()
    broker = EmbeddedBroker(BrokerConfig(**{"port": 0, **config}), Topics(), Ledger(), desk, store, clock, credentials)
    if restored:
        await broker.restore()
    await broker.start()
    house = House(broker, desk)
    try:
        yield house
    finally:
        if desk.settles is None:
            for message in desk.messages:
                if message.receipt.outcome is None:
                    message.receipt.settle(Outcome.COMMITTED)
        for raw in house.raws:
            await raw.close()
        await broker.stop(2.0)
    assert not broker.connections
    assert broker.share.busy == 0
    assert len(broker.wheel) == 0
    assert broker.ledger.difference == 0
    assert broker.ledger.in_flight == 0
    kept = [session for session in broker.clients.sessions.values() if not session.clean]
    assert len(kept) == len(broker.clients.sessions)
    assert broker.exchange.tree.count == sum(len(session.subscriptions) for session in kept)
    assert kept or broker.exchange.tree.empty
