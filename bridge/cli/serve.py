"""`mqtt-bridge serve`: the bridge, if wanted with simulated devices beside it and a summary on the screen."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from bridge.cli import terminal
from bridge.cli.api import base_url
from bridge.cli.target import reachable
from bridge.errors import SettingsError, StartError

if TYPE_CHECKING:
    from bridge.app import Bridge
    from bridge.settings import Settings

CHILD_ENDS_WITHIN: Final = 3.0
"""Seconds that the simulated devices get to disconnect."""
LOG_FILE: Final = "bridge.log"


def serve(
    config: terminal.ConfigOption = None,
    simulate: Annotated[
        int, typer.Option(min=0, metavar="N", help="Start N simulated devices as well.", show_default="none")
    ] = 0,
    summary: Annotated[
        bool, typer.Option("--summary", help="Show a live summary; the log goes into a file in the data directory.")
    ] = False,
    migrate: Annotated[
        bool | None,
        typer.Option("--migrate/--no-migrate", help="Bring the database schema up to date.", show_default="as set"),
    ] = None,
) -> None:
    """Run the bridge until Ctrl-C or SIGTERM."""
    from bridge import logs
    from bridge.settings import Settings

    settings = Settings.load(config)
    if simulate and not settings.mqtt.allow_anonymous:
        raise SettingsError(
            "--simulate needs mqtt.allow_anonymous: its devices have no passwords."
            " `mqtt-bridge simulate --username …` in another terminal can have one"
        )
    log_file = settings.data_dir / LOG_FILE if summary else None
    if log_file is not None:
        try:
            log_file.parent.mkdir(parents=True, exist_ok=True)
            logs.configure(settings.log.level, settings.log.format, log_file)
        except OSError as error:
            raise StartError(f"cannot write {log_file}: {error.strerror}; see BRIDGE_DATA_DIR") from error
    else:
        logs.configure(settings.log.level, settings.log.format)
    terminal.run(_serve(settings, simulate, log_file, migrate))


async def _serve(settings: Settings, devices: int, log_file: Path | None, migrate: bool | None) -> None:
    from rich.text import Text

    from bridge import app, overview
    from bridge.cli.summary import Summary

    screen = terminal.console()
    async with contextlib.AsyncExitStack() as beside:

        async def ready(bridge: Bridge) -> None:
            if bridge.first_token is not None:
                # Not into the log: logs are kept, and read by others.
                screen.print(Text(first_token(bridge.first_token)), soft_wrap=True)
            if log_file is not None or screen.is_terminal:
                for line in hints(bridge, devices):
                    screen.print(Text(line), soft_wrap=True)
            if devices:
                await beside.enter_async_context(_simulated(bridge, devices))
            if log_file is not None:
                screen.print(Text(f"The log is in {log_file}. Ctrl-C ends the bridge.\n"), soft_wrap=True)
                await beside.enter_async_context(Summary(partial(overview.summary, bridge), screen))

        await app.serve(settings, migrate=migrate, on_ready=ready)


# ---------------------------------------------------------------------- simulated devices


@contextlib.asynccontextmanager
async def _simulated(bridge: Bridge, devices: int) -> AsyncIterator[None]:
    """Simulated devices as a process of their own, which ends with the context.

    It also ends when this process does, however that ends: it watches the other end of its standard input. It has a
    session of its own, so that Ctrl-C reaches it only through us.
    """
    settings = bridge.settings
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bridge", "simulate", "--until-stdin-closes",
        "--devices", str(devices),
        "--host", reachable(settings.mqtt.host),
        "--port", str(bridge.mqtt_port),
        "--root", settings.topic_root,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    watch = asyncio.create_task(_watch(child), name="simulated devices")
    try:
        yield
    finally:
        watch.cancel()
        await asyncio.wait([watch])
        await _end(child)


async def _watch(child: asyncio.subprocess.Process) -> None:
    """Put what the devices complain about into the log, and that they have ended, if they do."""
    import structlog

    log = structlog.get_logger(__name__)
    assert child.stderr is not None  # noqa: S101 - it was made with a pipe
    while line := await child.stderr.read(4096):
        log.warning("simulated devices", said=line.decode(errors="replace").strip())
    log.error("the simulated devices have ended", exit_code=await child.wait())


async def _end(child: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        child.terminate()
    try:
        async with asyncio.timeout(CHILD_ENDS_WITHIN):
            await child.communicate()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


# ---------------------------------------------------------------------- what to type next


def first_token(token: str) -> str:
    """What is said of the admin token that is made at the first start."""
    return (
        f"The admin token of the API and the page, shown this once: {token}\n"
        "It is stored only as a digest. Lost? `mqtt-bridge tokens add NAME --role admin` makes another."
    )


def hints(bridge: Bridge, devices: int) -> Iterator[str]:
    """What the user can type in a second terminal, as it works there."""
    settings = bridge.settings
    root = settings.topic_root
    url = base_url(settings, bridge.http_port)
    program = terminal.program()
    web = f"BRIDGE_URL={url} {program}" if bridge.http_port != 8080 else program
    mqtt = f" --port {bridge.mqtt_port}" if bridge.mqtt_port != 1883 else ""
    yield f"The bridge is running: MQTT on {settings.mqtt.host}:{bridge.mqtt_port}, HTTP on {url}"
    yield "In a second terminal:"
    yield f"  publish   {_publish(reachable(settings.mqtt.host), bridge.mqtt_port, f'{root}/fridge-7/telemetry')}"
    yield f"  command   {web} send {'sim-0001' if devices else 'fridge-7'} reboot"
    yield f"  look      {web} devices"
    yield f"            {program} tail{mqtt}"
    yield f"            {url}/api/v1/summary (browser)"


def _publish(host: str, port: int, topic: str) -> str:
    if shutil.which("mosquitto_pub") is None:
        # paho comes with our own environment.
        call = f"publish.single({topic!r}, '{{\\\"temperature\\\": 4.2}}', qos=1, hostname={host!r}, port={port})"
        return f'{sys.executable} -c "from paho.mqtt import publish; {call}"'
    where = ("" if host in ("127.0.0.1", "localhost") else f" -h {host}") + ("" if port == 1883 else f" -p {port}")
    return f"mosquitto_pub{where} -t {topic} -q 1 -m '{{\"temperature\": 4.2}}'"
