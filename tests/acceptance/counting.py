"""An agent whose state can be checked against the table of readings."""

from __future__ import annotations

import msgspec

from bridge import Agent, on

EVERY = 50
"""Readings per command."""


class Numbered(msgspec.Struct):
    n: int


class Counter(Agent):
    class State(msgspec.Struct):
        count: int = 0
        total: int = 0

    @on.telemetry()
    async def reading(self, m: Numbered) -> None:
        self.state.count += 1
        self.state.total += m.n
        if self.state.count % EVERY == 0:
            await self.command("counted", {"count": self.state.count}, ttl=3600)
