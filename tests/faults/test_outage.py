"""A long outage at a steady rate: devices do not notice, memory stays flat, operators are told, all of it arrives."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import httpx
import pytest

from tests.acceptance.process import BridgeProcess
from tests.bench import wire
from tests.faults.conftest import MakeVictim, Victim
from tests.faults.fleet import now
from tests.faults.stores import SqliteStore
from tests.faults.strangers import Stranger
from tests.faults.test_clients import memory
from tests.faults.torture import Torture
from tests.servers import HOST, Postgres
from tests.waiting import until

RATE = 2_000
GROWTH = 20.0
"""MiB that the process may grow by after the first part of the outage."""
PATIENCE = 1.0
TOLD_WITHIN = 10.0
"""Seconds: a machine with much else to do, and far less than the time for which the database is away otherwise."""
ANSWER_WITHIN = 5.0
"""Seconds between two acknowledgements that no device calls an outage; `spool.after` is two of them."""


@pytest.mark.postgres
@pytest.mark.weight(3)
def test_a_long_outage(make_victim: MakeVictim, postgres: Postgres, torture: Torture) -> None:
    seconds = torture.pick(15, max(15, min(300, torture.seconds_left / 2)))  # and as long again to drain
    row = torture.row(f"PostgreSQL away for {seconds:.0f} s at {RATE:,}/s")
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


@pytest.mark.weight(0.3)
def test_who_needs_the_database_is_told_in_time(
    make_victim: MakeVictim, kind: str, request: pytest.FixtureRequest
) -> None:
    """Commands, changes of twins and of the registry are refused while the database is away, for a device that is in
    memory and for one that is not, by HTTP and by MQTT. What a device reports is held, and stored when it is back."""
    victim = make_victim(kind, BRIDGE_WRITER__PATIENCE=str(PATIENCE), BRIDGE_SPOOL__AFTER="0.3")
    bridge = victim.bridge.start()
    with ExitStack() as stack:
        fleet = stack.enter_context(victim.fleet(rate=500, devices=1))
        fleet.wait_for(100)
        known = fleet.acknowledged()[0].rpartition("-")[0]
        device = stack.enter_context(Stranger(bridge.mqtt_port))
        device.send(wire.connect("reporter") + wire.publish(f"devices/{known}/state/reported", b'{"n": 1}', 1))
        device.expect(wire.PUBACK)
        pool = stack.enter_context(ThreadPoolExecutor(max_workers=20))
        with away(victim, request):
            until(lambda: victim.metric("bridge_spool_rows") > 0, "rows in the spool")
            device.send(wire.publish(f"devices/{known}/state/reported", b'{"n": 2}', 2))
            asked = [
                pool.submit(refused, bridge, method, f"/api/v1/{path}", body)
                for device_id in (known, "never-seen")
                for method, path, body in (
                    ("POST", f"devices/{device_id}/commands", {"name": "reboot"}),
                    ("PATCH", f"devices/{device_id}/twin", {"led": True}),
                )
            ]
            asked.append(pool.submit(refused, bridge, "POST", "/api/v1/registry", {"devices": [{"device_id": "new"}]}))
            asked += [
                pool.submit(cut_off, bridge, f"devices/{device_id}/{topic}", payload)
                for device_id in (known, "never-seen")
                for topic, payload in (("command", b'{"name": "reboot"}'), ("state/desired", b'{"led": true}'))
            ]
            for question in asked:
                question.result()
            assert not device.readable(), "acknowledged, and not stored"
            fleet.wait_for(100)
        device.expect(wire.PUBACK)
        until(lambda: condition(bridge) == "ready", "the spool to be empty", 60)
        assert bridge.get(f"/api/v1/devices/{known}/twin")["reported"] == {"n": 2}
        sent = fleet.stop()
        assert sent.unacknowledged == 0


@contextmanager
def away(victim: Victim, request: pytest.FixtureRequest) -> Iterator[None]:
    """The victim's database is there for nobody."""
    if isinstance(victim.store, SqliteStore):
        with victim.locked():
            yield
        return
    server: Postgres = request.getfixturevalue("postgres")
    server.stop()
    try:
        yield
    finally:
        server.start()


def refused(bridge: BridgeProcess, method: str, path: str, body: object) -> None:
    """A request must be answered with 503 within the writer's patience, and a half for the writer's look at it."""
    began = now()
    answer = httpx.request(method, bridge.url(path), json=body, timeout=60.0, trust_env=False)
    assert answer.status_code == 503, f"{method} {path}: {answer.status_code} {answer.text}"
    assert now() - began < TOLD_WITHIN, f"{method} {path}"


def cut_off(bridge: BridgeProcess, topic: str, payload: bytes) -> None:
    """A message must lead to the end of its connection, without an acknowledgement."""
    began = now()
    with Stranger(bridge.mqtt_port) as operator:
        operator.send(wire.connect(f"operator of {topic}") + wire.publish(topic, payload, 1))
        operator.expect(wire.CONNACK)
        assert operator.rest() == b"", f"{topic}: acknowledged, and not stored"
    assert now() - began < TOLD_WITHIN, topic


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
    """Whoever needs the database, while the bridge stands by, is told so at once."""
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
@pytest.mark.weight(0.3)
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
