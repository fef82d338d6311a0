"""The command `mqtt-bridge`. Its exit codes are `EXIT_CODES`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from bridge import __version__
from bridge.cli import (
    backup,
    books,
    commands,
    deadletters,
    doctor,
    machine,
    registry,
    send,
    serve,
    simulate,
    tail,
    telemetry,
    terminal,
    tokens,
    top,
)
from bridge.errors import BridgeError, SettingsError

EXIT_CODES = (
    "Exit codes: 0 done; 1 failed, or no bridge answers; 2 wrong usage or settings; 3 a device did not do what it was"
    " told, or a letter was refused again; 130 ended by Ctrl-C."
)

app = typer.Typer(
    name="mqtt-bridge",
    help="MQTT Agent Bridge: a broker, an agent per device and a database in one process.",
    no_args_is_help=True,
    epilog=EXIT_CODES,
    pretty_exceptions_enable=False,
)
app.command()(serve.serve)
app.command()(simulate.simulate)
app.add_typer(registry.app, name="devices")
app.add_typer(registry.app, name="device", hidden=True)  # as one says it of one: `device show`
app.command()(send.send)
app.command()(commands.commands)
app.command()(commands.rollouts)
app.command()(commands.schedules)
app.command()(commands.cancel)
app.add_typer(deadletters.app, name="deadletters")
app.command()(telemetry.telemetry)
app.command()(top.top)
app.command()(tail.tail)
app.command()(books.audit)
app.command()(books.ledger)
app.command()(books.sinks)
app.command()(machine.config)
app.command()(machine.migrate)
app.command()(backup.backup)
app.command()(backup.restore)
app.command()(machine.passwd)
app.add_typer(tokens.app, name="tokens")
app.command()(doctor.doctor)
app.command(hidden=True)(machine.healthcheck)


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; an error of ours is one line on stderr."""
    try:
        app(prog_name="mqtt-bridge")
    except BridgeError as error:
        terminal.complain(str(error))
        sys.exit(2 if isinstance(error, SettingsError) else 1)
