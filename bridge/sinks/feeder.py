"""Brings committed records to one sink, at least once each and in order, at the sink's own pace.

What waits for a sink waits in the database, where it is anyway: a sink that is away for a week costs no memory, and
nobody else notices. How far a sink has come is a cursor for each source, moved after the delivery.
"""

from __future__ import annotations

import asyncio
import fnmatch
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, final

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from bridge.breaker import Breaker
from bridge.errors import CircuitOpenError, StorageError, StorageUnavailableError
from bridge.sinks.sink import Sink, SinkRefusedError, SinkUnavailableError
from bridge.storage import committed
from bridge.storage.committed import Record, Source
from bridge.storage.database import Database
from bridge.storage.retries import retried

log = structlog.get_logger(__name__)

IDLE: Final = 0.5
"""Seconds to the next look when there was nothing: how late a record is passed on at most, when all is well."""
NOTE_EVERY: Final = 1.0
"""Seconds between two moves of the cursor: so much may be passed on again after a crash. Each is a commit."""
AGAIN_AFTER: Final = 5.0
DAY: Final = 86_400.0
NEAR: Final = 0.8
"""Of the time for which something is kept: a sink that is farther behind is in danger of missing it."""

_backoff: Final = wait_random_exponential(multiplier=0.5, max=60.0)


@dataclass(frozen=True, slots=True)
class Filter:
    """What a sink wants: kinds (`telemetry`, `event`, `presence`, `command`), and patterns as `fridge-*` of device ids
    and of streams; an empty one means all."""

    kinds: frozenset[str] = frozenset()
    devices: tuple[str, ...] = ()
    streams: tuple[str, ...] = ()

    def wants(self, record: Record) -> bool:
        """Whether a record is for this sink."""
        if self.kinds and record.kind not in self.kinds:
            return False
        if self.devices and not any(fnmatch.fnmatchcase(record.device_id, pattern) for pattern in self.devices):
            return False
        if self.streams and record.source is Source.TELEMETRY:
            return any(fnmatch.fnmatchcase(record.name, pattern) for pattern in self.streams)
        return True

    @property
    def sources(self) -> tuple[Source, ...]:
        """Where wanted records may be."""
        of = {
            "telemetry": Source.TELEMETRY, "event": Source.TELEMETRY, "presence": Source.PRESENCE,
            "command": Source.COMMANDS,
        }  # fmt: skip
        return tuple(s for s in Source if not self.kinds or s in {of[kind] for kind in self.kinds})


@dataclass(frozen=True, slots=True)
class Pace:
    """`batch` records in one delivery at most, `rate` a second (0: any number); a delivery that is not full waits until
    its first record is `wait` seconds old."""

    batch: int = 500
    rate: float = 0.0
    wait: float = 0.0


@final
class Feeder:
    """One sink's way to the database. `run` never ends by itself."""

    def __init__(
        self,
        name: str,
        sink: Sink,
        database: Database,
        wanted: Filter,
        pace: Pace,
        *,
        from_beginning: bool = False,
        kept_for: Mapping[Source, float] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`from_beginning`: a sink that is new gets all that is stored, not only what comes. `kept_for`: seconds after
        which the records of a source are deleted; 0 or nothing for never."""
        self.name: Final = name
        self.delivered = 0
        self.refused = 0
        """Records that the receiver would not take, and that were passed over."""
        self.retries = 0
        self.trouble: str | None = None
        """Why the last delivery failed; None when it did not."""
        self.breaker: Final = Breaker(
            f"sink {name}", counted=SinkUnavailableError, clock=time.monotonic, failures=5, open_for=1.0, max_open=60.0
        )
        self._sink = sink
        self._database = database
        self._wanted = wanted
        self._pace = pace
        self._from_beginning = from_beginning
        self._kept_for = kept_for or {}
        self._warned = False
        self._clock = clock
        self._positions: dict[Source, int] = {}
        self._noted: dict[Source, int] = {}
        self._noted_at = 0.0
        self._waiting: dict[Source, float] = {}
        """When the first record that was read and is not delivered was stored, for sources with such a record."""

    @property
    def lag(self) -> float:
        """How old, in seconds, the oldest record is that waits for the sink; 0 when none does."""
        return max(0.0, self._clock() - min(self._waiting.values())) if self._waiting else 0.0

    @property
    def endangered(self) -> str | None:
        """What will soon be deleted before the sink has it; None while there is nothing such."""
        now = self._clock()
        for source, since in self._waiting.items():
            limit = self._kept_for.get(source, 0.0)
            if limit and now - since > NEAR * limit:
                return (
                    f"sink {self.name}: {source} of {(now - since) / DAY:.1f} days ago waits for it,"
                    f" and is deleted after {limit / DAY:g} days"
                )
        return None

    async def run(self) -> None:
        """Feed the sink, for ever."""
        try:
            while True:
                try:
                    found = await self.advance()
                except (StorageUnavailableError, StorageError) as error:
                    log.warning("a sink waits for the database", sink=self.name, error=str(error))
                    await asyncio.sleep(AGAIN_AFTER)
                    continue
                if not found:
                    await asyncio.sleep(IDLE)
        finally:
            await self._sink.close()

    async def advance(self) -> int:
        """Deliver what comes next of every source; how many records were read. Waits as long as the sink is away."""
        if not self._positions:
            await self._begin()
        read = 0
        for source in self._wanted.sources:
            read += await self._advance(source)
        if not read or time.monotonic() - self._noted_at >= NOTE_EVERY:
            await self._note()
        return read

    async def _begin(self) -> None:
        for source in self._wanted.sources:
            self._positions[source] = await self._database.read(partial(self._first, source))

    async def _first(self, source: Source, connection: AsyncConnection) -> int:
        """Where to go on, or to begin."""
        known = await committed.position(connection, self._cursor(source))
        if known is not None:
            return known
        return 0 if self._from_beginning else await committed.newest(connection, source)

    async def _advance(self, source: Source) -> int:
        position = self._positions[source]
        records = await self._database.read(lambda c: committed.after(c, source, position, self._pace.batch))
        if not records:
            return 0
        self._waiting[source] = records[0].stored_at
        self._warn()
        if len(records) < self._pace.batch and self._clock() - records[0].stored_at < self._pace.wait:
            return 0
        wanted = [record for record in records if self._wanted.wants(record)]
        if wanted:
            await self._deliver(wanted)
            if self._pace.rate:
                await asyncio.sleep(len(wanted) / self._pace.rate)
        self._positions[source] = records[-1].number
        del self._waiting[source]
        return len(records)

    async def _deliver(self, records: Sequence[Record]) -> None:
        """Deliver records, however long it takes; what the sink refuses is passed over, alone."""
        try:
            await retried(lambda: self._attempt(records), self._policy)
        except SinkRefusedError as error:
            if len(records) > 1:
                middle = len(records) // 2
                await self._deliver(records[:middle])
                await self._deliver(records[middle:])
                return
            self.refused += 1
            log.warning("a sink refuses a record", sink=self.name, record=records[0].key, error=str(error))
            return
        self.trouble = None
        self.delivered += len(records)

    def _policy(self) -> AsyncRetrying:
        return AsyncRetrying(
            retry=retry_if_exception_type((SinkUnavailableError, CircuitOpenError)),
            wait=_pause,
            before_sleep=self._again,
        )

    async def _attempt(self, records: Sequence[Record]) -> None:
        with self.breaker.call():
            try:
                await self._sink.deliver(records)
            except (SinkUnavailableError, SinkRefusedError):
                raise
            except Exception as error:
                # A sink of the user's own may raise anything. Nothing is lost, and nobody else is held up.
                log.exception("a sink has failed", sink=self.name)
                raise SinkUnavailableError(f"{type(error).__name__}: {error}") from error

    def _again(self, state: RetryCallState) -> None:
        error = None if state.outcome is None else state.outcome.exception()
        if isinstance(error, CircuitOpenError):
            return
        self.retries += 1
        self._warn()
        if self.trouble is None:
            log.warning("a sink does not take anything; trying again", sink=self.name, error=str(error))
        self.trouble = str(error)

    def _warn(self) -> None:
        endangered = self.endangered
        if endangered is not None and not self._warned:
            log.warning("a sink is so far behind that it will miss what is deleted", reason=endangered)
        self._warned = endangered is not None

    async def _note(self) -> None:
        self._noted_at = time.monotonic()
        if self._positions != self._noted:
            moved = dict(self._positions)
            positions = {self._cursor(source): number for source, number in moved.items()}
            await self._database.maintain(lambda connection: committed.move(connection, positions))
            self._noted = moved

    def _cursor(self, source: Source) -> str:
        return f"sink:{self.name}:{source}"


def _pause(state: RetryCallState) -> float:
    """Seconds to the next attempt."""
    error = None if state.outcome is None else state.outcome.exception()
    return error.retry_after if isinstance(error, CircuitOpenError) else _backoff(state)
