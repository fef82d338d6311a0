"""The sessions of all clients: who comes in, who takes over, who is forgotten (MQTT 3.1.1, 3.1.2.4 and 3.1.4)."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Final, final

import structlog

from bridge.broker import packets
from bridge.broker.access import Rights
from bridge.broker.config import BrokerConfig, BrokerStats
from bridge.broker.connection import Connection
from bridge.broker.exchange import Exchange
from bridge.broker.session import TAKEN, Delivery, Session
from bridge.storage.sessions import SessionStore
from bridge.topics import Topics

log = structlog.get_logger(__name__)


@final
class Clients:
    """Sessions by client identifier, connected or kept. A session belongs to the user who has begun it: another user
    with the same client identifier is refused, and neither takes it over nor disturbs it."""

    def __init__(
        self,
        config: BrokerConfig,
        stats: BrokerStats,
        exchange: Exchange,
        topics: Topics,
        store: SessionStore | None,
        clock: Callable[[], float],
    ) -> None:
        self.sessions: Final[dict[str, Session]] = {}
        self._restored = store is None
        """Whether the sessions of the last run are known."""
        self._config = config
        self._stats = stats
        self._exchange = exchange
        self._topics = topics
        self._store = store
        self._clock = clock

    def admit(
        self,
        connection: Connection,
        connect: packets.Connect,
        username: str | None,
        rights: Rights,
        guest: object | None,
    ) -> None:
        """Let an authenticated client in: the first moment at which anything that is shared is touched."""
        client_id = connect.client_id or f"auto-{secrets.token_hex(8)}"  # [MQTT-3.1.3-6]
        session = self.sessions.get(client_id)
        if session is not None and session.username != username:
            connection.refuse(packets.BAD_CLIENT_ID, "foreign_client_id", f"{client_id!r} belongs to another user")
            return
        if not self._restored and session is None:
            if not connect.clean:
                connection.refuse(packets.UNAVAILABLE, "sessions_unknown", "what was kept of it has not been read yet")
                return
            if self._store is not None:
                self._store.end(client_id)  # the session that it may have had [MQTT-3.1.2-6]
        # A clean session is there no longer than its connection, and those have a limit of their own.
        if session is None and not connect.clean and len(self.sessions) >= self._config.max_sessions:
            connection.refuse(packets.UNAVAILABLE, "too_many_sessions", f"there are {len(self.sessions)} sessions")
            return
        if session is not None and session.connection is not None:
            session.connection.close("takeover")  # [MQTT-3.1.4-2]
            session = self.sessions.get(client_id)
        if session is not None and (connect.clean or session.clean):
            self.end(session)  # [MQTT-3.1.2-6]
            session = None
        resumed = session is not None
        if session is None:
            session = self.sessions[client_id] = Session(client_id, clean=connect.clean, username=username)
            self._stats.sessions = len(self.sessions)
        session.rights = rights
        session.guest = guest
        if resumed:
            self._recheck(session, rights)
        session.connection = connection
        self.changed(session)
        connection.accept(session, connect, resumed=resumed)
        for topic_filter in session.subscriptions:
            owner = self._topics.owner_of(topic_filter)
            if owner is not None:
                connection.speak_for(owner, listening=True)

    def _recheck(self, session: Session, rights: Rights) -> None:
        """What was granted, or queued, under earlier rights may not be allowed any more."""
        if rights.asks:
            return
        for topic_filter in [f for f in session.subscriptions if not rights.may_subscribe(f)]:
            log.warning("a kept subscription is no longer allowed", client=session.client_id, filter=topic_filter)
            self._exchange.unsubscribe(session, topic_filter)
        for delivery in session.forget(lambda d: not rights.may_receive(d.topic.decode())):
            self._exchange.dropped(session, delivery, "not_authorised")

    def left(self, connection: Connection) -> None:
        """A connection has ended: a clean session ends with it, a kept one waits for the next."""
        session = connection.session
        if session is None or session.connection is not connection:
            return
        session.connection = None
        session.absent_since = self._clock()
        if session.clean:
            self.end(session)
            return
        for delivery in session.forget(lambda d: d.live_only or not d.qos):
            self._exchange.dropped(session, delivery, "live_only" if delivery.live_only else "client_gone")
        self.changed(session)

    def end(self, session: Session) -> None:
        """Forget a session and all that belongs to it."""
        if self.sessions.get(session.client_id) is not session:
            return
        del self.sessions[session.client_id]
        self._stats.sessions = len(self.sessions)
        for topic_filter in list(session.subscriptions):
            self._exchange.unsubscribe(session, topic_filter)
        if not session.clean and self._store is not None:
            self._store.end(session.client_id)

    def expire(self) -> None:
        """Forget the kept sessions whose clients have stayed away for too long."""
        before = self._clock() - self._config.session_expiry
        for session in [s for s in self.sessions.values() if s.connection is None and s.absent_since < before]:
            log.info("a session has expired", client=session.client_id)
            self.end(session)

    def changed(self, session: Session) -> asyncio.Future[None] | None:
        """Have a kept session stored as it is now. Returns what is resolved when it is; None if there is nothing to."""
        if self._store is None or session.clean or self.sessions.get(session.client_id) is not session:
            return None
        absent_since = session.absent_since if session.connection is None else None
        return self._store.save(session.client_id, session.username, session.subscriptions, absent_since, self._clock())

    async def restore(self) -> None:
        """Take up the kept sessions and retained messages of the last run. Raises StorageUnavailableError."""
        if self._store is None:
            return
        kept = await self._store.load()
        for stored in kept.sessions:
            session = Session(stored.client_id, clean=False, username=stored.username)
            session.absent_since = self._clock() if stored.absent_since is None else stored.absent_since
            self.sessions[stored.client_id] = session
            for topic_filter, qos in stored.subscriptions.items():
                self._exchange.subscribe(session, topic_filter, qos)
        for message in kept.messages:
            self._exchange.last_seq = max(self._exchange.last_seq, message.seq)
            owner = self.sessions.get(message.client_id)
            if owner is None:
                continue
            delivery = Delivery(
                message.topic, message.payload, message.qos, message.retain, expires_at=message.expires_at
            )
            delivery.seq = message.seq
            delivery.released = message.released
            owner.restore(delivery, message.packet_id)
        for client_id, packet_id in kept.taken:
            if client_id in self.sessions:
                self.sessions[client_id].receive(packet_id, TAKEN)
        for topic, payload, qos in kept.retained:
            self._exchange.restore_retained(topic, payload, qos)
        self._restored = True
        self._stats.sessions = len(self.sessions)
        log.info(
            "sessions restored", sessions=len(kept.sessions), messages=len(kept.messages), retained=len(kept.retained)
        )
