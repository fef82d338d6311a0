"""Telemetry's partitions on PostgreSQL: one for each day on which something was received, made ahead, dropped whole."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final, NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

DAY: Final = 86_400
AHEAD: Final = 3
"""Days for which there is a partition already: so long may the making of one fail before rows go into the default."""

_LIST: Final = text(
    "SELECT c.relname, pg_get_expr(c.relpartbound, c.oid) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
    " WHERE i.inhparent = 'telemetry'::regclass"
)
_BOUNDS: Final = re.compile(r"FROM \((.*?)\) TO \((.*?)\)")


class Partition(NamedTuple):
    """Holds what was received from `start` to before `end`, Unix seconds. The first one may start at minus infinity."""

    name: str
    start: float
    end: float


async def listed(connection: AsyncConnection) -> list[Partition]:
    """All partitions but the default, the oldest first."""
    found = []
    for name, expression in await connection.execute(_LIST):
        bounds = _BOUNDS.search(expression)
        if bounds is not None:  # the default has none
            found.append(Partition(name, _number(bounds[1]), _number(bounds[2])))
    return sorted(found, key=lambda partition: partition.start)


async def make_ahead(connection: AsyncConnection, now: float) -> list[str]:
    """Make the partitions of today and of the next days that are not there; returns their names.

    Fails if the default partition holds rows that would belong into one of them.
    """
    there = await listed(connection)
    made = []
    today = int(now) // DAY * DAY
    for start in range(today, today + (AHEAD + 1) * DAY, DAY):
        if any(partition.start < start + DAY and start < partition.end for partition in there):
            continue
        name = f"telemetry_{datetime.fromtimestamp(start, UTC):%Y%m%d}"
        await connection.execute(
            text(f"CREATE TABLE {name} PARTITION OF telemetry FOR VALUES FROM ({start}) TO ({start + DAY})")
        )
        made.append(name)
    return made


async def drop_before(connection: AsyncConnection, before: float) -> list[str]:
    """Drop the partitions that hold only what was received before `before`; returns their names."""
    dropped = [partition.name for partition in await listed(connection) if partition.end <= before]
    for name in dropped:
        await connection.execute(text(f'DROP TABLE "{name}"'))
    return dropped


def _number(bound: str) -> float:
    return float("-inf") if bound == "MINVALUE" else float(bound.strip("'"))
