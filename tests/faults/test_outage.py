"""A long outage at a steady rate: devices do not notice, memory stays flat, operators are told, all of it arrives."""

from __future__ import annotations

import json
import time

import pytest

from tests.faults.conftest import MakeVictim
from tests.faults.fleet import now
from tests.faults.test_clients import memory
from tests.faults.torture import Torture
from tests.servers import Postgres
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
