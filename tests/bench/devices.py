"""How long a page of devices takes over HTTP among a million, on SQLite.

`python -m tests.bench.devices [--devices N] [--data FOLDER]` prints a table in Markdown. With `--data` the
filled database stays there, and is used again by the next run.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tests.bench.pages import Figures, Pages, filled, report
from tests.bench.servers import Bridge
from tests.bench.table import Row

DEVICES: Final = 1_000_000
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


def fill(database: sqlite3.Connection, count: int) -> None:
    """Devices with statuses, profiles, tags and names as a fleet has them, stored in no order, like those that
    registered one by one over the years."""
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

    columns = "device_id, profile, first_seen, last_seen, messages, status, state, metadata"
    database.executemany(f"INSERT INTO devices ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows())
    database.executemany("INSERT INTO device_tags (device_id, tag) VALUES (?, ?)", tags())


def come_online(path: Path) -> None:
    """One device in a hundred is there, one in ten thousand silent: stored past the bridge, which begins with `unknown`
    for all."""
    with contextlib.closing(sqlite3.connect(path, timeout=60)) as database, database:
        database.execute("UPDATE devices SET status = 'online' WHERE rowid % 100 = 1")
        database.execute("UPDATE devices SET status = 'silent' WHERE rowid % 10000 = 2")


def pages_of_devices(count: int = DEVICES, data: Path | None = None) -> list[Row]:
    """Fill a database unless `data` has one, start a bridge on it, ask every question in every order, and print a
    table; the row is the slowest question's."""
    dice = random.Random(11)
    figures: list[Figures] = []
    with filled(data, lambda database: fill(database, count)) as folder, Bridge(folder) as bridge:
        come_online(folder / "bridge.db")
        pages = Pages(bridge.http_port, "devices", "after")
        pages.warm_up()
        for (name, wanted), sort in itertools.product(FILTERS.items(), SORTS):

            def somewhere(by_time: bool = sort.endswith("last_seen")) -> str:
                device_id = f"device-{dice.randrange(count):07}"
                return f"{FIRST_SEEN + dice.random() * AGE!r}~{device_id}" if by_time else device_id

            figures.append(pages.measure(f"{name}; {sort}", {**wanted, "sort": sort}, somewhere))
    return report(f"{count:,} devices", figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.bench.devices", description=__doc__)
    parser.add_argument("--devices", type=int, default=DEVICES)
    parser.add_argument("--data", type=Path, help="keep the database in this folder")
    options = parser.parse_args()
    print(pages_of_devices(options.devices, options.data)[0].as_dict())
