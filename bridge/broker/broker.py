"""The embedded broker: amqtt's, with its hot path and its front door replaced.

What stays amqtt's is what its plugins are written against: the configuration, the plugin manager and its context, the
session that a plugin is shown. Listener, connections, sessions and routing are this room's own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, final

import structlog
from amqtt.broker import Broker
from amqtt.contexts import BrokerConfig as AmqttConfig

from bridge import ports
from bridge.agents.limits import Limit
from bridge.broker import packets
from bridge.broker.access import Rights
from bridge.broker.config import BrokerConfig
from bridge.broker.connection import Connection
from bridge.broker.door import Door
from bridge.broker.keeper import Keeper
from bridge.broker.retained import Retained, RetainedTree
from bridge.broker.sender import Sender
from bridge.broker.session import Delivery, Session
from bridge.broker.stats import BrokerStats
from bridge.broker.subscriptions import SubscriptionTree
from bridge.errors import RefusedError, StartError
from bridge.messages import Intake, Message
from bridge.receipts import Ledger, Outcome, Receipt
from bridge.storage.sessions import SessionStore
from bridge.topics import Topics

log = structlog.get_logger(__name__)

SWEEP: Final = 1.0
"""Seconds between two looks for clients that have been silent for too long."""
CLOSINGS_LOGGED: Final = 50
"""Lines per second about closed connections."""
EXPIRY_SWEEP: Final = 60.0
"""Seconds between two looks for sessions whose clients have been away for too long."""


@final
class EmbeddedBroker(Broker):  # type: ignore[misc]  # amqtt is not checked, so its class is Any
    """Speaks MQTT 3.1.1. Everything happens on the event loop, and nothing waits between a look-up and a hand-over."""

    def __init__(
        self,
        config: BrokerConfig,
        topics: Topics,
        ledger: Ledger,
        intake: Intake,
        store: SessionStore | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Raises StartError when the password file cannot be read, or when plugins are configured."""
        if config.plugins:
            # Not asked yet, so they would let everybody in.
            raise StartError(
                f"amqtt plugins are not supported yet: remove {', '.join(config.plugins)} from mqtt.plugins"
            )
        super().__init__(AmqttConfig(plugins=dict(config.plugins)))
        self.config = config
        self.topics: Final = topics
        self.ledger: Final = ledger
        self.passed: Final = Ledger()
        """Messages on ordinary topics, which the bridge only passes on."""
        self.intake: Final = intake
        self.clock: Final = clock
        self.monotonic: Final = self._loop.time
        self.tree: Final[SubscriptionTree[Session]] = SubscriptionTree()
        self.kept: Final = RetainedTree(config.max_retained)
        self.clients: Final[dict[str, Session]] = {}
        self.connections: Final[set[Connection]] = set()
        self.keeper: Final = Keeper(store)
        self.door: Final = Door(self)
        self.stats: Final = BrokerStats(self)
        self.accepting = False
        self._waiting_for_relief: set[Connection] = set()
        self._unflushed: list[Sender] = []
        self._closings_logged = Limit(CLOSINGS_LOGGED, 1.0)
        self._expired_at = self.monotonic()
        self._gone = asyncio.Event()
        self._sweeper: asyncio.TimerHandle | None = None
        self._server: asyncio.Server | None = None
        intake.on_relief = self._relieve
        self.keeper.on_relief(self._relieve)

    # ------------------------------------------------------------------ life

    async def restore(self) -> None:
        """Take back what was stored. Raises StorageUnavailableError or StorageError."""
        await self.keeper.restore(self)
        log.info("sessions restored", sessions=len(self.clients), retained=self.kept.count)

    async def start(self) -> None:
        """Listen. Raises StartError when the port is taken, or when strangers could connect from elsewhere."""
        config = self.config
        if config.allow_anonymous and not ports.is_loopback(config.host):
            raise StartError(
                f"anonymous clients are only allowed on a loopback address, and BRIDGE_MQTT__HOST is {config.host}: "
                "set BRIDGE_MQTT__ALLOW_ANONYMOUS=false and BRIDGE_MQTT__PASSWORD_FILE (see `mqtt-bridge passwd`)"
            )
        if self.door.opens_to_nobody:
            raise StartError(
                "nobody could connect: set BRIDGE_MQTT__PASSWORD_FILE, or BRIDGE_MQTT__ALLOW_ANONYMOUS=true"
            )
        listener = ports.bind(config.host, config.port, "BRIDGE_MQTT__PORT")
        self._server = await self._loop.create_server(lambda: Connection(self), sock=listener, backlog=ports.BACKLOG)
        self._sweeper = self._loop.call_later(SWEEP, self._sweep)
        self.accepting = True

    async def stop_intake(self) -> None:
        """Accept nobody and read nothing any more; acknowledgements still go out."""
        self.accepting = False
        if self._server is not None:
            self._server.close()
        for connection in self.connections:
            connection.stop_reading()

    async def stop(self, timeout: float) -> None:
        """Store what is to be kept and acknowledge it, then close every connection, without wills; in all that may take
        `timeout` seconds."""
        await self.stop_intake()
        if self._sweeper is not None:
            self._sweeper.cancel()
        self.door.close()
        deadline = self.monotonic() + timeout
        await self.keeper.drain(timeout)
        for connection in list(self.connections):
            connection.close("shutdown")
        self._check_gone()
        try:
            async with asyncio.timeout_at(deadline):
                await self._gone.wait()
        except TimeoutError:
            for connection in list(self.connections):
                connection.abort()
        await self.plugins_manager.close()

    @property
    def bound_port(self) -> int:
        """The port it listens on."""
        if self._server is None or not self._server.sockets:
            return self.config.port
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def _sweep(self) -> None:
        now = self.monotonic()
        timeout = self.config.connect_timeout
        for connection in list(self.connections):
            cause = connection.overdue(now, timeout)
            if cause is None:
                continue
            connection.close(cause)
            # The client is not there, or does not read: nothing is waited for.
            connection.abort()
        if now - self._expired_at > EXPIRY_SWEEP:
            self._expired_at = now
            self.expire_sessions()
        self._sweeper = self._loop.call_later(SWEEP, self._sweep)

    def expire_sessions(self) -> None:
        """End the sessions whose clients have been away for too long."""
        oldest = self.clock() - self.config.session_expiry
        for session in [s for s in self.clients.values() if s.connection is None and s.last_seen < oldest]:
            self.end(session)

    # ------------------------------------------------------------------ connections

    def connected(self, connection: Connection) -> None:
        """A socket is open."""
        self.connections.add(connection)
        if len(self.connections) > self.config.max_connections or not self.accepting:
            connection.close("too_many_connections")

    def disconnected(self, connection: Connection) -> None:
        """A socket is closed."""
        self.connections.discard(connection)
        self._waiting_for_relief.discard(connection)
        self._check_gone()

    def _check_gone(self) -> None:
        if not self.connections and not self.accepting:
            self._gone.set()

    def closed(self, connection: Connection, cause: str, detail: str) -> None:
        """Count and log why a connection ends."""
        self.stats.closed[cause] += 1
        if cause not in ("disconnect", "shutdown", "disconnected") and self._closings_logged.allow(self.monotonic()):
            left_out, self._closings_logged.passed_over = self._closings_logged.passed_over, 0
            log.warning(
                "connection closed", client=connection.client_id, cause=cause, detail=detail, lines_left_out=left_out
            )

    # ------------------------------------------------------------------ sessions

    def begin(self, client_id: str, *, clean: bool, username: str | None) -> Session:
        """A new session."""
        session = self.clients[client_id] = Session(client_id, clean=clean, username=username, last_seen=self.clock())
        self.keeper.session_changed(session)
        return session

    def left(self, session: Session) -> None:
        """A session's connection is gone: a clean one ends with it [MQTT-3.1.2-6]."""
        if session.clean:
            self.end(session)
        else:
            session.last_seen = self.clock()
            self.keeper.session_changed(session)

    def end(self, session: Session) -> None:
        """Nothing is remembered of the session."""
        if self.clients.get(session.client_id) is session:
            del self.clients[session.client_id]
        for topic_filter in session.subscriptions:
            self.tree.remove(topic_filter, session)
        session.subscriptions.clear()
        if not session.clean:
            self.keeper.session_ended(session.client_id)

    def kick(self, client_id: str, cause: str = "kicked") -> bool:
        """Close a client's connection; False if it has none."""
        session = self.clients.get(client_id)
        if session is None or session.connection is None:
            return False
        session.connection.close(cause)
        return True

    def wait_for_relief(self, connection: Connection) -> None:
        """Have a connection that was paused read on when the intake is no longer congested."""
        self._waiting_for_relief.add(connection)

    def _relieve(self) -> None:
        waiting, self._waiting_for_relief = self._waiting_for_relief, set()
        for connection in waiting:
            connection.resume_reading()

    def soon(self, callback: Callable[[], None]) -> None:
        """Call when this turn of the loop is over."""
        self._loop.call_soon(callback)

    def flush_soon(self, connection: Sender) -> None:
        """Write a connection's output at the end of this turn of the loop, together with everybody's."""
        if not self._unflushed:
            self._loop.call_soon(self._flush)
        self._unflushed.append(connection)

    def _flush(self) -> None:
        connections, self._unflushed = self._unflushed, []
        for connection in connections:
            connection.flush()

    # ------------------------------------------------------------------ SUBSCRIBE

    def subscribe(
        self, connection: Connection, session: Session, packet_id: int, wanted: list[tuple[str, int]]
    ) -> None:
        """Grant what may be granted, answer, then send the retained messages."""
        rights = connection.rights
        codes = []
        granted = []
        changed = False
        for topic_filter, qos in wanted:
            known = session.subscriptions.get(topic_filter)
            full = known is None and len(session.subscriptions) >= self.config.max_subscriptions
            deep = topic_filter.count("/") >= self.config.max_topic_levels
            if full or deep or rights is None or not rights.may_subscribe(topic_filter):
                codes.append(packets.FAILURE)
                continue
            if known != qos:
                changed = True
                session.subscriptions[topic_filter] = qos
                self.tree.add(topic_filter, session, qos)
            codes.append(qos)
            granted.append((topic_filter, qos))
        answer = partial(self._subscribed, connection, packets.suback(packet_id, codes), granted)
        self._answer_when_stored(session, answer, changed=changed)

    def _subscribed(self, connection: Connection, suback: bytes, granted: list[tuple[str, int]]) -> None:
        rights = connection.rights
        if connection.closed_by is not None or rights is None:
            return
        connection.send(suback)
        for topic_filter, qos in granted:
            connection.send_retained(
                [(message, qos) for message in self.kept.matching(topic_filter) if rights.may_receive(message.topic)]
            )
            owner = self.topics.owner_of(topic_filter)
            if owner is not None:
                connection.speak_for(owner, listening=True)

    def unsubscribe(self, connection: Connection, session: Session, packet_id: int, filters: list[str]) -> None:
        """Forget subscriptions; answered even if there were none [MQTT-3.10.4-5]."""
        changed = False
        for topic_filter in filters:
            if session.subscriptions.pop(topic_filter, None) is not None:
                changed = True
                self.tree.remove(topic_filter, session)
        self._answer_when_stored(session, partial(connection.send, packets.unsuback(packet_id)), changed=changed)

    def drop_subscription(self, session: Session, topic_filter: str) -> None:
        """Take a subscription away from a client that may not have it any more."""
        del session.subscriptions[topic_filter]
        self.tree.remove(topic_filter, session)
        self.keeper.session_changed(session)

    def _answer_when_stored(self, session: Session, answer: Callable[[], None], *, changed: bool) -> None:
        # A client that finds its session again does not subscribe again: what it was told must be true after a crash.
        if session.clean or not changed:
            answer()
        else:
            self.keeper.session_changed(session)
            self.keeper.then(answer)

    # ------------------------------------------------------------------ PUBLISH

    def forward(self, subscribers: Mapping[Session, int], topic: bytes, payload: bytes, qos: int) -> None:
        """Hand a message to subscribers, at the lower of its QoS and the subscription's."""
        plain = None
        for session, granted in subscribers.items():
            level = min(qos, granted)
            if level:
                self._hand_over(session, Delivery(topic, payload, level))
            elif session.connection is not None:
                if plain is None:
                    plain = packets.publish(topic, payload, 0, False)
                session.connection.deliver_plain(plain)

    def _hand_over(self, session: Session, delivery: Delivery) -> bool:
        if session.connection is not None:
            return session.connection.deliver(delivery)
        if not session.clean:
            if session.queued < self.config.max_queued:
                session.enqueue(delivery)
                self.keeper.queued(session, delivery)
                return True
            self.stats.dropped["queue_full"] += 1
        return False

    def retain(self, topic: str, payload: bytes, qos: int) -> None:
        """Keep the last message of a topic, or clear it."""
        message = Retained(topic, payload, qos)
        if self.kept.set(message):
            self.keeper.retained(message)
        else:
            self.stats.dropped["retained_full"] += 1

    def settle_passed(self, receipt: Receipt, changes: int) -> None:
        """An ordinary message is with its subscribers. What was to be kept of it since the keeper had counted `changes`
        is stored before it is acknowledged."""
        if receipt.once is not None:
            self.keeper.taken_over(receipt.once)
        if self.keeper.changes == changes:
            receipt.settle(Outcome.COMMITTED)
        else:
            self.keeper.settle(receipt)

    def release(self, connection: Connection, session: Session, packet_id: int) -> None:
        """A PUBREL: the identifier may be used again [MQTT-4.3.3-2], once that is stored."""
        if packet_id in session.unreleased:
            del session.unreleased[packet_id]
            self.keeper.released(session, packet_id)
        answer = partial(connection.send, packets.pubcomp(packet_id))
        if session.clean:
            answer()
        else:
            self.keeper.then(answer)

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
        subscribers = self.tree.match(topic)
        if not subscribers:
            return 0
        exact = self.tree.exact(topic)
        name = topic.encode()
        reached = 0
        for session, granted in subscribers.items():
            if live_only and session.connection is None:
                continue
            speaks = session in exact
            level = min(qos, granted)
            if level:
                acked = on_ack if speaks else None
                delivery = Delivery(name, payload, level, False, expires_at, acked, lasting=not live_only)
                handed = self._hand_over(session, delivery)
            elif session.connection is not None:
                handed = session.connection.deliver_plain(packets.publish(name, payload, 0, False))
            else:
                handed = False
            if handed and speaks and session.connection is not None:
                reached += 1
        return reached

    def publish_will(self, will: packets.Will, rights: Rights | None) -> None:
        """Publish what a client has left behind [MQTT-3.1.2-8]."""
        levels = will.topic.count("/") + 1
        if rights is None or not rights.may_publish(will.topic) or levels > self.config.max_topic_levels:
            self.stats.dropped["will_not_authorised"] += 1
            return
        if will.retain:
            self.retain(will.topic, will.payload, will.qos)
        subscribers = self.tree.match(will.topic)
        self.forward(subscribers, will.topic.encode(), will.payload, will.qos)
        try:
            address = self.topics.parse(will.topic)
        except RefusedError as error:
            self.intake.refuse(will.topic, will.payload, error.reason, str(error), Receipt(self.ledger))
            return
        if address is not None:
            self.intake.deliver(Message(address, will.payload, self.clock(), Receipt(self.ledger, qos=will.qos)))
