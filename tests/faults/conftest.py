"""Bridges to be broken, what is done to them, and the audit that every fault ends with."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.process import BridgeProcess
from tests.faults.fleet import Fleet
from tests.faults.stores import PostgresStore, SqliteStore, Store, missing
from tests.faults.torture import Row, Torture
from tests.servers import Postgres
from tests.waiting import until

TORTURE = pytest.StashKey[Torture]()
DRAIN_WITHIN = 120.0
"""Seconds in which everything that was spooled is in the database after the fault."""

_numbers = itertools.count(1)


def pytest_configure(config: pytest.Config) -> None:
    """Short rounds unless `make torture` asks for the long ones."""
    config.addinivalue_line("markers", "weight(share): of the time of `make torture`; 1 by default")
    config.stash[TORTURE] = Torture(long=config.getoption("--torture"), minutes=config.getoption("--torture-minutes"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The table of faults."""
    torture = config.stash[TORTURE]
    if torture.rows:
        terminalreporter.section("faults")
        terminalreporter.write_line(torture.table())


@pytest.fixture
def torture(request: pytest.FixtureRequest) -> Torture:
    """How often each fault is repeated, and the table."""
    torture = request.config.stash[TORTURE]
    items = request.session.items
    left = [weight(item) for item in items[items.index(request.node) :]]
    torture.begin(left[0] / sum(left))
    return torture


def weight(item: pytest.Item) -> float:
    """How much of the time a test is to have: some try many faults, or one that takes long."""
    marker = item.get_closest_marker("weight")
    return float(marker.args[0]) if marker else 1.0


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Iterator[Postgres]:
    """One PostgreSQL server for all faults, with fsync. A test that stops it must start it again."""
    with Postgres(timescaledb=request.config.getoption("--timescaledb")) as server:
        yield server


class Victim:
    """A bridge, its database as others see it, and the devices that talk to it."""

    def __init__(self, bridge: BridgeProcess, store: Store, folder: Path) -> None:
        self.bridge = bridge
        self.store = store
        self.folder = folder
        self._fleets: list[Fleet] = []

    def fleet(self, **options: Any) -> Fleet:
        """Devices that talk to the bridge from now on. Use as a context manager."""
        fleet = Fleet(self.bridge.mqtt_port, self.folder, **options)
        self._fleets.append(fleet)
        return fleet

    def audit(self, row: Row, *, now: bool = False) -> None:
        """Everything acknowledged is stored, once; the ledger holds; the database is sound. `now`: as it is, without a
        bridge that could finish anything."""
        if not now:
            self.drained()
        acknowledged = [found for fleet in self._fleets for found in fleet.acknowledged()]
        lost, doubled = missing(acknowledged, self.store)
        row.acknowledged = len(acknowledged)
        row.missing += len(lost)
        row.doubled += len(doubled)
        assert not lost, f"{row.fault}: {len(lost)} acknowledged messages are not stored: {lost[:5]}"
        assert not doubled, f"{row.fault}: {len(doubled)} messages are stored twice: {doubled[:5]}"
        assert len(set(acknowledged)) == len(acknowledged), "one message was acknowledged twice"
        if not now:
            self.bridge.settled_ledger()
            assert self.store.check() == []

    def finish(self, fleet: Fleet, row: Row) -> None:
        """End the load and audit: whatever was sent is acknowledged by now, in order, and nothing else is stored."""
        sent = fleet.stop()
        assert sent.unacknowledged == 0
        assert sent.disordered == 0, "acknowledged in another order than sent [MQTT-4.6.0-2]"
        self.audit(row)

    def drained(self) -> None:
        """Wait until nothing is left in the spool."""
        until(lambda: self.metric("bridge_spool_rows") == 0, "the spool to be drained", DRAIN_WITHIN)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Another program has the SQLite database for itself."""
        other = sqlite3.connect(self.bridge.data / "bridge.db", isolation_level=None, timeout=10)
        try:
            other.execute("BEGIN EXCLUSIVE")
            yield
            other.execute("COMMIT")
        finally:
            other.close()

    def metric(self, name: str) -> float:
        """A metric without labels, 0 where there is none."""
        for line in self.bridge.text("/metrics").splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return float(value)
        return 0.0


MakeVictim = Callable[..., Victim]


@pytest.fixture
def make_victim(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[MakeVictim]:
    """`make_victim(kind, port=..., **settings)`: a bridge that is not started yet, with an empty database. `port`: of
    the PostgreSQL server as the bridge sees it. At the end each must `finish`."""
    made: list[BridgeProcess] = []

    def make(kind: str, *, port: int | None = None, data: Path | None = None, **settings: str) -> Victim:
        folder = tmp_path / f"victim-{len(made)}"
        if kind == "postgresql":
            server: Postgres = request.getfixturevalue("postgres")
            if not server.running:  # a test that stopped it has failed
                server.start()
            name = f"faults_{next(_numbers)}"
            PostgresStore(server.url_of("postgres")).execute(f"CREATE DATABASE {name}")
            store: Store = PostgresStore(server.url_of(name))
            url = server.url_of(name)
            settings["BRIDGE_DATABASE__URL"] = url.replace(f":{server.port}/", f":{port or server.port}/")
        if data is not None:
            settings["BRIDGE_DATA_DIR"] = str(data)
        bridge = BridgeProcess(folder, settings)
        if kind == "sqlite":
            store = SqliteStore((data or bridge.data) / "bridge.db")
        made.append(bridge)
        return Victim(bridge, store, tmp_path)

    try:
        yield make
        for bridge in made:
            bridge.finish()
    finally:
        for bridge in made:
            if bridge.running:
                bridge.kill()
            print(f"--- output of {bridge.folder.name} ---\n{bridge.output()[-8000:]}")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def kind(request: pytest.FixtureRequest) -> str:
    """Which database."""
    name: str = request.param
    return name
