"""One command for many devices: see who would get it, roll it out, follow it, cancel it."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Path, Query, Request
from pydantic import Field

from bridge.http import models
from bridge.http.audit import no_change, note
from bridge.http.commands import Wait, in_time
from bridge.http.context import Context
from bridge.http.paging import Before, Limit, cursor, place
from bridge.presence import Status
from bridge.rollout import AT_ONCE, MAX_AT_ONCE, Order, Rollout, RolloutStatus, Target
from bridge.storage import rollouts as stored

PREVIEWED = 20
"""Devices that a preview names."""

RolloutId = Annotated[str, Path(max_length=64)]


class TargetBody(models.Model):
    """Who gets it: the devices named, or all known ones that fit every filter given, or everyone."""

    devices: tuple[str, ...] = Field(default=(), examples=[["fridge-7", "fridge-8"]])
    tag: str | None = Field(default=None, max_length=128)
    profile: str | None = Field(default=None, max_length=128)
    status: Status | None = Field(default=None, description="Its presence when its turn comes.")
    everyone: bool = False

    def target(self) -> Target:
        """What the agents are told."""
        return Target(self.devices, self.tag, self.profile, self.status, self.everyone)


class RolloutBody(models.CommandBody):
    """A command for many devices. `id` is the idempotency key of the whole."""

    target: TargetBody
    at_once: int = Field(default=AT_ONCE, ge=1, le=MAX_AT_ONCE, description="Unfinished commands at a time at most.")
    stop_after: str | None = Field(
        default=None, examples=["5", "10%"], description="Failures after which no further device gets it."
    )

    def order(self) -> Order:
        """What the agents are told."""
        request = self.model_copy(update={"id": None}).request()
        return Order(request, self.target.target(), self.at_once, self.stop_after)


class Preview(models.Model):
    """Who would get it now."""

    total: int
    first: list[str] = Field(description="The first ids.")


class RolloutView(models.Model):
    """A rollout as it stands."""

    rollout_id: str
    key: str
    name: str
    args: Any
    target: dict[str, Any]
    at_once: int
    stop_after: str | None
    status: RolloutStatus
    cause: str
    created_at: datetime
    updated_at: datetime
    total: int = Field(description="Devices that fitted when it was made.")
    refused: int = Field(description="Devices that could not be given the command.")


class RolloutProgress(RolloutView):
    """A rollout with the number of its devices in each status; `ended` of them have come to an end."""

    counts: dict[str, int]
    ended: int


class RolloutPage(models.Model):
    """Rollouts, the newest first. `next` is the `before` of the following page."""

    rollouts: list[RolloutView]
    next: str | None


def routes(context: Context) -> APIRouter:
    """`/rollouts`, `/rollouts/preview`, `/rollouts/{rollout_id}`, `/rollouts/{rollout_id}/cancel`."""
    api = APIRouter(tags=["rollouts"])
    database, rollouts = context.database, context.rollouts

    @api.post("/rollouts", status_code=202)
    async def create(body: RolloutBody, request: Request) -> RolloutProgress:
        """Store a rollout and begin. Answered after the commit. The id of a stored rollout gives that one; if it was
        asked for something else, 409. What became of each device: `/commands?rollout=…`."""
        async with in_time(context):
            rollout, created = await rollouts.create(body.order(), body.id, "api")
        known = "" if created else ", known"
        note(request, f"{body.name} to {rollout.total} devices, rollout {rollout.rollout_id}{known}")
        return await look(rollout.rollout_id)

    @api.post("/rollouts/preview")
    async def preview(body: TargetBody, request: Request) -> Preview:
        """Who would get it, without sending anything."""
        no_change(request)
        target = body.target()
        target.check()
        total = await database.read(lambda connection: stored.count_matching(connection, target))
        first = await database.read(lambda connection: stored.matching(connection, target, "", PREVIEWED))
        return Preview(total=total, first=first)

    @api.get("/rollouts")
    async def page(
        limit: Limit = 100,
        before: Before = None,
    ) -> RolloutPage:
        """Rollouts, the newest first. `before` is the `next` of the page before."""
        found, end = await database.read(lambda connection: stored.list_rollouts(connection, limit, place(before)))
        return RolloutPage(rollouts=[RolloutView(**_fields(rollout)) for rollout in found], next=cursor(end))

    @api.get("/rollouts/{rollout_id}")
    async def follow(
        rollout_id: RolloutId, wait: Wait = 0.0, ended: Annotated[int, Query(ge=-1)] = -1
    ) -> RolloutProgress:
        """A rollout and how far it is. With `wait` it answers as soon as more devices than `ended` have come to an
        end, or it itself has, or after that many seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        while True:
            with context.services.news_of(rollout_id) as news:
                view = await look(rollout_id)
                over = view.status is not RolloutStatus.RUNNING and view.counts.keys() <= _FINAL
                if over or view.ended > ended or loop.time() >= deadline:
                    return view
                await asyncio.wait([news], timeout=deadline - loop.time())

    @api.post("/rollouts/{rollout_id}/cancel")
    async def cancel(rollout_id: RolloutId, request: Request) -> RolloutProgress:
        """No further device gets the command, and what has not ended is cancelled. 409 if it has ended."""
        await look(rollout_id)
        async with in_time(context):
            await rollouts.cancel(rollout_id)
        view = await look(rollout_id)
        if view.status is not RolloutStatus.CANCELLED:
            raise HTTPException(409, f"rollout {rollout_id} has {view.status.value} already")
        note(request, f"{view.name}, {view.ended} of {view.total} devices had ended")
        return view

    async def look(rollout_id: str) -> RolloutProgress:
        rollout = await database.read(lambda connection: stored.get_rollout(connection, rollout_id))
        if rollout is None:
            raise HTTPException(404, f"there is no rollout {rollout_id!r}")
        counts = await database.read(lambda connection: stored.count_by_status(connection, rollout_id))
        ended = rollout.refused + sum(number for status, number in counts.items() if status in _FINAL)
        return RolloutProgress(**_fields(rollout), counts=counts, ended=ended)

    return api


_FINAL = frozenset({"succeeded", "failed", "expired", "cancelled"})


def _fields(rollout: Rollout) -> dict[str, Any]:
    order = rollout.order
    return {
        "rollout_id": rollout.rollout_id,
        "key": rollout.key,
        "name": order.request.name,
        "args": order.request.args,
        "target": target_view(order.target),
        "at_once": order.at_once,
        "stop_after": order.stop_after,
        "status": rollout.status,
        "cause": rollout.cause,
        "created_at": models.moment(rollout.created_at),
        "updated_at": models.moment(rollout.updated_at),
        "total": rollout.total,
        "refused": rollout.refused,
    }


def target_view(target: Target) -> dict[str, Any]:
    """A target as it was asked for."""
    return TargetBody(
        devices=target.devices,
        tag=target.tag,
        profile=target.profile,
        status=target.status,
        everyone=target.everyone,
    ).model_dump(mode="json", exclude_defaults=True)
