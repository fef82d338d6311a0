"""What an operator does: send commands and look at devices."""

from __future__ import annotations

from tests.acceptance.process import BridgeProcess
from tests.waiting import until


def test_a_command_shows_each_status_until_it_succeeded(simulated: BridgeProcess) -> None:
    device = simulated.online()[0]
    sent = simulated.run("send", device, "reboot")
    assert sent.returncode == 0, sent.stderr
    positions = [sent.stdout.find(status) for status in ("queued", "sent", "delivered", "in_progress", "succeeded")]
    assert -1 not in positions, sent.stdout
    assert positions == sorted(positions), sent.stdout
    assert simulated.rows("SELECT device_id, name, status FROM commands") == [(device, "reboot", "succeeded")]


def test_a_command_to_nobody_expires(bridge: BridgeProcess) -> None:
    sent = bridge.run("send", "nobody", "reboot", "--ttl", "1")
    assert sent.returncode == 3, sent.stdout + sent.stderr
    assert "expired" in sent.stdout


def test_one_idempotency_key_is_executed_once(simulated: BridgeProcess) -> None:
    device = simulated.online()[0]
    first, second = (simulated.run("send", device, "reboot", "--id", "key-1", "--json") for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert simulated.rows("SELECT count(*) FROM commands") == [(1,)]
    assert simulated.rows("SELECT count(*) FROM command_events WHERE status = 'sent'") == [(1,)]


def test_devices_are_listed(simulated: BridgeProcess) -> None:
    listed = simulated.run("devices", "--json")
    assert listed.returncode == 0, listed.stderr
    assert all(device in listed.stdout for device in simulated.online())


def test_the_doctor_looks_at_the_running_bridge(simulated: BridgeProcess) -> None:
    until(lambda: simulated.get("/api/v1/ledger")["committed"] > 0, "readings")
    found = simulated.run("doctor", "--live")
    assert found.returncode == 0, found.stdout
    assert "bridge: ready" in found.stdout
    assert " received, " in found.stdout
    assert " in flight" in found.stdout
