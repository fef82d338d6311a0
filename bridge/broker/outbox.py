"""What goes out to one client: its session's messages, as fast as the client takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from bridge.broker import packets
from bridge.broker.config import BrokerConfig
from bridge.broker.exchange import Exchange
from bridge.broker.session import Delivery, Session
from bridge.broker.wire import Wire, WireBroker


class OutboxBroker(WireBroker, Protocol):
    """What an outbox needs of the broker."""

    config: BrokerConfig
    clock: Callable[[], float]
    exchange: Exchange

    def close_soon(self, wire: Wire, cause: str, detail: str) -> None:
        """Close a connection in the next turn of the loop."""


class Outbox(Wire):
    """A client that does not read is sent no QoS 0 (dropped, counted as `slow_consumer`); QoS 1 and 2 wait in its
    session, and nothing more is taken from it, for it would have to be answered. It is closed (`slow_consumer`) when
    `max_queued` messages wait, or when it has not been reading for STALLED_FOR seconds."""

    __slots__ = ("session",)

    _broker: OutboxBroker

    def __init__(self, broker: OutboxBroker) -> None:
        super().__init__(broker)
        self.session: Session | None = None
        """Set when the client is let in, and kept after that."""

    def deliver(self, delivery: Delivery, packet: bytes | None = None) -> bool:
        """Send a message to the client, now or when there is room; False if it was dropped. `packet` is the encoded
        PUBLISH of a QoS 0 message, where it goes to many."""
        session = self._session()
        broker = self._broker
        full = session.queued >= broker.config.max_queued
        if delivery.qos == 0:
            if self._choked_at or full:
                broker.exchange.dropped(session, delivery, "slow_consumer")
                return False
            if not session.queued:
                self._send_now(delivery, packet)
                return True
        elif not (self._choked_at or session.queued or len(session.inflight) >= broker.config.max_inflight):
            self._start(session, delivery)
            return True
        elif full:
            broker.exchange.dropped(session, delivery, "slow_consumer")
            # Not now: somebody may be walking through a list of subscribers that this would change.
            broker.close_soon(self, "slow_consumer", f"{session.queued} messages wait for it")
            return False
        session.enqueue(delivery)  # not past what waits
        return True

    def deliver_retained(self, delivery: Delivery) -> None:
        """Send a retained message that a new subscription matches. There may be more of them than `max_queued`, and
        the client is not slow for that: they wait all, unless as many wait already."""
        session = self._session()
        if session.queued or self._choked_at or (delivery.qos and len(session.inflight) >= self._max_inflight):
            session.enqueue(delivery)
        else:
            self._start(session, delivery)

    def drain(self) -> None:
        """Send what waits in the session, as far as there is room."""
        session = self.session
        while session is not None and not self._choked_at and self.closed_by is None:
            delivery = session.next(self._max_inflight)
            if delivery is None:
                return
            if delivery.expires_at is not None and delivery.expired(self._broker.clock()):
                self._broker.exchange.dropped(session, delivery, "expired")
            else:
                self._start(session, delivery)

    def resend(self) -> None:
        """Send again what was in flight, in order, before anything else [MQTT-4.4.0-1], [MQTT-4.6.0-1]."""
        for packet_id, delivery in list(self._session().inflight.items()):
            if delivery.released:
                self.send(packets.pubrel(packet_id))
            elif delivery.expires_at is not None and delivery.expired(self._broker.clock()):
                self._session().drop(packet_id)
                self._broker.exchange.dropped(self._session(), delivery, "expired")
            else:
                self._send_started(delivery, packet_id, dup=True)
        self.drain()

    @property
    def _max_inflight(self) -> int:
        return self._broker.config.max_inflight

    def _start(self, session: Session, delivery: Delivery) -> None:
        if delivery.qos == 0:
            self._send_now(delivery)
            return
        packet_id = session.start(delivery)
        stored = self._broker.exchange.started(session, delivery, packet_id)
        if stored is None:
            self._send_started(delivery, packet_id)
        else:
            # The client must never see the same message under two identifiers, whatever happens to the bridge.
            stored.add_done_callback(lambda _: self._send_started(delivery, packet_id))

    def _send_now(self, delivery: Delivery, packet: bytes | None = None) -> None:
        self._broker.stats.messages_sent += 1
        self.send(packet or packets.publish(delivery.topic, delivery.payload, 0, delivery.retain))

    def _send_started(self, delivery: Delivery, packet_id: int, *, dup: bool = False) -> None:
        if self.closed_by is None and self._session().inflight.get(packet_id) is delivery:
            self._broker.stats.messages_sent += 1
            head = delivery.topic, delivery.payload, delivery.qos, delivery.retain
            self.send(packets.publish(*head, packet_id, dup))

    def _session(self) -> Session:
        if self.session is None:
            raise RuntimeError("the client is not connected yet")
        return self.session
