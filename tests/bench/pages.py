"""How long a page of a long list takes over HTTP, on SQLite."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

from bridge.storage import migrate
from tests.bench.clients import HOST
from tests.bench.table import Goal, Row

GOAL_MS: Final = 50.0
PAGES: Final = 100
"""Pages that are asked for from the first one on, and as many from places all over the list."""
LIMIT: Final = 100


class Figures(NamedTuple):
    """What one question took, in milliseconds, and how many rows its pages held."""

    name: str
    pages: int
    rows: int
    p50: float
    p99: float
    worst: float


class Pages:
    """Asks a bridge for pages of the list at `path` over one connection. `cursor` is the parameter that says where a
    page begins."""

    def __init__(self, port: int, path: str, cursor: str) -> None:
        self._connection = http.client.HTTPConnection(HOST, port, timeout=60)
        self._path = path
        self._cursor = cursor

    def ask(self, question: dict[str, str]) -> tuple[float, dict[str, Any]]:
        """Milliseconds from the request to the last byte of the answer, and the answer."""
        path = f"/api/v1/{self._path}?{urlencode(question)}"
        began = time.perf_counter()
        self._connection.request("GET", path)
        answer = self._connection.getresponse()
        body = answer.read()
        took = (time.perf_counter() - began) * 1000
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status} {body[:500]!r}")
        return took, json.loads(body)

    def warm_up(self) -> None:
        """A bridge that has just started is not what is measured."""
        for _ in range(PAGES):
            self.ask({})

    def measure(self, name: str, wanted: dict[str, str], somewhere: Callable[[], str]) -> Figures:
        """Page after page from the first one on, then pages from all over the list: `somewhere` is a cursor."""
        question = {**wanted, "limit": str(LIMIT)}
        times, found, place = [], 0, ""
        for number in range(2 * PAGES):
            if number >= PAGES:
                place = somewhere()
            took, page = self.ask(question | ({self._cursor: place} if place else {}))
            times.append(took)
            found += len(page[self._path])
            place = page["next"] or ""
        times.sort()
        return Figures(name, len(times), found, times[len(times) // 2], times[int(len(times) * 0.99) - 1], times[-1])


@contextlib.contextmanager
def filled(data: Path | None, fill: Callable[[sqlite3.Connection], None]) -> Iterator[Path]:
    """A data folder whose database has been filled, unless `data` is one that was; without `data` it goes away in the
    end."""
    with contextlib.ExitStack() as stack:
        folder = data or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-pages-")))
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "bridge.db").exists():
            began = time.monotonic()
            path = folder / "filling.db"
            asyncio.run(migrate.upgrade(f"sqlite+aiosqlite:///{path}"))
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
                # Nothing of this must survive a crash, and all the indexes fit into the cache while they grow.
                for pragma in ("synchronous = OFF", "cache_size = -1048576", "locking_mode = EXCLUSIVE"):
                    database.execute(f"PRAGMA {pragma}")
                database.execute("BEGIN")
                fill(database)
                database.execute("COMMIT")
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            path.rename(folder / "bridge.db")
            print(f"filled in {time.monotonic() - began:.0f} s", file=sys.stderr)
        yield folder


def report(what: str, figures: list[Figures]) -> list[Row]:
    """Print the figures as a table in Markdown; the row is the slowest question's."""
    print(f"{what} on SQLite, pages of {LIMIT} over HTTP\n")
    print("| by | pages | rows | p50 ms | p99 ms | worst ms |\n|---|--:|--:|--:|--:|--:|")
    for one in figures:
        print(f"| {one.name} | {one.pages} | {one.rows:,} | {one.p50:.1f} | {one.p99:.1f} | {one.worst:.1f} |")
    print()
    slowest = max(figures, key=lambda one: one.p99)
    row = Row(f"a page of {what}, the slowest of {len(figures)} questions: p99", "ms", Goal(GOAL_MS))
    row.bridge.append(slowest.p99)
    row.notes.add(f"slowest by {slowest.name}")
    return [row]
