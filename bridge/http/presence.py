"""Presence: what became of a device, and when."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query

from bridge.http import models
from bridge.http.context import Context
from bridge.http.devices import DeviceId
from bridge.http.paging import Limit
from bridge.storage import presence as stored


class TransitionView(models.Model):
    """A change of presence."""

    status: str
    cause: str
    epoch: int
    at: datetime


class TransitionPage(models.Model):
    """Changes of presence, the latest first. `next` is the `before` of the following page."""

    transitions: list[TransitionView]
    next: int | None


def routes(context: Context) -> APIRouter:
    """`/devices/{device_id}/presence`."""
    api = APIRouter(tags=["devices"])

    @api.get("/devices/{device_id}/presence")
    async def presence(
        device_id: DeviceId,
        limit: Limit = 100,
        before: Annotated[int | None, Query(ge=0, le=2**63 - 1)] = None,
    ) -> TransitionPage:
        """What became of a device, the latest first; `before` is the `next` of the page before."""
        found = await context.database.read(lambda connection: stored.history(connection, device_id, limit, before))
        following = found[-1].epoch if len(found) == limit else None
        return TransitionPage(
            transitions=[
                TransitionView(status=row.status, cause=row.cause, epoch=row.epoch, at=models.moment(row.at))
                for row in found
            ],
            next=following,
        )

    return api
