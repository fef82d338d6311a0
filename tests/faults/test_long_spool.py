"""A bridge that was ended with much in its spool takes readings at once, behind what is there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import pytest

from bridge.standby import LONG_SPOOL
from bridge.storage.database import Database
from bridge.storage.spool import Spool
from bridge.storage.writer import Writer
from tests.bench import wire
from tests.faults.conftest import MakeVictim
from tests.faults.strangers import Stranger
from tests.faults.test_outage import condition, refused_in_time
from tests.waiting import eventually, until

pytestmark = [pytest.mark.postgres, pytest.mark.weight(0.3)]

ROWS = LONG_SPOOL + 1


def test_a_start_with_a_long_spool(make_victim: MakeVictim) -> None:
    victim = make_victim("postgresql")
    bridge = victim.bridge.start()
    assert bridge.terminate() == 0
    asyncio.run(leave_behind(victim.store.url, bridge.data / "spool.db"))
    with commits_held_up(victim.store.url), Stranger(bridge.start().mqtt_port) as device:
        device.send(wire.connect("new") + wire.publish("devices/new/telemetry", b'{"id": "behind", "n": 1}', 7))
        device.expect(wire.PUBACK)
        assert condition(bridge) == "degraded"
        assert victim.metric("bridge_spool_rows") > ROWS
        refused_in_time(victim)
    until(lambda: condition(bridge) == "ready", "the whole bridge to be there", 60)
    stored = victim.store.column("SELECT message_id FROM telemetry ORDER BY id")
    assert stored == [*(f"old-{number}" for number in range(ROWS)), "behind"]


async def leave_behind(url: str, path: Path) -> None:
    """Fill the spool, as a bridge does whose database is away."""
    database = Database.prepare(url)
    spool = await Spool.open(path, max_bytes=1 << 30, clock=time.time)
    writer = Writer(database, spool=spool)
    await writer.stand_by("a test")
    now = time.time()
    for number in range(ROWS):
        writer.add_reading("old", "default", now, now, f"old-{number}", '{"n": 1}', None)
    await eventually(lambda: spool.rows == ROWS, "all of it to be in the spool")
    await writer.stop(10.0)
    await spool.close()
    await database.close()


@contextmanager
def commits_held_up(url: str) -> Iterator[None]:
    """Another session holds a lock that every commit of readings with ids waits for."""
    with asyncio.Runner() as runner:
        connection = runner.run(asyncpg.connect(url.replace("+asyncpg", "")))
        runner.run(connection.execute("BEGIN; LOCK TABLE message_ids IN SHARE MODE"))
        try:
            yield
        finally:
            runner.run(connection.close())
