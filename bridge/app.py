"""The composition root: the only file that knows everybody. Starts bottom-up, stops top-down."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, final

import structlog
from pydantic_core import to_jsonable_python

from bridge import __version__, descriptors, instruments, overview, ports, readiness
from bridge.agents.discovery import find_agent
from bridge.agents.registry import Registry
from bridge.agents.rollouts import Rollouts
from bridge.agents.router import Router
from bridge.agents.schedules import Schedules
from bridge.agents.services import Rules, Services, alike
from bridge.broker.broker import EmbeddedBroker
from bridge.broker.config import BrokerConfig
from bridge.collection import Collection
from bridge.errors import BridgeError, DatabaseAwayError, StartError, StorageUnavailableError
from bridge.history import History
from bridge.http.access import Access
from bridge.http.api import build
from bridge.http.audit import Audit
from bridge.http.context import Context
from bridge.http.keyring import Keyring
from bridge.http.server import HttpServer
from bridge.http.visitors import Lockout, Sessions
from bridge.metrics import Metrics
from bridge.pulse import Pulse
from bridge.receipts import Ledger
from bridge.registry import Admission
from bridge.settings import Settings
from bridge.sinks.build import Plan, feeders
from bridge.standby import LONG_SPOOL, Standby
from bridge.storage import hypertable
from bridge.storage import migrate as schema
from bridge.storage.committed import Source
from bridge.storage.credentials import CredentialCopy
from bridge.storage.database import Database
from bridge.storage.devices import DeviceLoader
from bridge.storage.retention import DAY, Keep, Retention
from bridge.storage.rollups import Rollups
from bridge.storage.sessions import SessionStore, unpack_changes
from bridge.storage.spool import Spool
from bridge.storage.writer import Writer
from bridge.topics import Topics
from bridge.tracing import Tracing
from bridge.twin import Limits

log = structlog.get_logger(__name__)

SWITCH_INTERVAL = 0.0005
"""Seconds that the database's thread may have to wait for the interpreter while the event loop is busy; Python's own
5 ms, three times a batch, would be more than the batch takes."""

UNKNOWN = {
    "accept": Admission.ACCEPTED,
    "quarantine": Admission.QUARANTINED,
    "refuse": Admission.UNKNOWN,
}
"""How `registry.unknown` takes devices that are heard of for the first time."""

OnReady = Callable[["Bridge"], Awaitable[None]]


async def serve(settings: Settings, *, migrate: bool | None = None, on_ready: OnReady | None = None) -> None:
    """Run the bridge until SIGTERM or SIGINT. `migrate` overrides the setting `database.migrate`.

    Raises StartError when it cannot start, BridgeError when a part of it fails while it runs.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    bridge = Bridge(settings)
    if not await bridge.start(migrate=settings.database.migrate if migrate is None else migrate, stop=stop):
        return
    # Once everything is started: set the interpreter up for a busy loop.
    bridge.collection.begin()
    sys.setswitchinterval(SWITCH_INTERVAL)
    try:
        if on_ready is not None:
            await on_ready(bridge)
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([stopping, *bridge.parts], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        failed = [part for part in bridge.parts if part.done()]
    finally:
        await bridge.stop()
    for part in failed:
        problem = None if part.cancelled() else part.exception()
        raise BridgeError(f"{part.get_name()} has stopped: {problem or 'without an error'}") from problem


@final
class Bridge:
    """One running bridge."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.ledger = Ledger()
        self.metrics = Metrics()
        self.pulse = Pulse(self.ledger)
        self.collection = Collection()
        self.history = History(partial(overview.figures, self), time.time)
        self.copy: CredentialCopy | None = None
        """Of devices' credentials, where the database may be away while devices are not to notice."""
        self.parts: list[asyncio.Task[Any]] = []
        """Tasks that must not end while the bridge runs."""
        self.first_token: str | None = None
        """The admin token that was made because there was none: to be shown to the operator now, or never."""
        self.telemetry_in = "one table"
        """How the database keeps telemetry, for people."""
        self._undo = contextlib.AsyncExitStack()

    async def start(self, *, migrate: bool, stop: asyncio.Event | None = None) -> bool:
        """Start every part, the database first and the doors last. On failure what was started is stopped.

        Where the database has been reached in an earlier run, and is away now, this waits for it, and stands by
        meanwhile (see `Standby`); so it does until the database has what an earlier run has left in the spool, if that
        is much. False if `stop` was set before.
        """
        async with contextlib.AsyncExitStack() as undo:
            reached = await self._reach(undo, migrate, stop or asyncio.Event())
            if reached:
                await self._start(undo)
                self._undo = undo.pop_all()
        if not reached:
            log.info("stopped before the database was reached", **self.ledger.as_dict())
        return reached

    async def stop(self) -> None:
        """Take no more, finish and commit what was received, then close."""
        began = time.monotonic()
        await self._undo.aclose()
        log.info("stopped", seconds=round(time.monotonic() - began, 2), **self.ledger.as_dict())

    @property
    def mqtt_port(self) -> int:
        """The port of the MQTT listener."""
        return self.broker.bound_port

    @property
    def http_port(self) -> int:
        """The port of the HTTP listener."""
        return self.http.port

    async def _reach(self, undo: contextlib.AsyncExitStack, migrate: bool, stop: asyncio.Event) -> bool:
        """What needs no database, and then the database, with its schema and its partitions. False if `stop` was set
        before it was there."""
        settings = self.settings
        wanted = settings.mqtt.max_connections + descriptors.BESIDE_CONNECTIONS
        if (limit := descriptors.raise_limit(wanted)) < wanted:
            log.warning("the limit of open files is below mqtt.max_connections", limit=limit, wanted=wanted)
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        self._http_socket = ports.bind(settings.http.host, settings.http.port, "BRIDGE_HTTP__PORT")
        undo.callback(self._http_socket.close)
        self.profiles = settings.complete_profiles()
        self.topics = Topics(
            settings.topic_root,
            [rule for profile in self.profiles for rule in profile.rules],
            {profile.name: profile.requests for profile in self.profiles},
        )
        url = settings.database_url
        self.database = Database.prepare(url, settings.database.pool_size)
        undo.push_async_callback(self.database.close)
        self.retention = Retention(self.database, Keep(**settings.retention.model_dump()), time.time)

        async def reach() -> None:
            if migrate:
                await schema.upgrade(url, timescaledb=settings.database.timescaledb == "auto")
            self.schema = await schema.current(url)
            if self.schema != await schema.head():
                raise StartError(f"the database schema is {self.schema or 'not there'}: run `mqtt-bridge migrate`")
            await self.database.connect()
            if self.database.dialect == "postgresql":
                self.telemetry_in = await self.database.read(hypertable.layout)
            await self.retention.prepare()

        away: BridgeError | None = None
        try:
            await reach()
        except (DatabaseAwayError, StorageUnavailableError) as error:
            away = error
        self.spool = spool = await self._open_spool(undo)
        if spool is not None and self.database.dialect == "postgresql":
            self.copy = copy = await self._open_copy(undo)
            doors = alike(self.profiles, UNKNOWN[settings.registry.unknown])
            if spool.last_id is not None and (away is not None or (doors and spool.rows > LONG_SPOOL)):
                standby = Standby(settings, self.topics, self.ledger, self.database, spool, copy, self._http_socket)
                return await standby.run(reach, away, stop, doors=doors)
        if away is not None:
            # The first start needs it: an address that is wrong must not look like an outage.
            raise away
        return True

    async def _start(self, undo: contextlib.AsyncExitStack) -> None:
        settings = self.settings
        grace = settings.shutdown_timeout / 3
        tracing = Tracing.to(settings.tracing.endpoint)
        undo.push_async_callback(asyncio.to_thread, tracing.close)
        self.writer = Writer(
            self.database,
            batch_rows=settings.writer.batch_rows,
            batch_wait=settings.writer.batch_wait,
            capacity=settings.writer.capacity,
            patience=settings.writer.patience,
            spool=self.spool,
            spool_after=settings.spool.after,
            tracing=tracing,
        )
        await self.writer.start()
        undo.push_async_callback(self.writer.stop, grace)
        self.rollups = Rollups(self.database, lambda: self.writer.busy)
        self.sinks = feeders(_sinks(settings), self.database, _kept_for(settings), time.time)

        profiles, topics = self.profiles, self.topics
        self.services = Services(
            writer=self.writer,
            loader=DeviceLoader(self.database),
            topics=topics,
            rules=_rules(settings),
            clock=time.time,
            profiles=profiles,
            agents={profile.agent: find_agent(profile.agent) for profile in profiles if profile.agent},
            unknown=UNKNOWN[settings.registry.unknown],
            tracing=tracing,
            audit_lines=settings.http.audit_lines,
        )
        self.router = Router(self.services)
        self.registry = Registry(self.services, self.router, self.database, self.copy)
        self.broker = EmbeddedBroker(
            BrokerConfig(**settings.mqtt.model_dump()),
            topics,
            self.ledger,
            self.router,
            SessionStore(self.database, self.writer),
            credentials=self.registry,
        )
        self.registry.kick = self.broker.kick_user
        self.services.publish = self.broker.publish
        undo.push_async_callback(self.router.close, grace)
        undo.push_async_callback(self.broker.stop, grace)
        await self.broker.restore()
        await self.router.start()
        undo.push_async_callback(self.router.stop, grace)
        self.rollouts = Rollouts(self.router, self.services, self.database)
        await self.rollouts.start()
        self.schedules = Schedules(self.rollouts, self.services, self.database)

        context = self._http_context()
        self.first_token = await context.access.keyring.first_admin() if context.access.required else None
        self.http = HttpServer(build(context), self._http_socket, settings.http.proxies)
        self.parts = [
            self.writer.task,
            self.http.start(),
            *(
                asyncio.create_task(part.run(), name=type(part).__name__.lower())
                for part in (
                    self.pulse,
                    self.collection,
                    self.history,
                    self.retention,
                    self.rollups,
                    self.rollouts,
                    self.schedules,
                )
            ),
            *(asyncio.create_task(sink.run(), name=f"sink {sink.name}") for sink in self.sinks),
        ]
        if self.copy is not None:
            self.parts.append(asyncio.create_task(self.copy.run(self.database), name="the copy of the credentials"))
        for part in self.parts[2:]:
            undo.push_async_callback(_end, part)
        undo.push_async_callback(self.http.stop)
        undo.callback(self.services.feed.close)
        instruments.install(self)

        await self.broker.start()
        undo.push_async_callback(self.broker.stop_intake)
        log.info(
            "started",
            version=__version__,
            mqtt=f"{settings.mqtt.host}:{self.mqtt_port}",
            http=f"http://{settings.http.host}:{self.http_port}",
            database=self.database.dialect,
            schema=self.schema,
            telemetry=self.telemetry_in,
        )

    async def _open_spool(self, undo: contextlib.AsyncExitStack) -> Spool | None:
        settings = self.settings.spool
        if not settings.enabled:
            return None
        spool = await Spool.open(
            self.settings.data_dir / "spool.db",
            max_bytes=settings.max_bytes,
            drop_oldest=settings.at_limit == "drop_oldest",
            unpack={"sessions": unpack_changes},
            clock=time.time,
        )
        undo.push_async_callback(spool.close)
        return spool

    async def _open_copy(self, undo: contextlib.AsyncExitStack) -> CredentialCopy:
        copy = await CredentialCopy.open(self.settings.data_dir / "credentials.db")
        undo.push_async_callback(copy.close)
        return copy

    def _http_context(self) -> Context:
        origins = self.settings.origins()
        http = self.settings.http
        token = http.token.get_secret_value() if http.token is not None else None
        required = http.require_token or token is not None or not ports.is_loopback(http.host)
        access = Access(
            Keyring(self.database, self.writer, token, time.time),
            Sessions(http.session_lifetime),
            Lockout(http.max_failed_logins),
            required=required,
            clock=time.time,
        )
        return Context(
            router=self.router,
            registry=self.registry,
            rollouts=self.rollouts,
            schedules=self.schedules,
            services=self.services,
            database=self.database,
            ledger=self.ledger,
            metrics=self.metrics,
            summary=partial(overview.summary, self),
            history=self.history,
            sinks=partial(overview.sinks, self.sinks),
            settings=[(key, to_jsonable_python(value), origins[key]) for key, value in self.settings.shown().items()],
            checks=readiness.checks(self),
            degraded=partial(readiness.degraded, self.writer),
            concern=partial(readiness.concern, self.sinks),
            access=access,
            audit=Audit(self.writer, http.audit_lines, time.time),
            # Where a token is needed nothing is gained by another name: a browser has no cookie for it.
            hosts=http.hosts if http.hosts or not required else None,
            max_streams=http.max_streams,
            metrics_open=not (http.metrics_token and required),
        )


def _sinks(settings: Settings) -> dict[str, Plan]:
    return {
        name: Plan(
            **section.model_dump(exclude={"secret"}),
            secret=None if section.secret is None else section.secret.get_secret_value(),
        )
        for name, section in settings.sinks.items()
    }


def _kept_for(settings: Settings) -> dict[Source, float]:
    """Seconds after which what sinks are passed is deleted; 0 for never."""
    keep = settings.retention
    days = {Source.TELEMETRY: keep.telemetry, Source.PRESENCE: keep.presence, Source.COMMANDS: keep.commands}
    return {source: number * DAY for source, number in days.items()}


async def _end(part: asyncio.Task[Any]) -> None:
    part.cancel()
    await asyncio.wait([part])


def _rules(settings: Settings) -> Rules:
    agent, command = settings.agent, settings.command
    return Rules(
        ping_interval=agent.ping_interval,
        ping_misses=agent.ping_misses,
        ping_rate=agent.ping_rate,
        wake_grace=agent.wake_grace,
        twin_limits=Limits(settings.twin.max_bytes, settings.twin.max_depth),
        sleep_after=agent.sleep_after,
        evict_after=agent.evict_after,
        mailbox_limit=agent.mailbox_limit,
        restarts=agent.restarts,
        restart_window=agent.restart_window,
        snapshot_interval=agent.snapshot_interval,
        handler_timeout=agent.handler_timeout,
        offload_workers=agent.offload_workers,
        command_ttl=command.ttl,
        command_max_ttl=command.max_ttl,
        command_attempts=command.attempts,
        command_retry_after=command.retry_after,
    )
