"""The group-committing writer: everything durable goes through it, in batches, one transaction each.

While one batch is being committed the next one fills, so the more there is to do, the larger the batches and the less
each row costs. A receipt is settled, and a future resolved, after COMMIT has returned, and never before.

There are two lanes. Rows (readings, snapshots, presence, dead letters), and changes that must stay in order with them,
go the one way; free changes (commands, twins, the registry) go the other, and overtake the rows that wait: an operator
does not wait for what the sensors have sent before. Each lane is committed in hand-over order. Neither starves the
other: the next batches of both share one transaction. While free changes are about, commits are kept short (see
`Pace`); while only rows come, nobody would have anything of it, and each row costs less in a large batch.

With a spool nobody who sends readings notices that the database is away or slow: a commit of rows that fails or takes
too long is given up, and rows are settled when they are in the spool (see `Diversion`). Free changes wait for the
database, for `patience` seconds unless they are patient.

From hand-over to settled: `writer` takes it (`work`, in a `batch` of a `lane`), the `committer` commits the batch
(`commit`: once, whatever answers are lost; `bulk`: in few statements), and the batch settles what is in it. While the
database is away: `diversion` (into the `spool`), later `forwarding` (out of it).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar, final

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.errors import StorageUnavailableError
from bridge.receipts import Receipt
from bridge.storage.agents import AgentState
from bridge.storage.batch import Batch
from bridge.storage.checkpoints import Checkpoints
from bridge.storage.commit import Commit
from bridge.storage.committer import Committer
from bridge.storage.database import Database
from bridge.storage.deadletters import DeadLetter
from bridge.storage.devices import DeviceSnapshot
from bridge.storage.diversion import Diversion
from bridge.storage.forwarding import Forwarding
from bridge.storage.lane import Lanes
from bridge.storage.rowids import RowIds
from bridge.storage.spool import Spool
from bridge.storage.stats import WriterStats
from bridge.storage.work import Change, Letter, Packable, Readings, Save, Transition
from bridge.tracing import Tracing

log = structlog.get_logger(__name__)

T = TypeVar("T")

_STOPPED: Final = StorageUnavailableError("the bridge is stopping: this was not committed")


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
        self.patience: Final = patience
        self._database = database
        self._clock = clock
        self._topic_of = topic_of
        self._loop: asyncio.AbstractEventLoop
        self._ids = RowIds()
        self._lanes = Lanes(batch_rows)
        self._rows, self._changes = self._lanes.rows, self._lanes.changes
        self.diversion: Final = None if spool is None else Diversion(spool, self._rows, self._relieve, clock)
        self._forwarding = (
            None if self.diversion is None else Forwarding(self.diversion, self._commit_of, spool_after / 2, clock)
        )
        self._checkpoints = Checkpoints(database)
        self._committer = Committer(
            self._lanes,
            self._commit_of,
            self._forwarding,
            self._checkpoints,
            batch_wait=batch_wait,
            # On SQLite a commit cannot be given up, and a lock gives up by itself.
            give_up_after=None if database.dialect == "sqlite" else spool_after,
            slow=spool_after,
            stats=self.stats,
            clock=clock,
            tracing=tracing or Tracing(),
            moved=self._relieve,
            congested=lambda: self.congested,
        )
        self._looking: asyncio.TimerHandle | None = None
        """The next look for changes that have waited too long."""
        # How much may still be handed over before something is to be noticed: the one check of the hot path.
        self._room = 0
        self._stopped = True

    @property
    def pending(self) -> int:
        """Rows and changes handed over and not committed yet."""
        return self._lanes.pending

    @property
    def busy(self) -> bool:
        """Whether rows come as fast as they can be committed, or did a moment ago."""
        return self.congested or self._committer.busy

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
        await self._ids.pass_stored(self._database)
        self._ids.pass_clock(self._clock())
        if self._forwarding is not None:
            spool = self._forwarding.diversion.spool
            if not spool.empty:
                log.info("committing what is in the spool", rows=spool.rows, bytes=spool.bytes)
                await self._forwarding.everything()
                await self._ids.pass_stored(self._database)
            try:
                await spool.note_id(self._ids.last)
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
        self._ids.pass_unasked(diversion.spool.last_id)
        self._ids.pass_clock(self._clock())
        await diversion.spool.note_id(self._ids.last)
        diversion.begin(reason)
        self._committer.not_before = float("inf")
        self._begin()

    def reached(self) -> None:
        """The database is there, as it must be, after `stand_by`: what is in the spool may be committed."""
        self._committer.not_before = 0.0
        self._committer.rouse()

    def _begin(self) -> None:
        self._stopped = False
        self._make_room()
        self.task = asyncio.create_task(self._committer.run(), name="writer")

    async def stop(self, timeout: float) -> None:
        """Commit what was handed over, for at most `timeout` seconds. What is not committed by then stays with its
        sender: its receipts are settled RETRY, its futures get StorageUnavailableError."""
        if self._stopped:
            return
        self._committer.finish()
        done, _ = await asyncio.wait({self.task}, timeout=timeout)
        if not done:
            self.task.cancel()
            await asyncio.wait({self.task})
        await self._checkpoints.stop(timeout)
        if self._looking is not None:
            self._looking.cancel()
        self._stopped = True
        left = self._lanes.clear()
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
        ids = self._ids
        ids.last = row_id = ids.last + 1
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
        self._add(Letter(letter, self._ids.next(), receipt))

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
        self._lanes.change_came(now)
        if not lane.open.opened_at:
            lane.open.opened_at = now
        lane.open.add(Change(change, receipt, letter, future, patient=patient))
        if not patient and self._looking is None:
            self._looking = self._loop.call_later(self.patience, self._look)
        if self._stopped:
            self._abandon()
        elif lane.open.size >= lane.pace.limit:
            lane.close()
        self._committer.rouse()
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
        row_id = self._ids.last
        for row in rows:
            row_id += 1
            batch.rows.append(row_id)
            batch.rows += row
        self._ids.last = row_id

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
            self._committer.rouse()
        if lane.open.size >= self._lanes.row_limit(self._loop.time()):
            lane.close()
            self._committer.rouse()
        self._make_room()

    def _make_room(self) -> None:
        # Sees to congestion, and to how many rows may come until the next look.
        pending = self.pending
        if pending >= self.capacity:
            self.congested = True
        size = self._rows.open.size
        room = self._lanes.row_limit(self._loop.time()) - size if size else 1
        self._room = room if self.congested else min(room, max(1, self.capacity - pending))

    def _abandon(self) -> None:
        for batch in self._lanes.clear():
            batch.abandon(_STOPPED)

    def _look(self) -> None:
        # At each batch twice within its time: an answer comes at most half of the patience late.
        now = self._loop.time()
        lane = self._changes
        error = StorageUnavailableError(f"the database has not answered for {self.patience:g} s")
        lane.give_up(now - self.patience, error)
        self._looking = self._loop.call_later(self.patience / 2, self._look) if lane.pending else None

    def _relieve(self) -> None:
        if self.congested and self.pending <= self.capacity // 2:
            self.congested = False
            if self.on_relief is not None:
                self.on_relief()
        self._make_room()

    def _commit_of(self, batches: Sequence[Batch]) -> Commit:
        return Commit(self._database, batches, self._clock, self._topic_of, self._ids.next)
