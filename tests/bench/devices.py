"""How long a page of devices takes among a million, on SQLite: `python -m tests.bench.devices [COUNT]`."""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from itertools import count as numbers
from pathlib import Path
from typing import Final

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.storage import migrate
from bridge.storage.database import Database
from bridge.storage.listing import Sort, Wanted, list_page
from bridge.storage.tables import device_tags, devices

PORTION: Final = 20_000
PAGES: Final = 200
LIMIT: Final = 100
QUERIES: Final[dict[str, tuple[Wanted, Sort]]] = {
    "all": (Wanted(), "id"),
    "last seen": (Wanted(), "-last_seen"),
    "online": (Wanted(status="online"), "id"),
    "online, last seen": (Wanted(status="online"), "-last_seen"),
    "profile": (Wanted(profile="freezer"), "id"),
    "tag": (Wanted(tag="north"), "id"),
    "rare tag": (Wanted(tag="rare"), "id"),
    "prefix": (Wanted(prefix="device-0123"), "id"),
    "tag, online, profile": (Wanted("online", "freezer", "north"), "id"),
    "profile, last seen": (Wanted(profile="freezer"), "-last_seen"),
    "search": (Wanted(search="99999"), "id"),
    "search that finds nothing": (Wanted(search="nothing"), "id"),
}


async def fill(connection: AsyncConnection, first: int, count: int, dice: random.Random) -> None:
    """Devices with statuses, profiles, tags and names as a fleet has them."""
    rows, tags = [], []
    for number in range(first, first + count):
        device_id = f"device-{number:07}"
        rows.append(
            {
                "device_id": device_id,
                "profile": dice.choice(("default", "freezer", "meter", "pump")),
                "first_seen": 1.7e9,
                "last_seen": 1.7e9 + dice.random() * 1e6,
                "messages": number,
                "status": dice.choices(("offline", "online", "silent", "unknown"), (60, 30, 1, 9))[0],
                "state": '{"streams":{"default":[1700000000.0,{"temperature":4.2,"humidity":50}]}}',
                "metadata": f'{{"name":"Shelf {number % 977}"}}',
            }
        )
        tags.append({"device_id": device_id, "tag": dice.choice(("north", "south", "east", "west"))})
        if number % 50_000 == 7:
            tags.append({"device_id": device_id, "tag": "rare"})
    await connection.execute(insert(devices), rows)
    await connection.execute(insert(device_tags), tags)


async def measure(database: Database, wanted: Wanted, sort: Sort) -> tuple[list[float], int]:
    """Seconds of each of up to PAGES pages from the first on, and how many devices they held."""
    taken, found, after = [], 0, ""
    for _ in numbers():
        began = time.perf_counter()
        page = await database.read(lambda c, after=after: list_page(c, wanted, sort, after, LIMIT))  # type: ignore[misc]
        taken.append(time.perf_counter() - began)
        found += len(page.devices)
        after = page.next or ""
        if not after or len(taken) == PAGES:
            return taken, found
    raise AssertionError


async def main(count: int) -> None:
    """Fill a database, then look at pages of it."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite+aiosqlite:///{Path(folder) / 'bridge.db'}"
        await migrate.upgrade(url)
        database = await Database.open(url)
        dice = random.Random(7)
        began = time.perf_counter()
        for first in range(0, count, PORTION):
            await database.write(lambda c, first=first: fill(c, first, min(PORTION, count - first), dice))  # type: ignore[misc]
        print(f"{count:,} devices in {time.perf_counter() - began:.0f} s, {LIMIT} a page")
        print(f"{'':28}{'pages':>6}{'devices':>9}{'p50 ms':>8}{'p99 ms':>8}{'max ms':>8}")
        for name, (wanted, sort) in QUERIES.items():
            taken, found = await measure(database, wanted, sort)
            taken.sort()
            p50, p99 = taken[len(taken) // 2], taken[min(len(taken) - 1, int(len(taken) * 0.99))]
            print(f"{name:28}{len(taken):6}{found:9}{p50 * 1000:8.1f}{p99 * 1000:8.1f}{taken[-1] * 1000:8.1f}")
        await database.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000))
