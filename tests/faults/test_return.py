"""Who drops while the database is away comes back: devices by their tokens, clients to their kept sessions."""

from __future__ import annotations

import hashlib
from pathlib import Path

import httpx
import pytest

from tests.acceptance.process import BridgeProcess
from tests.bench import wire
from tests.faults.conftest import MakeVictim, Victim
from tests.faults.strangers import Stranger
from tests.faults.test_outage import condition
from tests.servers import Postgres
from tests.waiting import until

pytestmark = [pytest.mark.postgres, pytest.mark.weight(0.3)]

ACCEPTED = b"\x20\x02\x00\x00"
RESUMED = b"\x20\x02\x01\x00"
REFUSED = b"\x20\x02\x00\x04"
STORED = "SELECT message_id FROM telemetry WHERE device_id IN ('door', 'gate') ORDER BY id"


def test_clients_come_back_while_the_database_is_away(
    make_victim: MakeVictim, postgres: Postgres, tmp_path: Path
) -> None:
    users = tmp_path / "users"
    users.write_text(f"gate:$sha256${hashlib.sha256(b'old').hexdigest()}\n")
    settings = {
        "BRIDGE_MQTT__PASSWORD_FILE": str(users),
        "BRIDGE_MQTT__MAX_FAILED_LOGINS": "1000",
        "BRIDGE_WRITER__PATIENCE": "1",
    }
    victim = make_victim("postgresql", **settings)
    bridge = victim.bridge.start()
    devices = ("door", "gate", "barrier", "lost")
    bridge.post("/api/v1/registry", {"devices": [{"device_id": device} for device in devices]})
    tokens = {device: bridge.post(f"/api/v1/registry/{device}/credentials", {})["token"] for device in devices}
    assert take_back(bridge, "lost") == 200
    with Stranger(bridge.mqtt_port) as kept, Stranger(bridge.mqtt_port) as door:
        kept.send(wire.connect("kept", clean=False) + wire.subscribe(1, "devices/door/telemetry"))
        kept.expect(wire.SUBACK)
        assert told(door, "door", tokens["door"]) == ACCEPTED
        publish(door, "door", "before")
    with victim.fleet(rate=200, devices=2) as fleet:
        fleet.wait_for(50)
        postgres.stop()
        try:
            until(lambda: victim.metric("bridge_spool_rows") > 0, "rows in the spool")
            comes_back(bridge, tokens, "away")
            # Refused, as the database cannot be told; and nobody gets in by it from now on.
            assert take_back(bridge, "barrier") == 503
            assert answer(bridge, "barrier", tokens["barrier"]) == REFUSED
            with Stranger(bridge.mqtt_port) as kept:
                kept.send(wire.connect("kept", clean=False))
                assert kept.first(len(RESUMED)) == RESUMED
                for expected in (b"before", b"away"):
                    assert expected in taken(kept)
                kept.send(wire.subscribe(2, "notes/+"))
                kept.expect(wire.SUBACK)
        finally:
            postgres.start()
        fleet.wait_for(50)
        until(lambda: condition(bridge) == "ready", "the spool to be empty", 60)
        # From now on the database is asked, as soon as it answers in time.
        until(lambda: answer(bridge, "barrier", tokens["barrier"]) == ACCEPTED, "the token to be good again")
        assert victim.store.column(STORED) == ["before", "away", "gate-away"]
        assert fleet.stop().unacknowledged == 0
    assert bridge.terminate() == 0
    # Its state changed while the database was away, and has outlived the bridge.
    bridge.start()
    with Stranger(bridge.mqtt_port) as speaker, Stranger(bridge.mqtt_port) as kept:
        speaker.send(wire.connect("speaker") + wire.publish("notes/1", b"for the kept one", 1))
        speaker.expect(wire.PUBACK)
        kept.send(wire.connect("kept", clean=False))
        assert kept.first(len(RESUMED)) == RESUMED
        assert taken(kept) == b"for the kept one"
    a_start_without_the_database(victim, postgres, tokens)
    assert victim.store.column(STORED) == ["before", "away", "gate-away", "standing by", "gate-standing by"]


def a_start_without_the_database(victim: Victim, postgres: Postgres, tokens: dict[str, str]) -> None:
    """A bridge that has not reached its database since its start knows the devices, too."""
    bridge = victim.bridge
    assert bridge.terminate() == 0
    postgres.stop()
    try:
        bridge.start()
        comes_back(bridge, tokens, "standing by")
    finally:
        postgres.start()
    until(lambda: condition(bridge) == "ready", "the whole bridge to be there", 60)


def comes_back(bridge: BridgeProcess, tokens: dict[str, str], message_id: str) -> None:
    """Devices get in by their tokens and are acknowledged; nobody else does."""
    for device, its_id in (("door", message_id), ("gate", f"gate-{message_id}")):
        with Stranger(bridge.mqtt_port) as client:
            assert told(client, device, tokens[device]) == ACCEPTED
            publish(client, device, its_id)
    assert answer(bridge, "door", tokens["gate"]) == REFUSED
    assert answer(bridge, "lost", tokens["lost"]) == REFUSED
    # It is in the password file as well: its token counts, as ever.
    assert answer(bridge, "gate", "old") == REFUSED


def told(client: Stranger, device: str, token: str) -> bytes:
    """The bridge's answer to a device's CONNECT."""
    client.send(wire.connect(device, user=(device, token)))
    return client.first(len(ACCEPTED))


def answer(bridge: BridgeProcess, device: str, token: str) -> bytes:
    """The same, on a connection of its own."""
    with Stranger(bridge.mqtt_port) as client:
        return told(client, device, token)


def publish(client: Stranger, device: str, message_id: str) -> None:
    """A reading, which must be acknowledged."""
    client.send(wire.publish(f"devices/{device}/telemetry", f'{{"id": "{message_id}", "n": 1}}'.encode(), 7))
    client.expect(wire.PUBACK)


def taken(client: Stranger) -> bytes:
    """The payload of the next message, which is short; it is acknowledged."""
    first, size = client.first(2)
    _, payload, packet_id = wire.received(first, client.first(size))
    client.send(wire.puback(packet_id))
    return payload


def take_back(bridge: BridgeProcess, device: str) -> int:
    """The HTTP status of the revocation of a device's tokens."""
    path = bridge.url(f"/api/v1/registry/{device}/credentials")
    return httpx.delete(path, timeout=30.0, trust_env=False).status_code
