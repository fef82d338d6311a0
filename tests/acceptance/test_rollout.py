"""One command for many: `mqtt-bridge send` to simulated devices, as an operator types it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tests.acceptance.conftest import MakeBridge
from tests.acceptance.process import BridgeProcess
from tests.waiting import until

DEVICES = int(os.environ.get("BRIDGE_TEST_ROLLOUT", "40"))


def ended(bridge: BridgeProcess, rollout_id: str) -> dict[str, Any]:
    """The rollout, once all that it has sent has ended."""

    def look() -> dict[str, Any] | None:
        view: dict[str, Any] = bridge.get(f"/api/v1/rollouts/{rollout_id}")
        over = view["status"] != "running" and view["ended"] == sum(view["counts"].values()) + view["refused"]
        return view if over else None

    return until(look, "the rollout's end", 90) or {}


def test_a_rollout_reaches_every_device_once_a_few_at_a_time_also_through_a_kill(make_bridge: MakeBridge) -> None:
    bridge = make_bridge().start("--simulate", str(DEVICES))
    until(lambda: len(bridge.online()) == DEVICES, "the simulated devices", 60)
    started = bridge.run("send", "reboot", "--status", "online", "--rollout", "5", "--ttl", "20", "--no-wait")
    assert started.returncode == 0, started.stderr
    rollout_id = started.stdout.strip()
    until(lambda: bridge.rows("SELECT count(*) FROM commands")[0][0] >= DEVICES // 3, "a third of it")
    old = bridge.children()
    bridge.kill()
    # Devices of the old process could come back to the new one, take a command, and end without an answer.
    until(lambda: not any(Path(f"/proc/{child}").exists() for child in old), "the end of the old devices", 30)
    bridge.start("--simulate", str(DEVICES))
    view = ended(bridge, rollout_id)
    # Whoever was not back yet when its turn came did not fit any more: the filter is asked anew for each page.
    assert view["status"] == "finished"
    assert set(view["counts"]) <= {"succeeded", "expired"}
    assert bridge.rows("SELECT max(number) FROM (SELECT count(*) AS number FROM commands GROUP BY device_id)") == [(1,)]
    assert bridge.rows("SELECT count(*) FROM commands WHERE attempts > max_attempts") == [(0,)]

    everyone = bridge.run("send", "reboot", "--all", "--rollout", "20", "--json", timeout=120)
    assert everyone.returncode == 0, everyone.stderr
    assert json.loads(everyone.stdout)["counts"] == {"succeeded": DEVICES}


def test_a_rollout_that_fails_stops_and_says_so_with_its_exit_code(simulated: BridgeProcess) -> None:
    first, second, third = simulated.online()
    stopped = simulated.run(
        "send", first, second, third, "fail", "--rollout", "1", "--stop-after-failures", "2", "--id", "k"
    )
    assert stopped.returncode == 3, stopped.stderr
    assert "stopped: 2 failed, of 3" in stopped.stdout
    assert f"  {first}  failed  asked to fail" in stopped.stdout
    listed = simulated.run("rollouts", "--json")
    assert [rollout["status"] for rollout in json.loads(listed.stdout)] == ["stopped"]
    refused = simulated.run("send", first, second, third, "reboot", "--rollout", "1", "--id", "k")
    assert refused.returncode == 1
    assert "that of another rollout" in refused.stderr


def test_what_was_sent_is_listed_and_called_off(bridge: BridgeProcess) -> None:
    command_id = bridge.run("send", "nobody", "reboot", "--ttl", "600", "--no-wait").stdout.strip()
    rollout_id = bridge.run("send", "no-1", "no-2", "reboot", "--ttl", "600", "--no-wait").stdout.strip()
    schedule_id = bridge.run("send", "nobody", "reboot", "--cron", "30 2 * * *", "--tz", "Europe/Berlin").stdout.strip()
    for what, kind in ((command_id, "commands"), (rollout_id, "rollouts"), (schedule_id, "schedules")):
        called_off = bridge.run("cancel", what)
        assert (called_off.returncode, called_off.stdout) == (0, f"{what} is cancelled\n"), called_off.stderr
        listed = bridge.run(kind).stdout
        assert what in listed
        assert "cancelled" in listed
    assert bridge.rows("SELECT DISTINCT status FROM commands") == [("cancelled",)]
    bridge.run("send", "nobody", "reboot", "--id", "k", "--no-wait")
    other = bridge.run("send", "nobody", "explode", "--id", "k", "--no-wait")
    assert other.returncode == 1
    assert "that of another command, 'reboot'" in other.stderr
