"""What /readyz says to whoever looks after the bridge."""

from __future__ import annotations

import time
from pathlib import Path

from sqlalchemy import insert, text
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.storage.database import Database
from bridge.storage.tables import devices, telemetry
from tests.integration.http.house import house
from tests.waiting import eventually

DAY = 86_400.0


async def test_a_sink_that_will_miss_what_is_deleted_is_a_concern_and_no_outage(url: str, tmp_path: Path) -> None:
    away = {"type": "webhook", "url": "http://127.0.0.1:9/hook", "start": "beginning"}
    async with house(url, tmp_path, sinks={"late": away}, retention={"telemetry": 10}) as opened:
        assert (await opened.client.get("/readyz")).json()["status"] == "ready"
        old = time.time() - 8.5 * DAY
        row = {"id": 1, "device_id": "d1", "stream": "default", "ts": old, "received_at": old, "payload": "{}"}

        async def store(connection: AsyncConnection) -> None:
            await connection.execute(insert(telemetry), row)

        await opened.bridge.writer.submit(store)
        (sink,) = opened.bridge.sinks
        await eventually(lambda: sink.endangered is not None, "the sink to have looked")
        answer = await opened.client.get("/readyz")
        assert answer.status_code == 200, "it takes all that comes"
        assert answer.json() == {
            "status": "degraded",
            "checks": dict.fromkeys(("database", "broker", "migrations", "spool"), "ok"),
            "reason": "sink late: telemetry of 8.5 days ago waits for it, and is deleted after 10 days",
        }
        assert 'bridge_sink_endangered{sink="late"} 1.0' in (await opened.client.get("/metrics")).text


async def test_a_schema_that_was_changed_meanwhile_is_told(url: str, tmp_path: Path) -> None:
    async with house(url, tmp_path) as opened:

        async def change(connection: AsyncConnection) -> None:
            await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))

        await opened.bridge.writer.submit(change)
        answer = await opened.client.get("/readyz")
        assert answer.status_code == 503
        needed = opened.bridge.schema
        assert answer.json()["checks"]["migrations"] == f"the schema is 9999, this version needs {needed}"


async def test_a_start_after_a_crash_takes_the_time_it_needs(url: str, tmp_path: Path) -> None:
    """All that were online have to be made unknown before anybody is let in: who needs it is not told to come again."""
    database = await Database.open(url)
    rows = [
        {"device_id": f"d{number}", "first_seen": 1.0, "last_seen": 1.0, "status": "online"} for number in range(20_000)
    ]
    await database.write(lambda connection: connection.execute(insert(devices), rows))
    await database.close()
    async with house(url, tmp_path, writer={"patience": 0.02}) as opened:
        summary = (await opened.client.get("/api/v1/summary")).json()
        assert (summary["devices"]["known"], summary["devices"]["unknown"]) == (20_000, 20_000)
