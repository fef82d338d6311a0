"""The promises once more with PostgreSQL, as the production profile has it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest

from tests.acceptance.clients import Device, Load
from tests.acceptance.conftest import MakeBridge
from tests.acceptance.process import BridgeProcess
from tests.servers import Postgres
from tests.waiting import until

pytestmark = pytest.mark.postgres

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


class Database:
    """An empty database for one test, and what is in it."""

    def __init__(self, server: Postgres) -> None:
        self.server = server
        name = f"bridge_{next(_numbers)}"
        self._query(server.url, f"CREATE DATABASE {name}")
        self.url = server.url_of(name)

    @staticmethod
    def _query(url: str, query: str) -> list[Any]:
        async def fetch() -> list[Any]:
            connection = await asyncpg.connect(url.replace("+asyncpg", ""))
            try:
                return await connection.fetch(query)
            finally:
                await connection.close()

        return asyncio.run(fetch())

    def stored_ids(self) -> set[str]:
        """The message ids in the table of readings; fails if one is there twice."""
        ids = [row[0] for row in self._query(self.url, "SELECT message_id FROM telemetry")]
        assert len(ids) == len(set(ids)), "stored twice"
        return set(ids)


@pytest.fixture
def database(server: Postgres) -> Database:
    if not server.running:  # a test that stopped it has failed
        server.start()
    return Database(server)


@pytest.fixture
def bridge(make_bridge: MakeBridge, database: Database) -> BridgeProcess:
    return make_bridge(BRIDGE_DATABASE__URL=database.url).start()


def test_the_row_is_there_when_it_is_acknowledged(bridge: BridgeProcess, database: Database) -> None:
    with Device(bridge, "fridge-7") as device:
        device.publish_acknowledged("devices/fridge-7/telemetry", '{"id": "a", "temperature": 4.2}')
    assert database.stored_ids() == {"a"}


def test_kill_9_under_load_loses_nothing_acknowledged(bridge: BridgeProcess, database: Database) -> None:
    with Load(bridge, "load") as load:
        until(lambda: len(load.acknowledged) > 500, "the load to run")
        bridge.kill()
        assert load.acknowledged.copy() <= database.stored_ids()
        bridge.start()
        load.stop()
        until(lambda: load.acknowledged == load.sent, "what was not acknowledged to be sent again", 20)
    assert database.stored_ids() == load.sent


def test_a_restart_of_the_database_under_load(make_bridge: MakeBridge, database: Database) -> None:
    """P5, without a spool: nothing is acknowledged while the database is away, nothing acknowledged is missing when it
    is back."""
    bridge = make_bridge(BRIDGE_DATABASE__URL=database.url, BRIDGE_SPOOL__ENABLED="false").start()
    with Load(bridge, "load") as load:
        until(lambda: len(load.acknowledged) > 500, "the load to run")
        database.server.stop()
        until(lambda: bridge.status("/readyz") == 503, "the bridge to say that it is not ready")
        assert bridge.status("/healthz") == 200, "the process itself is as healthy as before"
        acknowledged = len(load.acknowledged)
        with Device(bridge, "another"):
            pass
        assert len(load.acknowledged) == acknowledged
        database.server.start()
        until(lambda: len(load.acknowledged) > acknowledged + 500, "the load to go on", 60)
        load.stop()
        until(lambda: load.acknowledged == load.sent, "everything to be acknowledged", 20)
    assert database.stored_ids() == load.sent


def test_a_database_that_is_not_there_is_named(make_bridge: MakeBridge, database: Database) -> None:
    url = database.server.url_of("nowhere")
    bridge = make_bridge(BRIDGE_DATABASE__URL=url)
    assert bridge.refuse() == 1
    assert "nowhere" in bridge.output()
    assert "Traceback" not in bridge.output()
