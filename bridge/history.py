"""The last hour of the bridge's own figures, for small plots. Pure: what is kept and when is passed in."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, final

EVERY: Final = 10.0
"""Seconds between two samples."""
KEPT: Final = 360
"""Samples: an hour."""


@final
class History:
    """A ring of samples of named figures."""

    def __init__(self, take: Callable[[], Mapping[str, float]], clock: Callable[[], float]) -> None:
        """`take` gives the figures, always under the same names; `clock` Unix seconds."""
        self._take = take
        self._clock = clock
        self._samples: deque[tuple[float, Mapping[str, float]]] = deque(maxlen=KEPT)

    async def run(self) -> None:
        """Take a sample every ten seconds, until cancelled."""
        while True:
            self.sample()
            await asyncio.sleep(EVERY)

    def sample(self) -> None:
        """Take one now."""
        self._samples.append((self._clock(), self._take()))

    def columns(self) -> dict[str, list[float]]:
        """All samples, oldest first: `ts`, and a column for each figure."""
        names = self._samples[-1][1] if self._samples else ()
        return {
            "ts": [at for at, _ in self._samples],
            **{name: [figures[name] for _, figures in self._samples] for name in names},
        }
