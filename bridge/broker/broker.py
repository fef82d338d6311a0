"""The embedded broker: amqtt's, with its hot path and its front door replaced.

What stays amqtt's is what its plugins are written against: the configuration, the plugin manager and its context, the
session that a plugin is shown. Listener, connections, sessions and routing are this room's own.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final

import structlog
from amqtt.broker import Broker
from amqtt.contexts import BrokerConfig as AmqttConfig

from bridge import ports
from bridge.broker import packets
from bridge.broker.access import EVERYTHING, Rights, rights_of
from bridge.broker.connection import Connection
from bridge.broker.passwords import Passwords
from bridge.broker.retained import Retained, RetainedTree
from bridge.broker.session import Delivery, Session
from bridge.broker.subscriptions import SubscriptionTree
from bridge.errors import RefusedError, StartError
from bridge.messages import Intake, Message
from bridge.receipts import Ledger, Outcome, Receipt
from bridge.topics import Topics

log = structlog.get_logger(__name__)

SWEEP: Final = 1.0
"""Seconds between two looks for clients that have been silent for too long."""
CLOSINGS_LOGGED: Final = 50
"""Lines per second about closed connections."""


@dataclass(frozen=True, slots=True)
class BrokerConfig:
    """How the broker listens and what it allows; times in seconds."""

    host: str = "127.0.0.1"
    port: int = 1883
    allow_anonymous: bool = True
    password_file: Path | None = None
    max_connections: int = 12_000
    max_packet_bytes: int = 262_144
    connect_timeout: float = 5.0
    receive_window: int = 1_000
    max_topic_levels: int = 32
    max_subscriptions: int = 100
    max_inflight: int = 100
    max_queued: int = 1_000
    max_retained: int = 1_000_000
    plugins: Mapping[str, Any] = field(default_factory=dict)


@final
class BrokerStats:
    """Plain numbers, for metrics."""

    __slots__ = ("_broker", "closed", "dropped")

    def __init__(self, broker: EmbeddedBroker) -> None:
        self._broker = broker
        self.closed: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()

    @property
    def connections(self) -> int:
        """Open connections."""
        return len(self._broker.connections)

    @property
    def sessions(self) -> int:
        """Sessions, connected or kept."""
        return len(self._broker.clients)

    @property
    def subscriptions(self) -> int:
        """Subscriptions of all sessions."""
        return self._broker.tree.count

    @property
    def retained(self) -> int:
        """Topics with a retained message."""
        return self._broker.kept.count


@final
class EmbeddedBroker(Broker):  # type: ignore[misc]  # amqtt is not checked, so its class is Any
    """Speaks MQTT 3.1.1. Everything happens on the event loop, and nothing waits between a look-up and a hand-over."""

    def __init__(
        self,
        config: BrokerConfig,
        topics: Topics,
        ledger: Ledger,
        intake: Intake,
        clock: Callable[[], float] = time.time,
    ) -> None:
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
        self.stats: Final = BrokerStats(self)
        self.accepting = False
        self._passwords = Passwords(config.password_file) if config.password_file else None
        self._waiting_for_relief: set[Connection] = set()
        self._unflushed: list[Connection] = []
        self._checks: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._server: asyncio.Server | None = None
        intake.on_relief = self._relieve

    # ------------------------------------------------------------------ life

    async def start(self) -> None:
        """Listen. Raises StartError when the port is taken, or when strangers could connect from elsewhere."""
        config = self.config
        if config.allow_anonymous and not ports.is_loopback(config.host):
            raise StartError(
                f"anonymous clients are only allowed on a loopback address, and BRIDGE_MQTT__HOST is {config.host}: set "
                "BRIDGE_MQTT__ALLOW_ANONYMOUS=false and BRIDGE_MQTT__PASSWORD_FILE (see `mqtt-bridge passwd`)"
            )
        if not config.allow_anonymous and self._passwords is None and not config.plugins:
            raise StartError("nobody could connect: set BRIDGE_MQTT__PASSWORD_FILE, or BRIDGE_MQTT__ALLOW_ANONYMOUS=true")
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
        """Close every connection, without wills; give what is still to be written `timeout` seconds."""
        await self.stop_intake()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for task in self._checks:
            task.cancel()
        for connection in list(self.connections):
            connection.close("shutdown")
        deadline = self.monotonic() + timeout
        while self.connections and self.monotonic() < deadline:
            await asyncio.sleep(0.01)
        for connection in list(self.connections):
            connection.abort()
        if self._passwords is not None:
            self._passwords.close()
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
            if cause is not None:
                connection.close(cause)
        self._sweeper = self._loop.call_later(SWEEP, self._sweep)

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

    def closed(self, connection: Connection, cause: str, detail: str) -> None:
        """Count and log why a connection ends."""
        self.stats.closed[cause] += 1
        if cause not in ("disconnect", "shutdown", "disconnected"):
            log.warning("connection closed", client=connection.client_id, cause=cause, detail=detail)

    def left(self, session: Session) -> None:
        """A session's connection is gone: a clean one ends with it [MQTT-3.1.2-6]."""
        if session.clean:
            self._end(session)

    def _end(self, session: Session) -> None:
        if self.clients.get(session.client_id) is session:
            del self.clients[session.client_id]
        for topic_filter in session.subscriptions:
            self.tree.remove(topic_filter, session)
        session.subscriptions.clear()

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

    def flush_soon(self, connection: Connection) -> None:
        """Write a connection's output at the end of this turn of the loop, together with everybody's."""
        if not self._unflushed:
            self._loop.call_soon(self._flush)
        self._unflushed.append(connection)

    def _flush(self) -> None:
        connections, self._unflushed = self._unflushed, []
        for connection in connections:
            connection.flush()

    # ------------------------------------------------------------------ CONNECT

    def connect(self, connection: Connection, connect: packets.Connect) -> bool:
        """Let a client in, refuse it, or have its password checked first; False while that goes on. Nothing that is
        shared is touched before the client is known."""
        if connect.level != 4:
            connection.refuse(packets.BAD_PROTOCOL, "bad_protocol", f"protocol level {connect.level} [MQTT-3.1.2-2]")
        elif not connect.client_id and not connect.clean:
            connection.refuse(packets.BAD_CLIENT_ID, "bad_client_id", "no client id [MQTT-3.1.3-8]")
        elif connect.username is None:
            if self.config.allow_anonymous:
                self._admit(connection, connect, EVERYTHING)
            else:
                connection.refuse(packets.NOT_AUTHORISED, "not_authorised", "a user name is required")
        elif self._passwords is None:
            # Nobody has a password here, so a name claims nothing.
            self._admit(connection, connect, EVERYTHING)
        elif self._passwords.busy:
            connection.refuse(packets.UNAVAILABLE, "too_many_logins", "too many passwords are being checked")
        else:
            connection.client_id = connect.client_id
            task = self._loop.create_task(self._authenticate(connection, connect, self._passwords))
            self._checks.add(task)
            task.add_done_callback(self._checks.discard)
            return False
        return True

    async def _authenticate(self, connection: Connection, connect: packets.Connect, passwords: Passwords) -> None:
        user = await passwords.check(connect.username or "", connect.password or b"")
        if connection.closed_by is not None:
            return
        if user is None:
            connection.refuse(packets.BAD_CREDENTIALS, "bad_credentials", f"user {connect.username!r}")
            return
        self._admit(connection, connect, rights_of(user.role, connect.username or "", self.topics))
        connection.process()

    def _admit(self, connection: Connection, connect: packets.Connect, rights: Rights) -> None:
        client_id = connect.client_id or f"auto-{secrets.token_hex(8)}"
        session = self.clients.get(client_id)
        if session is not None and session.connection is not None:
            session.connection.close("takeover")  # [MQTT-3.1.4-2]
            session = self.clients.get(client_id)
        if session is not None and (connect.clean or session.username != connect.username):
            self._end(session)  # [MQTT-3.1.2-6]; and nobody inherits another user's session
            session = None
        resumed = session is not None
        if session is None:
            session = self.clients[client_id] = Session(client_id, clean=connect.clean, username=connect.username)
        session.connection = connection
        connection.accept(session, rights, connect, resumed=resumed)
        for topic_filter in session.subscriptions:
            owner = self.topics.owner_of(topic_filter)
            if owner is not None:
                connection.speak_for(owner, listening=True)

    # ------------------------------------------------------------------ SUBSCRIBE

    def subscribe(
        self, connection: Connection, session: Session, packet_id: int, wanted: list[tuple[str, int]]
    ) -> None:
        """Grant what may be granted, answer, then send the retained messages."""
        rights = connection.rights
        codes = []
        granted = []
        for topic_filter, qos in wanted:
            new = topic_filter not in session.subscriptions
            if rights is None or not rights.may_subscribe(topic_filter):
                codes.append(packets.FAILURE)
            elif (new and len(session.subscriptions) >= self.config.max_subscriptions) or (
                topic_filter.count("/") >= self.config.max_topic_levels
            ):
                codes.append(packets.FAILURE)
            else:
                session.subscriptions[topic_filter] = qos
                self.tree.add(topic_filter, session, qos)
                codes.append(qos)
                granted.append((topic_filter, qos))
        connection.send_subscribed(packet_id, codes)
        for topic_filter, qos in granted:
            for message in self.kept.matching(topic_filter):
                if rights is not None and rights.may_receive(message.topic):
                    name = message.topic.encode()
                    connection.deliver(Delivery(name, message.payload, min(qos, message.qos), retain=True))
            owner = self.topics.owner_of(topic_filter)
            if owner is not None:
                connection.speak_for(owner, listening=True)

    def unsubscribe(self, connection: Connection, session: Session, packet_id: int, filters: list[str]) -> None:
        """Forget subscriptions; answered even if there were none [MQTT-3.10.4-5]."""
        for topic_filter in filters:
            if session.subscriptions.pop(topic_filter, None) is not None:
                self.tree.remove(topic_filter, session)
        connection.send_unsubscribed(packet_id)

    # ------------------------------------------------------------------ PUBLISH

    def forward(self, subscribers: Mapping[Session, int], topic: bytes, payload: bytes, qos: int) -> None:
        """Hand a message to subscribers, at the lower of its QoS and the subscription's."""
        for session, granted in subscribers.items():
            self._hand_over(session, Delivery(topic, payload, min(qos, granted)))

    def _hand_over(self, session: Session, delivery: Delivery) -> bool:
        if session.connection is not None:
            return session.connection.deliver(delivery)
        if delivery.qos and not session.clean:
            if session.queued < self.config.max_queued:
                session.enqueue(delivery)
                return True
            self.stats.dropped["queue_full"] += 1
        return False

    def retain(self, topic: str, payload: bytes, qos: int) -> None:
        """Keep the last message of a topic, or clear it."""
        if not self.kept.set(Retained(topic, payload, qos)):
            self.stats.dropped["retained_full"] += 1

    def settle_passed(self, receipt: Receipt, *, retained: bool, subscribers: Mapping[Session, int]) -> None:
        """An ordinary message is with its subscribers."""
        receipt.settle(Outcome.COMMITTED)

    def delivered(self, session: Session, delivery: Delivery) -> None:
        """A client has acknowledged a message."""

    def release(self, connection: Connection, session: Session, packet_id: int) -> None:
        """A PUBREL: the identifier may be used again [MQTT-4.3.3-2]."""
        session.unreleased.discard(packet_id)
        connection.send_released(packet_id)

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
            delivery = Delivery(name, payload, min(qos, granted), False, expires_at, on_ack if speaks else None)
            if self._hand_over(session, delivery) and speaks and session.connection is not None:
                reached += 1
        return reached

    def publish_will(self, will: packets.Will, rights: Rights | None) -> None:
        """Publish what a client has left behind [MQTT-3.1.2-8]."""
        if rights is None or not rights.may_publish(will.topic):
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
