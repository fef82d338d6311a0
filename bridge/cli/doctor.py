"""`mqtt-bridge doctor`: whether this machine can run the bridge as it is set."""

from __future__ import annotations

import asyncio
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import typer

from bridge import descriptors
from bridge.cli import terminal
from bridge.cli.api import ApiError, base_url, connect
from bridge.cli.terminal import ConfigOption
from bridge.errors import BridgeError, StartError

if TYPE_CHECKING:
    from bridge.settings import Settings

FREE_BYTES: Final = 500_000_000
"""Below this a busy bridge may fill the disk before somebody looks."""
DATABASE_WITHIN: Final = 10.0
CLOCK_WATCHED: Final = 0.2
"""Seconds over which the two clocks are compared."""
CLOCK_OFF: Final = 0.05
EARLIEST_YEAR: Final = 2025
"""A clock that says an earlier year was never set."""
SLOW_AFTER: Final = 5.0
"""Seconds after which an agent that is not done is shown."""

_WAITS: Final = {
    "state": ("waits for its state", "see to the database: `mqtt-bridge doctor`"),
    "handler": ("is in", "what takes long in a handler belongs into `offload`"),
    "commit": ("waits for the commit of", "see to the database: `mqtt-bridge doctor`"),
    "turn": ("waits for its turn", "the event loop is busy"),
}


class Finding(NamedTuple):
    """What one check found; `advice` says what to do where it is not right."""

    right: bool
    subject: str
    text: str
    advice: str = ""


def doctor(
    config: ConfigOption = None,
    live: Annotated[bool, typer.Option("--live", help="Check the running bridge instead of the machine.")] = False,
) -> None:
    """Check this machine: open files, ports, disk, database, clock; or the running bridge: whether it is ready, where
    rows wait, whether its ledger holds, and what slow agents are waiting for. Exit code 1 if something is not right."""
    from rich.text import Text

    from bridge.settings import Settings

    settings = Settings.load(config)
    checks: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
        (_readiness, _ledger, _agents) if live else (_python, _files, _ports, _disk, _database, _clock)
    )
    screen = terminal.console()
    right = True
    for check in checks:
        for finding in check(settings):
            mark = ("✓ ", "green") if finding.right else ("✗ ", "bold red")
            screen.print(Text.assemble(mark, f"{finding.subject}: {finding.text}"))
            if not finding.right:
                right = False
                screen.print(Text(f"  {finding.advice}"))
    if not right:
        raise typer.Exit(1)


def _readiness(_: Settings) -> Iterator[Finding]:
    with connect() as api:
        try:
            answer = api.get("/readyz")
        except ApiError as error:
            yield Finding(False, "bridge", str(error), "see its log")
            return
    if answer["status"] == "ready":
        yield Finding(True, "bridge", "ready")
    else:
        yield Finding(False, "bridge", f"{answer['status']}: {answer.get('reason')}", "see to the database")


def _ledger(_: Settings) -> Iterator[Finding]:
    with connect() as api:
        ledger = api.get("/api/v1/ledger")
    dropped = sum(ledger["dropped"].values())
    counts = {**ledger, "dropped": dropped}
    names = ("received", "committed", "deduplicated", "dead_lettered", "dropped", "in_flight")
    shown = ", ".join(f"{counts[name]:,} {name.replace('_', ' ')}" for name in names)
    yield Finding(
        ledger["difference"] == 0,
        "ledger",
        shown,
        f"{ledger['difference']:,} messages are not accounted for: this is a fault of the bridge, please report it",
    )


def _agents(_: Settings) -> Iterator[Finding]:
    with connect() as api:
        found = api.get("/api/v1/agents", {"longer_than": SLOW_AFTER})
    counts = ", ".join(f"{found[name]:,} {name}" for name in ("awake", "asleep", "cold", "restarts"))
    yield Finding(True, "agents", f"{counts}; event loop {found['loop_lag_p99_ms']:,.1f} ms late (p99)")
    yield Finding(
        not found["congested"],
        "writer",
        f"{found['uncommitted']:,} rows and changes wait for a commit",
        "connections are not read until there is room: see to the database and its disk",
    )
    for wait in found["waiting"]:
        what, advice = _WAITS[wait["reason"]]
        handler = f" {terminal.safe(wait['handler'])}" if wait["handler"] else ""
        behind = f", {wait['messages']:,} messages behind it" if wait["messages"] else ""
        yield Finding(
            False, terminal.safe(wait["device_id"]), f"{what}{handler} for {wait['seconds']:,.1f} s{behind}", advice
        )


def _python(_: Settings) -> Iterator[Finding]:
    yield Finding(
        sys.version_info >= (3, 11),
        "Python",
        f"{platform.python_version()}, {platform.system()} {platform.machine()}",
        "Python 3.11 or newer is needed",
    )
    if sys.platform == "win32":
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        yield Finding(True, "uvloop", version("uvloop"))
    except PackageNotFoundError:
        yield Finding(False, "uvloop", "not installed", "install it: without it the bridge is about half as fast")


def _files(settings: Settings) -> Iterator[Finding]:
    wanted = settings.mqtt.max_connections + descriptors.BESIDE_CONNECTIONS
    hard = descriptors.hard_limit()
    shown = f"up to {hard:,}, {wanted:,} needed for mqtt.max_connections"
    advice = (
        f"raise the hard limit (systemd: LimitNOFILE={wanted}; a container: --ulimit nofile={wanted}),"
        f" or lower BRIDGE_MQTT__MAX_CONNECTIONS below {hard:,}"
    )
    yield Finding(hard >= wanted, "open files", shown, advice)


def _ports(settings: Settings) -> Iterator[Finding]:
    running = _a_bridge_runs(settings)
    for subject, host, port, variable in (
        ("MQTT port", settings.mqtt.host, settings.mqtt.port, "BRIDGE_MQTT__PORT"),
        ("HTTP port", settings.http.host, settings.http.port, "BRIDGE_HTTP__PORT"),
    ):
        yield _port(subject, host, port, variable, running)


def _port(subject: str, host: str, port: int, variable: str, running: bool) -> Finding:
    from bridge.ports import bind, holder_of

    if port == 0:
        return Finding(True, subject, "any free one")
    try:
        bind(host, port, variable).close()
    except StartError as error:
        holder = holder_of(port)
        if running and holder is not None:
            return Finding(True, subject, f"{port}, in use by {holder}: a bridge is running")
        return Finding(False, subject, str(error), f"stop what uses it, or set {variable}")
    except OSError as error:
        return Finding(False, subject, f"{host}: {error}", f"correct {variable.replace('PORT', 'HOST')}")
    return Finding(True, subject, f"{port} on {host} is free")


def _a_bridge_runs(settings: Settings) -> bool:
    import httpx

    try:
        answer = httpx.get(f"{base_url(settings)}/healthz", timeout=2.0, trust_env=False)
        return answer.is_success and bool(answer.json().get("status") == "ok")
    except (httpx.HTTPError, ValueError, AttributeError):
        return False


def _disk(settings: Settings) -> Iterator[Finding]:
    folder = settings.data_dir.absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"x")
    except OSError as error:
        yield Finding(
            False,
            "data directory",
            f"{folder}: {error.strerror}",
            "give this user the right to write there, or set BRIDGE_DATA_DIR",
        )
        return
    made = "" if existing == folder else " (will be made)"
    yield Finding(True, "data directory", f"{folder}{made} can be written")
    free = shutil.disk_usage(existing).free
    yield Finding(
        free >= FREE_BYTES,
        "disk",
        f"{free / 1e9:,.1f} GB free",
        f"free some, or move the data with BRIDGE_DATA_DIR: at least {FREE_BYTES / 1e9:g} GB",
    )


def _database(settings: Settings) -> Iterator[Finding]:
    from bridge.storage import engine, hypertable
    from bridge.storage import migrate as schema
    from bridge.storage.database import Database

    async def look() -> tuple[str | None, str, str]:
        url = settings.database_url
        async with asyncio.timeout(DATABASE_WITHIN):
            current, head = await schema.current(url), await schema.head()
            if current != head or dialect != "postgresql":
                return current, head, ""
            database = await Database.open(url, 1, exclusive=False)
            try:
                return current, head, f", telemetry in {await database.read(hypertable.layout)}"
            finally:
                await database.close()

    try:
        dialect = engine.dialect_of(engine.parse(settings.database_url))
        current, head, layout = terminal.run(look())
    except TimeoutError:
        yield Finding(False, "database", f"no answer within {DATABASE_WITHIN:g} s", "see BRIDGE_DATABASE__URL")
        return
    except BridgeError as error:
        yield Finding(False, "database", str(error), "start the database, or correct BRIDGE_DATABASE__URL")
        return
    if current == head:
        yield Finding(True, "database", f"{dialect}, schema {head}{layout}")
    else:
        # `serve` brings it up to date unless it is told not to.
        text = f"{dialect}, schema {current or 'not there yet'}, this version needs {head}"
        yield Finding(settings.database.migrate, "database", text, "run `mqtt-bridge migrate`")


def _clock(_: Settings) -> Iterator[Finding]:
    wall, monotonic = time.time(), time.monotonic()
    time.sleep(CLOCK_WATCHED)
    drift = abs((time.time() - wall) - (time.monotonic() - monotonic))
    now = datetime.now(UTC)
    right = drift < CLOCK_OFF and now.year >= EARLIEST_YEAR
    shown = f"{now:%Y-%m-%d %H:%M:%S} UTC" + (f", jumped by {drift:.3f} s just now" if drift >= CLOCK_OFF else "")
    yield Finding(right, "clock", shown, "set the clock and keep it right with NTP: readings without a time get its")
