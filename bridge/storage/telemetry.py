"""Reading telemetry back. It is written by the writer alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from sqlalchemy import BigInteger, BindParameter, Double, func, literal, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.storage.tables import message_ids, telemetry

_IDS_AT_ONCE: Final = 500
"""In one query."""


class StoredReading(NamedTuple):
    """One reading. Times are Unix seconds; `payload` is the JSON as it was sent."""

    ts: float
    received_at: float
    message_id: str | None
    payload: str
    id: int


async def readings(
    connection: AsyncConnection,
    device_id: str,
    stream: str,
    since: float | None = None,
    until: float | None = None,
    limit: int = 100,
    before: tuple[float, int] | None = None,
) -> list[StoredReading]:
    """Readings of one stream with since <= ts < until, the latest first; `before`: ts and id of the last one of the
    page before."""
    query = (
        select(telemetry.c.ts, telemetry.c.received_at, telemetry.c.message_id, telemetry.c.payload, telemetry.c.id)
        .where(telemetry.c.device_id == device_id, telemetry.c.stream == stream)
        .order_by(telemetry.c.ts.desc(), telemetry.c.id.desc())
        .limit(limit)
    )
    if since is not None:
        query = query.where(telemetry.c.ts >= since)
    if until is not None:
        query = query.where(telemetry.c.ts < until)
    if before is not None:
        query = query.where(tuple_(telemetry.c.ts, telemetry.c.id) < tuple_(*_key(before)))
    return [StoredReading(*row) for row in await connection.execute(query)]


async def known_ids(connection: AsyncConnection, device_id: str, stream: str, ids: Sequence[str]) -> set[str]:
    """Which of these are ids of stored readings of the stream."""
    # Where the writer looks as well.
    table = message_ids if connection.dialect.name == "postgresql" else telemetry
    known: set[str] = set()
    for start in range(0, len(ids), _IDS_AT_ONCE):
        query = select(table.c.message_id).where(
            table.c.device_id == device_id,
            table.c.stream == stream,
            table.c.message_id.in_(ids[start : start + _IDS_AT_ONCE]),
        )
        known.update((await connection.execute(query)).scalars())
    return known


def _key(of: tuple[float, int]) -> tuple[BindParameter[float], BindParameter[int]]:
    return literal(of[0], Double()), literal(of[1], BigInteger())


async def count(connection: AsyncConnection, device_id: str, stream: str) -> int:
    """How many readings of one stream are stored."""
    query = (
        select(func.count())
        .select_from(telemetry)
        .where(telemetry.c.device_id == device_id, telemetry.c.stream == stream)
    )
    return (await connection.execute(query)).scalar_one()
