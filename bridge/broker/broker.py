"""The embedded broker: amqtt's, with its hot path and its front door replaced.

What stays amqtt's is what its plugins are written against: the configuration, the plugin manager and its context, the
session that a plugin is shown. Listeners, connections, sessions and routing are this room's own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final, final

import structlog
from amqtt.broker import Broker, RetainedApplicationMessage
from amqtt.contexts import BrokerConfig as AmqttConfig
from amqtt.errors import PluginError
from amqtt.events import BrokerEvents
from amqtt.session import Session as Guest

from bridge import ports
from bridge.broker import packets
from bridge.broker.access import Rights
from bridge.broker.clients import Clients
from bridge.broker.config import BrokerConfig, BrokerStats
from bridge.broker.connection import Connection
from bridge.broker.control import Control
from bridge.broker.exchange import Exchange
from bridge.broker.listener import Listener
from bridge.broker.login import Credentials, Login
from bridge.broker.passwords import Passwords
from bridge.broker.plugins import Plugins
from bridge.broker.portions import Portions
from bridge.broker.routes import route_to
from bridge.broker.session import Session
from bridge.broker.share import Share
from bridge.broker.wheel import TICK, Wheel
from bridge.broker.wire import CONGESTED, STOPPED, Wire
from bridge.errors import RefusedError, StartError
from bridge.messages import Intake, Message, Sender
from bridge.receipts import Ledger
from bridge.storage.sessions import SessionStore
from bridge.topics import Topics

__all__ = ["BrokerConfig", "BrokerStats", "EmbeddedBroker"]

log = structlog.get_logger(__name__)

CLOSINGS_LOGGED: Final = 50
"""Lines about closed connections per second: ten thousand clients that are cut off at once must not fill the disk."""
HOUSEKEEPING: Final = 60.0
"""Seconds between two looks for expired sessions."""
READ_WITHIN: Final = 1.0
"""Seconds in which clients may read their last acknowledgements and hang up, when the bridge stops."""
_QUIET: Final = frozenset(("disconnect", "disconnected", "shutdown"))


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
        credentials: Credentials | None = None,
    ) -> None:
        """Without a `store` nothing survives a restart. `clock` gives Unix seconds. `credentials` are asked about a
        user before the password file is. Raises StartError when a plugin cannot be loaded or the password file cannot
        be read."""
        try:
            super().__init__(AmqttConfig(plugins=dict(config.plugins)))
        except PluginError as error:
            raise StartError(f"mqtt.plugins: {type(error).__name__}: {error}") from error
        # What connections use is not Final: a protocol's attributes count as variables.
        self.config = config
        self.topics = topics
        self.ledger = ledger
        self.intake = intake
        self.store: Final = store
        self.clock = clock
        self.stats = BrokerStats()
        self.wheel = Wheel()
        self.share = Share(config.receive_window)
        self.portions = Portions(asyncio.get_running_loop())
        self.plugins = Plugins(self.plugins_manager, config, self.stats) if config.plugins else None
        self.exchange = Exchange(config, self.stats, store, self.plugins, clock)
        self.clients: Final = Clients(config, self.stats, self.exchange, topics, store, clock)
        passwords = Passwords(config.password_file) if config.password_file else None
        self.login: Final = Login(config, topics, self.clients, passwords, self.plugins, credentials)
        self.control = Control(
            config, topics, self.exchange, self.clients, self.login, self.portions, self.plugins, store
        ).take
        self.connections: Final[set[Connection]] = set()
        self.accepting = False
        self.publish: Final = self.exchange.publish
        self._listener = Listener(config, self._new_connection)
        asks = self.plugins is not None and self.plugins.authenticates
        self._has_users = passwords is not None or credentials is not None or asks
        self._waiting_for_relief: set[Connection] = set()
        self._unflushed: list[Wire] = []
        self._ticker: asyncio.TimerHandle | None = None
        self._started_at = 0.0
        self._lines = 0
        self._empty: asyncio.Event = asyncio.Event()
        intake.on_relief = self._relieve
        if self.plugins is not None:
            self.plugins.hand_over = self.exchange.hand_over

    # ------------------------------------------------------------------ life

    async def restore(self) -> None:
        """Take up kept sessions and retained messages. Before `start`, and before anybody publishes. A broker that has
        not done so, although it has a store, lets nobody in who asks for a kept session."""
        await self.clients.restore()

    async def start(self) -> None:
        """Listen. Raises StartError when a port is taken, or when strangers could connect from elsewhere."""
        config = self.config
        if config.allow_anonymous and not ports.is_loopback(config.host):
            raise StartError(
                f"anonymous clients are only allowed on a loopback address, and BRIDGE_MQTT__HOST is {config.host}: "
                "set BRIDGE_MQTT__ALLOW_ANONYMOUS=false and BRIDGE_MQTT__PASSWORD_FILE (see `mqtt-bridge passwd`)"
            )
        if not config.allow_anonymous and not self._has_users:
            raise StartError(
                "nobody could connect: set BRIDGE_MQTT__PASSWORD_FILE, or BRIDGE_MQTT__ALLOW_ANONYMOUS=true"
            )
        if self.plugins is not None:
            await self.plugins.life(BrokerEvents.PRE_START)
        await self._listener.start()
        self._started_at = self.clock()
        self._ticker = self._loop.call_later(TICK, self._tick)
        self.accepting = True
        if self.plugins is not None:
            await self.plugins.life(BrokerEvents.POST_START)

    async def stop_intake(self) -> None:
        """Accept nobody and read nothing any more; acknowledgements still go out."""
        self.accepting = False
        self._listener.close()
        for connection in self.connections:
            connection.hold(STOPPED)

    async def stop(self, timeout: float) -> None:
        """Wait at most `timeout` seconds for what is unsettled, then close every connection, without wills. What is
        still unsettled stays unacknowledged."""
        await self.stop_intake()
        if self.plugins is not None:
            await self.plugins.life(BrokerEvents.PRE_SHUTDOWN)
        unsettled = [connection.when_settled() for connection in self.connections if not connection.settled]
        if unsettled:
            await asyncio.wait(unsettled, timeout=timeout)
        for connection in list(self.connections):
            connection.close("shutdown")
        if self.connections:
            self._empty.clear()
            try:
                await asyncio.wait_for(self._empty.wait(), min(timeout, READ_WITHIN))
            except TimeoutError:
                log.info("not all clients have hung up", connections=len(self.connections))
                for connection in list(self.connections):
                    connection.abort()
                await self._empty.wait()
        if self._ticker is not None:
            self._ticker.cancel()
        await self.login.close()
        if self.plugins is not None:
            await self.plugins.life(BrokerEvents.POST_SHUTDOWN)
            await self.plugins.close()

    @property
    def bound_port(self) -> int:
        """The port of the plain listener."""
        return self._listener.ports.get("mqtt", self.config.port)

    @property
    def ports(self) -> dict[str, int]:
        """All ports that are listened on, by `mqtt`, `mqtts`, `ws`, `wss`."""
        return self._listener.ports

    def _tick(self) -> None:
        self._ticker = self._loop.call_later(TICK, self._tick)
        for connection in self.wheel.turn():
            connection.look()
        tick = self.wheel.tick
        if tick % int(1 / TICK) == 0:
            self._lines = 0
        if tick % int(HOUSEKEEPING / TICK) == 0:
            self.clients.expire()
            self.login.forgive()
        if self.config.sys_interval and tick % max(1, int(self.config.sys_interval / TICK)) == 0:
            self._publish_sys()

    def _publish_sys(self) -> None:
        stats = self.stats
        for name, value in {
            "version": "MQTT Agent Bridge",
            "uptime": f"{self.clock() - self._started_at:.0f} seconds",
            "clients/connected": stats.connections,
            "clients/total": stats.sessions,
            "subscriptions/count": stats.subscriptions,
            "retained messages/count": stats.retained,
            "messages/received": stats.messages_received + self.ledger.received,
            "messages/sent": stats.messages_sent,
            "bytes/received": stats.bytes_received,
            "bytes/sent": stats.bytes_sent,
        }.items():
            self.publish(f"$SYS/broker/{name}", str(value).encode(), retain=True)

    # ------------------------------------------------------------------ connections

    def _new_connection(self) -> Connection:
        return Connection(self)

    def connected(self, connection: Connection) -> None:
        """A socket is open."""
        self.connections.add(connection)
        self.stats.connections = len(self.connections)
        cause = self._listener.arrived(connection, len(self.connections))
        if cause is not None or not self.accepting:
            connection.close(cause or "shutdown", f"from {connection.address}", at_once=True)

    def disconnected(self, connection: Connection) -> None:
        """A socket is closed."""
        self.wheel.take(connection)
        self.connections.discard(connection)
        self._listener.left(connection)
        self.stats.connections = len(self.connections)
        self._waiting_for_relief.discard(connection)
        if not self.connections:
            self._empty.set()

    def closing(self, connection: Connection, cause: str, detail: str) -> None:
        """A connection is about to end: the log says why, while the socket still knows where the client is."""
        self.stats.closed[cause] += 1
        if cause not in _QUIET and self._lines < CLOSINGS_LOGGED:
            self._lines += 1
            client, address = connection.client_id, connection.address
            log.warning("connection closed", client=client, address=address, cause=cause, detail=detail)

    def closed(self, connection: Connection, will: packets.Will | None) -> None:
        """A connection ends: its session has no connection any more, and its will is published."""
        session = connection.session
        if session is None:
            return
        self.clients.left(connection)
        if self.plugins is not None:
            self.plugins.disconnected(session)
        if will is not None and session.rights is not None:
            # Not now: whoever closes this connection may be in the middle of a hand-over.
            self._loop.call_soon(self._publish_will, will, session.rights, session)

    def close_soon(self, wire: Wire, cause: str, detail: str) -> None:
        """Close a connection in the next turn of the loop."""
        self._loop.call_soon(wire.close, cause, detail, wire.choked)

    def kick(self, client_id: str, cause: str = "kicked") -> bool:
        """Close a client's connection; False if it has none."""
        session = self.clients.sessions.get(client_id)
        if session is None or session.connection is None:
            return False
        session.connection.close(cause)
        return True

    def kick_user(self, username: str, cause: str) -> int:
        """Close all connections of a user; how many there were. Looks at all sessions: it is done seldom."""
        theirs = [s.connection for s in self.clients.sessions.values() if s.username == username and s.connection]
        for connection in theirs:
            connection.close(cause)
        return len(theirs)

    def wait_for_relief(self, connection: Connection) -> None:
        """Have a connection read on when the intake is no longer congested."""
        self._waiting_for_relief.add(connection)

    def _relieve(self) -> None:
        waiting, self._waiting_for_relief = self._waiting_for_relief, set()
        for connection in waiting:
            connection.let_go(CONGESTED)

    def flush_soon(self, wire: Wire) -> None:
        """Write a wire's output at the end of this turn of the loop, together with everybody's."""
        if not self._unflushed:
            self._loop.call_soon(self._flush)
        self._unflushed.append(wire)

    def _flush(self) -> None:
        wires, self._unflushed = self._unflushed, []
        for wire in wires:
            wire.flush()

    # ------------------------------------------------------------------ topics

    def _publish_will(self, will: packets.Will, rights: Rights, session: Session) -> None:
        """Publish what a client has left behind [MQTT-3.1.2-8], if it might have published that itself."""
        if rights.asks and self.plugins is not None:
            self.plugins.ask_will(session, will, lambda: self._pass_will(will, session))
        elif rights.may_publish(will.topic):
            self._pass_will(will, session)
        else:
            self.stats.dropped["will_not_authorised"] += 1
            log.warning("a will is not published: not authorised", client=session.client_id, topic=will.topic[:200])

    def _pass_will(self, will: packets.Will, session: Session) -> None:
        topic, payload, qos, retain = will
        try:
            route = route_to(topic, self.topics, self.config.max_topic_levels)
        except RefusedError as error:
            log.warning("a will is not published", topic=topic[:200], error=str(error))
            return
        if route.refusal is not None:
            receipt = self.ledger.receipt(None, qos)
            self.intake.refuse(topic, payload, route.refusal.reason, str(route.refusal), receipt)
            return
        self.exchange.pass_on(topic, payload, qos, retain)
        if route.address is not None:
            if not route.address.from_device:
                route.address.sender = Sender(session.username, session.client_id, "")
            self.intake.deliver([Message(route.address, payload, self.clock(), self.ledger.receipt(None, qos))])

    # ------------------------------------------------------------------ what amqtt's plugins see (BrokerContext)

    async def internal_message_broadcast(self, topic: str, data: bytes, qos: int | None = None) -> None:
        """Publish on a plugin's behalf."""
        self.publish(topic, bytes(data), qos=qos or 0)

    async def retain_message(self, source: object, topic: str, data: bytes, qos: int | None = None) -> None:
        """Retain a message on a plugin's behalf."""
        self.exchange.retain(topic, bytes(data), qos or 0)

    @property
    def sessions(self) -> dict[str, tuple[Guest, Any]]:
        """All sessions, as plugins know them."""
        return {client_id: (self._guest(s), None) for client_id, s in self.clients.sessions.items()}

    @property
    def subscriptions(self) -> dict[str, list[tuple[Guest, int]]]:
        """All subscriptions by filter."""
        found: dict[str, list[tuple[Guest, int]]] = {}
        for session in self.clients.sessions.values():
            for topic_filter, qos in session.subscriptions.items():
                found.setdefault(topic_filter, []).append((self._guest(session), qos))
        return found

    @property
    def retained_messages(self) -> dict[str, RetainedApplicationMessage]:
        """All retained messages by topic."""
        return {
            message.topic: RetainedApplicationMessage(None, message.topic, message.payload, message.qos)
            for topic_filter in ("#", "$SYS/#")
            for message in self.exchange.kept.matching(topic_filter)
        }

    def _guest(self, session: Session) -> Guest:
        if not isinstance(session.guest, Guest):
            session.guest = guest = Guest()
            guest.client_id, guest.username = session.client_id, session.username
            guest.clean_session = session.clean
        return session.guest
