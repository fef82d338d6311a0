"""The bridge from its start until the database answers and has what was spooled: telemetry is taken into the spool, and
little else is done."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Final, final

import structlog

from bridge import instruments
from bridge.agents.standin import StandIn
from bridge.broker.broker import EmbeddedBroker
from bridge.broker.config import BrokerConfig
from bridge.errors import BridgeError, DatabaseAwayError, StorageUnavailableError
from bridge.http.server import HttpServer
from bridge.http.standby import build
from bridge.metrics import Metrics
from bridge.receipts import Ledger
from bridge.registry import fits
from bridge.settings import Settings
from bridge.storage.credentials import CredentialCopy
from bridge.storage.database import Database
from bridge.storage.sessions import SessionStore
from bridge.storage.spool import Spool
from bridge.storage.writer import Writer
from bridge.topics import NO_GRANTS, Grants, Topics

log = structlog.get_logger(__name__)

FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 5.0
"""Seconds between two tries to reach the database."""
LONG_SPOOL: Final = 20_000
"""Rows in the spool of an earlier run that take longer than a start may: more than a second or two."""
SAY_EVERY: Final = 60.0
"""Seconds between two lines in the log that it is still away."""


@final
class Standby:
    """Stands in for the whole bridge, with a broker of its own that knows no sessions.

    Readings and events are acknowledged when they are in the spool. Devices with tokens are known from the copy of
    their credentials; a client that asks for a kept session is told to come again. Where devices are not all alike
    nothing can be stored without their profiles: then no port but that of HTTP is opened.
    """

    def __init__(
        self,
        settings: Settings,
        topics: Topics,
        ledger: Ledger,
        database: Database,
        spool: Spool,
        copy: CredentialCopy,
        listener: socket.socket,
    ) -> None:
        """`copy`: of the devices' credentials. `listener` is the bound port of HTTP, which stays open."""
        self.ledger: Final = ledger
        self.metrics: Final = Metrics()
        self.broker: EmbeddedBroker | None = None
        self.writer: Final = Writer(
            database,
            batch_rows=settings.writer.batch_rows,
            batch_wait=settings.writer.batch_wait,
            capacity=settings.writer.capacity,
            spool=spool,
            spool_after=settings.spool.after,
        )
        self._spool = spool
        self._settings = settings
        self._topics = topics
        self._store = SessionStore(database, self.writer)
        self._copy = copy
        self._listener = listener
        self._away = ""
        """Why the database cannot be reached; empty when it is."""

    async def run(
        self, reach: Callable[[], Awaitable[None]], away: BridgeError | None, stop: asyncio.Event, *, doors: bool
    ) -> bool:
        """Until the database is reached and has all that was spooled. False if `stop` was set before that. `reach` is
        called until it raises neither DatabaseAwayError nor StorageUnavailableError, as `away` is one; None if it is
        reached already. `doors`: whether devices are let in.

        Raises StartError when something else is wrong with the database, BridgeError when a part of this fails.
        """
        if away is None:
            log.info("committing what is in the spool; readings go behind it", rows=self._spool.rows)
        else:
            self._away = str(away)
            log.warning(
                "the database cannot be reached; trying again until it can",
                error=self._away,
                meanwhile="readings go into the spool" if doors else "no device is let in: their profiles matter",
            )
        async with contextlib.AsyncExitStack() as undo:
            parts = await self._open(undo, doors=doors)
            reaching = asyncio.create_task(self._reach(reach, doors=doors), name="the way to the database")
            stopping = asyncio.create_task(stop.wait())
            try:
                await asyncio.wait([reaching, stopping, *parts], return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (reaching, stopping):
                    task.cancel()
                await asyncio.wait([reaching, stopping])
            for part in parts:
                if part.done():
                    raise BridgeError(f"{part.get_name()} has stopped")
            if reaching.cancelled():
                return False
            reaching.result()
        return True

    async def _open(self, undo: contextlib.AsyncExitStack, *, doors: bool) -> list[asyncio.Task[None]]:
        settings = self._settings
        grace = settings.shutdown_timeout / 3
        parts = []
        if doors:
            await self.writer.stand_by(self._away or "it holds what an earlier run has left")
            undo.push_async_callback(self.writer.stop, grace)
            parts.append(self.writer.task)
            intake = StandIn(self.writer, time.time)
            self.broker = EmbeddedBroker(
                BrokerConfig(**settings.mqtt.model_dump()),
                self._topics,
                self.ledger,
                intake,
                self._store,
                credentials=_Copied(self._copy),
            )
            undo.push_async_callback(self.broker.stop, grace)
            undo.callback(intake.give_back)
        instruments.install_standby(self)
        app = build(
            {"database": self._check_database, "broker": self._check_broker, "spool": self._check_spool},
            self._degraded,
            None if settings.http.metrics_token else self.metrics,
        )
        server = HttpServer(app, self._listener.dup(), settings.http.proxies)
        parts.append(server.start())
        undo.push_async_callback(server.stop)
        if self.broker is not None:
            await self.broker.start()
            undo.push_async_callback(self.broker.stop_intake)
        return parts

    async def _reach(self, reach: Callable[[], Awaitable[None]], *, doors: bool) -> None:
        began = said = time.monotonic()
        pause = FIRST_PAUSE
        while self._away:
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            try:
                await reach()
            except (DatabaseAwayError, StorageUnavailableError) as error:
                self._away = str(error)
                now = time.monotonic()
                if now - said >= SAY_EVERY:
                    said = now
                    log.warning("the database is still away", seconds=round(now - began), error=self._away)
            else:
                self._away = ""
                log.info("the database is reached", seconds=round(time.monotonic() - began, 1))
        if doors and self.writer.diversion is not None:
            self.writer.reached()
            await self.writer.diversion.ended.wait()

    # ------------------------------------------------------------------ what is told of it

    def _degraded(self) -> str | None:
        diversion = self.writer.diversion
        if self.broker is None or diversion is None or diversion.stuck or self.writer.congested:
            return None
        why = f"not reached since the start: {self._away}" if self._away else "they are being committed"
        return f"{diversion.spool.rows:,} rows wait in the spool for the database: {why}"

    async def _check_database(self) -> str | None:
        return self._away or "what is in the spool is being committed"

    async def _check_broker(self) -> str | None:
        return None if self.broker is not None and self.broker.accepting else "waits for the database"

    async def _check_spool(self) -> str | None:
        diversion = self.writer.diversion
        return diversion.stuck or None if diversion is not None else None


class _Copied:
    """Devices' tokens, as the copy has them. See `login.Credentials`."""

    def __init__(self, copy: CredentialCopy) -> None:
        self._copy = copy

    async def check(self, username: str, password: bytes) -> bool | None:
        return fits(await self._copy.of(username), password)

    async def admits(self, username: str) -> bool:
        return True  # devices are let in here only where all are accepted

    async def grants(self, username: str) -> Grants:
        return NO_GRANTS
