"""What the API shows and acts on, handed to it by the composition root."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bridge.agents.registry import Registry
from bridge.agents.rollouts import Rollouts
from bridge.agents.router import Router
from bridge.agents.schedules import Schedules
from bridge.agents.services import Services
from bridge.history import History
from bridge.http.access import Access
from bridge.http.audit import Audit
from bridge.metrics import Metrics
from bridge.receipts import Ledger
from bridge.storage.database import Database

Check = Callable[[], Awaitable[str | None]]


@dataclass(frozen=True, slots=True)
class Context:
    """One bridge, as seen from HTTP."""

    router: Router
    registry: Registry
    rollouts: Rollouts
    schedules: Schedules
    services: Services
    database: Database
    ledger: Ledger
    metrics: Metrics
    summary: Callable[[], Mapping[str, Any]]
    history: History
    sinks: Callable[[], Sequence[Mapping[str, Any]]]
    """What each sink has done, as `bridge.http.sinks.SinkView`."""
    settings: Sequence[tuple[str, Any, str]]
    """Key, value and origin of each setting, secrets masked."""
    checks: Mapping[str, Check]
    """What must be right to be ready: each returns None, or what is wrong."""
    degraded: Callable[[], str | None]
    """Why the database may be away and the bridge ready all the same; None unless what is received is spooled."""
    concern: Callable[[], str | None]
    """What will go wrong if nobody does anything, while all is well yet."""
    access: Access
    audit: Audit
    hosts: tuple[str, ...] | None
    """Names that the bridge may be called by, beside its addresses; None where any name will do."""
    max_streams: int
    """Clients that may follow events at once."""
    metrics_open: bool
    """Whether `/metrics` asks for no token."""
