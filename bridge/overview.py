"""The bridge at a glance, as the API, the page and the terminal show it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bridge.presence import Status
from bridge.sinks.feeder import Feeder
from bridge.storage.writer import Writer

if TYPE_CHECKING:
    from bridge.app import Bridge


def summary(bridge: Bridge) -> dict[str, Any]:
    """Everything at once."""
    census = bridge.services.census
    return {
        "devices": {"known": census.devices.total(), **census.devices},
        "messages_per_second": round(bridge.pulse.received_per_second, 1),
        "committed_per_second": round(bridge.pulse.committed_per_second, 1),
        "commands": dict(census.commands),
        "agents": bridge.router.activity(),
        "ledger": bridge.ledger.as_dict(),
        "loop_lag_p99_ms": round(bridge.pulse.lag(0.99) * 1000, 2),
        "database": {"dialect": bridge.database.dialect, "breaker": bridge.database.breaker.state.value},
        "spool": spool(bridge.writer),
        "sinks": sinks(bridge.sinks),
    }


def sinks(feeders: Sequence[Feeder]) -> list[dict[str, Any]]:
    """What each sink has done, as `bridge.http.sinks.SinkView`."""
    return [
        {
            "name": sink.name,
            "delivered": sink.delivered,
            "refused": sink.refused,
            "retries": sink.retries,
            "trouble": sink.trouble,
            "lag": round(sink.lag, 3),
            "breaker": sink.breaker.state.value,
        }
        for sink in feeders
    ]


def spool(writer: Writer) -> dict[str, Any] | None:
    """What waits in the spool, and why; None where there is no spool."""
    diversion = writer.diversion
    if diversion is None:
        return None
    waiting = diversion.spool
    return {
        "active": diversion.active,
        "reason": diversion.reason if diversion.active else "",
        "stuck": diversion.stuck,
        "waiting": waiting.rows,
        "bytes": waiting.bytes,
        "dropped": waiting.dropped,
    }


def figures(bridge: Bridge) -> dict[str, float]:
    """What small plots show of the last hour."""
    counts, commits = bridge.services.census.devices, bridge.writer.stats.commit_seconds
    return {
        "messages_per_second": round(bridge.pulse.received_per_second, 1),
        "committed_per_second": round(bridge.pulse.committed_per_second, 1),
        "commit_ms": round(sum(commits) / len(commits) * 1000, 2) if commits else 0.0,
        "loop_lag_p99_ms": round(bridge.pulse.lag(0.99) * 1000, 2),
        "in_flight": float(bridge.ledger.in_flight),
        **{status.value: float(counts[status.value]) for status in Status},
    }
