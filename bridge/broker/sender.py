"""The half of a connection that writes: acknowledgements, and messages with what is in flight and what waits."""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final

from bridge.broker import packets
from bridge.broker.retained import Retained
from bridge.broker.session import Delivery, Session

if TYPE_CHECKING:
    from bridge.broker.broker import EmbeddedBroker

MAX_OUT: Final = 1 << 20
"""Bytes that one turn of the loop may gather for a client before it counts as one that does not read."""
CHUNK: Final = 1 << 16
"""Bytes of retained messages sent in one go: the rest follows when they are written."""


class Sender(asyncio.Protocol):
    """A client that does not read gets no QoS 0 (dropped, counted), keeps QoS 1 and 2 waiting in its session, and is
    closed (`slow_consumer`) when `max_queued` messages wait."""

    __slots__ = ("_broker", "_choked", "_doomed", "_out", "_out_bytes", "_session", "_transport", "closed_by")

    def __init__(self, broker: EmbeddedBroker) -> None:
        self._broker = broker
        self._transport: asyncio.Transport | None = None
        self._session: Session | None = None
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._choked = False
        self._doomed = False
        self.closed_by: str | None = None
        """Why it is closed, None while it is open."""

    def close(self, cause: str, detail: str = "") -> None:
        """Close the connection."""
        raise NotImplementedError

    # ------------------------------------------------------------------ bytes

    def pause_writing(self) -> None:
        """The client does not read as fast as we write."""
        self._choked = True

    def resume_writing(self) -> None:
        """It has caught up."""
        self._choked = False
        self.send_waiting()

    def send(self, data: bytes) -> None:
        """Write a packet at the end of this turn of the loop, together with what else there is by then."""
        if self.closed_by is not None:
            return
        if not self._out:
            self._broker.flush_soon(self)
        self._out.append(data)
        self._out_bytes += len(data)

    def flush(self) -> None:
        """Write what this turn of the loop has gathered."""
        out = self._out
        if not out:
            return
        self._out = []
        self._out_bytes = 0
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))
        session = self._session
        if session is not None and (session.queued or session.backlog):
            self.send_waiting()

    @property
    def _full(self) -> bool:
        return self._choked or self._out_bytes > MAX_OUT

    # ------------------------------------------------------------------ messages

    def deliver_plain(self, packet: bytes) -> bool:
        """Send a QoS 0 message, ready-made for all who get it; False if it was dropped."""
        if self._full:
            self._broker.stats.dropped["slow_consumer"] += 1
            return False
        self.send(packet)
        return True

    def deliver(self, delivery: Delivery) -> bool:
        """Send a QoS 1 or 2 message, now or when there is room; False if it was dropped."""
        session = self._session
        if session is None or self._doomed:
            return False
        config = self._broker.config
        if self._full or session.queued or len(session.inflight) >= config.max_inflight:
            if session.queued >= config.max_queued:
                self._broker.stats.dropped["queue_full"] += 1
                self._doomed = True
                # Not at once: it may be in the middle of handing a message to many, and its will is a message too.
                why = f"{session.queued} messages wait for a client that does not read"
                self._broker.soon(partial(self.close, "slow_consumer", why))
                return False
            session.enqueue(delivery)
            self._broker.keeper.queued(session, delivery)
        else:
            self._start(session, delivery)
        return True

    def send_waiting(self) -> None:
        """Send what waits in the session, as far as there is room."""
        session = self._session
        if session is None or self.closed_by is not None or not (session.queued or session.backlog):
            return
        broker = self._broker
        now = broker.clock()
        room = broker.config.max_inflight
        while not self._full and len(session.inflight) < room and (delivery := session.next_queued()) is not None:
            if delivery.expired(now):
                broker.keeper.done(session, delivery)
            else:
                self._start(session, delivery)
        backlog = session.backlog
        while backlog and not self._choked and self._out_bytes < CHUNK and len(session.inflight) < room:
            self._send_retained(session, *backlog.popleft())
        if not backlog:
            session.backlog = None

    def send_retained(self, messages: list[tuple[Retained, int]]) -> None:
        """Send the retained messages for new subscriptions, with the QoS of each subscription: what there is no room
        for follows later, if it is still the topic's last message then."""
        session = self._session
        if session is not None and messages:
            if session.backlog is None:
                session.backlog = deque()
            session.backlog += messages
            self.send_waiting()

    def _send_retained(self, session: Session, message: Retained, granted: int) -> None:
        if self._broker.kept.get(message.topic) is not message:
            return  # the newer one was delivered as it came
        topic, qos = message.topic.encode(), min(granted, message.qos)
        if qos:
            self._start(session, Delivery(topic, message.payload, qos, retain=True))
        else:
            self.send(packets.publish(topic, message.payload, 0, True))

    def _start(self, session: Session, delivery: Delivery) -> None:
        packet_id = session.start(delivery)
        keeper = self._broker.keeper
        if keeper.started(session, delivery, packet_id):
            self.send_message(delivery, packet_id)
        else:
            keeper.then(partial(_send_stored, session, delivery, packet_id))

    def send_message(self, delivery: Delivery, packet_id: int) -> None:
        """Send a message that is in flight, with DUP if it was sent before [MQTT-3.3.1-1]."""
        dup, delivery.sent = delivery.sent, True
        self.send(packets.publish(delivery.topic, delivery.payload, delivery.qos, delivery.retain, packet_id, dup))

    def resend(self, session: Session) -> None:
        """Send again what was in flight when the client left, in the same order [MQTT-4.4.0-1], [MQTT-4.6.0-1]."""
        now = self._broker.clock()
        for packet_id, delivery in list(session.inflight.items()):
            if delivery.released:
                self.send(packets.pubrel(packet_id))
            elif delivery.expired(now):
                del session.inflight[packet_id]
                self._broker.keeper.done(session, delivery)
            elif delivery.sent:
                self.send_message(delivery, packet_id)
            else:
                self._broker.keeper.then(partial(_send_stored, session, delivery, packet_id))
        self.send_waiting()

    # ------------------------------------------------------------------ acknowledgements from the client

    def take_puback(self, session: Session, packet_id: int) -> None:
        """A QoS 1 message has arrived."""
        delivery = session.inflight.get(packet_id)
        if delivery is not None and delivery.qos == 1:
            self._arrived(session, delivery, packet_id)

    def take_pubrec(self, session: Session, packet_id: int) -> None:
        """A QoS 2 message has arrived; when that is stored it is released [MQTT-4.3.3-1]."""
        delivery = session.inflight.get(packet_id)
        if delivery is None or delivery.released:
            self.send(packets.pubrel(packet_id))
        elif delivery.qos == 2 and delivery.sent:
            keeper = self._broker.keeper
            if delivery.seq:
                keeper.received(session, delivery, packet_id)
                keeper.then(partial(_send_released, session, delivery, packet_id))
            else:
                _send_released(session, delivery, packet_id)

    def take_pubcomp(self, session: Session, packet_id: int) -> None:
        """A QoS 2 message is done with."""
        delivery = session.inflight.get(packet_id)
        if delivery is not None and delivery.released:
            self._arrived(session, delivery, packet_id)

    def _arrived(self, session: Session, delivery: Delivery, packet_id: int) -> None:
        del session.inflight[packet_id]
        if delivery.on_ack is not None:
            delivery.on_ack()
        if delivery.seq:
            self._broker.keeper.done(session, delivery)
        self.send_waiting()


def _send_stored(session: Session, delivery: Delivery, packet_id: int) -> None:
    """A QoS 2 message and its identifier are stored: the client, if it is there, may have it."""
    waits = session.inflight.get(packet_id) is delivery and not delivery.sent
    if waits and session.connection is not None:
        session.connection.send_message(delivery, packet_id)


def _send_released(session: Session, delivery: Delivery, packet_id: int) -> None:
    """That a QoS 2 message was received is stored: the client may forget its identifier."""
    if session.inflight.get(packet_id) is delivery and not delivery.released:
        delivery.released = True
        if session.connection is not None:
            session.connection.send(packets.pubrel(packet_id))
