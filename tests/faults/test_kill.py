"""`kill -9` at random moments under load: what was acknowledged is there, and the bridge is soon back."""

from __future__ import annotations

import asyncio
import random
import time

import psutil
import pytest

from bridge.storage.database import Database
from bridge.storage.sessions import SessionStore
from bridge.storage.writer import Writer
from tests.acceptance.process import BridgeProcess
from tests.faults.conftest import MakeVictim
from tests.faults.torture import Torture

SESSIONS = 10_000
READY_WITHIN = 5.0


@pytest.mark.weight(5)
@pytest.mark.parametrize("part", [1, 2])
def test_kill_9_at_random_moments(make_victim: MakeVictim, kind: str, part: int, torture: Torture) -> None:
    row = torture.row(f"kill -9 under load, {kind}, part {part}")
    victim = make_victim(kind)
    bridge = victim.bridge.start()
    moments = random.Random(f"{kind} {part}")  # the same moments every time, as far as a machine repeats itself
    with victim.fleet(rate=3_000) as fleet:
        for _ in torture.rounds(row, 5, 50):
            fleet.wait_for(1)
            time.sleep(moments.uniform(0.0, 0.6))  # the moment is the test, not a wait for anything
            bridge.kill()
            victim.audit(row, now=True)
            began = time.monotonic()
            bridge.start()
            row.recovery = max(row.recovery, fleet.back_after(began))
        victim.finish(fleet, row)


def test_ready_again_with_many_known_sessions(make_victim: MakeVictim, kind: str, torture: Torture) -> None:
    """Ready within five seconds. Where other programs have the machine, a start without sessions is the measure: all
    the sessions may cost as much again, of the processor."""
    row = torture.row(f"kill -9 with {SESSIONS:,} known sessions, {kind}")
    victim = make_victim(kind)
    bridge = victim.bridge.start()
    plain = processor_time(bridge)
    assert bridge.terminate() == 0
    asyncio.run(remember_sessions(victim.store.url, SESSIONS))
    bridge.start()
    with victim.fleet(rate=500) as fleet:
        for _ in torture.rounds(row, 1, 10):
            fleet.wait_for(100)
            bridge.kill()
            victim.audit(row, now=True)
            began = time.monotonic()
            bridge.start()
            took = time.monotonic() - began
            assert took < READY_WITHIN or processor_time(bridge) < 2 * plain
            row.recovery = max(row.recovery, fleet.back_after(began))
        assert victim.metric("bridge_sessions") >= SESSIONS
        victim.finish(fleet, row)


def processor_time(bridge: BridgeProcess) -> float:
    """Seconds of the processor that the bridge has used since it began."""
    assert bridge.process is not None
    spent = psutil.Process(bridge.process.pid).cpu_times()
    return float(spent.user + spent.system)


async def remember_sessions(url: str, count: int) -> None:
    """Store so many kept sessions, each with a subscription, as a bridge would."""
    database = await Database.open(url)
    writer = Writer(database)
    await writer.start()
    store = SessionStore(database, writer)
    now = time.time()
    for number in range(count):
        subscriptions = {f"devices/known-{number}/command/request": 1}
        store.save(f"known-{number}", None, subscriptions, now, now)
    await writer.barrier()
    await writer.stop(10.0)
    await database.close()
