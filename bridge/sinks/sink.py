"""A sink: somebody who is passed what is committed. To write one is to write one small class."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import msgspec

from bridge.errors import BridgeError
from bridge.storage.committed import Record


class SinkUnavailableError(BridgeError):
    """The receiver cannot be reached or asks for patience; the same records may be taken later."""


class SinkRefusedError(BridgeError):
    """The receiver will never take these records as they are."""


class Sink(abc.ABC):
    """One receiver. Methods are called one at a time, from one task.

    Each record carries a key (`Record.key`) that stays the same when it is passed on again: after a crash, or when
    the receiver's answer was lost. A receiver that must not see anything twice remembers keys.
    """

    @abc.abstractmethod
    async def deliver(self, records: Sequence[Record]) -> None:
        """Pass records on, in order, and return when the receiver has them for good.

        Raises SinkUnavailableError to be called again with the same records, SinkRefusedError if the receiver refuses
        them: then they come again in halves, until the one that it refuses is alone, and that one is passed over.
        """

    async def close(self) -> None:  # noqa: B027 - most have nothing to let go of
        """Let go of connections and files."""


class Envelope(msgspec.Struct):
    """A record as it is written for receivers: JSON with these fields."""

    id: str
    kind: str
    device_id: str
    name: str
    at: float
    stored_at: float
    data: msgspec.Raw


def envelope(record: Record) -> dict[str, Any] | Envelope:
    """The form of a record that is sent."""
    return Envelope(
        record.key, record.kind, record.device_id, record.name, record.at, record.stored_at, msgspec.Raw(record.body)
    )
