"""The receipt that travels with a received message, and the ledger that every receipt settles through.

A receipt is the bridge's promise about one message. It is opened when the message is read from the socket and
settled exactly once, when the message's fate is durable. A receipt that nobody settles means *not committed*: the
sender gets no acknowledgement and keeps the message.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable
from typing import Protocol, final

import msgspec

from bridge.errors import AlreadySettledError


class Outcome(enum.Enum):
    """What became of a received message."""

    COMMITTED = "committed"
    """Its effect is durable (or it has none that could be lost, as a pong)."""
    DEDUPLICATED = "deduplicated"
    """The same message had been committed before."""
    DEAD_LETTERED = "dead_lettered"
    """It could not be decoded or stored, and is kept with the reason."""
    DROPPED = "dropped"
    """It is gone, and counted under a reason. Only QoS 0 messages are dropped after they were received."""
    RETRY = "retry"
    """It was not stored and is not acknowledged: the sender still has it. Counted as dropped, reason `retry`."""

    @property
    def acknowledged(self) -> bool:
        """Whether the sender is told that the message is taken care of."""
        return self is not Outcome.RETRY


@final
class Ledger:
    """Counts every message once when it is received and once when it is settled.

    `received == committed + deduplicated + dead_lettered + sum(dropped.values()) + in_flight` holds at every moment;
    `in_flight` is counted on its own so that a receipt settled twice, or never opened, shows as a difference.
    """

    __slots__ = ("committed", "dead_lettered", "deduplicated", "dropped", "in_flight", "received")

    def __init__(self) -> None:
        self.received = 0
        self.committed = 0
        self.deduplicated = 0
        self.dead_lettered = 0
        self.dropped: Counter[str] = Counter()
        self.in_flight = 0

    def open(self, count: int = 1) -> None:
        """`count` messages were read from a socket."""
        self.received += count
        self.in_flight += count

    def receipt(
        self, owner: Owner | None = None, qos: int = 0, packet_id: int = 0, once: tuple[str, int] | None = None
    ) -> Receipt:
        """The receipt of a message that is counted as received from here on."""
        self.received += 1
        self.in_flight += 1
        return Receipt(self, owner, qos, packet_id, once)

    def close(self, outcome: Outcome, count: int = 1, reason: str = "") -> None:
        """`count` messages reached `outcome`; `reason` names why for DROPPED."""
        self.in_flight -= count
        if outcome is Outcome.COMMITTED:
            self.committed += count
        elif outcome is Outcome.DEDUPLICATED:
            self.deduplicated += count
        elif outcome is Outcome.DEAD_LETTERED:
            self.dead_lettered += count
        else:
            self.dropped[reason or outcome.value] += count

    @property
    def difference(self) -> int:
        """Zero while the ledger holds."""
        settled = self.committed + self.deduplicated + self.dead_lettered + self.dropped.total()
        return self.received - settled - self.in_flight

    def as_dict(self) -> dict[str, int | dict[str, int]]:
        """The ledger as the API and the CLI show it."""
        return {
            "received": self.received,
            "committed": self.committed,
            "deduplicated": self.deduplicated,
            "dead_lettered": self.dead_lettered,
            "dropped": dict(self.dropped),
            "in_flight": self.in_flight,
            "difference": self.difference,
        }


class Owner(Protocol):
    """Who waits for a receipt: the connection that must acknowledge the message."""

    def receipt_settled(self, receipt: Receipt) -> None:
        """`receipt` has just been settled. Must not raise."""


@final
class Receipt(msgspec.Struct, eq=False):
    """The promise about one message. Made by `Ledger.receipt`, which counts it, or beside `Ledger.open`."""

    ledger: Ledger
    owner: Owner | None = None
    """Who acknowledges; another one when the client has come back on a new connection."""
    qos: int = 0
    """Of the PUBLISH, as `packet_id`."""
    packet_id: int = 0
    once: tuple[str, int] | None = None
    """The pair (client id, packet id) that a persistent session's QoS 2 message is known by, and that must become
    durable together with the message's effect."""
    outcome: Outcome | None = None

    def settle(self, outcome: Outcome, reason: str = "") -> None:
        """Say what became of the message.

        Raises AlreadySettledError when called twice: that is a fault of the caller which would acknowledge or count
        a message that it does not own.
        """
        if self.outcome is not None:
            raise AlreadySettledError(f"receipt is already {self.outcome.value}, cannot become {outcome.value}")
        self.outcome = outcome
        self.ledger.close(outcome, 1, reason)
        if self.owner is not None:
            self.owner.receipt_settled(self)


def settle_all(receipts: Iterable[Receipt | None], outcome: Outcome) -> None:
    """Settle each of many of one ledger, in their order (None: nobody waits): the same as one after the other, in less
    time.

    Raises AlreadySettledError, or what an owner raises that breaks its promise; then the receipts after that one are
    not settled.
    """
    ledger: Ledger | None = None
    settled = 0
    try:
        for receipt in receipts:
            if receipt is None:
                continue
            if receipt.outcome is not None:
                receipt.settle(outcome)  # raises
            receipt.outcome = outcome
            ledger = receipt.ledger
            settled += 1
            if receipt.owner is not None:
                receipt.owner.receipt_settled(receipt)
    finally:
        if ledger is not None:
            ledger.close(outcome, settled)
