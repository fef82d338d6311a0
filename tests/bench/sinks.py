"""What dead sinks cost the intake and the other sinks, and what a week without one costs memory."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import statistics
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

CONTROL = "none, which shows the noise"
"""A second bridge without dead sinks."""
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


class Side:
    """A bridge that passes readings on to a file, with or without dead sinks beside."""

    def __init__(self, bridge: Bridge) -> None:
        self.bridge = bridge
        self.intake: list[float] = []
        self.sink: list[float] = []
        self.processor: list[float] = []
        """Microseconds of the processor for each message, from its arrival until the healthy sink has it."""
        self._stored = 0
        self._process = psutil.Process(bridge.pid)

    def load(self, seconds: float, *, counts: bool) -> None:
        """One run; `counts`: it is remembered."""
        spent = self._spent()
        load = Load(self.bridge, "bursts", connections=50, burst=100, seconds=seconds).wait_until_ready()
        acked = int(load.result()["acked"])
        # To the last acknowledgement: they come by the batch, of which few fit into so short a time.
        took = time.perf_counter() - load.began
        self._stored += acked
        passed_on(self.bridge, self._stored)
        if counts:
            self.intake.append(acked / took)
            self.sink.append(acked / (time.perf_counter() - load.began))
            self.processor.append((self._spent() - spent) / acked * 1e6)

    def _spent(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)


def isolation(seconds: float, pairs: int) -> list[dict[str, Any]]:
    """A bridge without dead sinks, one beside each kind of them, one beside all, and another without: each is loaded in
    turns with the first, so that every run has its own to be compared with."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-sinks-")))
        dead = {
            "an absent port": webhook("absent", free_port()),
            "a silent server": webhook("silent", stack.enter_context(receiver(drips=False))),
            "a dripping server": webhook("dripping", stack.enter_context(receiver(drips=True))),
        }
        dead["all three"] = "".join(dead.values())
        dead[CONTROL] = ""

        def side(number: int, beside: str) -> Side:
            files = folder / str(number)
            files.mkdir()
            healthy = f'[sinks.healthy]\ntype = "ndjson"\nbatch = 5000\nfolder = "{files}"\n'
            return Side(stack.enter_context(Bridge(config=healthy + beside)))

        sides = {name: side(number, settings) for number, (name, settings) in enumerate(dead.items(), 1)}
        alone = side(0, "")
        for number in range(1 + pairs):
            for beside in sides.values():
                # Whoever is second finds the machine as the first has left it: so each is first as often as the other.
                for one in (alone, beside) if number % 2 else (beside, alone):
                    one.load(seconds, counts=number > 0)
        for name, one in sides.items():
            retries = {sink["name"]: sink["retries"] for sink in one.bridge.ask("sinks")["sinks"]}
            if not all(count for sink, count in retries.items() if sink != "healthy"):
                raise RuntimeError(f"a dead sink was not even tried ({name}): {retries}")
    return [row for number, name in enumerate(sides) for row in compared(name, sides[name], alone, number, len(sides))]


def compared(name: str, beside: Side, alone: Side, first: int, every: int) -> Iterator[dict[str, Any]]:
    """The rows for one kind of dead sinks; its runs were made in turns with every so many of those `alone`."""
    spent = [a / b for a, b in zip(beside.processor, alone.processor[first::every], strict=True)]
    for what in ("intake", "sink"):
        with_them, without = getattr(beside, what), getattr(alone, what)[first::every]
        ratios = [a / b for a, b in zip(with_them, without, strict=True)]
        yield {
            "name": f"{'intake' if what == 'intake' else 'a healthy sink'} beside dead sinks: {name}",
            "unit": "msg/s",
            "bridge": with_them,
            "peer": without,
            "peer_name": "without",
            "goal": None if name == CONTROL else {"bound": 0.95, "at_least": True, "ratio": True},
            "notes": [
                f"{len(ratios)} pairs of runs, whose ratios are {spread(ratios)}; the processor's time for a message,"
                f" from its arrival to the healthy sink, in the same runs {spread(spent)} of that without"
            ],
        }


def spread(ratios: list[float]) -> str:
    """The least, the median and the most."""
    return f"{min(ratios):.2f} to {max(ratios):.2f}, median {statistics.median(ratios):.2f}"


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
    parser.add_argument("--seconds", type=float, default=2.5, help="of load in each two runs: short ones, and many")
    parser.add_argument("--pairs", type=int, default=5, help="of runs, for each kind of dead sinks")
    args = parser.parse_args(argv)
    rows = isolation(args.seconds / 2, args.pairs)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        rows += runner.run(outage())
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
