"""Who gets which message: subscriptions, retained messages, and the hand-over to sessions.

Nothing here waits between a look-up and a hand-over, so no subscription can change in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final, final

from bridge.broker import packets
from bridge.broker.config import BrokerConfig, BrokerStats
from bridge.broker.plugins import Plugins
from bridge.broker.retained import Retained, RetainedTree
from bridge.broker.routes import Route
from bridge.broker.session import Delivery, Session
from bridge.broker.subscriptions import SubscriptionTree, merged
from bridge.storage.sessions import SessionStore

Stored = asyncio.Future[None]
"""Resolved when something is durable."""


@final
class Exchange:
    """At the limits: a live client that does not read is closed (see Outbox); a kept session that is absent and holds
    `max_queued` messages gets no more (the newest are dropped, counted as `queue_full`); of topics with a retained
    message there are at most `max_retained` (`retained_full`)."""

    def __init__(
        self,
        config: BrokerConfig,
        stats: BrokerStats,
        store: SessionStore | None,
        plugins: Plugins | None,
        clock: Callable[[], float],
    ) -> None:
        self.tree: Final[SubscriptionTree[Session]] = SubscriptionTree()
        self.kept: Final = RetainedTree(config.max_retained)
        self.last_seq = 0
        """The number of the newest stored message."""
        self._config = config
        self._stats = stats
        self._store = store
        self._plugins = plugins
        self._clock = clock

    # ------------------------------------------------------------------ subscriptions

    def subscribe(self, session: Session, topic_filter: str, qos: int) -> None:
        """Grant a subscription, or change its QoS."""
        session.subscriptions[topic_filter] = qos
        self.tree.add(topic_filter, session, qos)
        self._stats.subscriptions = self.tree.count

    def unsubscribe(self, session: Session, topic_filter: str) -> bool:
        """End a subscription; False if there is none."""
        if session.subscriptions.pop(topic_filter, None) is None:
            return False
        self.tree.remove(topic_filter, session)
        self._stats.subscriptions = self.tree.count
        return True

    # ------------------------------------------------------------------ messages in

    def heard(self, route: Route) -> bool:
        """Whether a topic has subscribers; the route then says who subscribed by wildcards."""
        tree = self.tree
        if route.version != tree.version:
            route.wild = tree.wild(route.topic)
            route.version = tree.version
        return bool(route.wild) or tree.names(route.topic)

    def forward(self, topic: str, payload: bytes, qos: int, wild: Mapping[Session, int]) -> None:
        """Give a message for an agent to its other subscribers; `wild` is who subscribed by wildcards."""
        self._spread(merged(self.tree.exact(topic), wild), topic, payload, qos)

    def pass_on(
        self, topic: str, payload: bytes, qos: int, retain: bool, once: tuple[str, int] | None = None
    ) -> Stored | None:
        """Take an ordinary message over: to its subscribers, and retained. Returns what must be durable before it may
        be acknowledged; None if nothing has to be. `once`: the pair that a kept session's QoS 2 message is known by."""
        stored = self.retain(topic, payload, qos) if retain else None
        stored = self._spread(self.tree.match(topic), topic, payload, qos) or stored
        if once is not None and self._store is not None:
            stored = self._store.take(*once)
        return stored

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 0,
        retain: bool = False,
        live_only: bool = False,
        expires_at: float | None = None,
        on_ack: Callable[[], None] | None = None,
    ) -> int:
        """Publish on the bridge's behalf; see `messages.Publish`."""
        if retain:
            self.retain(topic, payload, qos)
        wild = self.tree.wild(topic)
        exact = self.tree.exact(topic)
        if not exact and not wild:
            return 0
        once = None if on_ack is None else _Once(on_ack)
        name = topic.encode()
        reached = 0
        for session, granted in list(merged(exact, wild).items()):
            named = session in exact
            delivery = Delivery(
                name,
                payload,
                min(qos, granted),
                expires_at=expires_at,
                live_only=live_only,
                on_ack=once if named else None,
            )
            handed = self._hand_over(session, delivery)
            reached += handed and named and session.connection is not None
        return reached

    def retain(self, topic: str, payload: bytes, qos: int) -> Stored | None:
        """Keep the last message of a topic, or clear it."""
        message = Retained(topic, payload, qos)
        if not self.kept.set(message):
            self._stats.dropped["retained_full"] += 1
            return None
        self._stats.retained = self.kept.count
        if self._plugins is not None:
            self._plugins.retained(message)
        if self._store is None or topic.startswith("$"):
            return None
        return self._store.retain(topic, payload, qos, self._clock())

    def restore_retained(self, topic: str, payload: bytes, qos: int) -> None:
        """Take back a stored retained message."""
        self.kept.set(Retained(topic, payload, qos))
        self._stats.retained = self.kept.count

    def _spread(self, subscribers: Mapping[Session, int], topic: str, payload: bytes, qos: int) -> Stored | None:
        if not subscribers:
            return None
        name = topic.encode()
        packet: bytes | None = None
        before = self.last_seq
        for session, granted in list(subscribers.items()):
            if qos == 0 or granted == 0:
                if session.connection is not None:
                    if packet is None:
                        packet = packets.publish(name, payload, 0, retain=False)
                    self._hand_over(session, Delivery(name, payload, 0), packet)
            else:
                self._hand_over(session, Delivery(name, payload, min(qos, granted)))
        if self._store is None or self.last_seq == before:
            return None
        return self._store.stored

    # ------------------------------------------------------------------ to a session

    def _hand_over(self, session: Session, delivery: Delivery, packet: bytes | None = None) -> bool:
        if self._plugins is not None and session.rights is not None and session.rights.asks:
            return self._plugins.ask_receive(session, delivery)
        return self.hand_over(session, delivery, packet)

    def hand_over(self, session: Session, delivery: Delivery, packet: bytes | None = None) -> bool:
        """Give a message to a session that may have it; False if it is dropped."""
        connection = session.connection
        if connection is not None:
            if delivery.qos and not session.clean:
                self._keep(session, delivery)
            return connection.deliver(delivery, packet)
        if delivery.qos == 0 or session.clean or delivery.live_only:
            return False
        if session.queued >= self._config.max_queued:
            self._stats.dropped["queue_full"] += 1
            return False
        self._keep(session, delivery)
        session.enqueue(delivery)
        return True

    def send_retained(self, session: Session, topic_filter: str, qos: int) -> None:
        """Send a new subscriber the retained messages that it has asked for and may have [MQTT-3.3.1-6]."""
        rights = session.rights
        for message in self.kept.matching(topic_filter):
            if rights is None or session.connection is None or not rights.may_receive(message.topic):
                continue
            delivery = Delivery(message.topic.encode(), message.payload, min(qos, message.qos), True)
            if self._plugins is not None and rights.asks:
                self._plugins.ask_receive(session, delivery)
                continue
            if delivery.qos and not session.clean:
                self._keep(session, delivery)
            session.connection.deliver_retained(delivery)

    def _keep(self, session: Session, delivery: Delivery) -> None:
        if self._store is not None and not delivery.live_only:
            self.last_seq = delivery.seq = self.last_seq + 1
            self._store.add(session.client_id, delivery)

    def started(self, session: Session, delivery: Delivery, packet_id: int) -> Stored | None:
        """A message has got its packet identifier. Returns what must be durable before it may be sent."""
        if not delivery.seq or self._store is None:
            return None
        stored = self._store.mark(session.client_id, delivery, packet_id)
        return stored if delivery.qos == 2 else None

    def received(self, session: Session, packet_id: int) -> Stored | None:
        """A PUBREC has come: the client has the message. Returns what must be durable before its PUBREL is sent."""
        delivery = session.inflight.get(packet_id)
        if delivery is None or delivery.qos != 2:
            return None
        delivery.released = True
        _tell(delivery)
        if not delivery.seq or self._store is None:
            return None
        return self._store.mark(session.client_id, delivery, packet_id)

    def done(self, session: Session, delivery: Delivery | None) -> None:
        """A client has acknowledged a message for good."""
        if delivery is not None:
            _tell(delivery)
            self._forget(session, delivery)

    def dropped(self, session: Session, delivery: Delivery, reason: str) -> None:
        """A message does not reach a client."""
        self._stats.dropped[reason] += 1
        self._forget(session, delivery)

    def _forget(self, session: Session, delivery: Delivery) -> None:
        if delivery.seq and self._store is not None:
            self._store.remove(session.client_id, delivery.seq)


def _tell(delivery: Delivery) -> None:
    on_ack, delivery.on_ack = delivery.on_ack, None
    if on_ack is not None:
        on_ack()


@final
class _Once:
    """Calls a function the first time that it is called itself."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[[], None]) -> None:
        self._call: Callable[[], None] | None = call

    def __call__(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call()
