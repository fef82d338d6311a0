"""What an operator does: list devices and dead letters, send a command, watch the messages."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import aiomqtt
import typer
from rich.console import Console
from rich.text import Text

from bridge.cli import api
from bridge.cli.screen import cell, console, printable, table
from bridge.commands import CommandStatus
from bridge.errors import BridgeError
from bridge.settings import Settings

NOT_DONE: Final = 3
"""Exit code of `send` for a command that failed, expired or was cancelled."""
TAIL_QUEUE: Final = 10_000
"""Messages that wait to be printed; when the screen is slower than the devices, more are left out."""

Url = Annotated[
    str | None,
    typer.Option(envvar="BRIDGE_URL", help="The bridge's HTTP address; without it, what the settings here say."),
]
Token = Annotated[str | None, typer.Option(envvar="BRIDGE_TOKEN", help="The bridge's http.token.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")]
Limit = Annotated[int, typer.Option(min=1, max=100_000, help="How many at most.")]

_STYLES: Final = {
    "online": "green", "silent": "yellow", "offline": "red", "unknown": "dim",
    "succeeded": "green", "in_progress": "cyan", "failed": "red", "expired": "red", "cancelled": "yellow",
    "telemetry": "green", "event": "magenta", "command": "cyan", "presence": "yellow", "error": "red",
}  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add `devices`, `deadletters`, `send` and `tail`."""
    app.command()(devices)
    app.command()(deadletters)
    app.command()(send)
    app.command()(tail)


def devices(limit: Limit = 1000, as_json: AsJson = False, url: Url = None, token: Token = None) -> None:
    """List the devices that the bridge knows."""
    with api.connect(url, token) as bridge:
        found = list(bridge.devices(limit))
    if as_json:
        _print_json(found)
        return
    listing = table("device", "status", "last heard", "messages", "streams")
    for device in found:
        listing.add_row(
            cell(device["device_id"]),
            cell(device["status"], _STYLES.get(device["status"], "")),
            cell(_local(device["last_seen"])),
            cell(device["messages"]),
            cell(", ".join(device["streams"])),
        )
    console().print(listing if found else "no devices yet")
    if len(found) == limit:
        console().print(f"The first {limit}; --limit shows more.", style="dim")


def deadletters(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most.")] = 100,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """List the messages that were refused, the latest first, each with its reason."""
    with api.connect(url, token) as bridge:
        found = bridge.dead_letters(limit)
    if as_json:
        _print_json(found)
        return
    listing = table("received", "topic", "reason", "error", "payload")
    for letter in found:
        listing.add_row(
            cell(_local(letter["at"])),
            cell(letter["topic"]),
            cell(letter["reason"], "red"),
            cell(letter["error"]),
            cell(_short(letter["payload"])),
        )
    console().print(listing if found else "no dead letters")


def send(
    device: Annotated[str, typer.Argument(help="The device's id.", show_default=False)],
    name: Annotated[str, typer.Argument(help="What it is to do, for example reboot.", show_default=False)],
    arg: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="An argument; the value may be JSON. Can be given several times."),
    ] = None,
    args: Annotated[str | None, typer.Option(metavar="JSON", help="All arguments as one JSON value.")] = None,
    ttl: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="When to give up; the bridge has a default.")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--id", help="Idempotency key: sent again with the same one, it is the same command."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the command to its end.")] = True,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Send a command to a device and show what becomes of it.

    Exit code 0: it succeeded, or was stored with --no-wait; 3: it failed, expired or was cancelled.
    """
    given = {"name": name, "args": _arguments(arg, args), "ttl": ttl, "id": key}
    with api.connect(url, token) as bridge:
        command = bridge.send(device, {field: value for field, value in given.items() if value is not None})
        if not wait:
            if as_json:
                _print_json({"command": command, "events": []})
            else:
                typer.echo(f"{command['command_id']} {command['status']}")
            return
        command, steps = _follow(bridge, command, quiet=as_json)
    if as_json:
        _print_json({"command": command, "events": steps})
    if command["status"] != CommandStatus.SUCCEEDED:
        raise typer.Exit(NOT_DONE)


def _follow(bridge: api.Api, command: dict[str, Any], *, quiet: bool) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The command at its end and all its steps; each is printed when it comes, unless `quiet`."""
    screen = console()
    steps: list[dict[str, Any]] = []
    try:
        for now, news in bridge.follow(command["command_id"]):
            command = now
            steps += news
            if not quiet:
                for step in news:
                    _print_step(screen, step)
    except BridgeError as error:
        raise BridgeError(
            f"{error}. The command is stored: the same one with --id {command['key']} goes on following it"
        ) from error
    if not quiet:
        if command["error"]:
            screen.print(Text(printable(command["error"]), "red"))
        if command["result"] is not None:
            screen.print(Text(printable(json.dumps(command["result"], ensure_ascii=False))))
    return command, steps


def _print_step(screen: Console, step: dict[str, Any]) -> None:
    screen.print(
        Text.assemble(
            (_local(step["at"], "%H:%M:%S.%f")[:-3], "dim"),
            "  ",
            (f"{step['status']:<11}", _STYLES.get(step["status"], "")),
            "  ",
            (printable(step["cause"]), "dim"),
        )
    )


def _arguments(pairs: list[str] | None, whole: str | None) -> Any:
    """The command's arguments. Raises typer.BadParameter."""
    if whole is not None:
        if pairs:
            raise typer.BadParameter("use --arg or --args, not both")
        try:
            return json.loads(whole)
        except ValueError as error:
            raise typer.BadParameter(f"--args is not JSON: {error}") from error
    if not pairs:
        return None
    arguments: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"--arg {pair!r}: write NAME=VALUE")
        try:
            arguments[name] = json.loads(value)
        except ValueError:
            arguments[name] = value
    return arguments


def tail(
    device: Annotated[str, typer.Option(metavar="ID", help="Only this device.")] = "",
    topic: Annotated[str, typer.Option(metavar="FILTER", help="This topic filter instead of the bridge's own.")] = "",
    host: Annotated[str, typer.Option(help="The broker; without it, what the settings here say.")] = "",
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="The broker's port.", show_default=False)] = None,
    username: Annotated[str | None, typer.Option(help="For brokers that ask for one.", show_default=False)] = None,
    password: Annotated[
        str | None, typer.Option(envvar="MQTT_PASSWORD", help="Better in the variable.", show_default=False)
    ] = None,
) -> None:
    """Show the messages at the broker as they come, until Ctrl-C."""
    if device and topic:
        raise typer.BadParameter("use --device or --topic, not both")
    settings = Settings.load()
    host = host or api.reachable(settings.mqtt.host)
    port = port or settings.mqtt.port
    pattern = topic or f"{settings.topic_root}/{device or '+'}/#"
    asyncio.run(_tail(host, port, username, password, pattern, len(settings.topic_root.split("/")) + 1))


async def _tail(
    host: str, port: int, username: str | None, password: str | None, pattern: str, kind_level: int
) -> None:
    screen = console()
    try:
        async with aiomqtt.Client(
            host, port, username=username, password=password, max_queued_incoming_messages=TAIL_QUEUE
        ) as client:
            granted = await client.subscribe(pattern)
            if any((code if isinstance(code, int) else code.value) >= 0x80 for code in granted):
                raise BridgeError(f"the broker at {host}:{port} does not let this client read {pattern!r}")
            async for message in client.messages:
                _print_message(screen, message, kind_level)
    except (aiomqtt.MqttError, ValueError) as error:
        raise BridgeError(f"broker at {host}:{port}: {error}") from error


def _print_message(screen: Console, message: aiomqtt.Message, kind_level: int) -> None:
    levels = message.topic.value.split("/")
    kind = levels[kind_level] if len(levels) > kind_level else ""
    payload = message.payload
    text = payload.decode("utf-8", "backslashreplace") if isinstance(payload, bytes) else str(payload)
    screen.print(
        Text.assemble(
            (f"{datetime.now().astimezone():%H:%M:%S.%f}"[:-3], "dim"),
            " ",
            (printable(message.topic.value), _STYLES.get(kind, "")),
            " ",
            ("(retained) " if message.retain else "", "dim"),
            printable(text),
        ),
        soft_wrap=True,
    )


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _local(text: str, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    """A time of the API in this machine's time zone."""
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone().strftime(form)


def _short(text: str, width: int = 60) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
