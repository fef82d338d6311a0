"""What was sent: commands, rollouts and schedules, and how to call them off."""

from __future__ import annotations

import json
from typing import Annotated, Any
from urllib.parse import quote

import typer

from bridge.cli import terminal
from bridge.cli.api import connect
from bridge.cli.completion import device_ids
from bridge.cli.terminal import JsonOption

LimitOption = Annotated[int, typer.Option(min=1, max=1_000, help="Show the newest so many.")]
DATE = "%Y-%m-%d %H:%M:%S"


def commands(
    device: Annotated[str | None, typer.Option(help="Of this device.", autocompletion=device_ids)] = None,
    status: Annotated[str | None, typer.Option(help="In this status.")] = None,
    rollout: Annotated[str | None, typer.Option(help="Of this rollout.")] = None,
    limit: LimitOption = 50,
    as_json: JsonOption = False,
) -> None:
    """List commands, the newest first."""
    wanted = {"device": device, "status": status, "rollout": rollout, "limit": limit}
    given: dict[str, Any] = {name: value for name, value in wanted.items() if value is not None}
    found: list[dict[str, Any]] = []
    with connect() as api:
        while len(found) < limit:
            page = api.get("/api/v1/commands", given)
            found += page["commands"]
            given["before"] = page["next"]
            if page["next"] is None:
                break
    del found[limit:]
    rows = [
        (
            terminal.local(command["created_at"], DATE),
            command["command_id"],
            command["device_id"],
            command["name"],
            terminal.status(command["status"]),
            command["error"] or "",
        )
        for command in found
    ]
    _show(found, ("created", "id", "device", "name", "status", "error"), rows, as_json=as_json)


def rollouts(limit: LimitOption = 50, as_json: JsonOption = False) -> None:
    """List rollouts, the newest first."""
    with connect() as api:
        found = api.get("/api/v1/rollouts", {"limit": limit})["rollouts"]
    rows = [
        (
            terminal.local(rollout["created_at"], DATE),
            rollout["rollout_id"],
            rollout["name"],
            json.dumps(rollout["target"])[:60],
            f"{rollout['total']:,}",
            rollout["status"],
            rollout["cause"],
        )
        for rollout in found
    ]
    _show(found, ("created", "id", "name", "target", "devices", "status", "cause"), rows, as_json=as_json)


def schedules(limit: LimitOption = 50, as_json: JsonOption = False) -> None:
    """List schedules, the newest first."""
    with connect() as api:
        found = api.get("/api/v1/schedules", {"limit": limit})["schedules"]
    rows = [
        (
            schedule["schedule_id"],
            schedule["name"],
            json.dumps(schedule["target"])[:60],
            f"{schedule['cron']} {schedule['tz']}" if schedule["cron"] else "once",
            schedule["status"],
            terminal.local(schedule["next_at"], DATE) if schedule["next_at"] else "",
        )
        for schedule in found
    ]
    _show(found, ("id", "name", "target", "when", "status", "next"), rows, as_json=as_json)


def cancel(
    what: Annotated[str, typer.Argument(metavar="ID", help="Of a command, a rollout (r-…) or a schedule (s-…).")],
    as_json: JsonOption = False,
) -> None:
    """Cancel a command, a rollout with what it has not finished, or a schedule."""
    kind = {"r-": "rollouts", "s-": "schedules"}.get(what[:2], "commands")
    with connect() as api:
        view = api.post(f"/api/v1/{kind}/{quote(what, safe='')}/cancel", None)
    print(json.dumps(view) if as_json else f"{terminal.safe(what)} is cancelled")


def _show(found: Any, columns: tuple[str, ...], rows: list[Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(found))
    else:
        terminal.console().print(terminal.table(columns, rows) if rows else "There are none.")
