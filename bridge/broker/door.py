"""The front door: who is let in, and as whom. Nothing that clients share is touched before that is known."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, final

import structlog

from bridge.broker import packets
from bridge.broker.access import EVERYTHING, Rights, rights_of
from bridge.broker.passwords import Passwords

if TYPE_CHECKING:
    from bridge.broker.broker import EmbeddedBroker
    from bridge.broker.connection import Connection

log = structlog.get_logger(__name__)


@final
class Door:
    """Answers CONNECT."""

    __slots__ = ("_broker", "_checks", "_passwords")

    def __init__(self, broker: EmbeddedBroker) -> None:
        """Raises StartError when the password file cannot be read."""
        self._broker = broker
        file = broker.config.password_file
        self._passwords = Passwords(file) if file else None
        self._checks: set[asyncio.Task[None]] = set()

    @property
    def opens_to_nobody(self) -> bool:
        """Whether there is no way to be let in."""
        return not self._broker.config.allow_anonymous and self._passwords is None

    def close(self) -> None:
        """End the checks that are under way."""
        for task in self._checks:
            task.cancel()
        if self._passwords is not None:
            self._passwords.close()

    def knock(self, connection: Connection, connect: packets.Connect) -> bool:
        """Let a client in or refuse it, or have its password checked first; False while that goes on."""
        if connect.level != 4:
            connection.refuse(packets.BAD_PROTOCOL, "bad_protocol", f"protocol level {connect.level} [MQTT-3.1.2-2]")
        elif not connect.client_id and not connect.clean:
            connection.refuse(packets.BAD_CLIENT_ID, "bad_client_id", "no client id [MQTT-3.1.3-8]")
        elif connect.will is not None and connect.will.topic.startswith("$"):
            connection.refuse(packets.NOT_AUTHORISED, "not_authorised", "its will begins with $ (4.7.2)")
        elif connect.username is None:
            if self._broker.config.allow_anonymous:
                self._admit(connection, connect, EVERYTHING, None)
            else:
                connection.refuse(packets.NOT_AUTHORISED, "not_authorised", "a user name is required")
        elif self._passwords is None:
            # Nobody has a password here, so a name claims nothing.
            self._admit(connection, connect, EVERYTHING, None)
        elif self._passwords.busy:
            connection.refuse(packets.UNAVAILABLE, "too_many_logins", "too many passwords are being checked")
        else:
            connection.client_id = connect.client_id
            check = self._authenticate(connection, connect, connect.username, self._passwords)
            task = asyncio.get_running_loop().create_task(check, name="login")
            self._checks.add(task)
            task.add_done_callback(self._checks.discard)
            return False
        return True

    async def _authenticate(
        self, connection: Connection, connect: packets.Connect, username: str, passwords: Passwords
    ) -> None:
        try:
            user = await passwords.check(username, connect.password or b"")
        except Exception:
            # Whatever it was, it was not the right password.
            log.exception("a password could not be checked", user=username)
            user = None
        if connection.closed_by is not None:
            return
        if user is None:
            connection.refuse(packets.BAD_CREDENTIALS, "bad_credentials", f"user {username!r}")
            return
        self._admit(connection, connect, rights_of(user.role, username, self._broker.topics), username)
        connection.go_on()

    def _admit(self, connection: Connection, connect: packets.Connect, rights: Rights, username: str | None) -> None:
        broker = self._broker
        client_id = connect.client_id or f"auto-{secrets.token_hex(8)}"
        session = broker.clients.get(client_id)
        if session is not None and session.username != username:
            # Neither may anybody end or inherit another user's session.
            connection.refuse(packets.BAD_CLIENT_ID, "bad_client_id", f"{client_id!r} is another user's")
            return
        if session is None and not connect.clean and len(broker.clients) >= broker.config.max_sessions:
            connection.refuse(packets.UNAVAILABLE, "too_many_sessions", "there is no room for another session")
            return
        if session is not None and session.connection is not None:
            session.connection.close("takeover")  # [MQTT-3.1.4-2]
            session = broker.clients.get(client_id)
        if session is not None and connect.clean:
            broker.end(session)  # [MQTT-3.1.2-6]
            session = None
        resumed = session is not None
        if session is None:
            session = broker.begin(client_id, clean=connect.clean, username=username)
        for topic_filter in [f for f in session.subscriptions if not rights.may_subscribe(f)]:
            # The user's rights are not what they were.
            broker.drop_subscription(session, topic_filter)
        session.connection = connection
        connection.accept(session, rights, connect, resumed=resumed)
        for topic_filter in session.subscriptions:
            owner = broker.topics.owner_of(topic_filter)
            if owner is not None:
                connection.speak_for(owner, listening=True)
