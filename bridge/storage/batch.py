"""A batch of the writer: what is handed over in it, how it is stored in one transaction, and what became of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, final

import structlog
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.receipts import Outcome, Receipt, settle_all
from bridge.storage import bulk
from bridge.storage.agents import AgentState
from bridge.storage.deadletters import DeadLetter
from bridge.storage.devices import DeviceSnapshot
from bridge.storage.tables import telemetry
from bridge.storage.work import Change, Entry, Letter, Save, Transition, Work

log = structlog.get_logger(__name__)

WIDTH: Final = bulk.TELEMETRY.width
RECEIVED_AT: Final = 4
"""Where in a batch's rows the time of arrival of its first reading is."""


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
        if not self.duplicates and not self.work:
            _settle_all(self.order)  # type: ignore[arg-type]  # without work there are only receipts
            return
        committed = Outcome.COMMITTED
        ids = self.rows[::WIDTH] if self.duplicates else []
        position = 0
        for entry in self.order:
            if ids:
                count = _readings(entry)
                duplicate = count > 0 and self.duplicates.issuperset(ids[position : position + count])
                position += count
                outcome = Outcome.DEDUPLICATED if duplicate else committed
            else:
                outcome = committed
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


def _settle_all(receipts: Sequence[Receipt | None]) -> None:
    try:
        settle_all(receipts, Outcome.COMMITTED)
    except Exception:
        # An owner that breaks its promise not to raise must not cost the others their receipts.
        log.exception("not all receipts could be settled at once")
        for receipt in receipts:
            if receipt is not None and receipt.outcome is None:
                _settle(receipt, Outcome.COMMITTED)


def _settle(receipt: Receipt, outcome: Outcome) -> None:
    try:
        receipt.settle(outcome)
    except Exception:
        # An owner that breaks its promise not to raise must not cost the others their receipts.
        log.exception("a receipt could not be settled", outcome=outcome.value)
