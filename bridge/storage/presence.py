"""Presence as it is stored: the history of transitions, and which epochs may have been given away.

A transition is published when it happens, also while the database is away. So a bridge that is killed may have
published epochs that were never committed, and the next one must not give them again. Hence the floor: a bridge notes
that it runs, and when it has stopped and all is committed, that it does no more. One that finds its predecessor still
running by that note gives only epochs that are larger than any that can have been given.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from sqlalchemy import case, func, insert, literal, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.presence import Status
from bridge.storage.tables import devices, epoch_floor, presence

UNSEEN: Final = 1_000_000
"""More transitions of one device than a bridge can have published without committing them."""

_PRESENT: Final = (Status.ONLINE.value, Status.SILENT.value)


class StoredTransition(NamedTuple):
    """A transition as it is stored; `at` is in Unix seconds."""

    epoch: int
    status: str
    cause: str
    at: float


class Beginning(NamedTuple):
    """How a bridge finds presence when it starts."""

    floor: int
    """Every epoch that is given must be larger."""
    forgotten: list[tuple[str, int]]
    """The devices that were there when the last bridge ended, and the epochs with which they are `unknown` now."""


async def begin(connection: AsyncConnection, at: float) -> Beginning:
    """Note that a bridge runs, and that nobody knows any more who is there."""
    found = (await connection.execute(select(epoch_floor.c.epoch, epoch_floor.c.running))).one_or_none()
    if found is None:
        floor = 0
        await connection.execute(insert(epoch_floor).values(id=1, epoch=floor, running=1))
    else:
        floor = found.epoch
        if found.running:
            highest = (await connection.execute(select(func.coalesce(func.max(devices.c.epoch), 0)))).scalar_one()
            floor = max(floor, highest) + UNSEEN
        await connection.execute(update(epoch_floor).values(epoch=floor, running=1))
    present = devices.c.status.in_(_PRESENT)
    following = case((devices.c.epoch < floor, floor), else_=devices.c.epoch) + 1
    await connection.execute(
        insert(presence).from_select(
            ["device_id", "epoch", "status", "cause", "at"],
            select(
                devices.c.device_id,
                following,
                literal(Status.UNKNOWN.value),
                literal("restart"),
                literal(at, presence.c.at.type),
            ).where(present),
        )
    )
    changed = await connection.execute(
        update(devices)
        .where(present)
        .values(status=Status.UNKNOWN.value, epoch=following)
        .returning(devices.c.device_id, devices.c.epoch)
    )
    return Beginning(floor, [(device_id, epoch) for device_id, epoch in changed])


async def end(connection: AsyncConnection) -> None:
    """Note that the bridge has stopped. Everything that it has published must be committed before."""
    await connection.execute(update(epoch_floor).values(running=0))


async def history(
    connection: AsyncConnection, device_id: str, limit: int, before: int | None = None
) -> list[StoredTransition]:
    """A device's transitions, the latest first; `before` is the last epoch of the page before."""
    query = (
        select(presence.c.epoch, presence.c.status, presence.c.cause, presence.c.at)
        .where(presence.c.device_id == device_id)
        .order_by(presence.c.epoch.desc())
        .limit(limit)
    )
    if before is not None:
        query = query.where(presence.c.epoch < before)
    return [StoredTransition(*row) for row in await connection.execute(query)]
