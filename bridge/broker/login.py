"""The front door: who is a client? Nothing that is shared is touched before that is known (MQTT 3.1.1, 3.1.4)."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol, final

import structlog

from bridge import ports
from bridge.broker import packets
from bridge.broker.access import ASKED, EVERYTHING, Rights, Role, rights_of
from bridge.broker.clients import Clients
from bridge.broker.config import BrokerConfig
from bridge.broker.connection import Connection
from bridge.broker.passwords import Passwords
from bridge.broker.plugins import Plugins
from bridge.broker.wire import ASKING
from bridge.errors import BridgeError
from bridge.topics import Grants, Topics

log = structlog.get_logger(__name__)

MAX_WAITING: Final = 2_000
"""Clients whose password is being checked or waits for it; more are refused as `unavailable`, and come again."""
MAX_SUSPECTS: Final = 10_000
"""Addresses whose failed logins are counted."""


class Credentials(Protocol):
    """Devices' passwords and tokens that are kept elsewhere than in the password file."""

    async def check(self, username: str, password: bytes) -> bool | None:
        """Whether `password` is that of the device `username`; None if no credentials are kept for such a device, and
        whoever else knows users is to be asked. Must compare in constant time. Raises BridgeError if it cannot be
        found out now: the client is told to come again."""

    async def admits(self, username: str) -> bool:
        """Whether the device `username`, whose password was found to be right elsewhere, may connect."""

    async def grants(self, username: str) -> Grants:
        """What the device `username` may publish and subscribe to beside its own topics."""


@final
class Login:
    """Who has a user name is looked for in three places, and the first that knows it decides: the injected
    credentials, the password file, the plugins, if there are any that authenticate. While the first cannot be asked
    nobody is let in by a name: the file's password of somebody who has a token does not count, then as ever. A client
    without a user name is let in where anonymous clients are allowed: on a loopback address only."""

    def __init__(
        self,
        config: BrokerConfig,
        topics: Topics,
        clients: Clients,
        passwords: Passwords | None,
        plugins: Plugins | None,
        credentials: Credentials | None = None,
    ) -> None:
        self._config = config
        self._topics = topics
        self._clients = clients
        self._passwords = passwords
        self._plugins = plugins
        self._credentials = credentials
        self._local = ports.is_loopback(config.host)
        self._anonymous = config.allow_anonymous and self._local
        self._checks: set[asyncio.Task[None]] = set()
        self._failures: dict[str, int] = {}

    def connect(self, connection: Connection, connect: packets.Connect) -> None:
        """Let a client in, refuse it, or have its password checked while it waits."""
        asks = self._plugins is not None and self._plugins.authenticates
        if connect.level != 4:
            text = f"protocol level {connect.level} [MQTT-3.1.2-2]"
            connection.refuse(packets.BAD_PROTOCOL, "bad_protocol", text)
        elif not connect.client_id and not connect.clean:
            connection.refuse(packets.BAD_CLIENT_ID, "bad_client_id", "no client id [MQTT-3.1.3-8]")
        elif connect.will is not None and connect.will.topic.startswith("$"):
            connection.refuse(packets.NOT_AUTHORISED, "not_authorised", "its will begins with $ (4.7.2)")
        elif self._passwords is None and self._credentials is None and not asks:
            # Nobody has a password here, so a name claims nothing.
            self._admit_anonymous(connection, connect)
        elif connect.username is None and not asks:
            self._admit_anonymous(connection, connect)
        elif self._failures.get(connection.address, 0) >= self._config.max_failed_logins:
            connection.refuse(packets.NOT_AUTHORISED, "too_many_failed_logins", f"from {connection.address}")
        elif len(self._checks) >= MAX_WAITING:
            connection.refuse(packets.UNAVAILABLE, "too_many_logins", "too many passwords are being checked")
        else:
            connection.client_id = connect.client_id
            connection.hold(ASKING)
            task = asyncio.get_running_loop().create_task(self._check(connection, connect))
            self._checks.add(task)
            task.add_done_callback(self._checked)

    def _admit_anonymous(self, connection: Connection, connect: packets.Connect) -> None:
        if self._anonymous:
            self._admit(connection, connect, None, EVERYTHING)
        else:
            connection.refuse(packets.NOT_AUTHORISED, "not_authorised", "a user name is required")

    def _admit(self, connection: Connection, connect: packets.Connect, username: str | None, rights: Rights) -> None:
        guest = None
        plugins = self._plugins
        if plugins is not None:
            guest = plugins.guest_of(connect._replace(password=None), connection.address)
            if plugins.filters:
                rights = ASKED
        self._clients.admit(connection, connect, username, rights, guest)
        if plugins is not None and connection.session is not None and guest is not None:
            guest.client_id = connection.client_id
            plugins.connected(connection.session)

    async def _check(self, connection: Connection, connect: packets.Connect) -> None:
        try:
            try:
                found = await self._identify(connection, connect)
            except BridgeError as error:
                connection.refuse(packets.UNAVAILABLE, "unavailable", f"user {connect.username!r}: {error}")
                return
            if connection.closed_by is not None:
                return
            if found is None:
                self._count_failure(connection.address)
                connection.refuse(packets.BAD_CREDENTIALS, "bad_credentials", f"user {connect.username!r}")
                return
            self._admit(connection, connect, *found)
        finally:
            connection.let_go(ASKING)

    async def _identify(self, connection: Connection, connect: packets.Connect) -> tuple[str | None, Rights] | None:
        """Who a client is and what it may do; None if its password is wrong."""
        name, password = connect.username, connect.password or b""
        passwords, plugins = self._passwords, self._plugins
        if self._credentials is not None and name is not None:
            accepted = await self._credentials.check(name, password)
            if accepted is not None:
                return (name, await self._rights(Role.DEVICE, name)) if accepted else None
        if plugins is None or not plugins.authenticates or (passwords is not None and passwords.knows(name)):
            if passwords is None:
                return (None, EVERYTHING) if self._anonymous else None  # nobody knows that name: it claims nothing
            if name is None:
                return None
            user = await passwords.check(name, password)
            if user is None or (user.role is Role.DEVICE and not await self._admits(name)):
                return None
            return name, await self._rights(user.role, name)
        guest = plugins.guest_of(connect, connection.address)
        if not await plugins.authenticate(guest):
            return None
        if name is None:
            return (None, EVERYTHING) if self._local else None
        if not await self._admits(name):
            return None
        return name, await self._rights(Role.DEVICE, name)

    async def _rights(self, role: Role, name: str) -> Rights:
        if role is not Role.DEVICE or self._credentials is None:
            return rights_of(role, name, self._topics)
        return rights_of(role, name, self._topics, await self._credentials.grants(name))

    async def _admits(self, name: str) -> bool:
        return self._credentials is None or await self._credentials.admits(name)

    def _count_failure(self, address: str) -> None:
        if address in self._failures or len(self._failures) < MAX_SUSPECTS:
            self._failures[address] = self._failures.get(address, 0) + 1

    def forgive(self) -> None:
        """A minute has passed: count failed logins anew."""
        self._failures.clear()

    def _checked(self, task: asyncio.Task[None]) -> None:
        self._checks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a login could not be checked", exc_info=task.exception())

    async def close(self) -> None:
        """Stop checking."""
        for task in list(self._checks):
            task.cancel()
        if self._checks:
            await asyncio.wait(self._checks)
        if self._passwords is not None:
            self._passwords.close()
