"""What the commands print: made safe for a terminal, and not cut to a width that nobody sees."""

from __future__ import annotations

import sys
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

UNWRAPPED: Final = 10_000
"""Columns of output that goes into a file or another program, which wants one line for one thing."""


def console() -> Console:
    """Standard output as it is now; nothing in it is taken for markup."""
    return Console(width=None if sys.stdout.isatty() else UNWRAPPED, markup=False, highlight=False, emoji=False)


def printable(text: str) -> str:
    """`text` with everything that could steer a terminal shown as an escape: payloads come from anybody."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def table(*columns: str) -> Table:
    """A table without lines, for people and for `grep`."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold", justify="right" if column in _NUMBERS else "left")
    return made


_NUMBERS: Final = ("messages",)


def cell(value: Any, style: str = "") -> Text:
    """One cell of a table."""
    return Text(printable(str(value)), style=style)
