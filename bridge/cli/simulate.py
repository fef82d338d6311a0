"""`mqtt-bridge simulate`: devices that behave like real ones, or the replay of recorded data."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import typer

from bridge import descriptors
from bridge.cli import terminal
from bridge.cli.target import Host, Password, Username, resolve
from bridge.cli.target import Port as PortOption
from bridge.errors import BridgeError

if TYPE_CHECKING:
    from bridge.simulate.figures import Figures
    from bridge.simulate.replay import Replay
    from bridge.topics import Topics

LINE_EVERY: Final = 5.0
"""Seconds between two lines of the view where the output is no terminal."""
SPARE_FILES: Final = 100
LEAVE_WITHIN: Final = 5.0
"""Seconds that devices get to disconnect."""


def simulate(
    devices: Annotated[int, typer.Option(min=1, help="How many devices.")] = 25,
    rate: Annotated[float, typer.Option(min=0, help="Readings per second of each device; 0 for none.")] = 1.0,
    qos: Annotated[int, typer.Option(min=0, max=2, help="QoS of the readings.")] = 1,
    host: Host = None,
    port: PortOption = None,
    username: Username = None,
    password: Password = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="End after so long.", show_default="Ctrl-C")] = None,
    prefix: Annotated[str, typer.Option(help="Beginning of the devices' ids.")] = "sim-",
    root: Annotated[
        str | None, typer.Option(help="First level of the bridge's topics.", show_default="from the settings")
    ] = None,
    replay: Annotated[
        Path | None, typer.Option(help="Replay a CSV file as one device instead of inventing readings.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Replay as this device.", show_default="the file's name")] = None,
    speed: Annotated[str, typer.Option(help="Replay so many times faster than recorded, or `max`.")] = "max",
    timezone: Annotated[str, typer.Option(help="Time zone of recorded times that name none.")] = "UTC",
    until_stdin_closes: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Be devices: publish readings, answer pings, carry out commands; then report rates and latencies."""
    target, root = resolve(host, port, username, password, root)
    from bridge.simulate.figures import Figures
    from bridge.topics import Topics, is_device_id

    figures = Figures()
    began = time.monotonic()
    if replay is not None:
        job = _replay(replay, device, target, Topics(root), figures, _speed(speed), _zone(timezone))
        complete = terminal.run(_follow(job.run(), lambda: _replay_line(job, figures, began), None, quiet=False))
        _report_replay(job, figures, began)
        if not complete:
            raise typer.Exit(130)
        return

    from bridge.simulate import fleet

    plan = fleet.Plan(devices=devices, rate=rate, qos=qos, prefix=prefix, root=root)
    if not is_device_id(plan.ids()[-1]):
        raise typer.BadParameter(f"{plan.ids()[-1]!r} is no device id: use A-Z a-z 0-9 . _ : -", param_hint="--prefix")
    _raise_file_limit(devices)
    everybody = fleet.run(plan, target, figures)
    terminal.run(
        _follow(
            everybody,
            lambda: _fleet_line(plan.devices, figures, began),
            seconds,
            quiet=until_stdin_closes,
            share=lambda: figures.connected / plan.devices,
        )
    )
    if not until_stdin_closes:
        _report(figures, began)
    if figures.connects == 0:
        raise BridgeError(f"no device could connect to {target.host}:{target.port}: {_trouble(figures)}")


# ---------------------------------------------------------------------- running


async def _follow(
    job: Coroutine[Any, Any, None],
    line: Callable[[], str],
    seconds: float | None,
    *,
    quiet: bool,
    share: Callable[[], float] | None = None,
) -> bool:
    """Run `job` until it is done (then True), `seconds` are over, or somebody says stop. `quiet`: a child of `serve`,
    which shows nothing and ends when its standard input does, that is, with its parent, however that ends. `share` (0
    to 1) is shown as a bar."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    stdin = sys.stdin.fileno()

    def stdin_ready() -> None:
        if not os.read(stdin, 4096):
            stop.set()

    if quiet:
        loop.add_reader(stdin, stdin_ready)
    work = asyncio.create_task(job)
    stopped = asyncio.create_task(stop.wait())
    try:
        async with _view(line, share, quiet=quiet):
            await asyncio.wait([work, stopped], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        if quiet:
            loop.remove_reader(stdin)
        stopped.cancel()
        complete = work.done()
        work.cancel()
        # Devices disconnect in good order, unless the broker no longer answers.
        await asyncio.wait([work], timeout=LEAVE_WITHIN)
    if work.done() and not work.cancelled():
        work.result()
    return complete


@asynccontextmanager
async def _view(line: Callable[[], str], share: Callable[[], float] | None, *, quiet: bool) -> AsyncIterator[None]:
    """Show `line()` while the body runs: on a terminal always the present one, below a bar, elsewhere one every few
    seconds."""
    if quiet:
        yield
        return
    from rich.console import Group
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    screen = terminal.console()
    live = Live(console=screen, auto_refresh=False, transient=True) if screen.is_terminal else None

    async def show() -> None:
        while True:
            await asyncio.sleep(0.25 if live else LINE_EVERY)
            # In a thread: a terminal that is stopped with Ctrl-S must not stop the devices.
            if live:
                bar = () if share is None else (ProgressBar(total=1.0, completed=share(), width=60),)
                await asyncio.to_thread(live.update, Group(*bar, Text(line())), refresh=True)
            else:
                await asyncio.to_thread(screen.print, Text(line()))

    with live or contextlib.nullcontext():
        showing = asyncio.create_task(show())
        try:
            yield
        finally:
            showing.cancel()
            await asyncio.wait([showing])


def _raise_file_limit(devices: int) -> None:
    needed = devices + SPARE_FILES
    limit = descriptors.raise_limit(needed)
    if limit < needed:
        raise BridgeError(f"{devices} devices need {needed} open files; `ulimit -Hn` allows {limit}")


# ---------------------------------------------------------------------- replay


def _replay(
    path: Path, device: str | None, target: Any, topics: Topics, figures: Figures, speed: float | None, zone: ZoneInfo
) -> Replay:
    from bridge.simulate import recording
    from bridge.simulate.replay import Replay
    from bridge.topics import is_device_id

    name = device or path.stem
    if not is_device_id(name):
        raise typer.BadParameter(f"{name!r} is no device id: name one with --device", param_hint="--device")
    if not path.is_file():
        raise typer.BadParameter(f"there is no file {path}", param_hint="--replay")
    return Replay(recording.read(path, zone), name, target, topics, figures, speed)


def _speed(text: str) -> float | None:
    if text == "max":
        return None
    with contextlib.suppress(ValueError):
        if (speed := float(text)) > 0:
            return speed
    raise typer.BadParameter(f"{text!r} is neither `max` nor a number above 0", param_hint="--speed")


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise typer.BadParameter(
            f"{name!r} is no time zone: use a name as America/Los_Angeles", param_hint="--timezone"
        ) from None


# ---------------------------------------------------------------------- what is shown


def _fleet_line(devices: int, figures: Figures, began: float) -> str:
    quantiles = f", p50 {_ms(figures, 0.5)}, p99 {_ms(figures, 0.99)}" if figures.latencies.count else ""
    troubles = f" · {_trouble(figures)}" if figures.connected < devices and figures.troubles else ""
    return (
        f"{figures.connected}/{devices} connected · {figures.acknowledged:,} readings acknowledged"
        f" ({_rate(figures, began)}{quantiles}) · {figures.commands} commands · {figures.pings} pings{troubles}"
    )


def _replay_line(job: Replay, figures: Figures, began: float) -> str:
    reached = f" · {_utc(job.last)}" if job.last is not None else ""
    return f"{figures.acknowledged:,} readings acknowledged ({_rate(figures, began)}){reached}"


def _report(figures: Figures, began: float) -> None:
    rows = [
        ("readings published", f"{figures.published:,} ({figures.repeated:,} of them again, after a lost connection)"),
        ("acknowledged", f"{figures.acknowledged:,} ({_rate(figures, began)})"),
        *_latency_rows(figures),
        ("connects", f"{figures.connects:,}"),
        ("commands", f"{figures.commands:,} executed, {figures.repeated_commands:,} repeated requests answered again"),
        ("pings answered", f"{figures.pings:,}"),
    ]
    if figures.troubles:
        rows.append(
            ("lost connections", "; ".join(f"{n:,} times: {text}" for text, n in figures.troubles.most_common(5)))
        )
    terminal.console().print(terminal.table(("", ""), rows))


def _report_replay(job: Replay, figures: Figures, began: float) -> None:
    rows = [("readings acknowledged", f"{figures.acknowledged:,} ({_rate(figures, began)})")]
    if job.first is not None and job.last is not None:
        rows += [("first", _utc(job.first)), ("last", _utc(job.last))]
    rows += _latency_rows(figures)
    if figures.repeated:
        rows.append(("sent again", f"{figures.repeated:,}, after a lost connection"))
    terminal.console().print(terminal.table(("", ""), rows))


def _latency_rows(figures: Figures) -> Iterator[tuple[str, str]]:
    if figures.latencies.count:
        values = ", ".join(f"p{round(share * 100)} {_ms(figures, share)}" for share in (0.5, 0.95, 0.99))
        yield "publish → acknowledged", f"{values}, longest {figures.latencies.longest * 1000:,.1f} ms"


def _rate(figures: Figures, began: float) -> str:
    return f"{figures.acknowledged / max(1e-9, time.monotonic() - began):,.1f}/s"


def _ms(figures: Figures, share: float) -> str:
    return f"{figures.latencies.quantile(share) * 1000:,.1f} ms"


def _utc(ts: float) -> str:
    return datetime.fromtimestamp(ts, UTC).isoformat().replace("+00:00", "Z")


def _trouble(figures: Figures) -> str:
    return figures.troubles.most_common(1)[0][0] if figures.troubles else "there was no time to"
