"""The group-committing writer: everything durable goes through it, in batches, one transaction each.

While one batch is being committed the next one fills, so the more there is to do, the larger the batches and the less
each row costs. A receipt is settled, and a future resolved, after COMMIT has returned, in hand-over order, and never
before.
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
from bridge.storage.batch import Batch, Change, Letter, Readings, Save, Transition
from bridge.storage.commit import Commit
from bridge.storage.database import Database, backoff
from bridge.storage.deadletters import DeadLetter
from bridge.storage.devices import DeviceSnapshot
from bridge.storage.tables import commit_marks, dead_letters, telemetry

log = structlog.get_logger(__name__)

T = TypeVar("T")


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

    `batch_rows`: a batch is closed when it holds so much. `batch_wait`: or when its first row has waited so long, in
    seconds; a batch that filled while another was committed does not wait.

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
        self._batch_rows = batch_rows
        self._batch_wait = batch_wait
        self._clock = clock
        self._topic_of = topic_of
        self._loop: asyncio.AbstractEventLoop
        self._last_id = 0
        self._batch = Batch()
        self._closed: deque[Batch] = deque()
        self._waiting = 0
        """The size of the batches that are closed or being committed."""
        # How much may still be handed over before something is to be noticed: the one check of the hot path.
        self._room = 0
        self._wake: asyncio.Future[None] | None = None
        self._stopping = False
        self._stopped = True

    @property
    def pending(self) -> int:
        """Rows and changes handed over and not committed yet."""
        return self._waiting + self._batch.size

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
        left = [*self._closed, self._batch]
        self._closed.clear()
        self._batch = Batch()
        self._waiting = 0
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
        batch = self._batch
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
        batch = self._batch
        row_id = self._last_id
        for row in rows:
            row_id += 1
            batch.rows.append(row_id)
            batch.rows += row
        self._last_id = row_id
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

    def submit(
        self,
        change: Callable[[AsyncConnection], Awaitable[T]],
        receipt: Receipt | None = None,
        letter: DeadLetter | None = None,
    ) -> asyncio.Future[T]:
        """Run free statements in the batch's transaction, after its rows and after the changes submitted before.

        The future has the result after the COMMIT; then `receipt` becomes COMMITTED. `change` may be called more than
        once (the transaction was lost, or another change failed in it), but its effect is committed once. It must
        ask nobody but the connection. If it raises, the rest of the batch is committed without it, the future has the
        exception, and the receipt becomes DEAD_LETTERED with `letter`'s topic, device and payload kept.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        self._add(Change(change, receipt, letter, future))
        return future

    def _add(self, work: Readings | Save | Transition | Letter | Change) -> None:
        self._batch.add(work)
        self._room -= work.size
        if self._room <= 0:
            self._notice()

    def _notice(self) -> None:
        # Called for the first row of a batch, for a full batch, and when congestion begins.
        batch = self._batch
        if self._stopped:
            self._batch = Batch()
            batch.abandon(_STOPPED)
            return
        if not batch.opened_at:
            batch.opened_at = self._loop.time()
            self._rouse()
        if batch.size >= self._batch_rows:
            self._close()
            self._rouse()
        if self.pending >= self.capacity:
            self.congested = True
        self._make_room()

    def _make_room(self) -> None:
        size = self._batch.size
        room = self._batch_rows - size if size else 1
        self._room = room if self.congested else min(room, max(1, self.capacity - self.pending))

    def _close(self) -> None:
        self._waiting += self._batch.size
        self._closed.append(self._batch)
        self._batch = Batch()

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    # ------------------------------------------------------------------ committing

    async def _run(self) -> None:
        while await self._wait_for_batch():
            if not self._closed:
                self._close()
                self._make_room()
            # It stays in the queue until it is settled: `stop` finds it there if this task is cancelled.
            batch = self._closed[0]
            parts = await self._commit(batch)
            self._closed.popleft()
            self._waiting -= batch.size
            for part in parts:
                part.settle()
            if self.congested and self.pending <= self.capacity // 2:
                self.congested = False
                if self.on_relief is not None:
                    self.on_relief()
            self._make_room()

    async def _wait_for_batch(self) -> bool:
        """Wait until a batch is due; False when the writer is to stop and there is none."""
        while not self._closed:
            if self._batch.size:
                wait = self._batch.opened_at + self._batch_wait - self._loop.time()
                if wait <= 0 or self._stopping:
                    return True
            elif self._stopping:
                return False
            else:
                wait = None
            self._wake = self._loop.create_future()
            timer = None if wait is None else self._loop.call_later(wait, self._rouse)
            try:
                await self._wake
            finally:
                self._wake = None
                if timer is not None:
                    timer.cancel()
        return True

    async def _commit(self, batch: Batch) -> list[Batch]:
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
        stats.commit_seconds.append(self._loop.time() - started)
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
