"""What a client's packets do, all but PUBLISH, which has a way of its own (see Connection)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import final

from bridge.broker import packets
from bridge.broker.clients import Clients
from bridge.broker.config import BrokerConfig
from bridge.broker.connection import Connection
from bridge.broker.exchange import Exchange
from bridge.broker.login import Login
from bridge.broker.packets import ProtocolError
from bridge.broker.plugins import Plugins
from bridge.broker.portions import Portions
from bridge.broker.session import RELEASING, TAKEN, Session
from bridge.broker.wire import ARRIVING
from bridge.storage.sessions import SessionStore
from bridge.topics import Topics


@final
class Control:
    """Control packets of all connections."""

    def __init__(
        self,
        config: BrokerConfig,
        topics: Topics,
        exchange: Exchange,
        clients: Clients,
        login: Login,
        portions: Portions,
        plugins: Plugins | None,
        store: SessionStore | None,
    ) -> None:
        self._config = config
        self._topics = topics
        self._exchange = exchange
        self._clients = clients
        self._login = login
        self._portions = portions
        self._plugins = plugins
        self._store = store

    def take(self, connection: Connection, first: int, body: bytes) -> None:
        """Handle one packet. Raises ProtocolError."""
        kind = first >> 4
        session = connection.session
        if session is None:
            if kind != packets.CONNECT:
                raise ProtocolError("the first packet is not CONNECT [MQTT-3.1.0-1]")
            packets.check_flags(kind, first & 15)
            self._arrive(connection, packets.decode_connect(body))
            return
        packets.check_flags(kind, first & 15)
        match kind:
            case packets.PUBACK:
                self._exchange.done(session, session.acknowledged(packets.decode_packet_id(body)))
                connection.drain()
            case packets.PUBREC:
                self._received(connection, session, packets.decode_packet_id(body))
            case packets.PUBCOMP:
                self._exchange.done(session, session.completed(packets.decode_packet_id(body)))
                connection.drain()
            case packets.PUBREL:
                self._release(connection, session, packets.decode_packet_id(body))
            case packets.SUBSCRIBE:
                packet_id, wanted = packets.decode_subscribe(body)
                plugins = self._plugins
                if plugins is not None and session.rights is not None and session.rights.asks:
                    then = partial(self._subscribe, connection, packet_id, wanted)
                    plugins.ask_subscribe(connection, session, wanted, then)
                else:
                    self._subscribe(connection, packet_id, wanted)
            case packets.UNSUBSCRIBE:
                self._unsubscribe(connection, session, *packets.decode_unsubscribe(body))
            case packets.PINGREQ:
                packets.check_empty(body)
                connection.send(packets.PINGRESP_BYTES)  # [MQTT-3.12.4-1]
            case packets.DISCONNECT:
                packets.check_empty(body)
                connection.without_will()
                connection.close("disconnect")
            case packets.CONNECT:
                raise ProtocolError("a second CONNECT [MQTT-3.1.0-2]")
            case _:
                raise ProtocolError(f"a client does not send packet type {kind} (2.2.1)")

    def _arrive(self, connection: Connection, connect: packets.Connect) -> None:
        """Let a client in, when it is its turn."""
        if not self._portions.do(partial(self._let_in, connection, connect)):
            connection.hold(ARRIVING)

    def _let_in(self, connection: Connection, connect: packets.Connect) -> None:
        if connection.closed_by is None:
            self._login.connect(connection, connect)
            connection.let_go(ARRIVING)

    def _received(self, connection: Connection, session: Session, packet_id: int) -> None:
        stored = self._exchange.received(session, packet_id)
        # After a restart the bridge must not send a message again that the client has taken [MQTT-4.3.3-1].
        self._when_stored(stored, lambda: connection.send(packets.pubrel(packet_id)))

    def _release(self, connection: Connection, session: Session, packet_id: int) -> None:
        known = session.inbound.get(packet_id)
        store = self._store
        if known is None or store is None or session.clean:
            if known is not None and known is not TAKEN:
                raise ProtocolError("PUBREL before PUBREC [MQTT-4.3.3-1]")
            session.release(packet_id)
            connection.send(packets.pubcomp(packet_id))
            return
        if known is not TAKEN and known is not RELEASING:
            raise ProtocolError("PUBREL before PUBREC [MQTT-4.3.3-1]")
        session.receive(packet_id, RELEASING)

        def released(done: object) -> None:
            # Not before it is durable: else a message of the same identifier would be taken for a repetition.
            if session.inbound.get(packet_id) is RELEASING:
                session.release(packet_id)
            if session.connection is not None:
                session.connection.send(packets.pubcomp(packet_id))

        store.release(session.client_id, packet_id).add_done_callback(released)

    def _subscribe(
        self, connection: Connection, packet_id: int, wanted: list[tuple[str, int]], allowed: list[bool] | None = None
    ) -> None:
        # `allowed` is what plugins have said.
        exchange, config = self._exchange, self._config
        session = connection.session
        if session is None or session.rights is None or session.connection is not connection:
            return
        rights = session.rights
        codes = []
        granted = []
        changed = False
        for index, (topic_filter, qos) in enumerate(wanted):
            before = session.subscriptions.get(topic_filter)
            if (
                not (rights.may_subscribe(topic_filter) if allowed is None else allowed[index])
                or (before is None and len(session.subscriptions) >= config.max_subscriptions)
                or topic_filter.count("/") >= config.max_topic_levels
            ):
                codes.append(packets.FAILURE)
                continue
            exchange.subscribe(session, topic_filter, qos)
            changed = changed or before != qos
            codes.append(qos)
            granted.append((topic_filter, qos))
        stored = self._clients.changed(session) if changed else None
        answer = packets.suback(packet_id, codes)
        self._when_stored(stored, partial(self._subscribed, connection, session, answer, granted))

    def _subscribed(
        self, connection: Connection, session: Session, answer: bytes, granted: list[tuple[str, int]]
    ) -> None:
        """[MQTT-3.8.4-1], [MQTT-3.8.4-5]; then what is there already."""
        if session.connection is not connection:
            return
        connection.send(answer)
        for topic_filter, qos in granted:
            self._exchange.send_retained(session, topic_filter, qos)
            owner = self._topics.owner_of(topic_filter)
            if owner is not None:
                connection.speak_for(owner, listening=True)
            if self._plugins is not None:
                self._plugins.subscribed(session, topic_filter, qos)

    def _unsubscribe(self, connection: Connection, session: Session, packet_id: int, filters: list[str]) -> None:
        ended = [topic_filter for topic_filter in filters if self._exchange.unsubscribe(session, topic_filter)]
        if self._plugins is not None:
            for topic_filter in ended:
                self._plugins.unsubscribed(session, topic_filter)
        stored = self._clients.changed(session) if ended else None
        answer = packets.unsuback(packet_id)  # even if there were none [MQTT-3.10.4-5]
        self._when_stored(stored, lambda: connection.send(answer))

    def _when_stored(self, stored: asyncio.Future[None] | None, then: Callable[[], None]) -> None:
        """What a kept session promises must survive the bridge before the client may rely on it."""
        if stored is None:
            then()
            return

        def after(done: asyncio.Future[None]) -> None:
            if not done.cancelled() and done.exception() is None:
                then()

        stored.add_done_callback(after)
