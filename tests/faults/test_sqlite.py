"""What befalls a database file and the disk that it is on."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.faults.conftest import MakeVictim
from tests.faults.disk import small_disk
from tests.faults.fleet import now
from tests.faults.torture import Torture
from tests.waiting import until


def test_locked_by_another_program(make_victim: MakeVictim, torture: Torture) -> None:
    seconds = torture.pick(3, max(3, min(30, torture.seconds_left)))
    row = torture.row(f"SQLite locked exclusively, {seconds:.0f} s")
    victim = make_victim("sqlite")
    victim.bridge.start()
    with victim.fleet(rate=1_000) as fleet:
        for _ in torture.rounds(row, 1, 3):
            fleet.wait_for(200)
            with victim.locked():
                time.sleep(seconds)  # the length of the outage is the fault
            row.recovery = max(row.recovery, fleet.back_after(now()))
        victim.finish(fleet, row)


@pytest.mark.mount
def test_disk_full_then_freed(make_victim: MakeVictim, torture: Torture, tmp_path: Path) -> None:
    """Nothing is acknowledged that finds no room; when there is room the bridge goes on by itself."""
    row = torture.row("disk full, then freed")
    with small_disk(tmp_path / "disk", 48) as disk:
        victim = make_victim("sqlite", data=disk.folder)
        bridge = victim.bridge.start()
        with victim.fleet(rate=2_000) as fleet:
            for _ in torture.rounds(row, 1, 5):
                fleet.wait_for(500)
                disk.fill()
                until(lambda: "disk is full" in bridge.output(), "the bridge to notice", 60)
                assert bridge.status("/healthz") == 200
                disk.free()
                row.recovery = max(row.recovery, fleet.back_after(now()))
            victim.finish(fleet, row)
        bridge.finish()
