"""How often each fault is repeated, and the table of what became of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
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
    """The count of rounds, and what they showed. `minutes`: how long all of it may take when it is `long`; then the
    rounds that are left are left out, and the table says so."""

    def __init__(self, *, long: bool, minutes: float) -> None:
        self.long: Final = long
        self.rows: list[Row] = []
        self._until = time.monotonic() + minutes * 60

    def pick(self, short: float, long: float) -> float:
        """A length of time, or any other number, by how long the tests may take."""
        return long if self.long else short

    def rounds(self, row: Row, short: int, long: int) -> Iterator[int]:
        """Numbers of rounds, from 1."""
        row.wanted = long if self.long else short
        for number in range(1, row.wanted + 1):
            if self.long and time.monotonic() > self._until:
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
