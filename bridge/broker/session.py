"""A client's session: what the broker must remember of it between two packets, and for a kept one between two
connections (MQTT 3.1.1, 3.1.2.4 and 4.4). Pure: it decides what to send; the connection sends it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, final

from bridge.broker.retained import Retained
from bridge.receipts import Receipt

if TYPE_CHECKING:
    from bridge.broker.connection import Connection

MAX_PACKET_ID: Final = 65_535


@final
class Delivery:
    """One application message on its way to one client, at QoS 1 or 2 (at 0 nothing need be remembered).

    `lasting`: it outlives the bridge if the session does. `expires_at`: Unix seconds.
    """

    __slots__ = ("expires_at", "lasting", "on_ack", "payload", "qos", "released", "retain", "sent", "seq", "topic")

    def __init__(
        self,
        topic: bytes,
        payload: bytes,
        qos: int,
        retain: bool = False,
        expires_at: float | None = None,
        on_ack: Callable[[], None] | None = None,
        lasting: bool = True,
    ) -> None:
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.retain = retain
        self.expires_at = expires_at
        self.on_ack = on_ack
        self.lasting = lasting
        self.sent = False
        """Whether the client may have it: from then on it is sent with DUP."""
        self.released = False
        """Whether the PUBREC of a QoS 2 message has come, and its PUBREL may be sent."""
        self.seq = 0
        """The number under which it is stored; 0 if it is not."""

    def expired(self, now: float) -> bool:
        """Whether it may not be delivered any more."""
        return self.expires_at is not None and self.expires_at <= now


@final
class Session:
    """Subscriptions, what is in flight to the client, what waits, and which QoS 2 messages from it are unreleased.

    At most `max_inflight` messages are in flight, `max_queued` wait. Nothing is allocated for what there is none of:
    ten thousand sessions have a subscription each and nothing in flight.
    """

    __slots__ = (
        "_last_id", "_queue", "backlog", "clean", "client_id", "connection", "inflight", "last_seen", "subscriptions",
        "unreleased", "username",
    )  # fmt: skip

    def __init__(self, client_id: str, *, clean: bool, username: str | None = None, last_seen: float = 0.0) -> None:
        self.client_id = client_id
        self.clean = clean
        self.username = username
        """Who it belongs to; None where nobody has to say who he is."""
        self.last_seen = last_seen
        """When its client left last (Unix seconds)."""
        self.connection: Connection | None = None
        self.subscriptions: dict[str, int] = {}
        self.inflight: dict[int, Delivery] = {}
        """By packet identifier, in the order of sending [MQTT-4.6.0-6]."""
        self.unreleased: dict[int, Receipt | None] = {}
        """QoS 2 messages taken over and not released by a PUBREL, by packet identifier [MQTT-4.3.3-2]; None for one
        that was committed before the bridge was started."""
        self.backlog: deque[tuple[Retained, int]] | None = None
        """Retained messages that are still to be sent for new subscriptions, each with the subscription's QoS. They are
        the retained tree's own objects, so that a hundred thousand of them cost a list; not kept over a restart."""
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

    def next_queued(self) -> Delivery | None:
        """Take the message that has waited longest."""
        queue = self._queue
        if queue is None:
            return None
        delivery = queue.popleft()
        if not queue:
            self._queue = None
        return delivery

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

    def restore(self, delivery: Delivery, packet_id: int | None) -> None:
        """Take back a message that was stored: in flight if it had a packet identifier."""
        if packet_id is None:
            self.enqueue(delivery)
        else:
            delivery.sent = True
            self.inflight[packet_id] = delivery
            self._last_id = packet_id
