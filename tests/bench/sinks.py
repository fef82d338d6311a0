"""What dead sinks cost the intake and the other sinks, and what a week without one costs memory."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import uvloop

from bridge.sinks.feeder import Feeder, Filter, Pace
from bridge.sinks.sink import Sink, SinkUnavailableError
from bridge.storage import migrate
from bridge.storage.committed import Record
from bridge.storage.database import Database
from bridge.storage.writer import Writer
from tests.bench.scenarios import Load
from tests.bench.servers import Bridge
from tests.servers import HOST, free_port

ROUNDS = 9
"""The first of them only warms up: what is new is slow."""
DRIP = 0.1
"""Seconds between two bytes of an answer without end."""
CATCH_UP = 60.0
WEEK = 7 * 86_400
"""Readings: one a second for a week."""
AT_ONCE = 20_000
MEBIBYTE = 1_048_576


@contextmanager
def receiver(*, drips: bool) -> Iterator[int]:
    """The port of somebody who takes requests and never answers them, or one byte at a time."""
    ended = threading.Event()
    connections: list[socket.socket] = []

    def serve(listener: socket.socket) -> None:
        while not ended.wait(DRIP):
            with contextlib.suppress(BlockingIOError):
                connections.append(listener.accept()[0])
            for connection in list(connections) if drips else ():
                try:
                    connection.send(b"H")
                except OSError:
                    connections.remove(connection)

    with socket.create_server((HOST, 0)) as listener:
        listener.setblocking(False)
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            ended.set()
            thread.join()
            for connection in connections:
                connection.close()


def webhook(name: str, port: int) -> str:
    """The settings of a sink that posts to a port of this machine."""
    return f'[sinks.{name}]\ntype = "webhook"\nurl = "http://{HOST}:{port}/"\ntimeout = 1\n'


def isolation(seconds: float) -> list[dict[str, Any]]:
    """Two bridges that both pass readings on to files, one with three dead sinks beside, loaded in turns."""
    rates: dict[str, dict[bool, list[float]]] = {name: {True: [], False: []} for name in ("intake", "sink")}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-sinks-")))
        dead = webhook("silent", stack.enter_context(receiver(drips=False)))
        dead += webhook("dripping", stack.enter_context(receiver(drips=True))) + webhook("absent", free_port())
        bridges = {}
        for beside_dead in (False, True):
            files = folder / str(beside_dead)
            files.mkdir()
            healthy = f'[sinks.healthy]\ntype = "ndjson"\nbatch = 5000\nfolder = "{files}"\n'
            bridges[beside_dead] = stack.enter_context(Bridge(config=healthy + dead if beside_dead else healthy))
        stored = {False: 0, True: 0}
        for number in range(ROUNDS):
            # Whoever is second finds the machine as the first has left it: so each is first as often as the other.
            for beside_dead in (False, True) if number % 2 else (True, False):
                bridge = bridges[beside_dead]
                began = time.perf_counter()
                result = Load(bridge, "bursts", connections=50, burst=100, seconds=seconds).result()
                stored[beside_dead] += int(result["acked"])
                passed_on(bridge, stored[beside_dead])
                if number:
                    rates["intake"][beside_dead].append(result["rate"])
                    rates["sink"][beside_dead].append(result["acked"] / (time.perf_counter() - began))
        retries = {sink["name"]: sink["retries"] for sink in bridges[True].ask("sinks")["sinks"]}
    if not all(retries[name] for name in ("silent", "dripping", "absent")):
        raise RuntimeError(f"a dead sink was not even tried: {retries}")
    names = {"intake": "intake beside three dead sinks", "sink": "a healthy sink beside them"}
    return [
        {
            "name": name,
            "unit": "msg/s",
            "bridge": rates[what][True],
            "peer": rates[what][False],
            "peer_name": "without them",
            "goal": {"bound": 0.95, "at_least": True, "ratio": True},
        }
        for what, name in names.items()
    ]


def passed_on(bridge: Bridge, count: int) -> None:
    """Return when the healthy sink has taken so many records."""
    deadline = time.monotonic() + CATCH_UP
    while time.monotonic() < deadline:
        delivered = next(sink["delivered"] for sink in bridge.ask("sinks")["sinks"] if sink["name"] == "healthy")
        if delivered >= count:
            return
        time.sleep(0.05)
    raise RuntimeError(f"the healthy sink has {delivered} of {count} records")


class Patient(Sink):
    """A receiver that is away until `there` is set."""

    def __init__(self) -> None:
        self.there = False
        self.taken = 0
        self.most = 0

    async def deliver(self, records: Sequence[Record]) -> None:
        """Count them."""
        if not self.there:
            raise SinkUnavailableError("away")
        self.taken += len(records)
        self.most = max(self.most, len(records))


async def outage() -> list[dict[str, Any]]:
    """A week of readings is committed while a sink is away; then it comes back."""
    with tempfile.TemporaryDirectory(prefix="bench-outage-") as folder:
        url = f"sqlite+aiosqlite:///{Path(folder) / 'bridge.db'}"
        await migrate.upgrade(url)
        database = await Database.open(url)
        writer = Writer(database)
        await writer.start()
        sink = Patient()
        feeder = Feeder("patient", sink, database, Filter(frozenset({"telemetry"})), Pace(), from_beginning=True)
        feeding = asyncio.create_task(feeder.run())
        process = psutil.Process()
        sizes: list[int] = []
        for start in range(0, WEEK, AT_ONCE):
            for second in range(start, min(start + AT_ONCE, WEEK)):
                at = 1_760_000_000.0 + second
                writer.add_reading("fridge-7", "default", at, at, None, '{"temperature": 4.2}', None)
            await writer.barrier()
            sizes.append(process.memory_info().rss)
        # After half of it everything that has a fixed size has it: SQLite's cache holds 32 MiB.
        before = max(sizes[: len(sizes) // 2])
        sink.there = True
        began = time.perf_counter()
        while sink.taken < WEEK and not feeding.done():
            await asyncio.sleep(0.1)
            sizes.append(process.memory_info().rss)
        took = time.perf_counter() - began
        feeding.cancel()
        await asyncio.wait([feeding])
        await writer.stop(10.0)
        await database.close()
    if sink.taken != WEEK or sink.most > Pace().batch:
        raise RuntimeError(f"{sink.taken} of {WEEK} records have come, {sink.most} at a time")
    return [
        {
            "name": f"a week without a sink ({WEEK:,} readings), and back: growth of resident memory",
            "unit": "MiB",
            "bridge": [max(0.0, (max(sizes) - before) / MEBIBYTE)],
            "goal": {"bound": 16.0},
        },
        {"name": "the sink catches up", "unit": "records/s", "bridge": [WEEK / took]},
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.sinks", description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.5)
    args = parser.parse_args(argv)
    rows = isolation(args.seconds)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        rows += runner.run(outage())
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
