"""A client's session: what the broker must remember of it between two packets, and for a kept one between two
connections (MQTT 3.1.1, 3.1.2.4 and 4.4). Pure: it decides what to send; the connection sends it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from bridge.broker.connection import Connection

MAX_PACKET_ID: Final = 65_535


@final
class Delivery:
    """One application message on its way to one client. `released`: a QoS 2 message whose PUBREC has come."""

    __slots__ = ("expires_at", "on_ack", "payload", "qos", "released", "retain", "seq", "topic")

    def __init__(
        self,
        topic: bytes,
        payload: bytes,
        qos: int,
        retain: bool = False,
        expires_at: float | None = None,
        on_ack: Callable[[], None] | None = None,
    ) -> None:
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.retain = retain
        self.expires_at = expires_at
        self.on_ack = on_ack
        self.released = False
        self.seq = 0
        """The number under which it is stored; 0 if it is not."""


@final
class Session:
    """Subscriptions, what is in flight to the client, what waits, and which QoS 2 messages from it are unreleased.

    At most `max_inflight` messages are in flight, `max_queued` wait. Nothing is allocated for what there is none of:
    ten thousand sessions have a subscription each and nothing in flight.
    """

    __slots__ = (
        "_last_id", "_queue", "clean", "client_id", "connection", "inflight", "subscriptions", "unreleased", "username",
    )  # fmt: skip

    def __init__(self, client_id: str, *, clean: bool, username: str | None = None) -> None:
        self.client_id = client_id
        self.clean = clean
        self.username = username
        self.connection: Connection | None = None
        self.subscriptions: dict[str, int] = {}
        self.inflight: dict[int, Delivery] = {}
        """By packet identifier, in the order of sending [MQTT-4.6.0-6]."""
        self.unreleased: set[int] = set()
        """Packet identifiers of QoS 2 messages taken over and not released by a PUBREL [MQTT-4.3.3-2]."""
        self._queue: deque[Delivery] | None = None
        self._last_id = 0

    @property
    def queued(self) -> int:
        """Messages that wait for room in flight or for the client."""
        return 0 if self._queue is None else len(self._queue)

    def enqueue(self, delivery: Delivery) -> None:
        """Have a message wait."""
        if self._queue is None:
            self._queue = deque()
        self._queue.append(delivery)

    def start(self, delivery: Delivery) -> int:
        """Put a message in flight; returns its packet identifier, one that is not in use [MQTT-2.3.1-2]."""
        packet_id = self._last_id
        while True:
            packet_id = packet_id % MAX_PACKET_ID + 1
            if packet_id not in self.inflight:
                break
        self._last_id = packet_id
        self.inflight[packet_id] = delivery
        return packet_id

    def startable(self, now: float, max_inflight: int) -> Iterator[Delivery]:
        """Take from the queue, in order, what there is room for in flight; what has expired is left out."""
        while self._queue and len(self.inflight) < max_inflight:
            delivery = self._queue.popleft()
            if delivery.expires_at is None or delivery.expires_at > now:
                yield delivery
        if not self._queue:
            self._queue = None

    def forget_expired(self, now: float) -> None:
        """Drop from what is in flight what may not be delivered any more."""
        for packet_id, delivery in list(self.inflight.items()):
            if delivery.expires_at is not None and delivery.expires_at <= now:
                del self.inflight[packet_id]
