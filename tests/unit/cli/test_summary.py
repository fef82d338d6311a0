"""The summary shows the bridge's own figures, and what it means when they do not add up."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from bridge.cli.summary import Summary, line, panel
from bridge.receipts import Ledger, Outcome


def taken(ledger: Ledger) -> dict[str, Any]:
    """What `Bridge.summary` returns."""
    return {
        "devices": {"known": 28, "online": 25, "offline": 3},
        "messages_per_second": 1234.5,
        "committed_per_second": 1200.0,
        "commands": {"queued": 2, "sent": 2, "succeeded": 1},
        "agents": {"awake": 25, "asleep": 0},
        "ledger": ledger.as_dict(),
        "loop_lag_p99_ms": 1.2,
    }


@pytest.fixture
def ledger() -> Ledger:
    ledger = Ledger()
    ledger.open(1012)
    ledger.close(Outcome.COMMITTED, 1000)
    ledger.close(Outcome.DROPPED, 2, "mailbox_full")
    ledger.close(Outcome.DROPPED, 3, "no_room")
    return ledger


def drawn(draw: Callable[[], object]) -> str:
    screen = Console(file=io.StringIO(), width=160, force_terminal=True)
    screen.print(draw())
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


def test_the_figures(ledger: Ledger) -> None:
    text = line(taken(ledger))
    for expected in (
        "online 25", "silent 0", "offline 3", "known 28", "1,234.5/s", "committed 1,200.0/s",
        "under way 1, succeeded 1", "received 1,012", "committed 1,000", "dropped 5", "in flight 7", "difference 0",
    ):  # fmt: skip
        assert expected in text
    assert "\n" not in text


def test_a_difference_stands_out(ledger: Ledger) -> None:
    sound = drawn(lambda: panel(taken(ledger)))
    ledger.received += 1
    wrong = drawn(lambda: panel(taken(ledger)))
    assert "\x1b[1;31mdifference 1" in wrong
    assert "\x1b[1;31m" not in sound


class ClosedPipe(io.StringIO):
    """A screen that has gone away after the first text."""

    def __init__(self) -> None:
        super().__init__()
        self.written = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def write(self, text: str) -> int:
        self._loop.call_soon_threadsafe(self.written.set)
        raise BrokenPipeError


async def test_a_screen_that_goes_away_ends_the_view_only(ledger: Ledger) -> None:
    pipe = ClosedPipe()
    async with Summary(lambda: taken(ledger), Console(file=pipe)):
        await pipe.written.wait()
