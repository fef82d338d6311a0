"""What the commands share: how they print, how they run a coroutine, and what the user must type to call them."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

T = TypeVar("T")

WIDE: Final = 10_000
"""Columns when the output is no terminal: nothing is cut off or wrapped for programs and files."""

COLOURS: Final = {
    "online": "green",
    "silent": "yellow",
    "offline": "red",
    "succeeded": "green",
    **dict.fromkeys(("failed", "expired", "cancelled"), "red"),
}

ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="TOML file with settings.", show_default="BRIDGE_CONFIG")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def console(*, stderr: bool = False) -> Console:
    """A console that cuts nothing off when it is no terminal."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else WIDE, highlight=False, soft_wrap=not stream.isatty())


def complain(text: str) -> None:
    """One line on stderr that says what is wrong."""
    from rich.text import Text

    console(stderr=True).print(Text.assemble(("mqtt-bridge: ", "bold red"), safe(text)))


def safe(value: object) -> str:
    """`value` as text that cannot steer the terminal: what devices send and what they are called is not ours."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))


def text(words: str) -> Text:
    """Words that may hold what devices sent, line by line."""
    from rich.text import Text

    return Text("\n".join(map(safe, words.split("\n"))))


def status(word: str) -> Text:
    """A status of a device or a command in its colour."""
    from rich.text import Text

    return Text(safe(word), COLOURS.get(word.strip(), ""))


def local(moment: str, form: str = "") -> str:
    """An RFC 3339 time as the local clock shows it: by default hours to milliseconds."""
    shown = datetime.fromisoformat(moment).astimezone()
    return shown.strftime(form) if form else shown.time().isoformat("milliseconds")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A plain table of texts."""
    from rich.table import Table
    from rich.text import Text

    result = Table(*columns, box=None, pad_edge=False, header_style="bold", show_header=any(columns))
    for column in result.columns[:-1]:
        column.no_wrap = True
    for row in rows:
        result.add_row(*(cell if isinstance(cell, Text) else Text(safe(cell)) for cell in row))
    return result


@contextmanager
def counting(what: str) -> Iterator[Callable[[int], None]]:
    """For work of which nobody knows how much it is: what it yields is told how many are done, and shows it where there
    is a terminal."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.completed:,} {task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done: bar.update(task, completed=done)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine, on uvloop where there is one."""
    try:
        from uvloop import new_event_loop
    except ImportError:  # not every platform has it
        return asyncio.run(coroutine)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(coroutine)


def program() -> str:
    """How the user types this command: the shortest of what works in the current directory."""
    scripts = (Path(".venv/bin/mqtt-bridge"), Path(sys.executable).with_name("mqtt-bridge"))
    installed = shutil.which("mqtt-bridge")
    for script in scripts:
        if not os.access(script, os.X_OK):
            continue
        if installed and Path(installed).resolve() == script.resolve():
            return "mqtt-bridge"
        return shlex.quote(_relative(script))
    return f"{shlex.quote(_relative(Path(sys.executable)))} -m bridge"


def _relative(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_absolute() and path.is_relative_to(here) else str(path)
