"""A client's session: what the broker must remember of it between two packets, and for a kept one between two
connections (MQTT 3.1.1, 3.1.2.4 and 4.4). Pure: it decides what is to be sent; the connection sends it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, Protocol, final

from bridge.broker.access import Rights
from bridge.receipts import Outcome, Receipt

MAX_PACKET_ID: Final = 65_535
_NONE: Final[Mapping[int, Any]] = MappingProxyType({})


@final
class Ack:
    """The promise about an ordinary message, which no agent settles: acknowledged when `outcome` is there. Waits in
    one line with the receipts of the messages for the agents."""

    __slots__ = ("outcome", "packet_id", "qos")

    def __init__(self, qos: int, packet_id: int, outcome: Outcome | None = None) -> None:
        self.qos = qos
        self.packet_id = packet_id
        self.outcome = outcome


Promise = Receipt | Ack

TAKEN: Final = Ack(2, 0, Outcome.COMMITTED)
"""Stands in `Session.inbound` for a message whose promise was kept: only its PUBREL is missing."""
RELEASING: Final = Ack(2, 0)
"""Stands there for one whose PUBREL has come and is not durable yet."""


@final
class Delivery:
    """One application message on its way to one client.

    `live_only` ends with the connection that it is sent on, unlike what a kept session otherwise sends again: whoever
    published it sends it anew, and sees to it that it is not done twice. `seq` is the number under which it is
    stored, 0 if it is not. `released`: a QoS 2 message whose PUBREC has come.
    """

    __slots__ = ("expires_at", "live_only", "on_ack", "payload", "qos", "released", "retain", "seq", "topic")

    def __init__(
        self,
        topic: bytes,
        payload: bytes,
        qos: int,
        retain: bool = False,
        *,
        expires_at: float | None = None,
        live_only: bool = False,
        on_ack: Callable[[], None] | None = None,
    ) -> None:
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.retain = retain
        self.expires_at = expires_at
        self.live_only = live_only
        self.on_ack = on_ack
        self.released = False
        self.seq = 0

    def expired(self, now: float) -> bool:
        """Whether it may not be delivered any more; `now` in Unix seconds."""
        return self.expires_at is not None and self.expires_at <= now


class Carrier(Protocol):
    """The connection of a session's client, as the session's messages need it."""

    def deliver(self, delivery: Delivery, packet: bytes | None = None) -> bool:
        """Send a message, now or when there is room; False if it was dropped."""

    def deliver_retained(self, delivery: Delivery) -> None:
        """Send a retained message that a new subscription matches."""

    def send(self, packet: bytes) -> None:
        """Write a packet."""

    def flush_later(self) -> None:
        """Have what is settled acknowledged at the end of this turn of the loop."""

    def close(self, cause: str) -> None:
        """End it."""


@final
class Session:
    """Subscriptions, what is in flight to the client, what waits, and which QoS 2 messages from it are unreleased.

    Nothing is allocated for what there is none of: ten thousand sessions have a subscription each and nothing in
    flight. The limits are the broker's: it asks `queued` before it enqueues.
    """

    __slots__ = (
        "_inbound", "_inflight", "_last_id", "_queue", "absent_since", "clean", "client_id", "connection", "guest",
        "rights", "subscriptions", "username",
    )  # fmt: skip

    def __init__(self, client_id: str, *, clean: bool, username: str | None = None) -> None:
        self.client_id = client_id
        self.clean = clean
        self.username = username
        """Who it belongs to: nobody else gets it. None for an anonymous client."""
        self.rights: Rights | None = None
        """What the client may do; None until it has connected to this process."""
        self.connection: Carrier | None = None
        self.absent_since = 0.0
        """Unix seconds of the end of the last connection."""
        self.subscriptions: dict[str, int] = {}
        self.guest: object | None = None
        """The session as amqtt's plugins see it, where there are plugins."""
        self._inflight: dict[int, Delivery] | None = None
        self._inbound: dict[int, Promise] | None = None
        self._queue: deque[Delivery] | None = None
        self._last_id = 0

    @property
    def inflight(self) -> Mapping[int, Delivery]:
        """Messages to the client by packet identifier, in the order of sending [MQTT-4.6.0-6]."""
        return self._inflight or _NONE

    @property
    def inbound(self) -> Mapping[int, Promise]:
        """QoS 2 messages by packet identifier, from PUBLISH until their PUBREL is done [MQTT-4.3.3-2]."""
        return self._inbound or _NONE

    def receive(self, packet_id: int, promise: Promise) -> None:
        """Note what is promised about a QoS 2 message from the client."""
        if self._inbound is None:
            self._inbound = {}
        self._inbound[packet_id] = promise

    def release(self, packet_id: int) -> None:
        """Forget it."""
        if self._inbound is not None:
            self._inbound.pop(packet_id, None)
            if not self._inbound:
                self._inbound = None

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
        """Put a QoS 1 or 2 message in flight; returns its packet identifier, one not in use [MQTT-2.3.1-2]."""
        inflight = self._inflight
        if inflight is None:
            inflight = self._inflight = {}
        packet_id = self._last_id
        while True:
            packet_id = packet_id % MAX_PACKET_ID + 1
            if packet_id not in inflight:
                break
        self._last_id = packet_id
        inflight[packet_id] = delivery
        return packet_id

    def restore(self, delivery: Delivery, packet_id: int | None) -> None:
        """Take back a stored message, in order: in flight under `packet_id`, or waiting if it has none."""
        if packet_id is None:
            self.enqueue(delivery)
        else:
            if self._inflight is None:
                self._inflight = {}
            self._inflight[packet_id] = delivery
            self._last_id = packet_id

    def next(self, max_inflight: int) -> Delivery | None:
        """Take the next message from the queue, unless it needs room in flight and there is none."""
        queue = self._queue
        if queue is None or (queue[0].qos and len(self.inflight) >= max_inflight):
            return None
        delivery = queue.popleft()
        if not queue:
            self._queue = None
        return delivery

    def acknowledged(self, packet_id: int) -> Delivery | None:
        """A PUBACK has come: the QoS 1 message that is done; None if there is none such."""
        delivery = self.inflight.get(packet_id)
        return None if delivery is None or delivery.qos != 1 else self.drop(packet_id)

    def completed(self, packet_id: int) -> Delivery | None:
        """A PUBCOMP has come: the QoS 2 message that is done; None if there is none such."""
        delivery = self.inflight.get(packet_id)
        return None if delivery is None or not delivery.released else self.drop(packet_id)

    def drop(self, packet_id: int) -> Delivery | None:
        """Take a message out of flight."""
        return None if self._inflight is None else self._inflight.pop(packet_id, None)

    def forget(self, unwanted: Callable[[Delivery], bool]) -> list[Delivery]:
        """Drop from the queue and from what is in flight. A QoS 2 message whose PUBREC has come stays until the
        exchange is complete."""
        dropped = [d for d in self._queue or () if unwanted(d)]
        if dropped:
            kept = [d for d in self._queue or () if not unwanted(d)]
            self._queue = deque(kept) if kept else None
        for packet_id, delivery in list(self.inflight.items()):
            if not delivery.released and unwanted(delivery):
                self.drop(packet_id)
                dropped.append(delivery)
        return dropped

    def deliveries(self) -> Iterator[Delivery]:
        """All that is in flight or waits, in order."""
        yield from self.inflight.values()
        yield from self._queue or ()
