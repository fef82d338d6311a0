"""Rows of results: what was measured on each side, the ratio, and the goal it is held against. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound on the bridge's median, or (`ratio`) on its median divided by the peer's."""

    bound: float
    at_least: bool = False
    ratio: bool = False

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bound:g}{' x' if self.ratio else ''}"


@dataclass(slots=True)
class Row:
    """One line of the table. The runs of both sides were made in turns; the medians count."""

    name: str
    unit: str
    goal: Goal | None = None
    bridge: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)
    peer_name: str = "Mosquitto"
    notes: set[str] = field(default_factory=set)

    def side(self, name: str) -> list[float]:
        """The runs of one side, to add to: `bridge`, or any other name for the peer."""
        return self.bridge if name == "bridge" else self.peer

    @property
    def ratio(self) -> float | None:
        """The bridge's median divided by the peer's."""
        if not self.bridge or not self.peer or not statistics.median(self.peer):
            return None
        return statistics.median(self.bridge) / statistics.median(self.peer)

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None when there is no goal or nothing was measured."""
        if self.goal is None:
            return None
        value = self.ratio if self.goal.ratio else statistics.median(self.bridge) if self.bridge else None
        if value is None:
            return None
        return value >= self.goal.bound if self.goal.at_least else value <= self.goal.bound

    def as_dict(self) -> dict[str, Any]:
        """For the JSON file."""
        return {
            **asdict(self),
            "notes": sorted(self.notes),
            "goal": str(self.goal) if self.goal else None,
            "bridge_median": statistics.median(self.bridge) if self.bridge else None,
            "peer_median": statistics.median(self.peer) if self.peer else None,
            "ratio": self.ratio,
            "met": self.met,
        }


def figure(runs: list[float]) -> str:
    """The median, to three or four digits."""
    if not runs:
        return ""
    value = statistics.median(runs)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def markdown(rows: Sequence[Row]) -> str:
    """The table as it goes into the README."""
    lines = ["| benchmark | unit | bridge | peer | ratio | goal | met |", "|---|---|--:|--:|--:|--:|---|"]
    for row in rows:
        peer = figure(row.peer) + (f" ({row.peer_name})" if row.peer and row.peer_name != "Mosquitto" else "")
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        met = {True: "yes", False: "**no**", None: ""}[row.met]
        goal = str(row.goal) if row.goal else ""
        lines.append(f"| {row.name} | {row.unit} | {figure(row.bridge)} | {peer} | {ratio} | {goal} | {met} |")
    remarks = [f"- {row.name}: {note}." for row in rows for note in sorted(row.notes)]
    return "\n".join([*lines, "", *remarks] if remarks else lines)
