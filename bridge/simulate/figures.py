"""What simulated devices have counted and timed. Pure."""

from __future__ import annotations

import math
from collections import Counter
from typing import Final, final

SMALLEST: Final = 1e-5
"""Seconds; shorter times count as this."""
GROWTH: Final = math.log(1.02)
"""Each bucket reaches 2% further than the one before: a quantile is off by that much at most."""
BUCKETS: Final = 1 + math.ceil(math.log(1e8) / GROWTH)
"""The last one ends beyond 1,000 s."""


@final
class Latencies:
    """Times in seconds, kept as a histogram: its size does not depend on how many there are."""

    __slots__ = ("_buckets", "count", "longest")

    def __init__(self) -> None:
        self._buckets = [0] * BUCKETS
        self.count = 0
        self.longest = 0.0

    def record(self, seconds: float) -> None:
        """Count one time."""
        index = math.ceil(math.log(seconds / SMALLEST) / GROWTH) if seconds > SMALLEST else 0
        self._buckets[min(index, BUCKETS - 1)] += 1
        self.count += 1
        self.longest = max(self.longest, seconds)

    def quantile(self, share: float) -> float:
        """The time that `share` of the recorded ones did not exceed, at most 2% too long; 0.0 without any."""
        wanted = math.ceil(share * self.count)
        seen = 0
        for index, count in enumerate(self._buckets):
            seen += count
            if seen >= wanted and seen:
                return min(self.longest, SMALLEST * math.exp(GROWTH * index))
        return 0.0


@final
class Figures:
    """The counts of all devices together."""

    __slots__ = (
        "acknowledged",
        "commands",
        "connected",
        "connects",
        "latencies",
        "pings",
        "published",
        "repeated",
        "repeated_commands",
        "troubles",
    )

    def __init__(self) -> None:
        self.published = 0
        """Readings handed to a connection, each counted once."""
        self.acknowledged = 0
        """Readings acknowledged by the broker; for QoS 0, handed over."""
        self.repeated = 0
        """Publishes of a reading that had been sent before on a connection that broke."""
        self.latencies = Latencies()
        """Seconds from publish to PUBACK (QoS 1) or PUBCOMP (QoS 2)."""
        self.connected = 0
        self.connects = 0
        self.pings = 0
        self.commands = 0
        """Commands executed."""
        self.repeated_commands = 0
        """Requests for a command that had come before: answered again, not executed."""
        self.troubles: Counter[str] = Counter()
        """Why connections failed."""

    def trouble(self, text: str) -> None:
        """A connection failed. Of different texts a hundred are kept."""
        self.troubles[text if text in self.troubles or len(self.troubles) < 100 else "other"] += 1
