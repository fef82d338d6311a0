"""What the writer counts of its commits."""

from __future__ import annotations

from collections import deque
from typing import Final, final

from bridge.histogram import Histogram


@final
class WriterStats:
    """Counted per batch, never per row."""

    __slots__ = (
        "batches", "commit_seconds", "commits", "delays", "last_batch", "refused", "retries", "rows", "settles",
    )  # fmt: skip

    def __init__(self) -> None:
        self.batches = 0
        self.rows = 0
        self.last_batch = 0
        """Rows and changes of the last committed batch."""
        self.refused = 0
        """Hand-overs that the database refused for good."""
        self.retries = 0
        self.commit_seconds: deque[float] = deque(maxlen=256)
        """How long the last batches took from their first attempt to the end of their COMMIT."""
        self.commits: Final = Histogram()
        """The same of all batches since the start."""
        self.delays: Final = Histogram()
        """Seconds from the arrival of a batch's oldest reading to its COMMIT: no other reading of it waited longer."""
        self.settles: Final = Histogram()
        """Seconds from COMMIT until every receipt of a batch is settled and every acknowledgement written."""
