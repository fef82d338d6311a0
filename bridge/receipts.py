"""The receipt that travels with a received message, and the ledger that every receipt settles through.

A receipt is the bridge's promise about one message. It is opened when the message is read from the socket and
settled exactly once, when the message's fate is durable. A receipt that nobody settles means *not committed*: the
sender gets no acknowledgement and keeps the message.
"""

from __future__ import annotations

import enum
from collections import Counter
from typing import Protocol, final

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
class Receipt:
    """The promise about one message.

    `qos` and `packet_id` are those of the PUBLISH; `once` is the pair (client id, packet id) that a persistent
    session's QoS 2 message is known by, and that must become durable together with the message's effect.
    """

    __slots__ = ("_ledger", "once", "outcome", "owner", "packet_id", "qos")

    def __init__(
        self,
        ledger: Ledger,
        owner: Owner | None = None,
        qos: int = 0,
        packet_id: int = 0,
        once: tuple[str, int] | None = None,
    ) -> None:
        """Open the receipt. The ledger counts it as received from here on."""
        self._ledger = ledger
        self.owner = owner
        """Who acknowledges; another one when the client has come back on a new connection."""
        self.qos = qos
        self.packet_id = packet_id
        self.once = once
        self.outcome: Outcome | None = None
        ledger.received += 1
        ledger.in_flight += 1

    def settle(self, outcome: Outcome, reason: str = "") -> None:
        """Say what became of the message.

        Raises AlreadySettledError when called twice: that is a fault of the caller which would acknowledge or count
        a message that it does not own.
        """
        if self.outcome is not None:
            raise AlreadySettledError(f"receipt is already {self.outcome.value}, cannot become {outcome.value}")
        self.outcome = outcome
        self._ledger.close(outcome, 1, reason)
        if self.owner is not None:
            self.owner.receipt_settled(self)
