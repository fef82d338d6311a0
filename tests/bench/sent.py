"""How long a page of commands takes over HTTP among a million, on SQLite.

`python -m tests.bench.sent [--commands N] [--data FOLDER]` prints a table in Markdown. With `--data` the filled
database stays there, and is used again by the next run.
"""

from __future__ import annotations

import argparse
import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tests.bench.pages import Pages, filled, report
from tests.bench.servers import Bridge
from tests.bench.table import Row

COMMANDS: Final = 1_000_000
BUSY_PART: Final = 10
"""One command in so many goes to one device; the others to all alike."""
DEVICES: Final = 10_000
FIRST_SENT: Final = 1_700_000_000.0
AGE: Final = 1_000_000.0
"""Seconds over which the commands were sent."""
STATUSES: Final = ("succeeded",) * 18 + ("failed", "expired")
CONFIG: Final = "[retention]\ncommands = 0\n"
"""They were sent long ago."""
BUSY, QUIET, LARGE, SMALL = "device-busy", "device-0007", "r-large", "r-7"

FILTERS: Final[dict[str, dict[str, str]]] = {
    "all": {},
    "status, common": {"status": "succeeded"},
    "status, rare": {"status": "cancelled"},
    "status of none": {"status": "in_progress"},
    "device, busy": {"device": BUSY},
    "device, quiet": {"device": QUIET},
    "device of none": {"device": "nobody"},
    "rollout, large": {"rollout": LARGE},
    "rollout, small": {"rollout": SMALL},
    "rollout of none": {"rollout": "r-none"},
    "device, common status": {"device": BUSY, "status": "succeeded"},
    "device, rare status": {"device": BUSY, "status": "cancelled"},
    "rollout, common status": {"rollout": LARGE, "status": "succeeded"},
    "rollout, rare status": {"rollout": LARGE, "status": "cancelled"},
    "device, rollout": {"device": BUSY, "rollout": LARGE},
    "everything": {"device": BUSY, "rollout": LARGE, "status": "failed"},
}


def fill(database: sqlite3.Connection, count: int) -> None:
    """Commands with statuses and rollouts as a fleet has them: half of them one by one, the others in rollouts, of
    which one is large; each has ended."""
    dice = random.Random(7)

    def rows() -> Iterator[tuple[Any, ...]]:
        for number in range(count):
            at = FIRST_SENT + AGE * number / count
            device = BUSY if dice.random() * BUSY_PART < 1 else f"device-{dice.randrange(DEVICES):04}"
            status = "cancelled" if number % 10_000 == 6 else dice.choice(STATUSES)
            rollout = (None, None, LARGE, f"r-{number % 997}")[number % 4]
            yield (
                f"c-{dice.getrandbits(64):016x}", device, f"key-{number}", "defrost", '{"minutes":5}', status, at,
                at + 60, at + 1, 1, '{"done":true}' if status == "succeeded" else None, rollout,
            )  # fmt: skip

    database.executemany(
        "INSERT INTO commands (command_id, device_id, key, name, args, status, created_at, expires_at, updated_at,"
        f" attempts, result, rollout_id) VALUES ({', '.join('?' * 12)})",
        rows(),
    )


def pages_of_commands(count: int = COMMANDS, data: Path | None = None) -> list[Row]:
    """Fill a database unless `data` has one, start a bridge on it, ask every question, and print a table; the row is
    the slowest question's."""
    dice = random.Random(11)

    def somewhere() -> str:
        return f"{FIRST_SENT + dice.random() * AGE!r}~c-{dice.getrandbits(64):016x}"

    with filled(data, lambda database: fill(database, count)) as folder, Bridge(folder, CONFIG) as bridge:
        pages = Pages(bridge.http_port, "commands", "before")
        pages.warm_up()
        figures = [pages.measure(name, wanted, somewhere) for name, wanted in FILTERS.items()]
    return report(f"{count:,} commands", figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.bench.sent", description=__doc__)
    parser.add_argument("--commands", type=int, default=COMMANDS)
    parser.add_argument("--data", type=Path, help="keep the database in this folder")
    options = parser.parse_args()
    print(pages_of_commands(options.commands, options.data)[0].as_dict())
