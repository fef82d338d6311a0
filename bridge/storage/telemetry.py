"""Reading telemetry back. It is written by the writer alone."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.storage.tables import telemetry


class StoredReading(NamedTuple):
    """One reading. Times are Unix seconds; `payload` is the JSON as it was sent."""

    ts: float
    received_at: float
    message_id: str | None
    payload: str


async def readings(
    connection: AsyncConnection,
    device_id: str,
    stream: str,
    since: float | None = None,
    until: float | None = None,
    limit: int = 100,
) -> list[StoredReading]:
    """Readings of one stream with since <= ts < until, the latest first."""
    query = (
        select(telemetry.c.ts, telemetry.c.received_at, telemetry.c.message_id, telemetry.c.payload)
        .where(telemetry.c.device_id == device_id, telemetry.c.stream == stream)
        .order_by(telemetry.c.ts.desc(), telemetry.c.id.desc())
        .limit(limit)
    )
    if since is not None:
        query = query.where(telemetry.c.ts >= since)
    if until is not None:
        query = query.where(telemetry.c.ts < until)
    return [StoredReading(*row) for row in await connection.execute(query)]


async def count(connection: AsyncConnection, device_id: str, stream: str) -> int:
    """How many readings of one stream are stored."""
    query = (
        select(func.count())
        .select_from(telemetry)
        .where(telemetry.c.device_id == device_id, telemetry.c.stream == stream)
    )
    return (await connection.execute(query)).scalar_one()
