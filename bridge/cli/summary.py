"""The bridge at a glance, renewed in place in a terminal, elsewhere as one plain line every few seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, Self, final

import structlog
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bridge.commands import CommandStatus

REDRAW: Final = 0.5
LINE_EVERY: Final = 5.0
PRESENCES: Final = {"online": "green", "silent": "yellow", "offline": "red", "unknown": "dim"}

log = structlog.get_logger(__name__)


@final
class Summary:
    """Shows what `take` returns, as long as the context lasts. A screen that fails ends the view and nothing else."""

    def __init__(self, take: Callable[[], Mapping[str, Any]], screen: Console) -> None:
        self._take = take
        self._screen = screen
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._show(), name="summary")
        self._task.add_done_callback(_report)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _show(self) -> None:
        # In a thread: a terminal that is stopped with Ctrl-S must not stop the bridge.
        if not self._screen.is_terminal:
            while True:
                await asyncio.to_thread(_draw, self._screen.print, Text(line(self._take())))
                await asyncio.sleep(LINE_EVERY)
        with Live(panel(self._take()), console=self._screen, auto_refresh=False) as live:
            try:
                while True:
                    await asyncio.to_thread(_draw, live.update, panel(self._take()), refresh=True)
                    await asyncio.sleep(REDRAW)
            finally:
                # What stays on the screen is how it ended.
                live.update(panel(self._take()))


def _draw(draw: Callable[..., None], *what: Any, **how: Any) -> None:
    """Rich ends the whole program when the reader of its output has gone; here that ends the view."""
    try:
        draw(*what, **how)
    except SystemExit as error:
        raise BrokenPipeError("nobody reads the output any more") from error


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.warning("the summary has ended", error=str(error) or type(error).__name__)


def rows(summary: Mapping[str, Any]) -> list[tuple[str, Text]]:
    """What is shown: a name and a text each."""
    devices, commands, ledger = summary["devices"], summary["commands"], summary["ledger"]
    dropped = sum(ledger["dropped"].values())
    presences = [(f"{name} {devices.get(name, 0)}", style) for name, style in PRESENCES.items()]
    # They are counted at each step: those that have not ended are the difference.
    ended = {status.value: commands.get(status, 0) for status in CommandStatus if status.final}
    numbers = {"under way": max(0, commands.get(CommandStatus.QUEUED, 0) - sum(ended.values())), **ended}
    counted = [f"{name} {number:,}" for name, number in numbers.items() if number]
    settled = [
        f"received {ledger['received']:,}",
        f"committed {ledger['committed']:,}",
        f"deduplicated {ledger['deduplicated']:,}",
        f"dead letters {ledger['dead_lettered']:,}",
        f"dropped {dropped:,}",
        f"in flight {ledger['in_flight']:,}",
    ]
    difference = ledger["difference"]
    return [
        ("devices", _joined([*presences, (f"known {devices.get('known', 0)}", "")])),
        (
            "messages",
            Text(f"{summary['messages_per_second']:,.1f}/s, committed {summary['committed_per_second']:,.1f}/s"),
        ),
        ("commands", Text(", ".join(counted) or "none yet")),
        (
            "ledger",
            _joined([(", ".join(settled), ""), (f"difference {difference}", "bold red" if difference else "green")]),
        ),
    ]


def panel(summary: Mapping[str, Any]) -> Table:
    """The summary for a terminal."""
    grid = Table.grid(padding=(0, 2))
    for name, text in rows(summary):
        grid.add_row(Text(name, "bold"), text)
    return grid


def line(summary: Mapping[str, Any]) -> str:
    """The summary as one line."""
    return " | ".join(f"{name}: {text.plain}" for name, text in rows(summary))


def _joined(parts: list[tuple[str, str]]) -> Text:
    return Text(", ").join(Text(text, style) for text, style in parts)
