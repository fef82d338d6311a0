"""Rollouts: what they do and how far they are. What became of each device is in `commands`, by `rollout_id`."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from sqlalchemy import Row, Select, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.commands import CommandStatus
from bridge.registry import Admission
from bridge.rollout import FAILURES, Order, Rollout, RolloutStatus, Target
from bridge.storage.deadletters import storable
from bridge.storage.keyset import Keyset, Place
from bridge.storage.tables import commands, device_tags, devices, rollouts

_UNFINISHED: Final = tuple(status.value for status in CommandStatus if not status.final)
_FAILED: Final = tuple(status.value for status in FAILURES)

_orders: Final = msgspec.json.Decoder(Order)

_NEWEST: Final = Keyset((rollouts.c.created_at, rollouts.c.rollout_id), descending=True)


# ---------------------------------------------------------------------- who


async def matching(connection: AsyncConnection, target: Target, after: str, limit: int) -> list[str]:
    """The ids of the devices that a target fits, in order, from the one that follows `after`."""
    if target.devices:
        return target.named_after(after)[:limit]
    query = _fitting(target, select(devices.c.device_id)).order_by(devices.c.device_id).limit(limit)
    return list((await connection.execute(query.where(devices.c.device_id > after))).scalars())


async def count_matching(connection: AsyncConnection, target: Target) -> int:
    """How many devices a target fits."""
    if target.devices:
        return len(target.named_after(""))
    query = _fitting(target, select(func.count()).select_from(devices))
    return int((await connection.execute(query)).scalar_one())


def _fitting(target: Target, query: Select[Any]) -> Select[Any]:
    query = query.where(devices.c.admission == Admission.ACCEPTED.value)
    if target.tag is not None:
        tagged = select(device_tags.c.device_id).where(device_tags.c.tag == storable(target.tag))
        query = query.where(devices.c.device_id.in_(tagged))
    if target.profile is not None:
        query = query.where(devices.c.profile == storable(target.profile))
    if target.status is not None:
        query = query.where(devices.c.status == target.status.value)
    return query


# ---------------------------------------------------------------------- rollouts


async def insert_rollout(connection: AsyncConnection, rollout: Rollout) -> tuple[Rollout, bool]:
    """Store a rollout, or find the one with the same key. Returns the stored one and whether it is this one."""
    query = select(rollouts).where(rollouts.c.key == storable(rollout.key))
    row = (await connection.execute(query)).one_or_none()
    if row is not None:
        return _rollout(row), False
    values = msgspec.structs.asdict(rollout) | {"key": storable(rollout.key), "status": rollout.status.value}
    values["what"] = order_text(values.pop("order"))
    await connection.execute(insert(rollouts).values(values))
    return rollout, True


async def get_rollout(connection: AsyncConnection, rollout_id: str) -> Rollout | None:
    """One rollout, None if there is none with this id."""
    row = (await connection.execute(select(rollouts).where(rollouts.c.rollout_id == rollout_id))).one_or_none()
    return None if row is None else _rollout(row)


async def list_rollouts(
    connection: AsyncConnection, limit: int, before: Place | None = None
) -> tuple[list[Rollout], Place | None]:
    """Rollouts, the newest first, from the one that follows the place `before`, and where the next page begins."""
    rows, end = await _NEWEST.page(connection, select(rollouts), limit, before)
    return [_rollout(row) for row in rows], end


async def running_rollouts(connection: AsyncConnection) -> list[Rollout]:
    """What a bridge that starts has to go on with, the oldest first."""
    query = select(rollouts).where(rollouts.c.status == RolloutStatus.RUNNING.value).order_by(rollouts.c.created_at)
    return [_rollout(row) for row in await connection.execute(query)]


async def save_cursor(connection: AsyncConnection, rollout: Rollout) -> None:
    """Store how far a running rollout is."""
    values = {"cursor": rollout.cursor, "refused": rollout.refused, "updated_at": rollout.updated_at}
    await connection.execute(update(rollouts).where(*_running(rollout.rollout_id)).values(values))


async def end_rollout(
    connection: AsyncConnection, rollout_id: str, status: RolloutStatus, cause: str, refused: int, at: float
) -> bool:
    """End a rollout; False, and no change, if it has ended already."""
    values = {"status": status.value, "cause": cause, "refused": refused, "updated_at": at}
    changed = await connection.execute(update(rollouts).where(*_running(rollout_id)).values(values))
    return changed.rowcount == 1


# ---------------------------------------------------------------------- their commands


async def count_by_status(connection: AsyncConnection, rollout_id: str) -> dict[str, int]:
    """How many of a rollout's commands are in each status."""
    query = (
        select(commands.c.status, func.count().label("number"))
        .where(commands.c.rollout_id == rollout_id)
        .group_by(commands.c.status)
    )
    return {row.status: row.number for row in await connection.execute(query)}


async def count_failures(connection: AsyncConnection, rollout_id: str) -> int:
    """How many of a rollout's commands failed."""
    query = select(func.count()).where(commands.c.rollout_id == rollout_id, commands.c.status.in_(_FAILED))
    return int((await connection.execute(query)).scalar_one())


async def unfinished_commands(connection: AsyncConnection, rollout_id: str) -> list[tuple[str, str]]:
    """Device and id of each command of a rollout that has not ended."""
    query = select(commands.c.device_id, commands.c.command_id).where(
        commands.c.rollout_id == rollout_id, commands.c.status.in_(_UNFINISHED)
    )
    return [(row.device_id, row.command_id) for row in await connection.execute(query)]


async def cancelled_commands(connection: AsyncConnection, rollout_id: str | None = None) -> list[tuple[str, str]]:
    """Device and id of each unfinished command of the rollouts that are cancelled, or of one if that is."""
    query = (
        select(commands.c.device_id, commands.c.command_id)
        .join(rollouts, rollouts.c.rollout_id == commands.c.rollout_id)
        .where(rollouts.c.status == RolloutStatus.CANCELLED.value, commands.c.status.in_(_UNFINISHED))
    )
    if rollout_id is not None:
        query = query.where(rollouts.c.rollout_id == rollout_id)
    return [(row.device_id, row.command_id) for row in await connection.execute(query)]


def order_text(order: Order) -> str:
    """An order as it is stored."""
    return storable(msgspec.json.encode(order).decode())


def stored_order(text: str) -> Order:
    """An order from what is stored."""
    return _orders.decode(text)


def _running(rollout_id: str) -> tuple[Any, Any]:
    return rollouts.c.rollout_id == rollout_id, rollouts.c.status == RolloutStatus.RUNNING.value


def _rollout(row: Row[*tuple[Any, ...]]) -> Rollout:
    values = dict(row._mapping)
    values["order"] = stored_order(values.pop("what"))
    values["status"] = RolloutStatus(values["status"])
    return Rollout(**values)
