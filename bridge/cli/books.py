"""The bridge's books: who has changed what, what became of every message, and how the sinks get on."""

from __future__ import annotations

import json
from typing import Annotated, Any, Final

import typer

from bridge.cli import terminal
from bridge.cli.api import connect
from bridge.cli.terminal import JsonOption

PAGE: Final = 1_000
"""Lines in one answer."""


def audit(
    limit: Annotated[int, typer.Option(min=1, help="Show the latest so many.")] = 50, as_json: JsonOption = False
) -> None:
    """Show who sent which command and changed what, the latest first. Needs an admin's token where one is needed."""
    found: list[dict[str, Any]] = []
    with connect() as api:
        following: int | None = None
        while len(found) < limit:
            wanted = {"limit": min(PAGE, limit - len(found)), **({} if following is None else {"before": following})}
            page = api.get("/api/v1/audit", wanted)
            found += page["audit"]
            following = page["next"]
            if following is None:
                break
    if as_json:
        print(json.dumps(found))
        return
    rows = [
        (
            terminal.local(line["at"], "%Y-%m-%d %H:%M:%S"),
            line["who"],
            line["address"],
            line["action"],
            line["target"],
            line["detail"],
        )
        for line in found
    ]
    columns = ("at", "who", "from", "what", "target", "detail")
    terminal.console().print(terminal.table(columns, rows) if rows else "Nobody has changed anything.")


def ledger(as_json: JsonOption = False) -> None:
    """Show what became of every message since the start. Exit code 1 if that is not known of all of them."""
    with connect() as api:
        found = api.get("/api/v1/ledger")
    if as_json:
        print(json.dumps(found))
    else:
        dropped = found.pop("dropped")
        rows = [(name.replace("_", " "), f"{count:,}") for name, count in found.items()]
        rows += [(f"dropped: {reason}", f"{count:,}") for reason, count in dropped.items()]
        terminal.console().print(terminal.table(("", ""), rows))
    if found["difference"]:
        raise typer.Exit(1)


def sinks(as_json: JsonOption = False) -> None:
    """Show the sinks: what they have taken, how far they are behind, and what keeps them."""
    with connect() as api:
        found = api.get("/api/v1/sinks")["sinks"]
    if as_json:
        print(json.dumps(found))
        return
    rows = [
        (
            sink["name"],
            f"{sink['delivered']:,}",
            f"{sink['refused']:,}",
            f"{sink['retries']:,}",
            f"{sink['lag']:,.1f} s",
            sink["trouble"] or "",
        )
        for sink in found
    ]
    columns = ("sink", "delivered", "refused", "retries", "behind", "trouble")
    terminal.console().print(
        terminal.table(columns, rows) if rows else "There are no sinks: see [sinks] in the settings."
    )
