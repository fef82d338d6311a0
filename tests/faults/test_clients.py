"""What clients do: hang up all at once, never read, say nothing, talk nonsense. The devices notice nothing."""

from __future__ import annotations

import random
import signal
import time
from contextlib import ExitStack, nullcontext

import psutil
import pytest

from tests.acceptance.process import STOP_WITHIN, BridgeProcess
from tests.bench import wire
from tests.faults.conftest import MakeVictim
from tests.faults.fleet import now
from tests.faults.strangers import Stranger
from tests.faults.torture import Torture
from tests.waiting import until

pytestmark = pytest.mark.weight(0.6)

SILENT = 1_000
CONNECT_TIMEOUT = 3
READERS = 100
FLOOD = 200
LOCKED = 1.0
"""Seconds that the database is locked at a SIGTERM: less than the shutdown waits for what is unsettled."""
FLOOD_BYTES = 16_384
MEBIBYTE = 1_048_576
NOISE = "noise/all"


def memory(bridge: BridgeProcess) -> float:
    """Resident memory in MiB."""
    assert bridge.process is not None
    return float(psutil.Process(bridge.process.pid).memory_info().rss / MEBIBYTE)


def test_sigterm_under_load(make_victim: MakeVictim, torture: Torture) -> None:
    """What was received is committed and acknowledged before the process ends: what is stored was acknowledged, too.
    In every other round the database is locked when the signal comes, so that much is not settled yet."""
    row = torture.row("SIGTERM under load")
    victim = make_victim("sqlite", BRIDGE_SPOOL__ENABLED="false")
    bridge = victim.bridge.start()
    with victim.fleet(rate=3_000) as fleet:
        for number in torture.rounds(row, 2, 20):
            fleet.wait_for(500)
            assert bridge.process is not None
            with victim.locked() if number % 2 else nullcontext():
                began = now()
                bridge.process.send_signal(signal.SIGTERM)
                if number % 2:
                    time.sleep(LOCKED)
            assert bridge.wait() == 0
            row.recovery = max(row.recovery, now() - began)
            victim.audit(row, now=True)
            stored = victim.store.column("SELECT count(*) FROM telemetry")
            assert stored == [len(fleet.acknowledged())], "stored, and not acknowledged"
            bridge.start()
        assert row.recovery < STOP_WITHIN
        victim.finish(fleet, row)


def test_every_device_drops_and_comes_back(make_victim: MakeVictim, torture: Torture) -> None:
    row = torture.row("200 devices drop and reconnect at once, 20 times a round")
    victim = make_victim("sqlite")
    victim.bridge.start()
    with victim.fleet(devices=200, rate=2_000) as fleet:
        for _ in torture.rounds(row, 1, 10):
            for _ in range(20):
                fleet.wait_for(200)
                fleet.drop()
                row.recovery = max(row.recovery, fleet.back_after(now()))
        sent = fleet.stop()
        assert sent.unacknowledged == sent.disordered == 0
        # One that is still on its way back is not dropped once more.
        assert sent.connects >= 0.8 * 200 * 20
        victim.audit(row)


def test_clients_that_never_read(make_victim: MakeVictim, torture: Torture) -> None:
    """A hundred subscribers with a full receive buffer: what is kept for them is bounded, and nobody waits for them."""
    row = torture.row(f"{READERS} clients that never read")
    victim = make_victim("sqlite", BRIDGE_MQTT__MAX_QUEUED="50")
    bridge = victim.bridge.start()
    with ExitStack() as stack:
        for number in range(READERS):
            client = stack.enter_context(Stranger(bridge.mqtt_port, receive_buffer=4096))
            client.send(wire.connect(f"blind-{number}") + wire.subscribe(1, NOISE))
            client.expect(wire.SUBACK)
        fleet = stack.enter_context(victim.fleet(rate=500))
        speaker = stack.enter_context(Stranger(bridge.mqtt_port))
        speaker.send(wire.connect("speaker"))
        speaker.expect(wire.CONNACK)
        before = memory(bridge)
        for _ in torture.rounds(row, 1, 10):
            for _ in range(FLOOD):
                speaker.send(wire.publish(NOISE, bytes(FLOOD_BYTES), 1))
                speaker.expect(wire.PUBACK)
            fleet.wait_for(200)
            row.recovery = max(row.recovery, fleet.back_after(now()))
        # One copy for all of them would be 3 MiB, one each 312: what they have not read is not kept without end.
        assert memory(bridge) - before < 150
        assert victim.metric('bridge_connections_closed_total{cause="slow_consumer"}') == READERS
        victim.finish(fleet, row)


def test_clients_that_say_nothing(make_victim: MakeVictim, torture: Torture) -> None:
    """A thousand connections without a CONNECT are closed after the time they have, and devices get in meanwhile."""
    row = torture.row(f"{SILENT:,} connections that say nothing")
    victim = make_victim("sqlite", BRIDGE_MQTT__CONNECT_TIMEOUT=str(CONNECT_TIMEOUT))
    bridge = victim.bridge.start()
    for _ in torture.rounds(row, 1, 10):
        with ExitStack() as stack:
            silent = [stack.enter_context(Stranger(bridge.mqtt_port)) for _ in range(SILENT)]
            began = now()
            fleet = stack.enter_context(victim.fleet(rate=500))
            row.recovery = max(row.recovery, fleet.back_after(began))
            assert all(stranger.closed_by_peer() for stranger in silent)
            victim.finish(fleet, row)
    until(lambda: victim.metric("bridge_connections") == 0, "the connections to be gone")


def test_malformed_packets(make_victim: MakeVictim, torture: Torture) -> None:
    """Random bytes, and good packets with a bit turned: the connection may end, the bridge and the devices go on."""
    row = torture.row("200 malformed packets")
    victim = make_victim("sqlite")
    bridge = victim.bridge.start()
    dice = random.Random(1)
    with victim.fleet(rate=500) as fleet:
        for _ in torture.rounds(row, 1, 20):
            for number in range(200):
                # A device id of its own: whatever a broken packet still means, it is not one of the fleet's messages.
                good = wire.connect(f"broken-{number}") + wire.publish(f"devices/broken-{number}/event/x", b"{}", 1)
                packet = bytearray(good if number % 4 else dice.randbytes(64))
                for _ in range(dice.randint(1, 3)):
                    packet[dice.randrange(len(packet))] ^= 1 << dice.randrange(8)
                with Stranger(bridge.mqtt_port) as client:
                    client.send(bytes(packet))
            row.recovery = max(row.recovery, fleet.back_after(now()))
        victim.finish(fleet, row)
    assert "Traceback" not in bridge.output()
