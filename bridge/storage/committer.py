"""Who takes batches out of the lanes, commits them, and settles what is in them: one commit after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final, final

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from bridge.errors import CircuitOpenError, RefusedError, StorageUnavailableError
from bridge.storage.batch import RECEIVED_AT, Batch
from bridge.storage.checkpoints import Checkpoints
from bridge.storage.commit import Commit
from bridge.storage.database import backoff
from bridge.storage.diversion import Diversion
from bridge.storage.forwarding import Forwarding
from bridge.storage.lane import Lane, Lanes
from bridge.storage.retries import retried
from bridge.storage.stats import WriterStats
from bridge.tracing import Tracing

log = structlog.get_logger(__name__)

RETRY: Final = 0.5
"""Seconds to the next try of the rows when the database is away and there is a spool."""
BUSY_FOR: Final = 1.0
"""Seconds after a full commit of rows in which the database is taken to be busy."""


@final
class Committer:
    """Works in the writer's task, from `run` to `finish`.

    `batch_wait`: a batch of rows that is not full is committed when its first row has waited so long, in seconds.
    `give_up_after`: seconds that a commit of rows may take before they go into the spool, None if it cannot be given
    up; `slow`: seconds after which rows go there that wait for a commit of changes.
    `moved` is called when a batch is taken, and when what was in it is settled; `congested` says whether more is handed
    over than can be committed.
    """

    def __init__(
        self,
        lanes: Lanes,
        commit_of: Callable[[Sequence[Batch]], Commit],
        forwarding: Forwarding | None,
        checkpoints: Checkpoints,
        *,
        batch_wait: float,
        give_up_after: float | None,
        slow: float,
        stats: WriterStats,
        clock: Callable[[], float],
        tracing: Tracing,
        moved: Callable[[], None],
        congested: Callable[[], bool],
    ) -> None:
        self.not_before = 0.0
        """Event-loop time before which neither rows nor what is spooled are committed; infinite while the database
        has not been reached since the start."""
        self._lanes = lanes
        self._commit_of = commit_of
        self._forwarding = forwarding
        self._diversion = None if forwarding is None else forwarding.diversion
        self._checkpoints = checkpoints
        self._batch_wait = batch_wait
        self._give_up_after = give_up_after
        self._slow = slow
        self._stats = stats
        self._clock = clock
        self._tracing = tracing
        self._moved = moved
        self._congested = congested
        self._loop = asyncio.get_running_loop()
        self._full_at = float("-inf")
        """Event-loop time of the last commit of rows that was full."""
        self._last: Lane | None = None
        """The lane of the last commit."""
        self._wake: asyncio.Future[None] | None = None
        self._finishing = False

    @property
    def busy(self) -> bool:
        """Whether rows come as fast as they can be committed, or did a moment ago."""
        return self._loop.time() - self._full_at < BUSY_FOR

    def rouse(self) -> None:
        """There is something new in the lanes, or it is due."""
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
        if self._diversion is not None and self._diversion.active:
            self._diversion.rouse()

    def finish(self) -> None:
        """Have `run` end when nothing is left that does not have to wait for the database."""
        self._finishing = True
        self.rouse()
        if self._diversion is not None:
            self._diversion.stop()

    async def run(self) -> None:
        """Commit, and move rows into the spool while they are diverted, until `finish`."""
        diversion = self._diversion
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

    # ------------------------------------------------------------------ whose turn it is

    async def _commit_all(self) -> None:
        rows = self._lanes.rows
        while lanes := await self._next():
            if lanes == [rows] and self._forwarding is not None and not self._forwarding.diversion.end():
                await self._forward(self._forwarding)
            else:
                await self._commit_first([lane for lane in lanes if lane.pending])
            self._last = lanes[0]

    async def _next(self) -> list[Lane]:
        """Wait until something is due, and say in which lanes: in both when both have something, as one commit costs
        less than two, and who waits for the second would wait for the first. None of them when this is to end and
        nothing is left that has to wait for the database."""
        rows, changes = self._lanes.rows, self._lanes.changes
        while True:
            wait: float | None = None
            now = self._loop.time()
            held = now < self.not_before and not self._finishing
            diverting = self._diversion is not None and self._diversion.active
            if changes.pending and rows.pending and not held and not diverting:
                return [changes, rows]
            if diverting:
                due = not self._finishing
            else:
                if rows.open.size:
                    wait = rows.open.opened_at + self._batch_wait - now
                due = rows.full or (wait is not None and (wait <= 0 or self._finishing))
            if due and held:
                due = False
                wait = self.not_before - now if self.not_before < float("inf") else None
            if changes.pending and not (due and self._last is changes):
                return [changes]
            if due:
                return [rows]
            if self._finishing:
                return []
            self._wake = self._loop.create_future()
            timer = None if wait is None else self._loop.call_later(wait, self.rouse)
            try:
                await self._wake
            finally:
                self._wake = None
                if timer is not None:
                    timer.cancel()

    async def _forward(self, forwarding: Forwarding) -> None:
        """Have the oldest batch of the spool in the database; on failure try again later."""
        try:
            self.not_before = await forwarding.one(hurry=self._congested())
        except StorageUnavailableError as error:
            self._failed(forwarding.diversion, error)

    # ------------------------------------------------------------------ one commit

    async def _commit_first(self, lanes: list[Lane]) -> None:
        # Batches stay in their lanes until they are settled: `Writer.stop` finds them there if this task is cancelled.
        rows = self._lanes.rows
        if rows in lanes and (rows.full or rows.open.size >= self._lanes.row_limit(self._loop.time())):
            self._full_at = self._loop.time()
        taken = {lane: lane.first() for lane in lanes}
        commit = self._commit_of(list(taken.values()))
        self._moved()
        if rows not in taken or self._diversion is None:
            await self._commit(commit, taken)
        elif not await self._try(commit, taken, self._diversion):
            # The rows go into the spool, this batch of them first; a change waits for the database.
            commit.leave_out(taken.pop(rows))
            if taken:
                await self._commit(commit, taken)
        committed_at = self._loop.time()
        for lane, batch in taken.items():
            lane.done()
            if batch.rows:
                self._stats.delays.observe(self._clock() - batch.rows[RECEIVED_AT])
            for part in commit.parts[batch]:
                part.settle()
            batch.release(None)
            self._checkpoints.committed(batch.size)
        # Connections write their acknowledgements in the turn of the loop that follows.
        self._loop.call_soon(self._settled, committed_at)
        self._moved()

    def _settled(self, committed_at: float) -> None:
        self._stats.settles.observe(self._loop.time() - committed_at)

    async def _try(self, commit: Commit, taken: Mapping[Lane, Batch], diversion: Diversion) -> bool:
        """Commit in one attempt. Whether that succeeds; if not, rows are diverted."""
        try:
            async with asyncio.timeout(self._give_up_after):
                await self._attempt(commit, taken)
        except TimeoutError:
            # It may have been committed all the same: its rows have their ids, and are not stored twice.
            error = f"a commit takes longer than {self._give_up_after:g} s"
            self._failed(diversion, StorageUnavailableError(error))
        except StorageUnavailableError as error:
            self._failed(diversion, error)
        else:
            return True
        return False

    async def _commit(self, commit: Commit, taken: Mapping[Lane, Batch]) -> None:
        """Commit, however long it takes."""
        diversion = self._diversion
        slow = None
        if diversion is not None:
            slow = self._loop.call_later(self._slow, diversion.begin, "a commit takes long")

        def failed(state: RetryCallState) -> None:
            self._count_retry(state)
            if diversion is not None:
                diversion.begin(str(_error_of(state)))

        def policy() -> AsyncRetrying:
            return AsyncRetrying(
                retry=retry_if_exception_type(StorageUnavailableError), wait=_pause, before_sleep=failed
            )

        try:
            await retried(lambda: self._attempt(commit, taken), policy)
        finally:
            if slow is not None:
                slow.cancel()

    async def _attempt(self, commit: Commit, taken: Mapping[Lane, Batch]) -> None:
        """One attempt, measured when it succeeds."""
        started = self._loop.time()
        await commit.attempt()
        stats = self._stats
        took = self._loop.time() - started
        if commit.attempts == 1:
            for lane, batch in taken.items():
                # What it would have taken without the other.
                others = sum(spent for other, spent in commit.spent.items() if other is not batch)
                lane.pace.measured(batch.size, took - others)
        size = sum(batch.size for batch in taken.values())
        stats.commit_seconds.append(took)
        stats.commits.observe(took)
        if self._tracing.on:
            now = self._clock()
            told: dict[str, str | int] = {
                "bridge.batch.size": size,
                "bridge.batch.lane": " and ".join("rows" if lane is self._lanes.rows else "changes" for lane in taken),
                "bridge.attempts": commit.attempts,
            }
            self._tracing.record("commit", now - took, now, told)
        stats.batches += 1
        stats.rows += size
        stats.last_batch = size
        refusals = [part.refusal for parts in commit.parts.values() for part in parts if part.refusal is not None]
        if refusals:
            stats.refused += len(refusals)
            # What a change itself refuses (a name that is taken) is an answer to whoever asked, and no fault.
            faults = [refusal for refusal in refusals if not isinstance(refusal, RefusedError)]
            if faults:
                log.error("the database refused what it was given", count=len(faults), first=repr(faults[0]))

    # ------------------------------------------------------------------ failure

    def _failed(self, diversion: Diversion, error: StorageUnavailableError) -> None:
        self._stats.retries += 1
        diversion.begin(str(error))
        pause = error.retry_after if isinstance(error, CircuitOpenError) else RETRY
        self.not_before = self._loop.time() + pause

    def _count_retry(self, state: RetryCallState) -> None:
        self._stats.retries += 1
        log.warning(
            "nothing can be committed; trying again",
            attempt=state.attempt_number,
            pending=self._lanes.pending,
            error=str(_error_of(state)),
        )


def _error_of(state: RetryCallState) -> BaseException | None:
    return None if state.outcome is None else state.outcome.exception()


def _pause(state: RetryCallState) -> float:
    """Seconds to the next attempt."""
    error = _error_of(state)
    return error.retry_after if isinstance(error, CircuitOpenError) else backoff(state)
