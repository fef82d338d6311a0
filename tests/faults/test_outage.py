"""A long outage at a steady rate: devices do not notice, memory stays flat, operators are told, all of it arrives."""

from __future__ import annotations

import json
import socket
import time
from contextlib import ExitStack

import pytest

from tests.acceptance.process import BridgeProcess
from tests.bench import wire
from tests.faults.conftest import MakeVictim, Victim
from tests.faults.fleet import now
from tests.faults.strangers import Stranger
from tests.faults.test_clients import memory
from tests.faults.torture import Torture
from tests.servers import HOST, Postgres
from tests.waiting import until

RATE = 2_000
GROWTH = 20.0
"""MiB that the process may grow by after the first part of the outage."""
ANSWER_WITHIN = 5.0
"""Seconds between two acknowledgements that no device calls an outage; `spool.after` is two of them."""


@pytest.mark.postgres
def test_a_long_outage(make_victim: MakeVictim, postgres: Postgres, torture: Torture) -> None:
    seconds = torture.pick(15, 300)
    row = torture.row(f"PostgreSQL away for {seconds:g} s at {RATE:,}/s")
    victim = make_victim("postgresql", BRIDGE_WRITER__PATIENCE="2")
    bridge = victim.bridge.start()
    with victim.fleet(rate=RATE, devices=100) as fleet:
        for _ in torture.rounds(row, 1, 1):
            fleet.wait_for(RATE)
            postgres.stop()
            try:
                until(lambda: victim.metric("bridge_spool_active") == 1, "rows to go into the spool")
                until(lambda: victim.metric("bridge_spool_rows") > 0, "rows in the spool")
                assert bridge.status("/readyz") == 200
                assert bridge.get("/readyz")["status"] == "degraded"
                sent = bridge.run("send", "fleet-1", "reboot")
                assert sent.returncode != 0
                assert "database" in sent.stderr
                until_then = now() + seconds
                sizes = []
                while now() < until_then:
                    time.sleep(seconds / 10)  # the length of the outage is the fault
                    assert fleet.back_after(now()) < ANSWER_WITHIN
                    sizes.append(memory(bridge))
                assert max(sizes) - max(sizes[:3]) < GROWTH, sizes
            finally:
                postgres.start()
            came_back = now()
            until(lambda: bridge.get("/readyz")["status"] == "ready", "the spool to be empty", 60 + seconds)
            row.recovery = now() - came_back
        victim.finish(fleet, row)
        assert fleet.longest_silence() < ANSWER_WITHIN, "a device has noticed"


def test_killed_during_an_outage(make_victim: MakeVictim, torture: Torture) -> None:
    """What is in the spool is in the database when the bridge is ready again."""
    row = torture.row("kill -9 with rows in the spool")
    victim = make_victim("sqlite", BRIDGE_SPOOL__AFTER="0.3")
    bridge = victim.bridge.start()
    with victim.fleet(rate=1_000) as fleet:
        for _ in torture.rounds(row, 1, 20):
            fleet.wait_for(200)
            with victim.locked():
                until(lambda: victim.metric("bridge_spool_rows") > 500, "rows in the spool")
                bridge.kill()
            began = now()
            bridge.start()
            assert json.loads(bridge.text("/readyz"))["status"] == "ready"
            row.recovery = max(row.recovery, fleet.back_after(began))
        victim.finish(fleet, row)


@pytest.mark.postgres
def test_a_start_while_the_database_is_away(make_victim: MakeVictim, postgres: Postgres, torture: Torture) -> None:
    """A gateway that boots before its database takes readings all the same, also when it is killed meanwhile; what
    needs the database is told so. When it is there it is migrated, and gets everything."""
    row = torture.row("started while PostgreSQL is away, and killed there")
    victim = make_victim("postgresql")
    bridge = victim.bridge.start()  # the first start needs its database: an address may be wrong
    assert bridge.terminate() == 0
    victim.store.empty()
    with ExitStack() as stack:
        for _ in torture.rounds(row, 1, 5):
            postgres.stop()
            try:
                bridge.start()
                fleet = stack.enter_context(victim.fleet(rate=1_000))
                fleet.wait_for(300)
                bridge.kill()
                began = now()
                bridge.start()
                row.recovery = max(row.recovery, fleet.back_after(began))
                assert condition(bridge) == "degraded"
                refused_in_time(victim)
                fleet.wait_for(300)
            finally:
                postgres.start()
            until(lambda: condition(bridge) == "ready", "the whole bridge to be there", 60)
            fleet.wait_for(100)
            victim.finish(fleet, row)
            assert bridge.terminate() == 0


def condition(bridge: BridgeProcess) -> str:
    """What /readyz says; empty while it says no or nothing."""
    try:
        return str(bridge.get("/readyz")["status"])
    except OSError:
        return ""


def refused_in_time(victim: Victim) -> None:
    """Whoever needs the database, which has not been reached since the start, is told so at once."""
    bridge = victim.bridge
    sent = bridge.run("send", "fleet-1", "reboot")
    assert sent.returncode != 0
    assert "database" in sent.stderr
    assert bridge.status("/api/v1/devices") == 503
    with Stranger(bridge.mqtt_port) as operator:
        operator.send(wire.connect("operator") + wire.publish("devices/fleet-1/command", b'{"name": "reboot"}', 1))
        assert operator.closed_by_peer()
    with Stranger(bridge.mqtt_port) as kept:
        kept.send(wire.connect("kept", clean=False))
        assert kept.closed_by_peer()
    assert victim.metric("bridge_spool_rows") > 0
    assert victim.metric("bridge_ledger_difference") == 0


@pytest.mark.postgres
def test_the_end_of_a_start(make_victim: MakeVictim, postgres: Postgres) -> None:
    """A bridge that waits for its database ends when it is told to. The first start does not wait; where readings
    cannot be stored without the profile of their device, nobody is let in meanwhile."""
    victim = make_victim("postgresql")
    postgres.stop()
    try:
        assert victim.bridge.refuse() == 1
        assert "database" in victim.bridge.output()
        postgres.start()
        bridge = victim.bridge.start()
        assert bridge.terminate() == 0
        postgres.stop()
        bridge.start()
        assert bridge.terminate() == 0
        bridge.environment["BRIDGE_REGISTRY__UNKNOWN"] = "refuse"
        bridge.launch()
        until(lambda: bridge.status("/healthz") == 200, "the process to answer")
        assert bridge.status("/readyz") == 503
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HOST, bridge.mqtt_port))
        assert bridge.terminate() == 0
    finally:
        postgres.start()
