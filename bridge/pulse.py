"""Once a second: how many messages came and were committed, and how late the event loop was."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, final

from bridge.histogram import Histogram
from bridge.receipts import Ledger

LAG_STEP: Final = 0.05
"""Seconds between two looks at the loop's lag."""
KEPT: Final = 1_200
"""Lag samples kept: the last minute."""


@final
class Pulse:
    """Rates over the last second and the loop's lag over the last minute."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._lags: deque[float] = deque(maxlen=KEPT)
        self.lags: Final = Histogram()
        """The loop's lag since the start, in seconds."""
        self.received_per_second = 0.0
        self.committed_per_second = 0.0

    async def run(self) -> None:
        """Beat until cancelled."""
        loop = asyncio.get_running_loop()
        received, committed, since = self._ledger.received, self._ledger.committed, loop.time()
        while True:
            before = loop.time()
            await asyncio.sleep(LAG_STEP)
            now = loop.time()
            lag = max(0.0, now - before - LAG_STEP)
            self._lags.append(lag)
            self.lags.observe(lag)
            if now - since >= 1.0:
                self.received_per_second = (self._ledger.received - received) / (now - since)
                self.committed_per_second = (self._ledger.committed - committed) / (now - since)
                received, committed, since = self._ledger.received, self._ledger.committed, now

    def lag(self, quantile: float) -> float:
        """The loop's lag in seconds that `quantile` of the last minute's samples did not exceed."""
        if not self._lags:
            return 0.0
        ordered = sorted(self._lags)
        return ordered[min(len(ordered) - 1, int(quantile * len(ordered)))]
