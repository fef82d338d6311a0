"""How often each fault is repeated, and the table of what became of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final


@dataclass
class Row:
    """One fault. `recovery`: seconds, the longest of all rounds."""

    fault: str
    rounds: int = 0
    wanted: int = 0
    acknowledged: int = 0
    missing: int = 0
    doubled: int = 0
    recovery: float = 0.0


class Torture:
    """The count of rounds, and what they showed. `minutes`: how long all of it may take when it is `long`. Every test
    gets its share of what is left; rounds for which it does not suffice are left out, and the table says so."""

    def __init__(self, *, long: bool, minutes: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.long: Final = long
        self.rows: list[Row] = []
        self._clock = clock
        self._until = clock() + minutes * 60
        self._share_until = self._until

    def begin(self, share: float) -> None:
        """The next test may take `share` (up to 1) of the time that is left."""
        now = self._clock()
        self._share_until = now + (self._until - now) * share

    @property
    def seconds_left(self) -> float:
        """Of the test's share."""
        return max(0.0, self._share_until - self._clock())

    def pick(self, short: float, long: float) -> float:
        """A length of time, or any other number, by how long the tests may take."""
        return long if self.long else short

    def rounds(self, row: Row, short: int, long: int, *, faults_left: int = 1) -> Iterator[int]:
        """Numbers of rounds, from 1; at least one. `faults_left`: among so many faults, this one included, the rest of
        the test's time is to be divided."""
        row.wanted = long if self.long else short
        until = self._clock() + self.seconds_left / faults_left
        for number in range(1, row.wanted + 1):
            if self.long and number > 1 and self._clock() >= until:
                return
            row.rounds = number
            yield number

    def row(self, fault: str) -> Row:
        """A new line of the table."""
        row = Row(fault)
        self.rows.append(row)
        return row

    def table(self) -> str:
        """What is printed at the end, as Markdown."""
        head = ("fault", "rounds", "acknowledged", "missing", "doubled", "recovery, s at most")
        lines = [f"| {' | '.join(head)} |", "|---|--:|--:|--:|--:|--:|"]
        for row in self.rows:
            rounds = str(row.rounds) if row.rounds == row.wanted else f"{row.rounds} of {row.wanted}"
            lines.append(
                f"| {row.fault} | {rounds} | {row.acknowledged:,} | {row.missing} | {row.doubled}"
                f" | {row.recovery:.1f} |"
            )
        return "\n".join(lines)
