"""What every request must pass and every answer carries, whatever it is about.

A web page that the operator happens to look at, on any site, can make their browser send requests here: to loopback,
where no token is needed, and with the session's cookie. Three checks stop it, none of which depends on the page:

- *Host*: a name of the attacker's that is made to point here (DNS rebinding) is no name of ours. Addresses cannot be
  rebound, so they need no list.
- *Sec-Fetch-Site* and *Origin* (https://www.w3.org/TR/fetch-metadata/, RFC 6454): the browser itself says which site
  a request comes from. Programs send neither.
- *Content-Type*: a form can send three types only (https://fetch.spec.whatwg.org/#cors-safelisted-request-header), none
  of which is taken.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from typing import Final, final
from urllib.parse import urlsplit

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bridge.http.access import SAFE
from bridge.http.problems import problem

log = structlog.get_logger(__name__)

HEADERS: Final = {
    # Everything the page needs comes from here, and nothing is allowed that is written into the page itself: what a
    # device sent cannot become a script even where escaping was forgotten.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self';"
        " connect-src 'self'; manifest-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
FORM_TYPES: Final = frozenset({"application/x-www-form-urlencoded", "multipart/form-data", "text/plain"})
"""What a page of another site may send without asking first."""
OURS: Final = frozenset({"same-origin", "none"})
"""Values of Sec-Fetch-Site for our own page, and for an address that the user typed."""


@final
class Door:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None, max_body: int) -> None:
        """`hosts`: names beside `localhost` that the bridge may be called by; None if any will do. `max_body`: bytes
        of a request's body."""
        self._app = app
        self._max_body = max_body
        self._hosts = None if hosts is None else frozenset(host.lower() for host in hosts) | {"localhost"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it."""
        if scope["type"] != "http":
            return  # there are no WebSockets here: not accepted is refused
        started = False

        async def answer(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        received = 0

        async def bounded() -> Message:
            # A body that comes in chunks does not say before how long it is.
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_body:
                raise HTTPException(413, self._too_large)
            return message

        refusal = self._refusal(scope["method"], Headers(scope=scope))
        if refusal is None and ("\0" in scope["path"] or b"%00" in scope["query_string"]):
            # PostgreSQL cannot even be asked for a text with NUL in it.
            refusal = problem(400, "Bad request", "The address holds a NUL.")
        if refusal is not None:
            await refusal(scope, receive, answer)
            return
        try:
            await self._app(scope, bounded, answer)
        except Exception:
            log.exception("a request failed", method=scope["method"], path=scope["path"])
            if started:
                raise  # the client must see that the answer is not whole
            failed = problem(500, "The bridge made a mistake", "This is a fault of the bridge; its log says more.")
            await failed(scope, receive, answer)

    @property
    def _too_large(self) -> str:
        return f"A request's body has {self._max_body:,} bytes at most."

    def _refusal(self, method: str, headers: Headers) -> Response | None:
        host = headers.get("host", "")
        if self._hosts is not None and not _is_ours(host, self._hosts):
            return problem(
                421,
                "Not the name of this bridge",
                f"{host[:200]!r} is no name that this bridge is called by: use its address, or add it to http.hosts",
            )
        site = headers.get("sec-fetch-site")
        if method in SAFE:
            # To follow a link to here is no harm. To have a page load something from here is none of its business.
            alien = site is not None and site not in OURS and headers.get("sec-fetch-mode") != "navigate"
        elif site is not None:
            alien = site not in OURS
        else:
            origin = headers.get("origin")
            alien = origin is not None and urlsplit(origin).netloc.lower() != host.lower()
        if alien:
            return problem(403, "Another site's request", "A page of another site may not use this bridge.")
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._max_body:
            return problem(413, "Too large", self._too_large)
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if method not in SAFE and kind in FORM_TYPES:
            return problem(415, "No form", f"{kind} is not taken: send application/json")
        return None


def _is_ours(host: str, names: frozenset[str]) -> bool:
    name = urlsplit("//" + host).hostname if _plausible(host) else None
    if name is None:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name in names or name.endswith(".localhost")
    return True


def _plausible(host: str) -> bool:
    # What urlsplit would take apart differently from a browser is no host.
    return bool(host) and not any(character in host for character in "/\\?#@ \t") and host.isascii()
