"""Schedules, and what became of their last runs."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from sqlalchemy import Row, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.schedule import Schedule, ScheduleStatus, When
from bridge.storage.deadletters import storable
from bridge.storage.keyset import Keyset, Place
from bridge.storage.rollouts import order_text, stored_order
from bridge.storage.tables import schedule_runs, schedules

MAX_RUNS: Final = 100
"""Runs of a schedule that are remembered."""

_NEWEST: Final = Keyset((schedules.c.created_at, schedules.c.schedule_id), descending=True)


class Run(NamedTuple):
    """What became of a run that was due at `due_at`: `started` (`detail` is the rollout's id), `skipped` or `refused`
    (`detail` says why). Times are Unix seconds."""

    due_at: float
    at: float
    outcome: str
    detail: str


async def insert_schedule(connection: AsyncConnection, schedule: Schedule) -> tuple[Schedule, bool]:
    """Store a schedule, or find the one with the same key. Returns the stored one and whether it is this one."""
    query = select(schedules).where(schedules.c.key == storable(schedule.key))
    row = (await connection.execute(query)).one_or_none()
    if row is not None:
        return _schedule(row), False
    when = schedule.when
    values = {
        "schedule_id": schedule.schedule_id,
        "key": storable(schedule.key),
        "what": order_text(schedule.order),
        "at": when.at,
        "cron": when.cron,
        "tz": when.tz,
        "grace": schedule.grace,
        "status": schedule.status.value,
        "next_at": schedule.next_at,
        "created_at": schedule.created_at,
        "updated_at": schedule.updated_at,
    }
    await connection.execute(insert(schedules).values(values))
    return schedule, True


async def get_schedule(connection: AsyncConnection, schedule_id: str) -> Schedule | None:
    """One schedule, None if there is none with this id."""
    row = (await connection.execute(select(schedules).where(schedules.c.schedule_id == schedule_id))).one_or_none()
    return None if row is None else _schedule(row)


async def list_schedules(
    connection: AsyncConnection, limit: int, before: Place | None = None
) -> tuple[list[Schedule], Place | None]:
    """Schedules, the newest first, from the one that follows the place `before`, and where the next page begins."""
    rows, end = await _NEWEST.page(connection, select(schedules), limit, before)
    return [_schedule(row) for row in rows], end


async def count_active(connection: AsyncConnection) -> int:
    """How many schedules have runs to come."""
    query = select(func.count()).where(schedules.c.status == ScheduleStatus.ACTIVE.value)
    return int((await connection.execute(query)).scalar_one())


async def due_schedules(connection: AsyncConnection, now: float, limit: int) -> list[Schedule]:
    """Schedules whose next run is due, the longest due first."""
    query = (
        select(schedules)
        .where(schedules.c.status == ScheduleStatus.ACTIVE.value, schedules.c.next_at <= now)
        .order_by(schedules.c.next_at)
        .limit(limit)
    )
    return [_schedule(row) for row in await connection.execute(query)]


async def next_run(connection: AsyncConnection) -> float | None:
    """When the next run of any schedule is due."""
    query = select(func.min(schedules.c.next_at)).where(schedules.c.status == ScheduleStatus.ACTIVE.value)
    found: float | None = (await connection.execute(query)).scalar_one()
    return found


async def advance_schedule(
    connection: AsyncConnection, schedule: Schedule, following: float | None, runs: list[Run], at: float
) -> bool:
    """Store what became of the runs that were due, and when the next one is; False, and no change, if the schedule
    was cancelled or moved on meanwhile."""
    status = ScheduleStatus.ACTIVE if following is not None else ScheduleStatus.DONE
    changed = await connection.execute(
        update(schedules)
        .where(*_active(schedule.schedule_id), schedules.c.next_at == schedule.next_at)
        .values(next_at=following, status=status.value, updated_at=at)
    )
    if changed.rowcount == 0:
        return False
    rows = [{"schedule_id": schedule.schedule_id, **run._asdict(), "detail": storable(run.detail)} for run in runs]
    await connection.execute(insert(schedule_runs), rows)
    await _forget(connection, schedule.schedule_id)
    return True


async def cancel_schedule(connection: AsyncConnection, schedule_id: str, at: float) -> bool:
    """End a schedule; False, and no change, if it has ended already."""
    changed = await connection.execute(
        update(schedules)
        .where(*_active(schedule_id))
        .values(status=ScheduleStatus.CANCELLED.value, next_at=None, updated_at=at)
    )
    return changed.rowcount == 1


async def last_runs(connection: AsyncConnection, schedule_id: str) -> list[Run]:
    """The runs of a schedule, the latest first."""
    query = (
        select(*(schedule_runs.c[name] for name in Run._fields))
        .where(schedule_runs.c.schedule_id == schedule_id)
        .order_by(schedule_runs.c.due_at.desc())
    )
    return [Run(*row) for row in await connection.execute(query)]


async def _forget(connection: AsyncConnection, schedule_id: str) -> None:
    query = (
        select(schedule_runs.c.due_at)
        .where(schedule_runs.c.schedule_id == schedule_id)
        .order_by(schedule_runs.c.due_at.desc())
        .offset(MAX_RUNS)
        .limit(1)
    )
    oldest = (await connection.execute(query)).scalar_one_or_none()
    if oldest is not None:
        await connection.execute(
            delete(schedule_runs).where(schedule_runs.c.schedule_id == schedule_id, schedule_runs.c.due_at <= oldest)
        )


def _active(schedule_id: str) -> tuple[Any, Any]:
    return schedules.c.schedule_id == schedule_id, schedules.c.status == ScheduleStatus.ACTIVE.value


def _schedule(row: Row[*tuple[Any, ...]]) -> Schedule:
    values = dict(row._mapping)
    values["order"] = stored_order(values.pop("what"))
    values["when"] = When(values.pop("at"), values.pop("cron"), values.pop("tz"))
    values["status"] = ScheduleStatus(values["status"])
    return Schedule(**values)
