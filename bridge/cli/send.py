"""Send a command to a device or to many, now or at a time, and follow it to its end."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final
from urllib.parse import quote

import typer

from bridge.cli import terminal
from bridge.cli.api import Api, connect
from bridge.cli.completion import device_ids
from bridge.cli.terminal import JsonOption

WAIT: Final = 20.0
"""Seconds that one look at a command or a rollout waits for news."""
FINAL: Final = ("succeeded", "failed", "expired", "cancelled")
SHOWN: Final = 10
"""Devices that did not succeed and are named at the end."""
UNSUCCESSFUL: Final = 3
"""Exit code: at least one device did not do what it was told."""


def send(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[DEVICE]... NAME",
            help="The devices' ids, none with --tag, --profile, --status or --all; last the command, as they know it.",
            autocompletion=device_ids,
            show_default=False,
        ),
    ],
    arg: Annotated[list[str] | None, typer.Option(help="An argument, key=value; may be given again.")] = None,
    args: Annotated[str | None, typer.Option(help="All arguments as one JSON value.")] = None,
    ttl: Annotated[
        float | None, typer.Option(help="Seconds until the command expires.", show_default="the bridge's")
    ] = None,
    attempts: Annotated[
        int | None,
        typer.Option(help="Requests sent while the device acknowledges none.", show_default="the bridge's"),
    ] = None,
    retry_after: Annotated[
        float | None, typer.Option(help="Seconds from one of these to the next.", show_default="the bridge's")
    ] = None,
    key: Annotated[
        str | None, typer.Option("--id", help="Idempotency key: sent again, it is the same command.")
    ] = None,
    tag: Annotated[str | None, typer.Option(help="To the devices with this tag.")] = None,
    profile: Annotated[str | None, typer.Option(help="To the devices of this profile.")] = None,
    status: Annotated[str | None, typer.Option(help="To those that are online, silent, offline or unknown.")] = None,
    everyone: Annotated[bool, typer.Option("--all", help="To every device that is known.")] = False,
    rollout: Annotated[
        int | None, typer.Option(min=1, help="To many: so many unfinished at a time.", show_default="100")
    ] = None,
    stop_after_failures: Annotated[
        str | None, typer.Option(metavar="N or P%", help="To many: no further device after so many failures.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="To many: show who would get it, and send nothing.")] = False,
    at: Annotated[
        str | None, typer.Option(metavar="TIME", help="Once, at this time (RFC 3339; local if it has no zone).")
    ] = None,
    cron: Annotated[
        str | None, typer.Option(metavar="'M H DoM M DoW'", help="Whenever this cron expression comes true.")
    ] = None,
    tz: Annotated[str | None, typer.Option(help="Time zone of --cron.", show_default="UTC")] = None,
    grace: Annotated[
        float | None,
        typer.Option(min=0, help="With --at or --cron: seconds that a missed run may be late.", show_default="300"),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow it to its end.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Send a command and show what becomes of it.

    Exit code 0: every device succeeded (with --no-wait, --at or --cron: it is stored). 1: the bridge refused it, or
    does not answer. 3: at least one device failed, or its command expired or was cancelled.
    """
    *devices, name = words
    target = _given(tag=tag, profile=profile, status=status, everyone=everyone or None)
    if not devices and not target:
        raise typer.BadParameter("say to whom: DEVICE, --tag, --profile, --status or --all", param_hint="DEVICE")
    if devices and target:
        raise typer.BadParameter("give either devices or --tag, --profile, --status, --all", param_hint="DEVICE")
    body = _given(
        name=name, args=_arguments(arg or [], args), ttl=ttl, attempts=attempts, retry_after=retry_after, id=key
    )
    when = _given(at=_moment(at), cron=cron, tz=tz, grace=grace)
    if when and at is None and cron is None:
        raise typer.BadParameter("--tz and --grace go with --at or --cron", param_hint="--at")
    many = _given(at_once=rollout, stop_after=stop_after_failures)
    whom = {"devices": devices} if devices else target
    with connect() as api:
        if dry_run:
            _preview(api, whom, as_json=as_json)
        elif when:
            schedule = api.post("/api/v1/schedules", {**body, **when, **many, "target": whom})
            print(json.dumps(schedule) if as_json else schedule["schedule_id"])
        elif len(devices) != 1 or many:
            _roll_out(api, {**body, **many, "target": whom}, wait=wait, as_json=as_json)
        else:
            _send_one(api, devices[0], body, wait=wait, as_json=as_json)


def _send_one(api: Api, device: str, body: Mapping[str, Any], *, wait: bool, as_json: bool) -> None:
    command = api.post(f"/api/v1/devices/{quote(device, safe='')}/commands", body)
    if not wait:
        print(json.dumps(command) if as_json else command["command_id"])
        return
    if not as_json:
        name = terminal.safe(body["name"])
        print(f"command {command['command_id']}: {name} for {terminal.safe(device)}", flush=True)
    view = _follow(api, command["command_id"], quiet=as_json)
    if as_json:
        print(json.dumps(view))
    else:
        _print_end(view["command"])
    if view["command"]["status"] != "succeeded":
        raise typer.Exit(UNSUCCESSFUL)


# ---------------------------------------------------------------------- to many


def _preview(api: Api, target: Mapping[str, Any], *, as_json: bool) -> None:
    found = api.post("/api/v1/rollouts/preview", target)
    if as_json:
        print(json.dumps(found))
        return
    print(f"{found['total']:,} devices")
    for device in found["first"]:
        print(f"  {terminal.safe(device)}")
    if found["total"] > len(found["first"]):
        print("  …")


def _roll_out(api: Api, body: Mapping[str, Any], *, wait: bool, as_json: bool) -> None:
    view = api.post("/api/v1/rollouts", body)
    rollout_id = view["rollout_id"]
    if not wait:
        print(json.dumps(view) if as_json else rollout_id)
        return
    if not as_json:
        print(f"rollout {rollout_id}: {terminal.safe(body['name'])} for {view['total']:,} devices", flush=True)
    view = _follow_rollout(api, view)
    unsuccessful = view["total"] - view["counts"].get("succeeded", 0)
    if as_json:
        print(json.dumps(view))
    else:
        _print_rollout(api, view)
    if unsuccessful > 0 or view["status"] != "finished":
        raise typer.Exit(UNSUCCESSFUL)


def _follow_rollout(api: Api, view: dict[str, Any]) -> dict[str, Any]:
    """Wait for the rollout's end and that of all its commands, with a bar where there is a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    screen = terminal.console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=screen, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("", total=view["total"])
        while True:
            bar.update(task, completed=view["ended"], total=view["total"], description=_counts(view["counts"]))
            if view["status"] != "running" and all(status in FINAL for status in view["counts"]):
                return view
            seen = {"wait": WAIT, "ended": view["ended"]}
            view = api.get(f"/api/v1/rollouts/{view['rollout_id']}", seen, wait=WAIT)


def _print_rollout(api: Api, view: Mapping[str, Any]) -> None:
    from rich.text import Text

    print(f"{view['status']}: {_counts(view['counts']) or 'no device'}, of {view['total']:,}")
    if view["status"] != "finished":
        print(f"cause: {terminal.safe(view['cause'])}")
    if view["refused"]:
        print(f"refused: {view['refused']}")
    for status in FINAL[1:]:
        if not view["counts"].get(status):
            continue
        wanted = {"rollout": view["rollout_id"], "status": status, "limit": SHOWN}
        for command in api.get("/api/v1/commands", wanted)["commands"]:
            line = Text.assemble("  ", terminal.safe(command["device_id"]), "  ", terminal.status(status))
            terminal.console().print(line.append(f"  {terminal.safe(command['error'] or '')}"))


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} {status.replace('_', ' ')}" for status, number in sorted(counts.items()))


# ---------------------------------------------------------------------- what was typed


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _moment(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).astimezone().isoformat()
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no time as 2030-01-31T08:00", param_hint="--at") from error


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
    from rich.text import Text

    events: list[dict[str, Any]] = []
    screen = terminal.console()
    while True:
        seen = events[-1]["seq"] if events else 0
        view = api.get(f"/api/v1/commands/{command_id}", {"wait": WAIT, "after_seq": seen}, wait=WAIT)
        for event in view["events"]:
            events.append(event)
            if not quiet:
                step = Text.assemble(terminal.local(event["at"]), "  ", terminal.status(f"{event['status']:<12}"))
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
