"""The audit trail of the API: every change that was made leaves a line, without its handler having to think of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final, final

import structlog
from fastapi import Request

from bridge.http.access import SAFE, Caller
from bridge.storage import audit as stored
from bridge.storage.audit import AuditLine
from bridge.storage.writer import Writer

log = structlog.get_logger(__name__)

PREFIX: Final = "/api/v1"


@final
class Audit:
    """Writes lines, of which the last `keep` are kept. A line is handed to the writer before the answer is sent, and
    nobody waits for its commit."""

    def __init__(self, writer: Writer, keep: int, clock: Callable[[], float]) -> None:
        self._writer = writer
        self._keep = keep
        self._clock = clock

    def record(self, who: Caller, action: str, target: str, detail: str = "") -> None:
        """Someone has done something."""
        line = AuditLine(self._clock(), who.name, who.address, action, target, detail)
        keep = self._keep
        written = self._writer.submit(lambda connection: stored.record(connection, line, keep))
        written.add_done_callback(lambda future: _complain(future, line))


def _complain(written: asyncio.Future[None], line: AuditLine) -> None:
    if not written.cancelled() and (error := written.exception()) is not None:
        log.error(
            "an audit line could not be stored",
            who=line.who, address=line.address, action=line.action, target=line.target, error=str(error),
        )  # fmt: skip


def note(request: Request, detail: str) -> None:
    """Add to the line that this request leaves what its path does not say. No secrets: names, not values."""
    request.state.audit_detail = detail


def no_change(request: Request) -> None:
    """This request leaves no line: its method says that it changes something, and it does not."""
    request.state.audited = False


def audited(audit: Audit) -> Callable[[Request], AsyncIterator[None]]:
    """The dependency that writes down every change which did not fail: the operation, and what its path names."""

    async def after(request: Request) -> AsyncIterator[None]:
        yield
        if request.method in SAFE or not getattr(request.state, "audited", True):
            return
        route = request.scope.get("route")
        path = str(getattr(route, "path", request.url.path)).removeprefix(PREFIX)
        target = " ".join(str(value) for value in request.path_params.values())
        audit.record(
            request.state.caller, f"{request.method} {path}", target, getattr(request.state, "audit_detail", "")
        )

    return after
