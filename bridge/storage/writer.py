"""The group-committing writer: everything durable goes through it, in batches, one transaction each.

While one batch is being committed the next one fills, so the more there is to do, the larger the batches and the less
each row costs. A receipt is settled, and a future resolved, after COMMIT has returned, and never before.

There are two lanes. Rows (readings, snapshots, presence, dead letters), and changes that must stay in order with them,
go the one way; free changes (commands, twins, the registry) go the other, and overtake the rows that wait: an operator
does not wait for what the sensors have sent before. Each lane is committed in hand-over order. Neither starves the
other: while both have something, they take turns, and a commit of either is kept short (see `Pace`).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar, final

import structlog
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from bridge.errors import CircuitOpenError, StorageUnavailableError
from bridge.receipts import Receipt
from bridge.storage.agents import AgentState
from bridge.storage.batch import Batch, Change, Letter, Readings, Save, Transition
from bridge.storage.commit import Commit
from bridge.storage.database import Database, backoff
from bridge.storage.deadletters import DeadLetter
from bridge.storage.devices import DeviceSnapshot
from bridge.storage.lane import Lane, Pace
from bridge.storage.tables import commit_marks, dead_letters, telemetry

log = structlog.get_logger(__name__)

T = TypeVar("T")

LEAST_ROWS: Final = 64
"""A batch may always hold so many rows: in smaller ones the commit costs more than the rows."""
FIRST_ROWS: Final = 512
"""Rows per batch until the first commits are measured."""
LEAST_CHANGES: Final = 8
FIRST_CHANGES: Final = 16
MOST_CHANGES: Final = 256
"""Free changes per commit: each is one or more statements, and may be hundreds."""


@final
class WriterStats:
    """Counted per batch, never per row."""

    __slots__ = ("batches", "commit_seconds", "last_batch", "refused", "retries", "rows")

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


@final
class Writer:
    """Owns the database's writing connection while it runs.

    `batch_rows`: a batch of rows is closed when it holds so much, or less, as the measured commits ask for.
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
        batch_rows: int = 4096,
        batch_wait: float = 0.002,
        capacity: int = 50_000,
        clock: Callable[[], float] = time.time,
        topic_of: Callable[[str, str], str] = "{}/{}".format,
    ) -> None:
        """`topic_of(device_id, stream)` names the topic of a reading that becomes a dead letter."""
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
        self._topic_of = topic_of
        self._loop: asyncio.AbstractEventLoop
        self._last_id = 0
        self._rows = Lane(Pace(LEAST_ROWS, FIRST_ROWS, batch_rows))
        self._changes = Lane(Pace(LEAST_CHANGES, FIRST_CHANGES, MOST_CHANGES))
        self._last: Lane | None = None
        """The lane of the last commit."""
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
    def batch_number(self) -> int:
        """Grows with every batch of rows that is closed: what is handed over in order under the same number is
        committed together."""
        return self._rows.closes

    # ------------------------------------------------------------------ life

    async def start(self) -> None:
        """Begin. Raises StorageUnavailableError or StorageError if the database cannot be asked for its last id."""
        self._loop = asyncio.get_running_loop()
        last = await self._database.read(_last_id)
        # Microseconds of the clock are ahead of what a writer can give away, so ids grow over restarts even
        # when the newest rows have been deleted; and over a clock that was set back.
        self._last_id = max(last, int(self._clock() * 1_000_000))
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
        done, _ = await asyncio.wait({self.task}, timeout=timeout)
        if not done:
            self.task.cancel()
            await asyncio.wait({self.task})
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
    ) -> asyncio.Future[T]:
        """Run free statements in order with the rows: not committed before what was handed over earlier by any
        `add_…` or `save_device`, nor after what comes later. Within a batch, rows come first, then changes in order.

        For the future, the receipt and the letter see `submit`.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        self._add(Change(change, receipt, letter, future))
        return future

    def submit(
        self,
        change: Callable[[AsyncConnection], Awaitable[T]],
        receipt: Receipt | None = None,
        letter: DeadLetter | None = None,
    ) -> asyncio.Future[T]:
        """Run free statements soon: after the changes submitted before, but ahead of rows that wait. (What must come
        after them, as the deletion of a device, uses `add_change`.)

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
        lane.open.add(Change(change, receipt, letter, future))
        if self._stopped:
            self._abandon()
        elif lane.open.size >= lane.pace.limit:
            lane.close()
        self._rouse()
        self._make_room()
        return future

    def barrier(self) -> asyncio.Future[None]:
        """Resolved when everything handed over so far is committed, in both lanes. StorageUnavailableError if the
        writer stops before."""
        future: asyncio.Future[None] = self._loop.create_future()
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
        self._add(Change(change, receipt, letter, future, len(rows), agent))
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
        if lane.open.size >= lane.pace.limit:
            lane.close()
            self._rouse()
        self._make_room()

    def _make_room(self) -> None:
        # Sees to congestion, and to how many rows may come until the next look.
        pending = self.pending
        if pending >= self.capacity:
            self.congested = True
        size = self._rows.open.size
        room = self._rows.pace.limit - size if size else 1
        self._room = room if self.congested else min(room, max(1, self.capacity - pending))

    def _abandon(self) -> None:
        for batch in (*self._changes.clear(), *self._rows.clear()):
            batch.abandon(_STOPPED)

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    # ------------------------------------------------------------------ committing

    async def _run(self) -> None:
        while (lane := await self._next()) is not None:
            # It stays in its lane until it is settled: `stop` finds it there if this task is cancelled.
            batch = lane.first()
            self._make_room()
            parts = await self._commit(batch, lane.pace)
            lane.done()
            self._last = lane
            for part in parts:
                part.settle()
            for then in batch.then:
                then(None)
            if self.congested and self.pending <= self.capacity // 2:
                self.congested = False
                if self.on_relief is not None:
                    self.on_relief()
            self._make_room()

    async def _next(self) -> Lane | None:
        """Wait until something is due, and say in which lane; None when the writer is to stop and nothing is left."""
        rows, changes = self._rows, self._changes
        while True:
            wait: float | None = None
            if rows.open.size:
                wait = rows.open.opened_at + self._batch_wait - self._loop.time()
            due = rows.full or (wait is not None and (wait <= 0 or self._stopping))
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

    async def _commit(self, batch: Batch, pace: Pace) -> list[Batch]:
        """Commit `batch`, however long it takes, and return its parts: itself, or when something in it was refused
        for good, pieces of which some have a `refusal`."""
        commit = Commit(self._database, batch, self._clock, self._topic_of, self._next_id)
        started = self._loop.time()
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(StorageUnavailableError),
            wait=_pause,
            before_sleep=self._count_retry,
        )
        await retrying(commit.attempt)
        stats = self.stats
        took = self._loop.time() - started
        if commit.attempts == 1:
            pace.measured(batch.size, took)
        stats.commit_seconds.append(took)
        stats.batches += 1
        stats.rows += batch.size
        stats.last_batch = batch.size
        refusals = [part.refusal for part in commit.parts if part.refusal is not None]
        if refusals:
            stats.refused += len(refusals)
            log.error("the database refused what it was given", count=len(refusals), first=repr(refusals[0]))
        return commit.parts

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
