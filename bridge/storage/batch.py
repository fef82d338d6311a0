"""A batch of the writer: what is handed over in it, how it is stored in one transaction, and what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, Protocol, Self, final

import structlog
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.receipts import Outcome, Receipt
from bridge.storage import bulk
from bridge.storage.agents import AgentState
from bridge.storage.deadletters import DeadLetter
from bridge.storage.devices import DeviceSnapshot
from bridge.storage.tables import telemetry

log = structlog.get_logger(__name__)

Row = tuple[int, str, str, float, float, str | None, str]

WIDTH: Final = bulk.TELEMETRY.width
RECEIVED_AT: Final = 4
"""Where in a batch's rows the time of arrival of its first reading is."""


class Work:
    """Something handed over that is more than one reading with its receipt."""

    __slots__ = ("receipt",)
    readings = 0
    """How many of the batch's readings belong to it."""
    size = 1

    def __init__(self, receipt: Receipt | None = None) -> None:
        self.receipt = receipt


@final
class Readings(Work):
    """The readings of one message."""

    __slots__ = ("readings", "size")

    def __init__(self, count: int, receipt: Receipt | None) -> None:
        super().__init__(receipt)
        self.readings = self.size = count


@final
class Save(Work):
    """A device's snapshot."""

    __slots__ = ("snapshot",)

    def __init__(self, snapshot: DeviceSnapshot) -> None:
        super().__init__()
        self.snapshot = snapshot


@final
class Transition(Work):
    """A change of a device's presence: device_id, epoch, status, cause, at."""

    __slots__ = ("values",)

    def __init__(self, values: tuple[str, int, str, str, float]) -> None:
        super().__init__()
        self.values = values


@final
class Letter(Work):
    """A dead letter, with the id it will have."""

    __slots__ = ("row_id", "values")

    def __init__(self, letter: DeadLetter, row_id: int, receipt: Receipt | None) -> None:
        super().__init__(receipt)
        self.row_id = row_id
        self.values = letter.values(row_id)

    @classmethod
    def stored(cls, values: tuple[Any, ...]) -> Self:
        """A dead letter from its row."""
        letter = cls.__new__(cls)
        Work.__init__(letter)
        letter.row_id = values[0]
        letter.values = values
        return letter


class Packable(Protocol):
    """What a change will do, as data: done twice in the same place of the order, it is done once."""

    @property
    def kind(self) -> str:
        """Names the way back (see `packing`)."""

    def pack(self) -> bytes:
        """The data."""


@final
class Change(Work):
    """Free statements. `letter` is kept instead if the database refuses them. `packable`: they can be spooled.

    The readings of one message and an agent's state may belong to it: all of it is stored, or nothing."""

    __slots__ = ("agent", "future", "letter", "packable", "patient", "readings", "result", "run", "size")

    def __init__(
        self,
        run: Callable[[AsyncConnection], Awaitable[Any]] | None,
        receipt: Receipt | None,
        letter: DeadLetter | None,
        future: asyncio.Future[Any],
        readings: int = 0,
        agent: AgentState | None = None,
        packable: Packable | None = None,
        patient: bool = True,
    ) -> None:
        super().__init__(receipt)
        self.packable = packable
        self.patient = patient
        """Whether it waits for the database however long that is away."""
        self.run = run
        self.letter = letter
        self.future = future
        self.readings = readings
        self.agent = agent
        self.size = 1 + readings
        self.result: Any = None


Entry = Receipt | Work | None
"""One hand-over: the receipt of a single reading (None if it has none), or any other Work."""


@final
class Batch:
    """What goes into one transaction, in the order in which it was handed over."""

    __slots__ = ("buried", "duplicates", "once", "opened_at", "order", "refusal", "rows", "size", "then", "work")

    def __init__(self) -> None:
        self.opened_at = 0.0
        """Event-loop time of the first hand-over, 0 while empty."""
        self.rows: list[Any] = []
        """The values of the readings, one after the other: built as they arrive, so that nothing is left to do."""
        self.order: list[Entry] = []
        self.work: list[Work] = []
        """The Work in `order`."""
        self.once: list[Any] = []
        """The `once` pairs of the receipts, flat."""
        self.size = 0
        """Readings and other rows and changes."""
        self.duplicates: frozenset[int] = frozenset()
        """Ids of readings that the database had already."""
        self.refusal: Exception | None = None
        """Why the only entry of this batch was not stored."""
        self.buried = False
        """Whether a dead letter is stored in its place."""
        self.then: list[Callable[[Exception | None], None]] = []
        """Called when the batch is committed, or with the error when it is abandoned. Must not raise."""

    def add(self, work: Work) -> None:
        """Take over anything but a single reading, whose way is too short for a call (see Writer.add_reading)."""
        self.order.append(work)
        self.work.append(work)
        self.size += work.size
        if work.receipt is not None and work.receipt.once is not None:
            self.once += work.receipt.once

    @property
    def has_changes(self) -> bool:
        """Whether storing it twice would not be the same as storing it once."""
        return any(isinstance(work, Change) and work.run is not None for work in self.work)

    # ------------------------------------------------------------------ into the database

    async def store(self, connection: AsyncConnection) -> None:
        """Run everything on `connection`: rows first, of a device's snapshots only the last, then changes in order."""
        self.duplicates = frozenset()
        inserts = list(self._inserts())
        counts = await bulk.insert(connection, inserts)
        if self.rows and counts[0] * WIDTH != len(self.rows):
            self.duplicates = await self._find_duplicates(connection)
        for work in self.work:
            if isinstance(work, Change) and work.run is not None:
                work.result = await work.run(connection)

    def _inserts(self) -> Iterator[tuple[bulk.Insert, list[Any]]]:
        if self.rows:
            yield bulk.TELEMETRY, self.rows
        if self.once:
            yield bulk.INBOUND_ONCE, self.once
        snapshots: dict[str, DeviceSnapshot] = {}
        transitions: list[Any] = []
        statuses: dict[str, tuple[Any, ...]] = {}
        letters: list[Any] = []
        agents: dict[tuple[str, str], AgentState] = {}
        for work in self.work:
            if isinstance(work, Save):
                snapshots[work.snapshot.device_id] = work.snapshot
            elif isinstance(work, Transition):
                device_id, epoch, status, _cause, at = work.values
                transitions += work.values
                statuses[device_id] = (device_id, at, at, status, epoch)
            elif isinstance(work, Letter):
                letters += work.values
            elif isinstance(work, Change) and work.agent is not None:
                agents[work.agent.device_id, work.agent.agent] = work.agent
        if snapshots:
            yield bulk.DEVICES, [value for snapshot in snapshots.values() for value in _device_row(snapshot)]
        if transitions:
            yield bulk.PRESENCE, transitions
            # A snapshot of the same batch has its status already: nearly always, for whoever tells of a transition
            # saves the device, and each row changes three indices.
            rest = [row for row in statuses.values() if not _covers(snapshots.get(row[0]), row[_EPOCH])]
            if rest:
                yield bulk.DEVICE_STATUS, [value for row in rest for value in row]
        if letters:
            yield bulk.DEAD_LETTERS, letters
        if agents:
            yield bulk.AGENT_STATES, [value for agent in agents.values() for value in agent]

    async def _find_duplicates(self, connection: AsyncConnection) -> frozenset[int]:
        ids = self.rows[::WIDTH]
        query = select(telemetry.c.id).where(telemetry.c.id.between(ids[0], ids[-1]))
        return frozenset(ids).difference((await connection.execute(query)).scalars())

    def halves(self) -> tuple[Batch, Batch]:
        """Two batches, the first and the second half of the hand-overs."""
        middle = len(self.order) // 2
        return self._part(0, middle), self._part(middle, len(self.order))

    def _part(self, start: int, stop: int) -> Batch:
        part = Batch()
        position = sum(_readings(entry) for entry in self.order[:start]) * WIDTH
        for entry in self.order[start:stop]:
            length = _readings(entry) * WIDTH
            part.take(entry, self.rows[position : position + length])
            position += length
        return part

    async def bury(self, connection: AsyncConnection, letter: DeadLetter, row_id: int) -> None:
        """Store `letter` in place of the only entry of this batch."""
        work = [(bulk.DEAD_LETTERS, list(letter.values(row_id)))]
        if self.once:
            work.append((bulk.INBOUND_ONCE, self.once))
        await bulk.insert(connection, work)

    def letter(self, at: float, topic_of: Callable[[str, str], str]) -> DeadLetter | None:
        """What is kept of the only entry of this batch if it is refused; None if it came from no message."""
        entry = self.order[0]
        error = f"{type(self.refusal).__name__}: {self.refusal}"
        if isinstance(entry, Change):
            if entry.receipt is None and entry.letter is None:
                return None
            letter = entry.letter or DeadLetter(at, "", None, "", "", b"")
            return DeadLetter(at, letter.topic, letter.device_id, "not_storable", error, letter.payload)
        if not self.rows:
            return None
        device_id, stream = self.rows[1], self.rows[2]
        payloads: list[str] = self.rows[WIDTH - 1 :: WIDTH]
        text = payloads[0] if len(payloads) == 1 else f"[{','.join(payloads)}]"
        payload = text.encode("utf-8", "replace")
        return DeadLetter(at, topic_of(device_id, stream), device_id, "not_storable", error, payload)

    # ------------------------------------------------------------------ after the commit

    def settle(self) -> None:
        """The transaction is committed: settle every receipt and resolve every future, in hand-over order."""
        if self.refusal is not None:
            self._settle_refusal(self.refusal)
            return
        committed = Outcome.COMMITTED
        if not self.duplicates and not self.work:
            for receipt in self.order:
                if receipt is not None:
                    _settle(receipt, committed)  # type: ignore[arg-type]  # without work there are only receipts
            return
        ids = self.rows[::WIDTH]
        position = 0
        for entry in self.order:
            count = _readings(entry)
            duplicate = count > 0 and self.duplicates.issuperset(ids[position : position + count])
            position += count
            outcome = Outcome.DEDUPLICATED if duplicate else committed
            if not isinstance(entry, Work):
                if entry is not None:
                    _settle(entry, outcome)
                continue
            if isinstance(entry, Letter):
                outcome = Outcome.DEAD_LETTERED
            elif isinstance(entry, Change) and not entry.future.done():
                entry.future.set_result(entry.result)
            if entry.receipt is not None:
                _settle(entry.receipt, outcome)

    def _settle_refusal(self, refusal: Exception) -> None:
        entry = self.order[0]
        receipt = entry.receipt if isinstance(entry, Work) else entry
        if isinstance(entry, Change) and not entry.future.done():
            entry.future.set_exception(refusal)
        if receipt is not None:
            _settle(receipt, Outcome.DEAD_LETTERED if self.buried else Outcome.RETRY)

    def abandon(self, error: Exception) -> None:
        """Nobody will commit this: leave every message with its sender."""
        for entry in self.order:
            _give_up(entry, error)
        self.release(error)

    def release(self, error: Exception | None) -> None:
        """Call those who wait for this batch."""
        waiting, self.then = self.then, []
        for then in waiting:
            then(error)

    def withdraw(self, which: Callable[[Change], bool], error: Exception) -> None:
        """Take free changes out, with the readings of their messages: who waits for them gets `error`, and their
        messages stay with their senders. What is being stored at this moment is still stored."""
        kept = Batch()
        position = 0
        for entry in self.order:
            length = _readings(entry) * WIDTH
            if isinstance(entry, Change) and which(entry):
                _give_up(entry, error)
            else:
                kept.take(entry, self.rows[position : position + length])
            position += length
        # New lists, as the old ones may just be looped over. The size stays: the lane has counted it.
        self.rows, self.order, self.work, self.once = kept.rows, kept.order, kept.work, kept.once

    def take(self, entry: Entry, rows: list[Any]) -> None:
        """Take over an entry of another batch with its readings."""
        self.rows += rows
        if isinstance(entry, Work):
            self.add(entry)
            return
        self.order.append(entry)
        self.size += 1
        if entry is not None and entry.once is not None:
            self.once += entry.once


_EPOCH: Final = 4


def _covers(snapshot: DeviceSnapshot | None, epoch: int) -> bool:
    return snapshot is not None and snapshot.epoch >= epoch


def _device_row(device: DeviceSnapshot) -> tuple[Any, ...]:
    return (
        device.device_id,
        device.profile,
        device.first_seen,
        device.last_seen,
        device.messages,
        device.status,
        device.epoch,
        device.state or None,
        device.admission,
    )


def _readings(entry: Entry) -> int:
    return entry.readings if isinstance(entry, Work) else 1


def _give_up(entry: Entry, error: Exception) -> None:
    receipt = entry.receipt if isinstance(entry, Work) else entry
    if isinstance(entry, Change) and not entry.future.done():
        entry.future.set_exception(error)
    if receipt is not None and receipt.outcome is None:
        _settle(receipt, Outcome.RETRY)
    if isinstance(entry, Work):
        entry.receipt = None  # it may be in a transaction all the same, and must not be settled again


def _settle(receipt: Receipt, outcome: Outcome) -> None:
    try:
        receipt.settle(outcome)
    except Exception:
        # An owner that breaks its promise not to raise must not cost the others their receipts.
        log.exception("a receipt could not be settled", outcome=outcome.value)
