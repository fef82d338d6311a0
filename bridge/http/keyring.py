"""The tokens that are good now: as the database has them, kept in memory so that the API answers while it is away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, NamedTuple, final

import structlog

from bridge import tokens
from bridge.errors import BridgeError
from bridge.storage import tokens as stored
from bridge.storage.database import Database
from bridge.storage.writer import Writer
from bridge.tokens import Role, Token

log = structlog.get_logger(__name__)

REFRESH: Final = 5.0
"""Seconds that what is known may be old: how long a token that `mqtt-bridge tokens revoke` has ended is still good."""
REFRESH_WITHIN: Final = 1.0
"""Seconds that the database may take to tell; then what is known counts for another REFRESH."""
TOUCH: Final = 300.0
"""Seconds between two notes that a token was used."""
SETTING: Final = "http.token"
"""The name of the token in the settings: no stored token can have it twice, as the settings win."""


class Holder(NamedTuple):
    """Whom a token belongs to."""

    name: str
    role: Role


@final
class Keyring:
    """Finds the holder of a token. `fixed` is the token of the settings, an admin's."""

    def __init__(self, database: Database, writer: Writer, fixed: str | None, clock: Callable[[], float]) -> None:
        self._database = database
        self._writer = writer
        self._fixed = None if fixed is None else tokens.digest(fixed)
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._known: dict[bytes, Token] = {}
        self._names: dict[str, Token] = {}
        self._touched: dict[str, float] = {}
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    async def first_admin(self) -> str | None:
        """At a start with no admin token, in the settings or stored: a new one, which is shown to the operator once.

        Raises StorageError, StorageUnavailableError.
        """
        if self._fixed is not None:
            return None
        found = await self._database.read(stored.list_tokens)
        if any(token.role is Role.ADMIN and token.revoked_at is None for token in found):
            return None
        names = {token.name for token in found}
        name = next(name for n in range(1, len(found) + 2) if (name := f"admin-{n}" if n > 1 else "admin") not in names)
        return await self.add(name, Role.ADMIN)

    async def add(self, name: str, role: Role) -> str:
        """A new token, good at once. Raises RefusedError when the name will not do."""
        secret = tokens.mint()
        token = Token(name, role, tokens.digest(secret), self._clock())
        async with self._reading:  # what is read meanwhile would not have it
            await self._writer.submit(lambda connection: stored.add_token(connection, token))
            self._known[token.digest] = self._names[name] = token
        return secret

    async def revoke(self, name: str) -> bool:
        """End a token at once; whether there was one."""
        now = self._clock()
        async with self._reading:
            found = await self._writer.submit(lambda connection: stored.revoke_token(connection, name, now))
            token = self._names.pop(name, None)
            if token is not None:
                self._known.pop(token.digest, None)
        return found

    async def find(self, secret: str) -> Holder | None:
        """Who holds this token; None if it is not good."""
        digest = tokens.digest(secret)
        if self._fixed is not None and tokens.same(digest, self._fixed):
            return Holder(SETTING, Role.ADMIN)
        await self._refresh()
        token = self._known.get(digest)
        if token is None:
            return None
        self._touch(token.name)
        return Holder(token.name, token.role)

    async def still(self, name: str) -> Holder | None:
        """The holder of that name, if the token is still good."""
        if name == SETTING:
            return None if self._fixed is None else Holder(SETTING, Role.ADMIN)
        await self._refresh()
        token = self._names.get(name)
        if token is None:
            return None
        self._touch(name)
        return Holder(name, token.role)

    async def _refresh(self) -> None:
        if self._loop.time() - self._read_at < REFRESH:
            return
        async with self._reading:
            if self._loop.time() - self._read_at < REFRESH:
                return  # somebody else has asked meanwhile
            try:
                async with asyncio.timeout(REFRESH_WITHIN):
                    found = await self._database.read(stored.list_tokens)
            except (TimeoutError, BridgeError) as error:
                log.warning("tokens cannot be read; those known before stay good", error=str(error))
            else:
                good = [token for token in found if token.revoked_at is None]
                self._known = {token.digest: token for token in good}
                self._names = {token.name: token for token in good}
            self._read_at = self._loop.time()

    def _touch(self, name: str) -> None:
        now = self._clock()
        if now - self._touched.get(name, 0.0) < TOUCH:
            return
        self._touched[name] = now
        if len(self._touched) > stored.MAX_TOKENS:
            self._touched.clear()  # names come and go: at worst a token is noted once more
        # Nobody waits for it, and a note that is lost matters little; but an error that nobody reads is logged.
        noted = self._writer.submit(lambda connection: stored.touch_token(connection, name, now))
        noted.add_done_callback(_forget)


def _forget(noted: asyncio.Future[None]) -> None:
    if not noted.cancelled() and (error := noted.exception()) is not None:
        log.warning("the use of a token could not be noted", error=str(error))
