"""A wall clock that is set while the bridge runs: by an hour and a day, forth and back."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from tests.acceptance.process import ROOT
from tests.faults.conftest import MakeVictim
from tests.faults.fleet import now
from tests.faults.torture import Torture
from tests.waiting import until

HOUR = 3_600.0
DAY = 86_400.0


class Clock:
    """The bridge's wall clock (see clock/sitecustomize.py)."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock-offset"
        self._file.write_bytes(struct.pack("d", 0.0))
        self.settings = {
            "CLOCK_OFFSET": str(self._file),
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent / "clock"), str(ROOT)]),
        }

    def set(self, offset: float) -> None:
        """Make it so many seconds ahead of the machine's."""
        with self._file.open("r+b") as file:
            file.write(struct.pack("d", offset))


@pytest.mark.weight(0.5)
@pytest.mark.parametrize("step", [HOUR, DAY, -HOUR, -DAY], ids=["hour", "day", "hour back", "day back"])
def test_the_clock_is_set(make_victim: MakeVictim, torture: Torture, tmp_path: Path, step: float) -> None:
    row = torture.row(f"clock set by {step / HOUR:+g} h and back")
    clock = Clock(tmp_path)
    victim = make_victim("sqlite", BRIDGE_AGENT__SNAPSHOT_INTERVAL="0.2")
    # Not through the settings: PYTHONPATH is the process's own.
    victim.bridge.environment |= clock.settings
    bridge = victim.bridge.start()
    with victim.fleet(rate=500) as fleet:
        for _ in torture.rounds(row, 1, 5):
            for offset in (step, 0.0):
                fleet.wait_for(100)
                clock.set(offset)
                row.recovery = max(row.recovery, fleet.back_after(now()))
                # Nobody is cut off or taken for gone, a command finds its way, and states are still stored.
                assert victim.metric("bridge_connections") == 20
                assert len(bridge.online()) == 20
                sent = bridge.post("/api/v1/devices/nobody/commands", {"name": "reboot", "ttl": 0.5})
                followed = f"/api/v1/commands/{sent['command_id']}?wait=10&after_seq=1"
                assert bridge.get(followed)["command"]["status"] == "expired"
                before = counted(victim.store.column("SELECT sum(messages) FROM devices"))
                until(
                    lambda before=before: counted(victim.store.column("SELECT sum(messages) FROM devices")) > before,  # type: ignore[misc]  # mypy wants the default's type
                    "states to be stored",
                )
        victim.finish(fleet, row)


def counted(column: list[int | None]) -> int:
    """The number that a query for one number has found."""
    return column[0] or 0
