"""Who is calling, and may they? Every operation below `/api/v1` asks here first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Final, NamedTuple, final

from fastapi import Depends, HTTPException, Request

from bridge.http.keyring import Keyring
from bridge.http.visitors import Lockout, Sessions
from bridge.tokens import Role

COOKIE: Final = "bridge_session"
SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing (RFC 9110, 9.2.1)."""
LOCAL: Final = "local"
"""The name of callers where no token is needed."""


class Caller(NamedTuple):
    """Who is calling: the token's name, its role, and the address that the call came from."""

    name: str
    role: Role
    address: str


@final
class Access:
    """Knows callers by a token (`Authorization: Bearer …`, RFC 6750), by the cookie of a session that was opened with
    one, or, where `required` is False (on a loopback address), lets everybody do everything.

    A token that is shown must be good, also where none is needed. Wrong ones are counted per address; a locked address
    is not even looked at, except that sessions which are open go on.
    """

    def __init__(
        self, keyring: Keyring, sessions: Sessions, lockout: Lockout, *, required: bool, clock: Callable[[], float]
    ) -> None:
        self.keyring: Final = keyring
        self.sessions: Final = sessions
        self.required: Final = required
        self._lockout = lockout
        self._clock = clock

    async def login(self, token: str, address: str) -> Caller:
        """The holder of a token. Raises HTTPException: 401, or 429 for a locked address."""
        now = self._clock()
        if (wait := self._lockout.locked_for(address, now)) > 0:
            raise HTTPException(
                429, "too many wrong tokens from your address: wait a minute", {"Retry-After": str(int(wait) + 1)}
            )
        holder = await self.keyring.find(token)
        if holder is None:
            self._lockout.failed(address, now)
            raise HTTPException(401, "this token is not good: wrong, or revoked", {"WWW-Authenticate": "Bearer"})
        return Caller(holder.name, holder.role, address)

    async def identify(self, request: Request) -> Caller:
        """Who is calling. Raises HTTPException: 401, 403, 429."""
        address = address_of(request)
        header = request.headers.get("authorization")
        if header is not None:
            scheme, _, token = header.partition(" ")
            if scheme.lower() != "bearer":
                raise HTTPException(401, "use Authorization: Bearer …", {"WWW-Authenticate": "Bearer"})
            return await self.login(token.strip(), address)
        caller = await self.visitor(request)
        if caller is not None:
            return caller
        if self.required:
            raise HTTPException(401, "send a token: Authorization: Bearer …", {"WWW-Authenticate": "Bearer"})
        return Caller(LOCAL, Role.ADMIN, address)

    async def visitor(self, request: Request) -> Caller | None:
        """Who is calling by a session's cookie; None if nobody is.

        A browser sends the cookie by itself, so a change that comes with it must also say that it comes from our own
        page: every browser of today does (see `bridge.http.door`). Raises HTTPException: 403.
        """
        session_id = request.cookies.get(COOKIE)
        name = None if session_id is None else self.sessions.find(session_id, self._clock())
        holder = None if name is None else await self.keyring.still(name)
        if holder is None:
            return None
        headers = request.headers
        if request.method not in SAFE and "sec-fetch-site" not in headers and "origin" not in headers:
            raise HTTPException(403, "a change by cookie must say where it comes from: send Origin, or use a token")
        return Caller(holder.name, holder.role, address_of(request))


def address_of(request: Request) -> str:
    """Where a request came from; behind a trusted proxy, where that says."""
    return request.client.host if request.client is not None else ""


def guard(access: Access) -> Callable[[Request], object]:
    """The dependency of everything below `/api/v1`: who reads must be a viewer, who changes anything an operator.
    What is the admin's alone says so itself, with `ADMIN`."""

    async def check(request: Request) -> None:
        found = request.state.caller = await access.identify(request)
        _demand(found, Role.VIEWER if request.method in SAFE else Role.OPERATOR)

    return check


def caller(request: Request) -> Caller:
    """Who is calling, once `guard` has let them in."""
    found: Caller = request.state.caller
    return found


Who = Annotated[Caller, Depends(caller)]
"""A handler's parameter that tells who is calling."""


def _admin(who: Who) -> None:
    _demand(who, Role.ADMIN)


ADMIN: Final = Depends(_admin)
"""A dependency of what only admins may do."""


def _demand(who: Caller, needed: Role) -> None:
    if not who.role.allows(needed):
        raise HTTPException(403, f"this needs the role {needed}; {who.name} is {who.role}")
