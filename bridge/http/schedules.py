"""Commands at a time, or by a cron expression."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Path, Request
from pydantic import AwareDatetime, Field

from bridge.http import models
from bridge.http.audit import note
from bridge.http.commands import in_time
from bridge.http.context import Context
from bridge.http.paging import Before, Limit, cursor, place
from bridge.http.rollouts import RolloutBody, target_view
from bridge.schedule import GRACE, MAX_GRACE, Schedule, ScheduleStatus, When
from bridge.storage import schedules as stored

ScheduleId = Annotated[str, Path(max_length=64)]


class ScheduleBody(RolloutBody):
    """A rollout, and when: `at`, or `cron` in the time zone `tz`."""

    at: AwareDatetime | None = Field(default=None, description="Once, at this time.")
    cron: str | None = Field(
        default=None,
        max_length=200,
        examples=["30 2 * * 1-5"],
        description="Minute, hour, day of month, month, day of week.",
    )
    tz: str = Field(default="UTC", max_length=64, examples=["Europe/Berlin"], description="The time zone of `cron`.")
    grace: float = Field(
        default=GRACE, ge=0, le=MAX_GRACE, description="Seconds that a run may be late; later, and it is skipped."
    )


class ScheduleView(models.Model):
    """A schedule as it stands."""

    schedule_id: str
    key: str
    name: str
    args: Any
    target: dict[str, Any]
    at: datetime | None
    cron: str | None
    tz: str
    grace: float
    status: ScheduleStatus
    next_at: datetime | None
    created_at: datetime


class RunView(models.Model):
    """What became of a run."""

    due_at: datetime
    at: datetime
    outcome: str = Field(description="started (then `detail` is the rollout's id), skipped or refused")
    detail: str


class ScheduleWithRuns(ScheduleView):
    """A schedule and its last runs, the latest first."""

    runs: list[RunView]


class SchedulePage(models.Model):
    """Schedules, the newest first. `next` is the `before` of the following page."""

    schedules: list[ScheduleView]
    next: str | None


def routes(context: Context) -> APIRouter:
    """`/schedules`, `/schedules/{schedule_id}`, `/schedules/{schedule_id}/cancel`."""
    api = APIRouter(tags=["schedules"])
    database, schedules = context.database, context.schedules

    @api.post("/schedules", status_code=201)
    async def create(body: ScheduleBody, request: Request) -> ScheduleWithRuns:
        """Store a schedule. Answered after the commit. The id of a stored schedule gives that one; if it was asked for
        something else, 409."""
        when = When(None if body.at is None else body.at.timestamp(), body.cron, body.tz)
        async with in_time(context):
            schedule, created = await schedules.create(body.order(), when, body.grace, body.id)
        known = "" if created else ", known"
        note(request, f"{body.name} {body.cron or body.at}, schedule {schedule.schedule_id}{known}")
        return await look(schedule.schedule_id)

    @api.get("/schedules")
    async def page(
        limit: Limit = 100,
        before: Before = None,
    ) -> SchedulePage:
        """Schedules, the newest first. `before` is the `next` of the page before."""
        found, end = await database.read(lambda connection: stored.list_schedules(connection, limit, place(before)))
        return SchedulePage(schedules=[ScheduleView(**_fields(schedule)) for schedule in found], next=cursor(end))

    @api.get("/schedules/{schedule_id}")
    async def one(schedule_id: ScheduleId) -> ScheduleWithRuns:
        """A schedule and its last runs."""
        return await look(schedule_id)

    @api.post("/schedules/{schedule_id}/cancel")
    async def cancel(schedule_id: ScheduleId, request: Request) -> ScheduleWithRuns:
        """No further runs; a rollout that it has started goes on. 409 if it is over."""
        await look(schedule_id)
        async with in_time(context):
            await schedules.cancel(schedule_id)
        view = await look(schedule_id)
        if view.status is not ScheduleStatus.CANCELLED:
            raise HTTPException(409, f"schedule {schedule_id} is {view.status.value} already")
        note(request, view.name)
        return view

    async def look(schedule_id: str) -> ScheduleWithRuns:
        schedule = await database.read(lambda connection: stored.get_schedule(connection, schedule_id))
        if schedule is None:
            raise HTTPException(404, f"there is no schedule {schedule_id!r}")
        runs = await database.read(lambda connection: stored.last_runs(connection, schedule_id))
        return ScheduleWithRuns(
            **_fields(schedule),
            runs=[
                RunView(
                    due_at=models.moment(run.due_at), at=models.moment(run.at), outcome=run.outcome, detail=run.detail
                )
                for run in runs
            ],
        )

    return api


def _fields(schedule: Schedule) -> dict[str, Any]:
    when = schedule.when
    return {
        "schedule_id": schedule.schedule_id,
        "key": schedule.key,
        "name": schedule.order.request.name,
        "args": schedule.order.request.args,
        "target": target_view(schedule.order.target),
        "at": None if when.at is None else models.moment(when.at),
        "cron": when.cron,
        "tz": when.tz,
        "grace": schedule.grace,
        "status": schedule.status,
        "next_at": None if schedule.next_at is None else models.moment(schedule.next_at),
        "created_at": models.moment(schedule.created_at),
    }
