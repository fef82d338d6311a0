"""What is handed over to the writer, beside single readings: each with what is to become of its message."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, Self, final

from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.receipts import Receipt
from bridge.storage.agents import AgentState
from bridge.storage.deadletters import DeadLetter
from bridge.storage.devices import DeviceSnapshot


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
