"""What an operator does with a running bridge: `devices`, `send`, `deadletters`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final
from urllib.parse import quote

import typer
from rich.text import Text

from bridge.cli import terminal
from bridge.cli.api import Api, connect
from bridge.cli.terminal import JsonOption

PAGE: Final = 1_000
"""Devices per page: the most that the API gives at once."""
WAIT: Final = 20.0
"""Seconds that one look at a command waits for its next step."""
FINAL: Final = ("succeeded", "failed", "expired", "cancelled")
COLOURS: Final = {
    "online": "green",
    "silent": "yellow",
    "offline": "red",
    "succeeded": "green",
    **dict.fromkeys(("failed", "expired", "cancelled"), "red"),
}


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
            _status(device.get("status", "")),
            _ago(now, device.get("last_seen")),
            f"{device.get('messages', 0):,}",
            _readings(device.get("streams", {})),
        )
        for device in found
    ]
    terminal.console().print(terminal.table(("device", "status", "last seen", "messages", "last reading"), rows))
    if following:
        terminal.console(stderr=True).print(f"There are more: --limit {limit * 10}")


def send(
    device: Annotated[str, typer.Argument(help="The device's id.")],
    name: Annotated[str, typer.Argument(help="The command, as the device knows it.")],
    arg: Annotated[list[str] | None, typer.Option(help="An argument, key=value; may be given again.")] = None,
    args: Annotated[str | None, typer.Option(help="All arguments as one JSON value.")] = None,
    ttl: Annotated[
        float | None, typer.Option(help="Seconds until the command expires.", show_default="the bridge's")
    ] = None,
    key: Annotated[
        str | None, typer.Option("--id", help="Idempotency key: sent again, it is the same command.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow it to its end.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Send a command to a device and show what becomes of it. Exit code 3: it did not succeed."""
    body = {"name": name, "args": _arguments(arg or [], args), "ttl": ttl, "id": key}
    with connect() as api:
        command = api.post(
            f"/api/v1/devices/{quote(device, safe='')}/commands",
            {name: value for name, value in body.items() if value is not None},
        )
        if not wait:
            print(json.dumps(command) if as_json else command["command_id"])
            return
        if not as_json:
            print(f"command {command['command_id']}: {terminal.safe(name)} for {terminal.safe(device)}", flush=True)
        view = _follow(api, command["command_id"], quiet=as_json)
    if as_json:
        print(json.dumps(view))
    else:
        _print_end(view["command"])
    if view["command"]["status"] != "succeeded":
        raise typer.Exit(3)


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
            _local(letter["at"], "%Y-%m-%d %H:%M:%S"),
            letter["reason"],
            letter["topic"][:120],
            letter["error"],
            letter["payload"][:60],
        )
        for letter in letters
    ]
    terminal.console().print(terminal.table(columns, rows) if rows else "Nothing was refused.")


def _arguments(pairs: list[str], document: str | None) -> Any:
    """The command's arguments; None for none. A value that is JSON is taken as such, else as a text."""
    if pairs and document is not None:
        raise typer.BadParameter("give either --arg or --args", param_hint="--args")
    if document is not None:
        try:
            return json.loads(document)
        except ValueError as error:
            raise typer.BadParameter(f"not JSON: {error}", param_hint="--args") from error
    arguments = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f"{pair!r} is not key=value", param_hint="--arg")
        try:
            arguments[key] = json.loads(value)
        except ValueError:
            arguments[key] = value
    return arguments or None


def _follow(api: Api, command_id: str, *, quiet: bool) -> dict[str, Any]:
    """Wait for the command's end, printing each step; the command with all its steps."""
    events: list[dict[str, Any]] = []
    screen = terminal.console()
    while True:
        seen = events[-1]["seq"] if events else 0
        view = api.get(f"/api/v1/commands/{command_id}", {"wait": WAIT, "after_seq": seen}, wait=WAIT)
        for event in view["events"]:
            events.append(event)
            if not quiet:
                step = Text.assemble(_local(event["at"]), "  ", _status(f"{event['status']:<12}"))
                screen.print(step.append(terminal.safe(event.get("cause", "")), "dim"))
        # The steps may have been read before the last one: what counts is that the last one is there.
        if events and events[-1]["status"] in FINAL:
            return {"command": view["command"], "events": events}
        if view["command"]["status"] in FINAL and not view["events"]:
            return {"command": view["command"], "events": events}


def _print_end(command: Mapping[str, Any]) -> None:
    if command.get("result") is not None:
        print(f"result: {terminal.safe(json.dumps(command['result']))}")
    if command.get("error"):
        print(f"error: {terminal.safe(command['error'])}")


def _status(status: str) -> Text:
    return Text(terminal.safe(status), COLOURS.get(status.strip(), ""))


def _local(moment: str, form: str = "") -> str:
    """An RFC 3339 time as the local clock shows it: by default hours to milliseconds."""
    local = datetime.fromisoformat(moment).astimezone()
    return local.strftime(form) if form else local.time().isoformat("milliseconds")


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
