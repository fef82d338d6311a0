"""Sinks made from what the settings say of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urlsplit

from bridge import imports
from bridge.errors import SettingsError
from bridge.sinks.feeder import Feeder, Filter, Pace
from bridge.sinks.files import Lines, Parquet
from bridge.sinks.sink import Sink
from bridge.storage.committed import Source
from bridge.storage.database import Database

if TYPE_CHECKING:
    from bridge.sinks.upstream import Broker


@dataclass(frozen=True, slots=True)
class Plan:
    """What is set for one sink; see the settings of the same names."""

    type: str
    kinds: tuple[str, ...]
    devices: tuple[str, ...]
    streams: tuple[str, ...]
    start: Literal["now", "beginning"]
    batch: int
    rate: float
    wait: float
    url: str | None
    secret: str | None
    timeout: float
    prefix: str
    version: Literal["3.1.1", "5"]
    ca_file: Path | None
    folder: Path | None
    max_bytes: int
    keep: int
    options: dict[str, Any]


def feeders(
    plans: Mapping[str, Plan], database: Database, kept_for: Mapping[Source, float], clock: Callable[[], float]
) -> list[Feeder]:
    """A feeder for each sink. Raises SettingsError that names the sink. `kept_for`: as in `Feeder`."""
    built = []
    for name, plan in plans.items():
        try:
            sink = _sink(name, plan, clock)
        except SettingsError as error:
            raise SettingsError(f"sinks.{name}: {error}") from error
        wanted = Filter(frozenset(plan.kinds), plan.devices, plan.streams)
        pace = Pace(plan.batch, plan.rate, plan.wait)
        from_beginning = plan.start == "beginning"
        built.append(
            Feeder(name, sink, database, wanted, pace, from_beginning=from_beginning, kept_for=kept_for, clock=clock)
        )
    return built


def _sink(name: str, plan: Plan, clock: Callable[[], float]) -> Sink:
    # The libraries of a kind are imported where there is a sink of it.
    match plan.type:
        case "webhook":
            from bridge.sinks.webhook import Webhook

            return Webhook(plan.url or "", plan.secret, plan.timeout, clock)
        case "mqtt":
            from bridge.sinks.upstream import Upstream

            return Upstream(_broker(name, plan), plan.prefix)
        case "ndjson":
            return Lines(plan.folder or Path(), name, plan.max_bytes, plan.keep, clock)
        case "parquet":
            return Parquet(plan.folder or Path(), name, plan.keep, clock)
    return _own(plan)


def _broker(name: str, plan: Plan) -> Broker:
    from bridge.sinks.upstream import Broker

    url = urlsplit(plan.url or "")
    if url.scheme not in ("mqtt", "mqtts") or not url.hostname:
        raise SettingsError("url must be mqtt://host:port or mqtts://host:port")
    tls = url.scheme == "mqtts"
    try:
        port = url.port or (8883 if tls else 1883)
    except ValueError as error:
        raise SettingsError(f"url: {error}") from None
    return Broker(
        url.hostname,
        port,
        f"mqtt-agent-bridge-{name}",
        None if url.username is None else unquote(url.username),
        None if url.password is None else unquote(url.password),
        plan.version,
        tls,
        plan.ca_file,
    )


def _own(plan: Plan) -> Sink:
    try:
        made = imports.named(plan.type)(**plan.options)
    except (ImportError, TypeError) as error:
        raise SettingsError(f"{plan.type} cannot be made: {error}") from error
    if not isinstance(made, Sink):
        raise SettingsError(f"{plan.type} is no subclass of bridge.sinks.sink.Sink")
    return made
