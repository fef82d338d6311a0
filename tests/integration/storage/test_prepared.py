from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import bindparam, update
from sqlalchemy.dialects import postgresql, sqlite

from bridge.storage.database import Database
from bridge.storage.prepared import Prepared
from bridge.storage.tables import devices
from tests.integration.storage.witness import Witness

NAMES = ("device_id", "first_seen", "last_seen", "status")
NEW: dict[str, Any] = {name: bindparam(name) for name in NAMES} | {"messages": 7}
INSERT = Prepared(
    sqlite.insert(devices).values(NEW).on_conflict_do_nothing(),
    postgresql.insert(devices).values(NEW).on_conflict_do_nothing(),
)
MOVE = Prepared(
    update(devices)
    .where(devices.c.device_id == bindparam("id"), devices.c.status == "offline")
    .values(status=bindparam("new"), epoch=devices.c.epoch + 1)
)


@pytest.mark.parametrize("way", ["transact", "write"])
async def test_it_does_the_same_by_the_driver_and_by_sqlalchemy(database: Database, witness: Witness, way: str) -> None:
    """On SQLite `transact` is the writer's way, in the database's own thread."""
    run = database.transact if way == "transact" else database.write
    row = {"device_id": "d'1", "first_seen": 1, "last_seen": 2.5, "status": "offline"}
    assert [await run(lambda c: INSERT.run(c, row)) for _ in range(2)] == [1, 0]
    assert [await run(lambda c: MOVE.run(c, {"id": "d'1", "new": "online"})) for _ in range(2)] == [1, 0]
    found = await witness.rows("SELECT device_id, first_seen, last_seen, status, messages, epoch FROM devices")
    assert found == [("d'1", 1.0, 2.5, "online", 7, 1)]
