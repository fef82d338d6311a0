"""Who has logged in with a browser, and which addresses have guessed too often. Pure: the clock is passed in."""

from __future__ import annotations

import ipaddress
import secrets
from typing import Final, final

from bridge import tokens

MAX_SESSIONS: Final = 1_000
"""Sessions at once; then the oldest ends."""
MAX_SUSPECTS: Final = 10_000
"""Addresses whose failed logins are counted; then the one that failed longest ago is forgotten."""
WINDOW: Final = 60.0
"""Seconds over which failed logins are counted, and for which an address is locked out."""


@final
class Sessions:
    """Sessions of browsers, in memory: a restart of the bridge ends them all.

    A session is kept under the digest of its id, so that looking it up tells nothing about the ids of others.
    """

    def __init__(self, lifetime: float) -> None:
        """`lifetime` in seconds, from the login on."""
        self.lifetime: Final = lifetime
        self._sessions: dict[bytes, tuple[str, float]] = {}

    def open(self, name: str, now: float) -> str:
        """A new session of the token `name`: its id, for the cookie."""
        if len(self._sessions) >= MAX_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        session_id = secrets.token_urlsafe(32)
        self._sessions[tokens.digest(session_id)] = (name, now + self.lifetime)
        return session_id

    def find(self, session_id: str, now: float) -> str | None:
        """The name of the token that the session was opened with; None if there is no such session any more."""
        key = tokens.digest(session_id)
        name, until = self._sessions.get(key, ("", 0.0))
        if until > now:
            return name
        self._sessions.pop(key, None)
        return None

    def close(self, session_id: str) -> None:
        """End a session, if there is one."""
        self._sessions.pop(tokens.digest(session_id), None)


@final
class Lockout:
    """Locks an address out that has shown `limit` wrong tokens within a minute of the first, until that minute is over.

    An IPv6 network of /64 counts as one address: whoever has one has them all.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._failures: dict[str, tuple[int, float]] = {}

    def locked_for(self, address: str, now: float) -> float:
        """Seconds until the address may try again; 0 if it may now."""
        key = _network(address)
        count, since = self._failures.get(key, (0, now))
        if now - since >= WINDOW:
            self._failures.pop(key, None)
            return 0.0
        return WINDOW - (now - since) if count >= self._limit else 0.0

    def failed(self, address: str, now: float) -> None:
        """The address has shown a wrong token."""
        key = _network(address)
        count, since = self._failures.pop(key, (0, now))
        if now - since >= WINDOW:
            count, since = 0, now
        # At the end again: what is forgotten first is the one that failed longest ago.
        self._failures[key] = (count + 1, since)
        if len(self._failures) > MAX_SUSPECTS:
            del self._failures[next(iter(self._failures))]


def _network(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else address
