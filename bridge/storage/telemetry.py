"""Reading telemetry back. It is written by the writer alone."""

from __future__ import annotations

from typing import Final, NamedTuple, final

import msgspec
from sqlalchemy import BigInteger, BindParameter, Double, func, literal, select, text, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.storage.database import Database
from bridge.storage.loader import Loader
from bridge.storage.tables import telemetry

MessageKey = tuple[str, str, str]

# Where the writer looks as well. One parameter for any number of keys.
_KNOWN: Final = {
    "sqlite": text(
        "SELECT t.device_id, t.stream, t.message_id FROM json_each(:keys) AS k CROSS JOIN telemetry AS t"
        " WHERE t.device_id = k.value ->> 0 AND t.stream = k.value ->> 1 AND t.message_id = k.value ->> 2"
        " AND t.message_id IS NOT NULL"  # or the index is not used
    ),
    "postgresql": text(
        "SELECT m.device_id, m.stream, m.message_id FROM json_array_elements(CAST(:keys AS json)) AS k(value)"
        " JOIN message_ids AS m"
        " ON m.device_id = k.value ->> 0 AND m.stream = k.value ->> 1 AND m.message_id = k.value ->> 2"
    ),
}


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
    last: tuple[float, int] | None = None,
    *,
    oldest_first: bool = False,
) -> list[StoredReading]:
    """Readings of one stream with since <= ts < until, the latest first unless `oldest_first`; `last`: ts and id of the
    last one of the page before."""
    keys = (telemetry.c.ts, telemetry.c.id)
    query = (
        select(telemetry.c.ts, telemetry.c.received_at, telemetry.c.message_id, telemetry.c.payload, telemetry.c.id)
        .where(telemetry.c.device_id == device_id, telemetry.c.stream == stream)
        .order_by(*(key.asc() if oldest_first else key.desc() for key in keys))
        .limit(limit)
    )
    if since is not None:
        query = query.where(telemetry.c.ts >= since)
    if until is not None:
        query = query.where(telemetry.c.ts < until)
    if last is not None:
        place = tuple_(*_key(last))
        query = query.where(tuple_(*keys) > place if oldest_first else tuple_(*keys) < place)
    return [StoredReading(*row) for row in await connection.execute(query)]


async def _known(connection: AsyncConnection, keys: list[MessageKey]) -> dict[MessageKey, bool]:
    parameters = {"keys": msgspec.json.encode(keys).decode()}
    found = await connection.execute(_KNOWN[connection.dialect.name], parameters)
    return dict.fromkeys(found, True)


@final
class KnownIds(Loader[MessageKey, bool]):
    """Tells which readings are stored already, by device, stream and message id; True for those that are."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, _known)


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
