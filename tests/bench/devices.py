"""How long a page of devices takes over HTTP among a million, on SQLite.

`python -m tests.bench.devices [--devices N] [--data FOLDER]` prints a table in Markdown. With `--data` the
filled database stays there, and is used again by the next run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

from bridge.storage import migrate
from tests.bench.clients import HOST
from tests.bench.servers import Bridge
from tests.bench.table import Goal, Row

DEVICES: Final = 1_000_000
GOAL_MS: Final = 50.0
PAGES: Final = 100
"""Pages that are asked for from the first one on, and as many from places all over the list."""
LIMIT: Final = 100
FIRST_SEEN: Final = 1_700_000_000.0
AGE: Final = 1_000_000.0
"""Seconds over which the devices were last seen."""
STATUSES: Final = ("offline",) * 9 + ("unknown",)
PROFILES: Final = ("default", "freezer", "meter", "pump")
PLACES: Final = ("north", "south", "east", "west")
STATE: Final = '{"streams":{"default":[1700000000.0,{"temperature":4.2,"humidity":50}]}}'

FILTERS: Final[dict[str, dict[str, str]]] = {
    "all": {},
    "status, common": {"status": "offline"},
    "status, rare": {"status": "silent"},
    "profile": {"profile": "freezer"},
    "tag, common": {"tag": "north"},
    "tag, rare": {"tag": "rare"},
    "tag of none": {"tag": "nobody"},
    "prefix": {"prefix": "device-01"},
    "search, many": {"search": "shelf 4"},
    "search, few": {"search": "99999"},
    "search, none": {"search": "nothing"},
    "status, profile": {"status": "online", "profile": "freezer"},
    "status, tag": {"status": "online", "tag": "north"},
    "rare status, rare tag": {"status": "silent", "tag": "rare"},
    "profile, tag": {"profile": "freezer", "tag": "north"},
    "everything": {"status": "online", "profile": "freezer", "tag": "north", "prefix": "device-0", "search": "shelf 4"},
}
SORTS: Final = ("id", "-id", "last_seen", "-last_seen")


class Figures(NamedTuple):
    """What one question took, in milliseconds, and how many devices its pages held."""

    name: str
    pages: int
    devices: int
    p50: float
    p99: float
    worst: float


def fill(path: Path, count: int) -> None:
    """Devices with statuses, profiles, tags and names as a fleet has them, stored in no order, like those that
    registered one by one over the years."""
    asyncio.run(migrate.upgrade(f"sqlite+aiosqlite:///{path}"))
    dice = random.Random(7)
    numbers = list(range(count))
    dice.shuffle(numbers)

    def rows() -> Iterator[tuple[Any, ...]]:
        for number in numbers:
            yield (
                f"device-{number:07}",
                PROFILES[int(dice.random() * len(PROFILES))],
                FIRST_SEEN,
                FIRST_SEEN + dice.random() * AGE,
                number,
                STATUSES[int(dice.random() * len(STATUSES))],
                STATE,
                f'{{"name":"Shelf {number % 977}"}}',
            )

    def tags() -> Iterator[tuple[str, str]]:
        for number in numbers:
            yield f"device-{number:07}", PLACES[int(dice.random() * len(PLACES))]
            if number % 50_000 == 7:
                yield f"device-{number:07}", "rare"

    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        # Nothing of this must survive a crash, and all the indexes fit into the cache while they grow.
        for pragma in ("synchronous = OFF", "cache_size = -1048576", "locking_mode = EXCLUSIVE"):
            database.execute(f"PRAGMA {pragma}")
        database.execute("BEGIN")
        columns = "device_id, profile, first_seen, last_seen, messages, status, state, metadata"
        database.executemany(f"INSERT INTO devices ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows())
        database.executemany("INSERT INTO device_tags (device_id, tag) VALUES (?, ?)", tags())
        database.execute("COMMIT")
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def come_online(path: Path) -> None:
    """One device in a hundred is there, one in ten thousand silent: stored past the bridge, which begins with `unknown`
    for all."""
    with contextlib.closing(sqlite3.connect(path, timeout=60)) as database, database:
        database.execute("UPDATE devices SET status = 'online' WHERE rowid % 100 = 1")
        database.execute("UPDATE devices SET status = 'silent' WHERE rowid % 10000 = 2")


class Pages:
    """Asks a bridge for pages of devices over one connection."""

    def __init__(self, port: int, count: int) -> None:
        self._connection = http.client.HTTPConnection(HOST, port, timeout=60)
        self._count = count
        self._dice = random.Random(11)

    def ask(self, question: dict[str, str]) -> tuple[float, dict[str, Any]]:
        """Milliseconds from the request to the last byte of the answer, and the answer."""
        path = f"/api/v1/devices?{urlencode(question)}"
        began = time.perf_counter()
        self._connection.request("GET", path)
        answer = self._connection.getresponse()
        body = answer.read()
        took = (time.perf_counter() - began) * 1000
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status} {body[:500]!r}")
        return took, json.loads(body)

    def somewhere(self, sort: str) -> str:
        """A cursor anywhere in the list."""
        device_id = f"device-{self._dice.randrange(self._count):07}"
        return device_id if sort.endswith("id") else f"{FIRST_SEEN + self._dice.random() * AGE!r}~{device_id}"

    def measure(self, name: str, wanted: dict[str, str], sort: str) -> Figures:
        """Page after page from the first one on, then pages from all over the list."""
        question = {**wanted, "sort": sort, "limit": str(LIMIT)}
        times, found, after = [], 0, ""
        for number in range(2 * PAGES):
            if number >= PAGES:
                after = self.somewhere(sort)
            took, page = self.ask(question | ({"after": after} if after else {}))
            times.append(took)
            found += len(page["devices"])
            after = page["next"] or ""
        times.sort()
        return Figures(name, len(times), found, times[len(times) // 2], times[int(len(times) * 0.99) - 1], times[-1])


def table(all_figures: list[Figures]) -> str:
    """The figures in Markdown."""
    lines = ["| devices by | pages | devices | p50 ms | p99 ms | worst ms |", "|---|--:|--:|--:|--:|--:|"]
    lines += [
        f"| {one.name} | {one.pages} | {one.devices:,} | {one.p50:.1f} | {one.p99:.1f} | {one.worst:.1f} |"
        for one in all_figures
    ]
    return "\n".join(lines)


def pages_of_devices(count: int = DEVICES, data: Path | None = None) -> list[Row]:
    """Fill a database unless `data` has one, start a bridge on it, ask every question in every order, and print a
    table; the row is the slowest question's."""
    with contextlib.ExitStack() as stack:
        folder = data or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-devices-")))
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "bridge.db").exists():
            began = time.monotonic()
            fill(folder / "filling.db", count)
            (folder / "filling.db").rename(folder / "bridge.db")
            print(f"{count:,} devices filled in {time.monotonic() - began:.0f} s", file=sys.stderr)
        with Bridge(folder) as bridge:
            come_online(folder / "bridge.db")
            pages = Pages(bridge.http_port, count)
            for _ in range(PAGES):
                pages.ask({})  # a bridge that has just started is not what is measured
            figures = [
                pages.measure(f"{name}; {sort}", wanted, sort) for name, wanted in FILTERS.items() for sort in SORTS
            ]
    print(f"{count:,} devices on SQLite, pages of {LIMIT} over HTTP\n\n{table(figures)}\n")
    slowest = max(figures, key=lambda one: one.p99)
    row = Row(f"a page of {count:,} devices, the slowest of {len(figures)} questions: p99", "ms", Goal(GOAL_MS))
    row.bridge.append(slowest.p99)
    row.notes.add(f"slowest by {slowest.name}")
    return [row]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.bench.devices", description=__doc__)
    parser.add_argument("--devices", type=int, default=DEVICES)
    parser.add_argument("--data", type=Path, help="keep the database in this folder")
    options = parser.parse_args()
    print(pages_of_devices(options.devices, options.data)[0].as_dict())
