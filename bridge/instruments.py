"""Every metric that the bridge exposes, and where its number comes from."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from bridge.breaker import State
from bridge.broker.config import BrokerStats
from bridge.metrics import Metrics
from bridge.receipts import Ledger
from bridge.storage.diversion import Diversion

if TYPE_CHECKING:
    from bridge.app import Bridge
    from bridge.standby import Standby


def install(bridge: Bridge) -> None:
    """Register the metrics of a running bridge."""
    metrics, census, writer = bridge.metrics, bridge.services.census, bridge.writer
    _ledger(metrics, bridge.ledger)
    metrics.counters("bridge_messages_refused", "Dead letters by reason.", "reason", lambda: census.refused)
    metrics.gauges("bridge_devices", "Known devices by status.", "status", lambda: census.devices)
    metrics.counters("bridge_commands", "Commands by the status they reached.", "status", lambda: census.commands)
    metrics.gauge("bridge_rollouts_running", "Rollouts that are running.", lambda: bridge.rollouts.running)
    metrics.counters("bridge_presence_transitions", "Changes of presence.", "cause", lambda: census.transitions)
    metrics.counters("bridge_twin_changes", "Changes of twins, and patches rejected.", "part", lambda: census.twins)
    metrics.counter("bridge_pings", "Pings sent to silent devices.", lambda: census.pings)
    metrics.counter("bridge_agent_restarts", "Agents built anew after an error.", lambda: census.restarts)
    metrics.gauges("bridge_agents", "Agents in memory.", "activity", bridge.router.activity)
    offload = bridge.services.offload
    metrics.gauge("bridge_offload_running", "Functions that device logic has offloaded.", lambda: offload.running)
    metrics.gauge("bridge_offload_waiting", "Those that wait for a free worker.", lambda: offload.waiting)
    metrics.gauge("bridge_writer_pending", "Rows and changes that wait for a commit.", lambda: writer.pending)
    metrics.counter("bridge_writer_batches", "Committed batches.", lambda: writer.stats.batches)
    metrics.counter("bridge_writer_rows", "Committed rows.", lambda: writer.stats.rows)
    sinks = bridge.sinks
    metrics.gauges(
        "bridge_sink_lag_seconds", "Age of the oldest record that waits for a sink.", "sink",
        lambda: {sink.name: sink.lag for sink in sinks},
    )  # fmt: skip
    metrics.gauges(
        "bridge_sink_endangered", "1 while records that wait for a sink will soon be deleted.", "sink",
        lambda: {sink.name: int(sink.endangered is not None) for sink in sinks},
    )  # fmt: skip
    metrics.counters(
        "bridge_sink_delivered", "Records that sinks have taken.", "sink",
        lambda: {sink.name: sink.delivered for sink in sinks},
    )  # fmt: skip
    metrics.counters(
        "bridge_sink_refused", "Records that sinks have refused for good.", "sink",
        lambda: {sink.name: sink.refused for sink in sinks},
    )  # fmt: skip
    metrics.counters(
        "bridge_sink_retries", "Deliveries that failed and were tried again.", "sink",
        lambda: {sink.name: sink.retries for sink in sinks},
    )  # fmt: skip
    metrics.counter("bridge_rollup_rows", "Committed rows that are rolled up.", lambda: bridge.rollups.rows)
    metrics.counter(
        "bridge_rollup_skipped", "Rows of which the database made no numbers.", lambda: bridge.rollups.skipped
    )
    metrics.counters(
        "bridge_rows_pruned", "Rows deleted because of their age.", "table", lambda: bridge.retention.deleted
    )
    if writer.diversion is not None:
        _spool(metrics, writer.diversion, bridge.services.clock)
    _times(bridge)
    _database(bridge)
    _broker(metrics, bridge.broker.stats)


def install_standby(standby: Standby) -> None:
    """Register the metrics of a bridge whose database has not been reached since the start."""
    _ledger(standby.metrics, standby.ledger)
    if standby.broker is not None:
        _broker(standby.metrics, standby.broker.stats)
    if standby.writer.diversion is not None:
        _spool(standby.metrics, standby.writer.diversion, time.time)


def _ledger(metrics: Metrics, ledger: Ledger) -> None:
    metrics.counter("bridge_messages_received", "Messages received on the bridge's topics.", lambda: ledger.received)
    metrics.counter("bridge_messages_committed", "Messages whose effect is durable.", lambda: ledger.committed)
    metrics.counter(
        "bridge_messages_deduplicated",
        "Messages that had been committed before.",
        lambda: ledger.deduplicated,
    )
    metrics.counter("bridge_messages_dead_lettered", "Messages kept as dead letters.", lambda: ledger.dead_lettered)
    metrics.counters("bridge_messages_dropped", "Messages dropped.", "reason", lambda: ledger.dropped)
    metrics.gauge("bridge_messages_in_flight", "Messages received and not settled yet.", lambda: ledger.in_flight)
    metrics.gauge("bridge_ledger_difference", "Zero while nothing disappears unseen.", lambda: ledger.difference)


def _times(bridge: Bridge) -> None:
    metrics, stats, census = bridge.metrics, bridge.writer.stats, bridge.services.census
    metrics.histogram(
        "bridge_message_commit_seconds",
        "From the arrival of the oldest reading of a batch to its commit: one sample per batch.",
        stats.delays,
    )
    metrics.histogram(
        "bridge_message_settle_seconds",
        "From the commit of a batch to the acknowledgement of all its messages: one sample per batch.",
        stats.settles,
    )
    metrics.histogram("bridge_commit_seconds", "How long the commit of a batch took.", stats.commits)
    metrics.histogram(
        "bridge_collection_seconds",
        "How long Python's garbage collector stopped the process, each time.",
        bridge.collection.pauses,
    )
    metrics.histogram(
        "bridge_agent_wakeup_seconds",
        "From the wake-up of a waiting agent until its coroutine runs: at most twenty samples a second.",
        bridge.services.wakeups.seconds,
    )
    metrics.histograms(
        "bridge_command_step_seconds",
        "From the acceptance of a command to each status that it reached.",
        "status",
        census.command_steps,
    )
    metrics.histogram(
        "bridge_loop_lag_seconds", "How late the event loop was, looked at twenty times a second.", bridge.pulse.lags
    )


def _database(bridge: Bridge) -> None:
    metrics, database, stats = bridge.metrics, bridge.database, bridge.writer.stats
    metrics.gauge("bridge_database_pool_in_use", "Reading connections in use.", lambda: database.reading)
    metrics.gauge("bridge_database_pool_size", "Reading connections at most.", lambda: database.pool_size)
    metrics.counter("bridge_writer_retries", "Commits that failed and were tried again.", lambda: stats.retries)
    metrics.counter("bridge_writer_refused", "Hand-overs that the database refused for good.", lambda: stats.refused)
    breakers = {"database": database.breaker, **{f"sink {sink.name}": sink.breaker for sink in bridge.sinks}}
    metrics.gauges(
        "bridge_breaker_open", "1 while a backend is left alone or is just being tried again.", "backend",
        lambda: {name: int(breaker.state is not State.CLOSED) for name, breaker in breakers.items()},
    )  # fmt: skip
    metrics.counters(
        "bridge_breaker_opened", "How often a backend began to be left alone.", "backend",
        lambda: {name: breaker.opened for name, breaker in breakers.items()},
    )  # fmt: skip
    metrics.counters(
        "bridge_breaker_rejected", "Calls that were not made while a backend was left alone.", "backend",
        lambda: {name: breaker.rejected for name, breaker in breakers.items()},
    )  # fmt: skip


def _spool(metrics: Metrics, diversion: Diversion, now: Callable[[], float]) -> None:
    spool = diversion.spool
    metrics.gauge("bridge_spool_rows", "Rows and changes that wait in the spool.", lambda: spool.rows)
    metrics.gauge("bridge_spool_bytes", "Size of what waits in the spool.", lambda: spool.bytes)
    metrics.gauge(
        "bridge_spool_age_seconds",
        "For how long the oldest has waited in the spool.",
        lambda: 0.0 if spool.oldest is None else max(0.0, now() - spool.oldest),
    )
    metrics.gauge("bridge_spool_active", "1 while rows go into the spool.", lambda: int(diversion.active))
    metrics.counter("bridge_spool_begun", "How often rows began to go into the spool.", lambda: diversion.begun)
    metrics.counter("bridge_spool_appended_rows", "Rows and changes put into the spool.", lambda: spool.appended)
    metrics.counter("bridge_spool_forwarded_rows", "Rows and changes taken to the database.", lambda: spool.forwarded)
    metrics.counter("bridge_spool_dropped_readings", "Readings dropped at the spool's limit.", lambda: spool.dropped)
    metrics.counter(
        "bridge_spool_refused",
        "How often the spool began to take nothing: it was full, or its disk was, or it could not be written.",
        lambda: diversion.refused,
    )
    metrics.histogram(
        "bridge_message_spool_seconds",
        "From the arrival of the oldest reading of a batch until it was in the spool: one sample per batch.",
        diversion.delays,
    )
    metrics.histogram(
        "bridge_spool_wait_seconds",
        "How long the oldest of what is taken to the database together was in the spool.",
        diversion.waits,
    )


def _broker(metrics: Metrics, stats: BrokerStats) -> None:
    metrics.gauge("bridge_connections", "Open MQTT connections.", lambda: stats.connections)
    metrics.gauge("bridge_sessions", "MQTT sessions, connected or kept.", lambda: stats.sessions)
    metrics.gauge("bridge_subscriptions", "MQTT subscriptions.", lambda: stats.subscriptions)
    metrics.gauge("bridge_retained", "Retained messages.", lambda: stats.retained)
    metrics.counters("bridge_connections_closed", "Closed MQTT connections.", "cause", lambda: stats.closed)
    metrics.counters(
        "bridge_deliveries_dropped",
        "Deliveries to subscribers dropped.",
        "reason",
        lambda: stats.dropped,
    )
