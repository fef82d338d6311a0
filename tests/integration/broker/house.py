"""A real broker with a recording intake in the agents' place, and a client that speaks in bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self, TypeVar

from bridge.broker import packets
from bridge.broker.broker import EmbeddedBroker
from bridge.broker.config import BrokerConfig
from bridge.messages import Link, Message
from bridge.receipts import Ledger, Outcome, Receipt
from bridge.storage.sessions import SessionStore
from bridge.topics import Topics

T = TypeVar("T")

TIMEOUT = 5.0


class RecordingIntake:
    """Writes down what the broker hands over; settles it at once unless `hold` is set."""

    def __init__(self) -> None:
        self.congested = False
        self.on_relief: Callable[[], None] | None = None
        self.hold = False
        self.messages: list[Message] = []
        self.refused: list[tuple[str, str]] = []
        self.attachments: list[tuple[str, bool]] = []
        self.detachments: list[tuple[str, str]] = []

    def deliver(self, messages: Sequence[Message]) -> None:
        self.messages += messages
        if not self.hold:
            for message in messages:
                message.receipt.settle(Outcome.COMMITTED)

    def refuse(self, topic: str, payload: bytes, reason: str, text: str, receipt: Receipt) -> None:
        self.refused.append((topic, reason))
        receipt.settle(Outcome.DEAD_LETTERED)

    def attached(self, device_id: str, link: Link, *, listening: bool) -> None:
        self.attachments.append((device_id, listening))

    def detached(self, device_id: str, link: Link, cause: str) -> None:
        self.detachments.append((device_id, cause))

    def payloads(self) -> list[bytes]:
        return [message.payload for message in self.messages]

    def relieve(self) -> None:
        self.congested = False
        assert self.on_relief is not None
        self.on_relief()


class Door:
    """A running broker, and its clients."""

    def __init__(self, broker: EmbeddedBroker, intake: RecordingIntake, ledger: Ledger) -> None:
        self.broker = broker
        self.intake = intake
        self.ledger = ledger
        self.clients: list[Client] = []

    async def socket(self) -> Client:
        """A connection on which nothing was said yet."""
        client = await Client.open(self.broker.bound_port)
        self.clients.append(client)
        return client

    async def client(self, client_id: str = "c", *, present: bool = False, **options: Any) -> Client:
        """A client that is connected."""
        client = await self.socket()
        client.send(connect(client_id, **options))
        await client.expect(packets.connack(0, session_present=present))
        return client


@asynccontextmanager
async def broker(
    intake: RecordingIntake | None = None, store: SessionStore | None = None, **config: Any
) -> AsyncIterator[Door]:
    """A broker on a free port. When it is left, nothing may be left behind."""
    intake = intake or RecordingIntake()
    ledger = Ledger()
    settings = BrokerConfig(**{"port": 0, **config})
    tasks = asyncio.all_tasks()
    made = EmbeddedBroker(settings, Topics(), ledger, intake, store)
    await made.restore()
    await made.start()
    door = Door(made, intake, ledger)
    try:
        yield door
    finally:
        for client in door.clients:
            await client.drop()
        await made.stop(2.0)
    assert not made.connections
    assert made.share.busy == 0
    assert all(not session.clean and session.connection is None for session in made.clients.sessions.values())
    assert made.exchange.tree.count == sum(len(session.subscriptions) for session in made.clients.sessions.values())
    assert made.exchange.tree.empty == (made.exchange.tree.count == 0)
    assert ledger.difference == 0
    assert asyncio.all_tasks() == tasks


class Client:
    """A TCP connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int) -> Self:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    def send(self, *data: bytes) -> None:
        self.writer.write(b"".join(data))

    async def expect(self, *expected: bytes) -> None:
        """These bytes, exactly, come next."""
        for wanted in expected:
            async with asyncio.timeout(TIMEOUT):
                try:
                    found = await self.reader.readexactly(len(wanted))
                except asyncio.IncompleteReadError as error:
                    raise AssertionError(f"closed after {error.partial!r}, expected {wanted!r}") from error
            assert found == wanted

    async def silent(self) -> None:
        """Nothing but the answer to a ping comes next: what was sent before it is handled, and nothing was said."""
        self.send(b"\xc0\x00")
        await self.expect(packets.PINGRESP_BYTES)

    async def closed(self) -> bytes:
        """The broker closes the connection; what it had still said."""
        async with asyncio.timeout(TIMEOUT):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""

    async def subscribe(self, *filters: str, qos: int = 2, packet_id: int = 1) -> None:
        self.send(subscribe(packet_id, *((f, qos) for f in filters)))
        await self.expect(packets.suback(packet_id, [qos] * len(filters)))

    async def drop(self) -> None:
        """Go without a word."""
        self.writer.transport.abort()
        await asyncio.sleep(0)


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return len(data).to_bytes(2, "big") + data


def packet(first: int, body: bytes) -> bytes:
    return bytes((first,)) + packets.remaining_length(len(body)) + body


def connect(
    client_id: str = "c",
    *,
    clean: bool = True,
    keepalive: int = 0,
    will: tuple[str, bytes, int, bool] | None = None,
    username: str | None = None,
    password: str | None = None,
) -> bytes:
    """A CONNECT packet, built by hand."""
    flags = 0x02 * clean
    body = text(client_id)
    if will is not None:
        topic, payload, qos, retain = will
        flags |= 0x04 | qos << 3 | retain << 5
        body += text(topic) + text(payload)
    if username is not None:
        flags |= 0x80
        body += text(username)
    if password is not None:
        flags |= 0x40
        body += text(password)
    return packet(0x10, text("MQTT") + bytes((4, flags)) + keepalive.to_bytes(2, "big") + body)


def subscribe(packet_id: int, *wanted: tuple[str, int]) -> bytes:
    body = b"".join(text(topic_filter) + bytes((qos,)) for topic_filter, qos in wanted)
    return packet(0x82, packet_id.to_bytes(2, "big") + body)


def unsubscribe(packet_id: int, *filters: str) -> bytes:
    return packet(0xA2, packet_id.to_bytes(2, "big") + b"".join(text(f) for f in filters))


def publish(
    topic: str, payload: bytes = b"x", qos: int = 0, packet_id: int = 0, *, retain: bool = False, dup: bool = False
) -> bytes:
    return packets.publish(topic.encode(), payload, qos, retain, packet_id, dup)


DISCONNECT = b"\xe0\x00"
