"""`kill -9` at random moments under load: what was acknowledged is there, and the bridge is soon back."""

from __future__ import annotations

import random
import time
from contextlib import ExitStack

import psutil
import pytest

from tests.acceptance.process import BridgeProcess
from tests.bench import wire
from tests.faults.conftest import MakeVictim
from tests.faults.strangers import Stranger
from tests.faults.torture import Torture

SESSIONS = 10_000
AT_ONCE = 250
READY_WITHIN = 5.0


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


def test_ready_again_with_many_known_sessions(make_victim: MakeVictim, torture: Torture) -> None:
    """Ready within five seconds. Where other programs have the machine, a start without sessions is the measure: all
    the sessions may cost as much again, of the processor."""
    row = torture.row(f"kill -9 with {SESSIONS:,} known sessions")
    victim = make_victim("sqlite")
    bridge = victim.bridge.start()
    plain = processor_time(bridge)
    remember_sessions(bridge.mqtt_port, SESSIONS)
    with victim.fleet(rate=500) as fleet:
        for _ in torture.rounds(row, 1, 10):
            fleet.wait_for(100)
            bridge.kill()
            victim.audit(row, now=True)
            began = time.monotonic()
            bridge.start()
            assert time.monotonic() - began < READY_WITHIN or processor_time(bridge) < 2 * plain
            row.recovery = max(row.recovery, fleet.back_after(began))
        assert victim.metric("bridge_sessions") >= SESSIONS
        victim.finish(fleet, row)


def processor_time(bridge: BridgeProcess) -> float:
    """Seconds of the processor that the bridge has used."""
    assert bridge.process is not None
    spent = psutil.Process(bridge.process.pid).cpu_times()
    return float(spent.user + spent.system)


def remember_sessions(port: int, count: int) -> None:
    """Have the bridge keep so many sessions, each with a subscription."""
    for start in range(0, count, AT_ONCE):
        with ExitStack() as stack:
            names = [f"known-{number}" for number in range(start, min(start + AT_ONCE, count))]
            clients = [stack.enter_context(Stranger(port)) for _ in names]
            for name, client in zip(names, clients, strict=True):
                client.send(wire.connect(name, clean=False) + wire.subscribe(1, f"devices/{name}/command/request"))
            for client in clients:
                client.expect(wire.SUBACK)
