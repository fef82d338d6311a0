"""`mqtt-bridge top`: a running bridge at a glance, live."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from bridge.cli import terminal
from bridge.cli.api import Api, ApiError, connect
from bridge.cli.telemetry import sparkline
from bridge.cli.terminal import JsonOption

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

PLOTTED: Final = ("messages_per_second", "commit_ms", "loop_lag_p99_ms")
"""Of the last hour's figures: those that are shown as a line."""
SLOW: Final = 5
"""Agents that have not been done for more than a second, of which so many are shown."""


def top(
    every: Annotated[float, typer.Option(min=0.2, metavar="SECONDS", help="Between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show rates, devices, slow agents, the ledger, database and sinks of a running bridge, until Ctrl-C.

    Where the output is no terminal, and with --json, it looks once.
    """
    screen = terminal.console()
    with connect() as api:
        summary, history = _look(api)
        if as_json:
            print(json.dumps({**summary, "history": history}))
            return
        if once or not screen.is_terminal:
            screen.print(view(summary, history))
            return
        from rich.live import Live

        with Live(view(summary, history), console=screen, auto_refresh=False, screen=True) as live:
            while True:
                time.sleep(every)
                try:
                    summary, history = _look(api)
                except ApiError as error:
                    # It may be being restarted: the view goes on when it is back.
                    live.update(terminal.text(f"{error}\nlooking again; Ctrl-C ends this"), refresh=True)
                else:
                    live.update(view(summary, history), refresh=True)


def _look(api: Api) -> tuple[Mapping[str, Any], Mapping[str, Sequence[float]]]:
    slow = api.get("/api/v1/agents", {"limit": SLOW})["waiting"]
    return {**api.get("/api/v1/summary"), "slow_agents": slow}, api.get("/api/v1/summary/history")


def view(summary: Mapping[str, Any], history: Mapping[str, Sequence[float]]) -> Table:
    """What is shown: the lines of the summary, slow agents, the database and each sink, and the last hour."""
    from rich.table import Table
    from rich.text import Text

    from bridge.cli.summary import rows

    lines = rows(summary)
    agents = ", ".join(f"{name} {count:,}" for name, count in summary["agents"].items())
    lines.append(("agents", Text(f"{agents}; the loop is late by {summary['loop_lag_p99_ms']} ms (p99)")))
    for slow in summary.get("slow_agents", ()):
        what = f"{slow['reason']} {slow['handler']}".strip()
        waits = f"waits for {slow['seconds']:,.1f} s ({what}), {slow['messages']:,} messages behind it"
        lines.append(
            ("slow agent", Text.assemble((terminal.safe(slow["device_id"]), "yellow"), " ", terminal.safe(waits)))
        )
    lines.append(("database", _database(summary)))
    lines += [(f"sink {terminal.safe(sink['name'])}", _sink(sink)) for sink in summary.get("sinks", ())]
    for name in PLOTTED:
        values = history.get(name, ())
        if len(values) > 1:
            lines.append((name.replace("_", " "), Text(f"{sparkline(values)}  at most {max(values):,g}")))
    grid = Table.grid(padding=(0, 2))
    for name, text in lines:
        grid.add_row(Text(name, "bold"), text)
    return grid


def _database(summary: Mapping[str, Any]) -> Text:
    from rich.text import Text

    database, spool = summary.get("database") or {}, summary.get("spool")
    breaker = database.get("breaker", "")
    text = Text.assemble(database.get("dialect", ""), ", ", _breaker(breaker))
    if spool is not None:
        waiting = f", spool: {spool['waiting']:,} rows, {spool['bytes']:,} bytes"
        text.append(waiting, "bold red" if spool["active"] or spool["stuck"] else "")
        if spool["reason"]:
            text.append(f" ({terminal.safe(spool['reason'])})")
    return text


def _sink(sink: Mapping[str, Any]) -> Text:
    from rich.text import Text

    figures = f"delivered {sink['delivered']:,}, refused {sink['refused']:,}, {sink['lag']:,.1f} s behind"
    text = Text.assemble(_breaker(sink["breaker"]), f", {figures}")
    if sink["trouble"]:
        text.append(f": {terminal.safe(sink['trouble'])}", "red")
    return text


def _breaker(state: str) -> tuple[str, str]:
    """What a breaker's state means for the backend behind it."""
    shown = {"closed": ("answers", "green"), "half_open": ("is tried again", "yellow")}
    return shown.get(state, ("does not answer", "bold red"))
