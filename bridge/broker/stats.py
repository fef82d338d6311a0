"""The broker in numbers."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from bridge.broker.broker import EmbeddedBroker


@final
class BrokerStats:
    """Plain numbers, for metrics."""

    __slots__ = ("_broker", "closed", "dropped")

    def __init__(self, broker: EmbeddedBroker) -> None:
        self._broker = broker
        self.closed: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()

    @property
    def connections(self) -> int:
        """Open connections."""
        return len(self._broker.connections)

    @property
    def sessions(self) -> int:
        """Sessions, connected or kept."""
        return len(self._broker.clients)

    @property
    def subscriptions(self) -> int:
        """Subscriptions of all sessions."""
        return self._broker.tree.count

    @property
    def retained(self) -> int:
        """Topics with a retained message."""
        return self._broker.kept.count
