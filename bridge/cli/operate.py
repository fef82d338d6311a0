"""What an operator does with a running bridge: `devices`, `send`, `deadletters`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import typer

from bridge.cli import terminal
from bridge.cli.api import connect
from bridge.cli.terminal import JsonOption

PAGE: Final = 1_000
"""Devices per page: the most that the API gives at once."""


def devices(
    as_json: JsonOption = False,
    limit: Annotated[int, typer.Option(min=1, help="Show at most so many, in the order of their ids.")] = 1_000,
) -> None:
    """List the devices: status, when they were last heard, their last readings."""
    found: list[dict[str, Any]] = []
    following = ""
    with connect() as api:
        while len(found) < limit:
            page = api.get("/api/v1/devices", {"limit": min(PAGE, limit - len(found)), "after": following})
            found += page["devices"]
            following = page.get("next") or ""
            if not following:
                break
    if as_json:
        print(json.dumps(found))
        return
    now = datetime.now(UTC)
    rows = [
        (
            device.get("device_id", ""),
            terminal.status(device.get("status", "")),
            _ago(now, device.get("last_seen")),
            f"{device.get('messages', 0):,}",
            _readings(device.get("streams", {})),
        )
        for device in found
    ]
    terminal.console().print(terminal.table(("device", "status", "last seen", "messages", "last reading"), rows))
    if following:
        terminal.console(stderr=True).print(f"There are more: --limit {limit * 10}")


def deadletters(
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="Show the latest so many.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """List the messages that were refused, the latest first, with the reason."""
    with connect() as api:
        letters = api.get("/api/v1/dead-letters", {"limit": limit})["dead_letters"]
    if as_json:
        print(json.dumps(letters))
        return
    columns = ("at", "reason", "topic", "error", "payload")
    rows = [
        (
            terminal.local(letter["at"], "%Y-%m-%d %H:%M:%S"),
            letter["reason"],
            letter["topic"][:120],
            letter["error"],
            letter["payload"][:60],
        )
        for letter in letters
    ]
    terminal.console().print(terminal.table(columns, rows) if rows else "Nothing was refused.")


def _ago(now: datetime, moment: str | None) -> str:
    if moment is None:
        return ""
    seconds = max(0, int((now - datetime.fromisoformat(moment)).total_seconds()))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


def _readings(streams: Mapping[str, Any]) -> str:
    """The last values of each stream, without the id and the time of the reading."""
    texts = []
    for stream, latest in streams.items():
        values = latest.get("values") if isinstance(latest, dict) else None
        if isinstance(values, dict):
            shown = ", ".join(f"{key} {value}" for key, value in values.items() if key not in ("id", "ts"))
            texts.append(shown if stream == "default" else f"{stream}: {shown}")
    return "; ".join(texts)[:120]
