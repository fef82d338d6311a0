"""How many rows a second the writer commits: on SQLite, and on PostgreSQL beside plain asyncpg with `unnest`.

`python -m tests.bench.writer [--seconds S]` prints rows as a JSON list; with `--timescaledb` only those of the writer
on a hypertable beside the writer on partitions, on a server that has TimescaleDB.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from itertools import count, islice
from pathlib import Path
from typing import Any

import asyncpg
import uvloop

from bridge.receipts import Ledger
from bridge.storage import hypertable, migrate
from bridge.storage.database import Database
from bridge.storage.retention import Keep, Retention
from bridge.storage.writer import Writer
from tests.bench import wire
from tests.servers import Postgres

BATCH = 2000
"""Rows per commit on both sides: the writer's default."""
ROUNDS = 3
DEVICES = 1000

Reading = tuple[str, str, float, float, str | None, str]


def readings() -> Iterator[Reading]:
    """Rows as the agents hand them in, from a thousand devices in turns."""
    payloads = [payload.decode() for payload in wire.telemetry(1000, time.time())]
    begin = time.time()
    for number in count():
        at = begin + number / 1000
        yield f"bench-{number % DEVICES:05d}", "default", at, at, None, payloads[number % 1000]


async def through_writer(writer: Writer, source: Iterator[Reading], seconds: float) -> float:
    """Rows per second from the first handed in to the last receipt settled."""
    ledger = Ledger()
    relief = asyncio.Event()
    writer.on_relief = relief.set
    begin = time.perf_counter()
    end = begin + seconds
    while time.perf_counter() < end:
        for device_id, stream, ts, received_at, message_id, payload in islice(source, 500):
            writer.add_reading(device_id, stream, ts, received_at, message_id, payload, ledger.receipt(qos=1))
        await asyncio.sleep(0)
        if writer.congested:
            await relief.wait()
            relief.clear()
    async with asyncio.timeout(60):
        await writer.barrier()
    if ledger.committed != ledger.received:
        raise RuntimeError(f"not everything was committed: {ledger.as_dict()}")
    return ledger.committed / (time.perf_counter() - begin)


async def through_asyncpg(
    connection: asyncpg.Connection[asyncpg.Record], source: Iterator[Reading], seconds: float, ids: Iterator[int]
) -> float:
    """Rows per second of one INSERT per batch, each committed by itself."""
    statement = (
        "INSERT INTO raw_telemetry (id, device_id, stream, ts, received_at, message_id, payload) "
        "SELECT * FROM unnest("
        "$1::bigint[], $2::text[], $3::text[], $4::float8[], $5::float8[], $6::text[], $7::json[]) "
        "ON CONFLICT DO NOTHING"
    )
    rows = 0
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        columns = zip(*islice(source, BATCH), strict=True)
        await connection.execute(statement, list(islice(ids, BATCH)), *map(list, columns))
        rows += BATCH
    return rows / (time.perf_counter() - begin)


async def on_sqlite(seconds: float) -> list[dict[str, Any]]:
    """The writer on a SQLite file with full sync."""
    with tempfile.TemporaryDirectory(prefix="bench-writer-") as folder:
        url = f"sqlite+aiosqlite:///{Path(folder) / 'bridge.db'}"
        await migrate.upgrade(url)
        database = await Database.open(url)
        writer = Writer(database, batch_rows=BATCH)
        await writer.start()
        source = readings()
        runs = [await through_writer(writer, source, seconds / ROUNDS) for _ in range(ROUNDS)]
        await writer.stop(10.0)
        await database.close()
    return [{"name": "writer on SQLite, full sync", "unit": "rows/s", "bridge": runs}]


async def on_postgres(seconds: float) -> list[dict[str, Any]]:
    """The writer and plain asyncpg in turns, each on a table of its own with the same indexes."""
    with Postgres() as server:
        await migrate.upgrade(server.url)
        database = await Database.open(server.url)
        writer = Writer(database, batch_rows=BATCH)
        await writer.start()
        raw = await asyncpg.connect(server.url.replace("postgresql+asyncpg", "postgresql"))
        await raw.execute("CREATE TABLE raw_telemetry (LIKE telemetry INCLUDING ALL)")
        source, ids = readings(), count(1)
        ours: list[float] = []
        plain: list[float] = []
        for _ in range(ROUNDS):
            ours.append(await through_writer(writer, source, seconds / ROUNDS))
            plain.append(await through_asyncpg(raw, source, seconds / ROUNDS, ids))
        await raw.close()
        await writer.stop(10.0)
        await database.close()
    return [
        {
            "name": "writer on PostgreSQL",
            "unit": "rows/s",
            "bridge": ours,
            "peer": plain,
            "peer_name": "asyncpg unnest",
            "goal": {"bound": 0.6, "at_least": True, "ratio": True},
        }
    ]


async def on_timescaledb(seconds: float) -> list[dict[str, Any]]:
    """Two writers in turns on one server: into a hypertable, and into partitions."""
    with Postgres(timescaledb=True) as server:
        async with AsyncExitStack() as undo:
            runs: list[tuple[Writer, Iterator[Reading], list[float]]] = []
            for name, chunked in (("bridge", True), ("postgres", False)):
                url = server.url_of(name)
                await migrate.upgrade(url, timescaledb=chunked)
                database = await Database.open(url)
                undo.push_async_callback(database.close)
                await Retention(database, Keep(), time.time).prepare()
                if await database.read(hypertable.there) is not chunked:
                    raise RuntimeError("telemetry is not where it should be")
                writer = Writer(database, batch_rows=BATCH)
                await writer.start()
                undo.push_async_callback(writer.stop, 10.0)
                runs.append((writer, readings(), []))
            for turn in range(2 * ROUNDS):
                # Each is first as often as second, which is where the server's checkpoints fall.
                for writer, source, rates in runs[:: -1 if turn % 2 else 1]:
                    rates.append(await through_writer(writer, source, seconds / (2 * ROUNDS)))
    (*_, ours), (*_, plain) = runs
    return [
        {
            "name": "writer on TimescaleDB",
            "unit": "rows/s",
            "bridge": ours,
            "peer": plain,
            "peer_name": "writer on partitions",
        }
    ]


async def measure(seconds: float) -> list[dict[str, Any]]:
    """Both databases."""
    return [*await on_sqlite(seconds), *await on_postgres(seconds)]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.writer", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--timescaledb", action="store_true", help="into a hypertable beside into partitions")
    args = parser.parse_args(argv)
    work = on_timescaledb if args.timescaledb else measure
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(work(args.seconds))))


if __name__ == "__main__":
    main()
