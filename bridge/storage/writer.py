"""The group-committing writer: everything durable goes through it, in batches, one transaction each.

While one batch is being committed the next one fills, so the more there is to do, the larger the batches and the less
each row costs. A receipt is settled, and a future resolved, after COMMIT has returned, and never before.

There are two lanes. Rows (readings, snapshots, presence, dead letters), and changes that must stay in order with them,
go the one way; free changes (commands, twins, the registry) go the other, and overtake the rows that wait: an operator
does not wait for what the sensors have sent before. Each lane is committed in hand-over order. Neither starves the
other: while both have something, they take turns. While free changes are about, commits are kept short (see `Pace`);
while only rows come, nobody would have anything of it, and each row costs less in a large batch.

With a spool nobody who sends readings notices that the database is away or slow: a commit of rows that fails or takes
too long is given up, and rows are settled when they are in the spool (see `Diversion`). Free changes wait for the
database, for `patience` seconds unless they are patient.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, TypeVar, final

import structlog
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from bridge.errors import CircuitOpenError, RefusedError, StorageUnavailableError
from bridge.histogram import Histogram
from bridge.receipts import Receipt
from bridge.storage.agents import AgentState
from bridge.storage.batch import RECEIVED_AT, Batch, Change, Letter, Packable, Readings, Save, Transition
from bridge.storage.checkpoints import Checkpoints
from bridge.storage.commit import Commit
from bridge.storage.database import Database, backoff
from bridge.storage.deadletters import DeadLetter
from bridge.storage.devices import DeviceSnapshot
from bridge.storage.diversion import Diversion
from bridge.storage.lane import Lane, Pace
from bridge.storage.spool import FORWARD_ROWS, Spool
from bridge.storage.tables import commit_marks, dead_letters, telemetry
from bridge.tracing import Tracing

log = structlog.get_logger(__name__)

T = TypeVar("T")

RETRY: Final = 0.5
"""Seconds to the next try of the rows when the database is away and there is a spool."""
SOON: Final = 0.02
LEAST_ROWS: Final = 256
"""A batch may always hold so many rows: in smaller ones the commit costs more than the rows."""
BUSY_FOR: Final = 1.0
"""Seconds after a full commit of rows in which the database is taken to be busy."""
FIRST_ROWS: Final = 512
"""Rows per batch until the first commits are measured."""
LEAST_CHANGES: Final = 8
FIRST_CHANGES: Final = 16
MOST_CHANGES: Final = 256
"""Free changes per commit: each is one or more statements, and may be hundreds."""
UNASKED_IDS: Final = 10_000_000_000
"""More ids than one writer gives away between two starts: a thousand a second for four months."""
SHORT_FOR: Final = 2.0
"""Seconds after a free change in which commits of rows are kept short: where there was one, more may follow."""


@final
class WriterStats:
    """Counted per batch, never per row."""

    __slots__ = (
        "batches", "commit_seconds", "commits", "delays", "last_batch", "refused", "retries", "rows", "settles",
    )  # fmt: skip

    def __init__(self) -> None:
        self.batches = 0
        self.rows = 0
        self.last_batch = 0
        """Rows and changes of the last committed batch."""
        self.refused = 0
        """Hand-overs that the database refused for good."""
        self.retries = 0
        self.commit_seconds: deque[float] = deque(maxlen=256)
        """How long the last batches took from their first attempt to the end of their COMMIT."""
        self.commits: Final = Histogram()
        """The same of all batches since the start."""
        self.delays: Final = Histogram()
        """Seconds from the arrival of a batch's oldest reading to its COMMIT: no other reading of it waited longer."""
        self.settles: Final = Histogram()
        """Seconds from COMMIT until every receipt of a batch is settled and every acknowledgement written."""


@final
class Writer:
    """Owns the database's writing connection while it runs.

    `batch_rows`: a batch of rows is closed when it holds so much, or, beside free changes, less, as the measured
    commits ask for.
    `batch_wait`: or when its first row has waited so long, in seconds; a batch that filled while another was committed
    does not wait, nor do free changes.

    `capacity`: with so much handed over and not committed it is `congested`, until only half of it is left. Nothing is
    refused above the mark: what has been read from a socket must go somewhere. Half, so that those who were held
    back find room for many batches, and intake does not stop and go with every single commit.
    """

    def __init__(
        self,
        database: Database,
        *,
        batch_rows: int = 2048,
        batch_wait: float = 0.002,
        capacity: int = 50_000,
        clock: Callable[[], float] = time.time,
        topic_of: Callable[[str, str], str] = "{}/{}".format,
        spool: Spool | None = None,
        spool_after: float = 2.0,
        patience: float = 10.0,
        tracing: Tracing | None = None,
    ) -> None:
        """`topic_of(device_id, stream)` names the topic of a reading that becomes a dead letter. `spool_after`: seconds
        that a commit may take before rows go into the spool."""
        self.capacity: Final = capacity
        self.stats: Final = WriterStats()
        self.congested = False
        self.on_relief: Callable[[], None] | None = None
        """Called when `congested` has become False again."""
        self.task: asyncio.Task[None]
        """Runs from `start` to `stop`. If it ends on its own, with an exception, nothing is committed any more."""
        self._database = database
        self._batch_wait = batch_wait
        self._clock = clock
        self._tracing = tracing or Tracing()
        self._topic_of = topic_of
        self._loop: asyncio.AbstractEventLoop
        self._last_id = 0
        self._rows = Lane(Pace(LEAST_ROWS, FIRST_ROWS, batch_rows))
        self._changes = Lane(Pace(LEAST_CHANGES, FIRST_CHANGES, MOST_CHANGES))
        self._short_until = 0.0
        """Event-loop time until which commits of rows are kept short."""
        self._full_at = float("-inf")
        """Event-loop time of the last commit of rows that was full."""
        self._last: Lane | None = None
        """The lane of the last commit."""
        self.diversion: Final = None if spool is None else Diversion(spool, self._rows, self._relieve, clock)
        self._spool_after = spool_after
        self.patience: Final = patience
        self._checkpoints = Checkpoints(database)
        self._looking: asyncio.TimerHandle | None = None
        """The next look for changes that have waited too long."""
        self._not_before = 0.0
        """Event-loop time before which neither rows nor what is spooled are committed; infinite while the database
        has not been reached since the start."""
        self._forwarded = 0
        """The last batch of the spool that is committed, and perhaps not removed yet."""
        # How much may still be handed over before something is to be noticed: the one check of the hot path.
        self._room = 0
        self._wake: asyncio.Future[None] | None = None
        self._stopping = False
        self._stopped = True

    @property
    def pending(self) -> int:
        """Rows and changes handed over and not committed yet."""
        return self._rows.pending + self._changes.pending

    @property
    def busy(self) -> bool:
        """Whether rows come as fast as they can be committed, or did a moment ago."""
        return self.congested or self._loop.time() - self._full_at < BUSY_FOR

    @property
    def diverting(self) -> bool:
        """Whether rows go into the spool, because the database is away or slow."""
        return self.diversion is not None and self.diversion.active

    @property
    def batch_number(self) -> int:
        """Grows with every batch of rows that is closed: what is handed over in order under the same number is
        committed together."""
        return self._rows.closes

    # ------------------------------------------------------------------ life

    async def start(self) -> None:
        """Commit what a former run has left in the spool, then begin: nobody may read states that are older than it.

        Raises StorageUnavailableError or StorageError if the database cannot be asked for its last id.
        """
        self._loop = asyncio.get_running_loop()
        # Microseconds of the clock are ahead of what a writer can give away, so ids grow over restarts even
        # when the newest rows have been deleted; and over a clock that was set back.
        self._last_id = max(await self._database.read(_last_id), int(self._clock() * 1_000_000))
        if self.diversion is not None:
            spool = self.diversion.spool
            if not spool.empty:
                log.info("committing what is in the spool", rows=spool.rows, bytes=spool.bytes)
                while not spool.empty:
                    await self._forward(spool)
                self._last_id = max(await self._database.read(_last_id), self._last_id)
            try:
                await spool.note_id(self._last_id)
            except StorageUnavailableError as error:
                log.warning("the next start will need the database", reason=str(error))
        self._begin()

    async def stand_by(self, reason: str) -> None:
        """Begin without the database: rows go into the spool, and stay there until it is `reached`.

        Needs a spool beside which a writer has begun before: the database cannot be asked for its last id. Raises
        StorageUnavailableError if the spool cannot be written.
        """
        diversion = self.diversion
        if diversion is None or diversion.spool.last_id is None:
            raise StorageUnavailableError("there is no spool that belongs to the database")
        self._loop = asyncio.get_running_loop()
        # Ahead of all that may have been given, whatever has become of the clock since.
        self._last_id = max(diversion.spool.last_id + UNASKED_IDS, int(self._clock() * 1_000_000))
        await diversion.spool.note_id(self._last_id)
        diversion.begin(reason)
        self._not_before = float("inf")
        self._begin()

    def reached(self) -> None:
        """The database is there, as it must be, after `stand_by`: what is in the spool may be committed."""
        self._not_before = 0.0
        self._rouse()

    def _begin(self) -> None:
        self._stopped = False
        self._make_room()
        self.task = asyncio.create_task(self._run(), name="writer")

    async def stop(self, timeout: float) -> None:
        """Commit what was handed over, for at most `timeout` seconds. What is not committed by then stays with its
        sender: its receipts are settled RETRY, its futures get StorageUnavailableError."""
        if self._stopped:
            return
        self._stopping = True
        self._rouse()
        if self.diversion is not None:
            self.diversion.stop()
        done, _ = await asyncio.wait({self.task}, timeout=timeout)
        if not done:
            self.task.cancel()
            await asyncio.wait({self.task})
        await self._checkpoints.stop(timeout)
        if self._looking is not None:
            self._looking.cancel()
        self._stopped = True
        left = [*self._changes.clear(), *self._rows.clear()]
        self._room = 0
        count = sum(batch.size for batch in left)
        if count:
            log.warning("the writer stopped before everything was committed", left=count)
        for batch in left:
            batch.abandon(_STOPPED)

    # ------------------------------------------------------------------ handing over

    def add_reading(
        self,
        device_id: str,
        stream: str,
        ts: float,
        received_at: float,
        message_id: str | None,
        payload: str,
        receipt: Receipt | None,
    ) -> None:
        """Store one reading. `receipt` becomes COMMITTED, or DEDUPLICATED if `message_id` is known."""
        batch = self._rows.open
        self._last_id = row_id = self._last_id + 1
        batch.rows += (row_id, device_id, stream, ts, received_at, message_id, payload)
        batch.order.append(receipt)
        batch.size += 1
        if receipt is not None and receipt.once is not None:
            batch.once += receipt.once
        self._room = room = self._room - 1
        if room <= 0:
            self._notice()

    def add_readings(self, rows: list[tuple[str, str, float, float, str | None, str]], receipt: Receipt | None) -> None:
        """Store the readings of one message, values as in `add_reading`. `receipt` becomes COMMITTED if any of them
        was new, else DEDUPLICATED."""
        self._append(rows)
        self._add(Readings(len(rows), receipt))

    def save_device(self, snapshot: DeviceSnapshot) -> None:
        """Store a device's state; the last one in a batch wins. Status and epoch never go back."""
        self._add(Save(snapshot))

    def add_presence(self, device_id: str, epoch: int, status: str, cause: str, at: float) -> None:
        """Store a transition: a row of history, and the device's status and epoch."""
        self._add(Transition((device_id, epoch, status, cause, at)))

    def add_dead_letter(self, letter: DeadLetter, receipt: Receipt | None) -> None:
        """Keep a refused message. `receipt` becomes DEAD_LETTERED."""
        self._last_id += 1
        self._add(Letter(letter, self._last_id, receipt))

    def add_change(
        self,
        change: Callable[[AsyncConnection], Awaitable[T]],
        receipt: Receipt | None = None,
        letter: DeadLetter | None = None,
        packable: Packable | None = None,
    ) -> asyncio.Future[T]:
        """Run free statements in order with the rows: not committed before what was handed over earlier by any
        `add_…` or `save_device`, nor after what comes later. Within a batch, rows come first, then changes in order.

        `packable`: the same as data, so that it can be spooled; without it the future has StorageUnavailableError at
        once while rows go into the spool. For the rest see `submit`.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        self._add(Change(change, receipt, letter, future, packable=packable))
        return future

    def submit(
        self,
        change: Callable[[AsyncConnection], Awaitable[T]],
        receipt: Receipt | None = None,
        letter: DeadLetter | None = None,
        *,
        patient: bool = False,
    ) -> asyncio.Future[T]:
        """Run free statements soon: after the changes submitted before, but ahead of rows that wait. (What must come
        after them, as the deletion of a device, uses `add_change`.)

        While the database is away the future has StorageUnavailableError after the writer's patience, and `receipt`
        is left to its sender. A commit that was just being tried may still succeed: as after every lost answer. What
        follows from something that has happened is `patient`, and waits.

        The future has the result after the COMMIT; then `receipt` becomes COMMITTED. `change` may be called more than
        once (the transaction was lost, or another change failed in it), but its effect is committed once. It must
        ask nobody but the connection. If it raises, the rest of the batch is committed without it, the future has the
        exception, and the receipt becomes DEAD_LETTERED with `letter`'s topic, device and payload kept.
        """
        if receipt is not None and receipt.once is not None:
            # Its packet identifier must not become durable before the end of an earlier session of the same client,
            # which would take it away.
            return self.add_change(change, receipt, letter)
        future: asyncio.Future[T] = self._loop.create_future()
        lane = self._changes
        now = self._loop.time()
        self._short_until = now + SHORT_FOR
        if not lane.open.opened_at:
            lane.open.opened_at = now
        lane.open.add(Change(change, receipt, letter, future, patient=patient))
        if not patient and self._looking is None:
            self._looking = self._loop.call_later(self.patience, self._look)
        if self._stopped:
            self._abandon()
        elif lane.open.size >= lane.pace.limit:
            lane.close()
        self._rouse()
        self._make_room()
        return future

    def barrier(self) -> asyncio.Future[None]:
        """Resolved when everything handed over so far is committed, in both lanes. StorageUnavailableError if the
        writer stops before, or while rows go into the spool."""
        future: asyncio.Future[None] = self._loop.create_future()
        if self.diversion is not None and self.diversion.active:
            future.set_exception(StorageUnavailableError(f"rows are in the spool: {self.diversion.reason}"))
            return future
        left = 0

        def committed(error: Exception | None) -> None:
            nonlocal left
            left -= 1
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            elif not left:
                future.set_result(None)

        left = sum(lane.after_all(committed) for lane in (self._changes, self._rows))
        if not left:
            future.set_result(None)
        return future

    def add_together(
        self,
        rows: list[tuple[str, str, float, float, str | None, str]],
        change: Callable[[AsyncConnection], Awaitable[T]] | None,
        agent: AgentState | None,
        receipt: Receipt | None = None,
        letter: DeadLetter | None = None,
    ) -> asyncio.Future[T | None]:
        """Store the readings of one message (values as in `add_reading`), what `change` does and an agent's state: all
        of it or nothing, in order with the other rows.

        The future has the result of `change` after the COMMIT; then `receipt` becomes COMMITTED, or DEDUPLICATED if
        all readings are known. If the database refuses any of it the future has the exception, nothing is stored, and
        the receipt becomes DEAD_LETTERED with `letter`'s topic, device and payload kept.
        """
        self._append(rows)
        future: asyncio.Future[T | None] = self._loop.create_future()
        self._add(Change(change, receipt, letter, future, readings=len(rows), agent=agent))
        return future

    def _append(self, rows: list[tuple[str, str, float, float, str | None, str]]) -> None:
        batch = self._rows.open
        row_id = self._last_id
        for row in rows:
            row_id += 1
            batch.rows.append(row_id)
            batch.rows += row
        self._last_id = row_id

    def _add(self, work: Readings | Save | Transition | Letter | Change) -> None:
        self._rows.open.add(work)
        self._room -= work.size
        if self._room <= 0:
            self._notice()

    def _notice(self) -> None:
        # Called for the first row of a batch, for a full batch, and when congestion begins.
        lane = self._rows
        if self._stopped:
            self._abandon()
            return
        if not lane.open.opened_at:
            lane.open.opened_at = self._loop.time()
            self._rouse()
        if lane.open.size >= self._row_limit():
            lane.close()
            self._rouse()
        self._make_room()

    def _row_limit(self) -> int:
        pace = self._rows.pace
        short = self._changes.pending or self._loop.time() < self._short_until
        return pace.limit if short else pace.most

    def _make_room(self) -> None:
        # Sees to congestion, and to how many rows may come until the next look.
        pending = self.pending
        if pending >= self.capacity:
            self.congested = True
        size = self._rows.open.size
        room = self._row_limit() - size if size else 1
        self._room = room if self.congested else min(room, max(1, self.capacity - pending))

    def _abandon(self) -> None:
        for batch in (*self._changes.clear(), *self._rows.clear()):
            batch.abandon(_STOPPED)

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
        if self.diversion is not None and self.diversion.active:
            self.diversion.rouse()

    def _look(self) -> None:
        # At each batch twice within its time: an answer comes at most half of the patience late.
        now = self._loop.time()
        lane = self._changes
        error = StorageUnavailableError(f"the database has not answered for {self.patience:g} s")
        lane.give_up(now - self.patience, error)
        self._looking = self._loop.call_later(self.patience / 2, self._look) if lane.pending else None

    # ------------------------------------------------------------------ committing

    async def _run(self) -> None:
        diversion = self.diversion
        if diversion is None:
            await self._commit_all()
            return
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(diversion.run(), name="diversion")
                await self._commit_all()
                diversion.stop()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _commit_all(self) -> None:
        diversion = self.diversion
        while (lane := await self._next()) is not None:
            if lane is self._rows and diversion is not None and not diversion.end():
                await self._forward_one(diversion)
            elif lane.pending:
                await self._commit_first(lane)
            self._last = lane

    async def _next(self) -> Lane | None:
        """Wait until something is due, and say in which lane; None when the writer is to stop and nothing is left that
        has to wait for the database."""
        rows, changes = self._rows, self._changes
        while True:
            wait: float | None = None
            now = self._loop.time()
            if self.diversion is not None and self.diversion.active:
                due = not self._stopping
            else:
                if rows.open.size:
                    wait = rows.open.opened_at + self._batch_wait - now
                due = rows.full or (wait is not None and (wait <= 0 or self._stopping))
            if due and now < self._not_before and not self._stopping:
                due = False
                wait = self._not_before - now if self._not_before < float("inf") else None
            if changes.pending and not (due and self._last is changes):
                return changes
            if due:
                return rows
            if self._stopping:
                return None
            self._wake = self._loop.create_future()
            timer = None if wait is None else self._loop.call_later(wait, self._rouse)
            try:
                await self._wake
            finally:
                self._wake = None
                if timer is not None:
                    timer.cancel()

    async def _commit_first(self, lane: Lane) -> None:
        # It stays in its lane until it is settled: `stop` finds it there if this task is cancelled.
        if lane is self._rows and (lane.full or lane.open.size >= self._row_limit()):
            self._full_at = self._loop.time()
        batch = lane.first()
        self._make_room()
        if lane is self._rows and self.diversion is not None:
            parts = await self._try(batch, lane.pace, self.diversion)
            if parts is None:
                return
        else:
            parts = await self._commit(batch, lane.pace)
        lane.done()
        committed_at = self._loop.time()
        if batch.rows:
            self.stats.delays.observe(self._clock() - batch.rows[RECEIVED_AT])
        for part in parts:
            part.settle()
        batch.release(None)
        self._checkpoints.committed(batch.size)
        # Connections write their acknowledgements in the turn of the loop that follows.
        self._loop.call_soon(self._settled, committed_at)
        self._relieve()

    def _settled(self, committed_at: float) -> None:
        self.stats.settles.observe(self._loop.time() - committed_at)

    def _relieve(self) -> None:
        if self.congested and self.pending <= self.capacity // 2:
            self.congested = False
            if self.on_relief is not None:
                self.on_relief()
        self._make_room()

    async def _try(self, batch: Batch, pace: Pace, diversion: Diversion) -> list[Batch] | None:
        """Commit `batch` in one attempt; None if that fails, and then rows are diverted, this batch first."""
        commit = Commit(self._database, batch, self._clock, self._topic_of, self._next_id)
        try:
            # On SQLite a commit cannot be given up, and a lock gives up by itself.
            async with asyncio.timeout(None if self._database.dialect == "sqlite" else self._spool_after):
                return await self._counted(commit, batch, pace)
        except TimeoutError:
            # It may have been committed all the same: its rows have their ids, and are not stored twice.
            self._failed(diversion, StorageUnavailableError(f"a commit takes longer than {self._spool_after:g} s"))
        except StorageUnavailableError as error:
            self._failed(diversion, error)
        return None

    async def _commit(self, batch: Batch, pace: Pace) -> list[Batch]:
        """Commit `batch`, however long it takes, and return its parts: itself, or when something in it was refused
        for good, pieces of which some have a `refusal`."""
        commit = Commit(self._database, batch, self._clock, self._topic_of, self._next_id)
        diversion = self.diversion
        slow = None
        if diversion is not None:
            slow = self._loop.call_later(self._spool_after, diversion.begin, "a commit takes long")

        def failed(state: RetryCallState) -> None:
            self._count_retry(state)
            if diversion is not None:
                diversion.begin(str(_error_of(state)))

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(StorageUnavailableError), wait=_pause, before_sleep=failed
        )
        try:
            return await retrying(self._counted, commit, batch, pace)
        finally:
            if slow is not None:
                slow.cancel()

    async def _counted(self, commit: Commit, batch: Batch, pace: Pace) -> list[Batch]:
        """One attempt, measured when it succeeds."""
        started = self._loop.time()
        await commit.attempt()
        stats = self.stats
        took = self._loop.time() - started
        if commit.attempts == 1:
            pace.measured(batch.size, took)
        stats.commit_seconds.append(took)
        stats.commits.observe(took)
        if self._tracing.on:
            now = self._clock()
            lane = "rows" if pace is self._rows.pace else "changes"
            told: dict[str, str | int] = {
                "bridge.batch.size": batch.size,
                "bridge.batch.lane": lane,
                "bridge.attempts": commit.attempts,
            }
            self._tracing.record("commit", now - took, now, told)
        stats.batches += 1
        stats.rows += batch.size
        stats.last_batch = batch.size
        refusals = [part.refusal for part in commit.parts if part.refusal is not None]
        if refusals:
            stats.refused += len(refusals)
            # What a change itself refuses (a name that is taken) is an answer to whoever asked, and no fault.
            faults = [refusal for refusal in refusals if not isinstance(refusal, RefusedError)]
            if faults:
                log.error("the database refused what it was given", count=len(faults), first=repr(faults[0]))
        return commit.parts

    # ------------------------------------------------------------------ out of the spool

    async def _forward_one(self, diversion: Diversion) -> None:
        """Have the oldest batch of the spool in the database; on failure try again later."""
        began = self._loop.time()
        if diversion.spool.empty:
            # The first batches are on their way into it.
            self._not_before = began + SOON
            return
        before = diversion.spool.rows
        waited_since = diversion.spool.oldest
        # Should it take long, no message is to wait for it.
        slow = self._loop.call_later(self._spool_after / 2, partial(diversion.hold, holding=False))
        try:
            await self._forward(diversion.spool)
        except StorageUnavailableError as error:
            diversion.hold(holding=False)
            self._failed(diversion, error)
            return
        finally:
            slow.cancel()
        now = self._loop.time()
        if waited_since is not None:
            diversion.waits.observe(self._clock() - waited_since)
        left = diversion.spool.rows
        diversion.hold(holding=left <= FORWARD_ROWS)
        # A third of the time belongs to others, unless more comes in than goes out, or the end is near.
        hurry = self.congested or left <= FORWARD_ROWS or left > before - FORWARD_ROWS / 4
        self._not_before = now if hurry else now + (now - began) / 2

    async def _forward(self, spool: Spool) -> None:
        last, batch = await spool.first()
        if last > self._forwarded:
            commit = Commit(self._database, batch, self._clock, self._topic_of, self._next_id)
            await commit.attempt()
            for part in commit.parts:
                part.settle()
            self._forwarded = last
        await spool.remove(last)

    def _failed(self, diversion: Diversion, error: StorageUnavailableError) -> None:
        self.stats.retries += 1
        diversion.begin(str(error))
        pause = error.retry_after if isinstance(error, CircuitOpenError) else RETRY
        self._not_before = self._loop.time() + pause

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _count_retry(self, state: RetryCallState) -> None:
        self.stats.retries += 1
        log.warning(
            "nothing can be committed; trying again",
            attempt=state.attempt_number,
            pending=self.pending,
            error=str(_error_of(state)),
        )


_STOPPED: Final = StorageUnavailableError("the bridge is stopping: this was not committed")


def _error_of(state: RetryCallState) -> BaseException | None:
    return None if state.outcome is None else state.outcome.exception()


def _pause(state: RetryCallState) -> float:
    """Seconds to the next attempt."""
    error = _error_of(state)
    return error.retry_after if isinstance(error, CircuitOpenError) else backoff(state)


async def _last_id(connection: AsyncConnection) -> int:
    columns = (telemetry.c.id, dead_letters.c.id, commit_marks.c.batch)
    query = select(*(func.coalesce(select(func.max(column)).scalar_subquery(), 0) for column in columns))
    ids: list[int] = list((await connection.execute(query)).one())
    return max(ids)
