"""A running bridge, and the checks that every test with one ends with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.acceptance.process import BridgeProcess
from tests.waiting import until

MakeBridge = Callable[..., BridgeProcess]


@pytest.fixture
def make_bridge(tmp_path: Path) -> Iterator[MakeBridge]:
    """Makes bridges that are not started yet; at the end of the test each must `finish`."""
    made: list[BridgeProcess] = []

    def make(**settings: str) -> BridgeProcess:
        bridge = BridgeProcess(tmp_path / f"bridge-{len(made)}", settings)
        made.append(bridge)
        return bridge

    try:
        yield make
        for bridge in made:
            bridge.finish()
    finally:
        for bridge in made:
            if bridge.running:
                bridge.kill()
            print(f"--- output of {bridge.folder.name} ---\n{bridge.output()[-8000:]}")


@pytest.fixture
def bridge(make_bridge: MakeBridge) -> BridgeProcess:
    """A bridge as a newcomer has it: SQLite, loopback, no passwords; only ports and folder are the test's."""
    return make_bridge().start()


@pytest.fixture
def simulated(make_bridge: MakeBridge) -> BridgeProcess:
    """A bridge with three simulated devices, all of them connected."""
    bridge = make_bridge().start("--simulate", "3")
    until(lambda: len(bridge.online()) == 3, "three simulated devices", 30)
    return bridge
