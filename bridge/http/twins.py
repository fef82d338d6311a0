"""Twins: what a device is asked to be and what it says it is."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Final

from fastapi import APIRouter, Body, Header, HTTPException, Query, Request, Response

from bridge.errors import VersionConflictError
from bridge.http import models, problems
from bridge.http.audit import note
from bridge.http.commands import in_time
from bridge.http.context import Context
from bridge.http.devices import DeviceId
from bridge.http.paging import Limit
from bridge.storage import twins as stored
from bridge.storage.twins import Step
from bridge.twin import Part, Patch, Twin, decode

_ETAG: Final = re.compile(r'"(\d{1,18})"')

IfMatch = Annotated[
    str | None,
    Header(description="The `ETag` of the twin that the patch is meant for; any other is left as it is: 412."),
]


class TwinView(models.Model):
    """A twin as it stands. Versions are 0 and times null before the first change."""

    desired: dict[str, Any]
    desired_version: int
    desired_at: datetime | None
    reported: dict[str, Any]
    reported_version: int
    reported_at: datetime | None
    delta: dict[str, Any]
    """What desired asks that reported has not."""

    @classmethod
    def of(cls, twin: Twin) -> TwinView:
        """The view of a twin."""
        return cls(
            desired=twin.desired,
            desired_version=twin.desired_version,
            desired_at=_moment(twin.desired_at),
            reported=twin.reported,
            reported_version=twin.reported_version,
            reported_at=_moment(twin.reported_at),
            delta=twin.delta,
        )


class StepView(models.Model):
    """A change: merge patches that lead from the version before to this one, and back."""

    version: int
    at: datetime
    patch: dict[str, Any]
    undo: dict[str, Any]

    @classmethod
    def of(cls, step: Step) -> StepView:
        """The view of a stored change."""
        return cls(version=step.version, at=models.moment(step.at), patch=step.patch, undo=step.undo)


class StepPage(models.Model):
    """Changes, the latest first. `next` is the `before` of the following page."""

    changes: list[StepView]
    next: int | None


def routes(context: Context) -> APIRouter:
    """`/devices/{device_id}/twin` and its history."""
    api = APIRouter(tags=["twins"])

    @api.get("/devices/{device_id}/twin")
    async def read(device_id: DeviceId, response: Response) -> TwinView:
        """A device's twin. The `ETag` is the version of desired."""
        twin = await context.database.read(lambda connection: stored.get(connection, device_id))
        if twin is None and await context.services.loader.load(device_id) is None:
            raise HTTPException(404, f"no device {device_id!r} has been heard of")
        twin = twin or Twin()
        response.headers["ETag"] = _etag(twin.desired_version)
        return TwinView.of(twin)

    @api.patch(
        "/devices/{device_id}/twin",
        response_model=TwinView,
        responses=problems.described(_412="Desired has another version than that of `If-Match`."),
    )
    async def change(
        device_id: DeviceId,
        request: Request,
        response: Response,
        patch: Annotated[
            dict[str, Any],
            Body(
                media_type="application/merge-patch+json",
                examples=[{"interval": 60, "led": None}],
                description="A merge patch (RFC 7396) of desired. A member `version` is not part of it: it must be the"
                " present version of desired, else the answer is 409.",
            ),
        ],
        if_match: IfMatch = None,
    ) -> TwinView | Response:
        """Change what the device is asked to be. Answered after the commit, with the changed twin."""
        del patch  # for OpenAPI: what came by HTTP is read as what comes by MQTT
        wanted = decode(await request.body(), context.services.rules.twin_limits)
        wanted = wanted._replace(version=_version(if_match, wanted))
        try:
            async with in_time(context):
                twin = await context.router.desire(device_id, wanted)
        except VersionConflictError as conflict:
            code, title = (409, "Conflict") if if_match is None else (412, "Precondition failed")
            return problems.problem(code, title, str(conflict), {"ETag": _etag(conflict.version)})
        response.headers["ETag"] = _etag(twin.desired_version)
        note(request, f"desired version {twin.desired_version}: {', '.join(wanted.changes)}")
        return TwinView.of(twin)

    @api.get("/devices/{device_id}/twin/history")
    async def history(
        device_id: DeviceId,
        part: Part = Part.DESIRED,
        limit: Limit = 100,
        before: Annotated[int | None, Query(ge=0, le=2**63 - 1)] = None,
    ) -> StepPage:
        """The changes of one part, the latest first; `before` is the `next` of the page before."""
        steps = await context.database.read(
            lambda connection: stored.history(connection, device_id, part, limit, before)
        )
        following = steps[-1].version if len(steps) == limit else None
        return StepPage(changes=[StepView.of(step) for step in steps], next=following)

    return api


def _etag(version: int) -> str:
    return f'"{version}"'


def _version(if_match: str | None, patch: Patch) -> int | None:
    if if_match is None or if_match.strip() == "*":
        return patch.version
    found = _ETAG.fullmatch(if_match.strip())
    if found is None:
        raise HTTPException(422, 'If-Match must be one ETag of a twin, as "3", or *')
    version = int(found[1])
    if patch.version not in (None, version):
        raise HTTPException(422, f"If-Match says version {version}, and the patch says {patch.version}")
    return version


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else models.moment(seconds)
