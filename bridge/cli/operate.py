"""The devices of a running bridge: all of them, and one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final
from urllib.parse import quote

import typer

from bridge.cli import terminal
from bridge.cli.api import connect
from bridge.cli.terminal import JsonOption

PAGE: Final = 1_000
"""Devices per page: the most that the API gives at once."""
COMMANDS: Final = 5
"""Commands of one device that are shown."""


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


def show(device: str, as_json: bool) -> None:
    """Print all that is known of a device."""
    path = quote(device, safe="")
    with connect() as api:
        entry = api.get(f"/api/v1/registry/{path}")
        seen = api.get(f"/api/v1/devices/{path}")
        twin = api.get(f"/api/v1/devices/{path}/twin")
        sent = api.get("/api/v1/commands", {"device": device, "limit": COMMANDS})["commands"]
    if as_json:
        print(json.dumps({**seen, **entry, "twin": twin, "commands": sent}, indent=2, ensure_ascii=False))
        return
    now = datetime.now(UTC)
    trip = seen.get("round_trip")
    rows: list[tuple[str, object]] = [
        ("device", device),
        ("status", terminal.status(seen["status"])),
        ("last seen", _ago(now, seen["last_seen"])),
        ("messages", f"{seen['messages']:,}"),
        ("profile", seen["profile"] or ""),
        ("tags", " ".join(seen["tags"])),
        ("metadata", json.dumps(seen["metadata"], ensure_ascii=False) if seen["metadata"] else ""),
        ("round trip", "" if trip is None else f"{trip['last'] * 1000:,.1f} ms"),
        *((f"stream {name}", _readings({"default": latest})) for name, latest in seen["streams"].items()),
        ("desired", json.dumps(twin["desired"], ensure_ascii=False)),
        ("reported", json.dumps(twin["reported"], ensure_ascii=False)),
        *(
            ("command", f"{_ago(now, command['created_at'])}: {command['name']} {command['status']}")
            for command in sent
        ),
    ]
    terminal.console().print(terminal.table(("", ""), rows))


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
