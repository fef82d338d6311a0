"""What an agent costs: waking it, keeping it asleep, and bringing it back from the database.

`python -m tests.bench.agents [--seconds S]` prints rows as a JSON list. No broker and no sockets here; the cold start
runs on a real SQLite file, the other two on a writer that does nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, cast, final

import uvloop

from bridge.agents.router import Router
from bridge.agents.services import Rules, Services
from bridge.agents.timers import TimerWheel
from bridge.app import SWITCH_INTERVAL
from bridge.collection import Collection
from bridge.messages import Address, Kind, Message
from bridge.receipts import Ledger, Outcome, Receipt
from bridge.storage import migrate
from bridge.storage.database import Database
from bridge.storage.devices import DeviceLoader, DeviceSnapshot
from bridge.storage.writer import Writer
from bridge.topics import Topics
from tests.bench import wire
from tests.bench.measure import percentiles, resident_bytes

AWAKE = 1000
"""Agents that wait when the wake-up is measured."""
COLD_RATE = 1000
"""Cold starts per second."""
AT_ONCE = 1000


class _NoLoader:
    """Nobody has heard of any device."""

    database = None
    """Twins would be read from it; the devices here have none."""

    async def load(self, _device_id: str) -> DeviceSnapshot | None:
        return None


class _NoWriter:
    """Says at once that everything is committed."""

    congested = False
    diverting = False
    on_relief: Callable[[], None] | None = None

    def add_reading(
        self, _id: str, _stream: str, _ts: float, _at: float, _message_id: str | None, _payload: str, receipt: Receipt
    ) -> None:
        receipt.settle(Outcome.COMMITTED)

    def save_device(self, _snapshot: DeviceSnapshot) -> None:
        pass

    def barrier(self) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


def _services(writer: object, loader: object, clock: Callable[[], float] = time.time) -> Services:
    services = Services(
        writer=cast("Writer", writer),
        loader=cast("DeviceLoader", loader),
        topics=Topics(),
        rules=Rules(sleep_after=3600.0, evict_after=7200.0),  # nobody falls asleep by himself meanwhile
        clock=clock,
    )
    services.publish = lambda *_args, **_options: 0
    return services


def _address(device_id: str) -> Address:
    return Address(f"devices/{device_id}/telemetry", device_id, Kind.TELEMETRY, "default")


@final
class Countdown:
    """A future that is done when something has happened `left` times; also an owner that counts its receipts."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def count(self, _what: object) -> None:
        """It has happened once."""
        self.left -= 1
        if not self.left:
            self.done.set_result(None)

    receipt_settled = count


async def wake_up(seconds: float) -> list[dict[str, Any]]:
    """Microseconds per wake-up of one of a thousand waiting agents: alone, and with a reading decoded and handed on."""
    ledger = Ledger()
    router = Router(_services(_NoWriter(), _NoLoader()))
    cells = [router.cell(f"bench-{number:05d}") for number in range(AWAKE)]
    addresses = [_address(cell.device_id) for cell in cells]
    payload = next(wire.telemetry(1, time.time()))
    bare: list[float] = []
    with_reading: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        woken = Countdown(AWAKE)
        for cell in cells:
            cell.tell(woken.count)
        await woken.done
        bare.append((time.perf_counter() - begin) / AWAKE * 1e6)
        await asyncio.sleep(0)
        now = time.time()
        begin = time.perf_counter()
        settled = Countdown(AWAKE)
        for address in addresses:
            router.deliver([Message(address, payload, now, ledger.receipt(settled, 1))])
        await settled.done
        with_reading.append((time.perf_counter() - begin) / AWAKE * 1e6)
        await asyncio.sleep(0)
    await router.stop(10.0)
    # The first round has created the agents.
    return [
        {
            "name": "wake-up of a waiting agent",
            "unit": "µs",
            "bridge": [statistics.median(bare[1:])],
            "goal": {"bound": 6.0},
        },
        {
            "name": "wake-up, decoding a reading, handing it to the writer",
            "unit": "µs",
            "bridge": [statistics.median(with_reading[1:])],
        },
    ]


async def asleep(seconds: float) -> list[dict[str, Any]]:
    """Memory of a million devices that have sent a reading and sleep, and what finding one of them costs.

    Measured with fewer of them and multiplied (100,000 and 1,000,000 gave the same memory per device to 2%):
    a million take a minute and a half to create, most of it in the garbage collector.
    """
    devices = 250_000 if seconds >= 2.0 else 50_000
    ledger = Ledger()
    clock = Clock()
    services = _services(_NoWriter(), _NoLoader(), clock.now)
    services.wheel = TimerWheel(clock.now)
    router = Router(services)
    payload = next(wire.telemetry(1, time.time()))
    lookups: dict[int, float] = {}
    gc.collect()
    before = resident_bytes(os.getpid())
    for start in range(0, devices, AT_ONCE):
        names = [f"bench-{number:07d}" for number in range(start, start + AT_ONCE)]
        for name in names:
            router.deliver([Message(_address(name), payload, clock.now(), ledger.receipt(qos=1))])
        await _asleep(services, clock)
        if start + AT_ONCE in (AT_ONCE, devices):
            lookups[start + AT_ONCE] = _lookup(router, start + AT_ONCE)
    gc.collect()
    megabytes = (resident_bytes(os.getpid()) - before) / 1e6 * (1_000_000 / devices)
    activity = router.activity()
    if activity != {"awake": 0, "asleep": devices, "cold": 0} or ledger.committed != devices:
        raise RuntimeError(f"not all of {devices} devices have handled their message and sleep: {activity}")
    return [
        {
            "name": f"1,000,000 sleeping devices (from {devices:,})",
            "unit": "MB",
            "bridge": [megabytes],
            "goal": {"bound": 300.0},
        },
        {
            "name": f"finding one of {devices:,} devices against one of 1,000",
            "unit": "ns",
            "bridge": [lookups[devices]],
            "peer": [lookups[AT_ONCE]],
            "peer_name": "1,000",
        },
    ]


@final
class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.seconds = time.time()

    def now(self) -> float:
        """The time, in seconds."""
        return self.seconds


async def _asleep(services: Services, clock: Clock) -> None:
    """Let everybody handle what there is, and fall asleep."""
    for _ in range(3):
        await asyncio.sleep(0)
    clock.seconds += services.rules.sleep_after + 1.0
    services.wheel.turn()
    for _ in range(2):
        await asyncio.sleep(0)


def _lookup(router: Router, devices: int) -> float:
    """Nanoseconds to find a device by a name that is a new string, as a topic's is."""
    chosen = random.Random(1)
    names = [f"bench-{chosen.randrange(devices):07d}" for _ in range(20_000)]
    took = 0.0
    for name in names:
        begin = time.perf_counter()
        snapshot = router.sleepers.take(name)
        took += time.perf_counter() - begin
        if snapshot is None:
            raise RuntimeError(f"{name} does not sleep")
        router.sleepers.keep(snapshot)
    return took / len(names) * 1e9


async def cold(seconds: float) -> list[dict[str, Any]]:
    """First message of evicted agents, a thousand different devices a second: state loaded, reading committed."""
    count = int(COLD_RATE * seconds)
    with tempfile.TemporaryDirectory(prefix="bench-agents-") as folder:
        url = f"sqlite+aiosqlite:///{Path(folder) / 'bridge.db'}"
        await migrate.upgrade(url)
        database = await Database.open(url)
        writer = Writer(database)
        await writer.start()
        now = time.time()
        state = '{"streams":{"default":[1764000000.0,{"temperature":18.0}]}}'
        for number in range(10 * count):
            writer.save_device(DeviceSnapshot(f"bench-{number:07d}", "default", now, now, 7, "online", 3, state))
        await writer.barrier()
        router = Router(_services(writer, DeviceLoader(database)))
        # As a bridge that is up and running: else the collector's pauses are what is measured.
        sys.setswitchinterval(SWITCH_INTERVAL)
        collection = Collection()
        collection.begin()
        portions = asyncio.create_task(collection.run())
        took = await _cold_starts(router, count)
        portions.cancel()
        await router.stop(10.0)
        await writer.stop(10.0)
        await database.close()
    found = percentiles(took)
    name = "first message of an evicted agent, 1,000 a second, until committed"
    return [
        {"name": f"{name}: p50", "unit": "ms", "bridge": [found["p50"]]},
        {"name": f"{name}: p99", "unit": "ms", "bridge": [found["p99"]], "goal": {"bound": 20.0}},
    ]


async def _cold_starts(router: Router, count: int) -> list[float]:
    loop = asyncio.get_running_loop()
    ledger = Ledger()
    payload = next(wire.telemetry(1, time.time()))
    sent: dict[int, float] = {}
    took: list[float] = []
    done = loop.create_future()

    class Clock:
        """Reads the time when a receipt is settled."""

        def receipt_settled(self, receipt: Receipt) -> None:
            took.append(time.perf_counter() - sent.pop(receipt.packet_id))
            if len(took) == count:
                done.set_result(None)

    owner = Clock()
    begin = time.perf_counter()
    for number in range(count):
        wait = begin + number / COLD_RATE - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        sent[number] = time.perf_counter()
        # Every tenth of the stored devices, so that they do not lie on one page of the database.
        address = _address(f"bench-{number * 10:07d}")
        router.deliver([Message(address, payload, time.time(), ledger.receipt(owner, 1, number))])
    await asyncio.wait_for(done, 30.0)
    if ledger.committed != count:
        raise RuntimeError(f"{ledger.committed} of {count} messages were committed")
    return took


def main(argv: Sequence[str] | None = None) -> None:
    """Measure all three, each in a loop of its own."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.agents", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    args = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    parts: tuple[Callable[[float], Coroutine[Any, Any, list[dict[str, Any]]]], ...] = (asleep, wake_up, cold)
    for part in parts:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            rows += runner.run(part(args.seconds))
        gc.collect()
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
