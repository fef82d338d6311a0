"""Readings: as they were sent, the latest, and a field over time for a plot."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Annotated, Any, Final

from fastapi import APIRouter, HTTPException, Query
from pydantic import AwareDatetime, Field

from bridge.errors import RefusedError
from bridge.http import models
from bridge.http.context import Context
from bridge.http.devices import DeviceId
from bridge.storage import series as stored_series
from bridge.storage import telemetry

HOUR: Final = 3_600.0

Stream = Annotated[
    str,
    Query(
        pattern="^(event/)?[A-Za-z0-9._:-]{1,64}$",
        description="A stream, or `event/` and a kind of event.",
        examples=["default"],
    ),
]
Moment = Annotated[
    Annotated[float, Field(ge=-1e11, le=1e11)] | AwareDatetime | None,
    Query(description="RFC 3339 or Unix seconds.", examples=["2026-01-01T00:00:00Z"]),
]
Cursor = Annotated[
    str, Query(max_length=64, pattern=r"^(-?[0-9.e+-]+~[0-9]{1,19})?$", description="`next` of the page before.")
]
FieldName = Annotated[
    str,
    Query(
        min_length=1,
        max_length=256,
        pattern=r'^[^"\\\x00-\x1f]+$',
        description="A key of the readings, or a JSON Pointer (RFC 6901) to one within objects.",
        examples=["temperature", "/motor/rpm"],
    ),
]


class SeriesView(models.Model):
    """A field over time, in columns, oldest first. Times are Unix seconds: where each bucket begins."""

    stream: str
    field: str
    since: float
    until: float
    step: float = Field(description="Seconds of a bucket; 0 when every point is one reading.")
    source: str = Field(description="`readings`, `minutes` or `hours`; rollups are a few seconds behind.")
    truncated: bool = Field(description="Whether there were too many readings to look at all; the latest were.")
    ts: list[float]
    min: list[float]
    max: list[float]
    mean: list[float]
    last: list[float]
    count: list[int]


class LatestView(models.Model):
    """The last reading of each stream, by its name."""

    streams: dict[str, Any] = Field(
        examples=[{"default": {"ts": "2026-01-01T00:00:00Z", "values": {"temperature": 4}}}]
    )


def routes(context: Context) -> APIRouter:
    """`/devices/{device_id}/telemetry` and below."""
    api = APIRouter(tags=["telemetry"])
    database, clock = context.database, context.services.clock

    @api.get("/devices/{device_id}/telemetry")
    async def readings(
        device_id: DeviceId,
        stream: Stream = "default",
        since: Moment = None,
        until: Moment = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
        after: Annotated[
            str,
            Query(max_length=64, pattern=r"^(-?[0-9.e+-]+~[0-9]{1,19})?$", description="`next` of the page before."),
        ] = "",
    ) -> models.ReadingPage:
        """Readings of a stream with since <= ts < until, the latest first."""
        before = None if not after else _cursor(after)
        rows = await database.read(
            lambda connection: telemetry.readings(
                connection, device_id, stream, seconds(since), seconds(until), limit, before
            )
        )
        return models.ReadingPage(
            readings=[
                models.ReadingView(
                    stream=stream,
                    ts=models.moment(row.ts),
                    received_at=models.moment(row.received_at),
                    message_id=row.message_id,
                    values=models.decoded(row.payload),
                )
                for row in rows
            ],
            next=f"{rows[-1].ts!r}~{rows[-1].id}" if len(rows) == limit else None,
        )

    @api.get("/devices/{device_id}/telemetry/latest")
    async def latest(device_id: DeviceId) -> LatestView:
        """The last reading of each stream, from memory while the device's agent is there."""
        device = context.router.find(device_id)
        snapshot = device.snapshot() if device is not None else await context.services.loader.load(device_id)
        if snapshot is None:
            raise HTTPException(404, f"no device {device_id!r} has been heard of")
        return LatestView(streams=models.streams(snapshot.state))

    @api.get("/devices/{device_id}/telemetry/series")
    async def series(
        device_id: DeviceId,
        field: FieldName,
        stream: Stream = "default",
        since: Moment = None,
        until: Moment = None,
        points: Annotated[int, Query(ge=2, le=2_000, description="At most about so many.")] = 500,
    ) -> SeriesView:
        """A number over time for a plot: readings as they are if there are few, else min, max, mean and last of
        buckets. Without `until` up to now, without `since` the hour before."""
        end = seconds(until)
        end = clock() if end is None else end
        start = seconds(since)
        start = end - HOUR if start is None else start
        if start >= end:
            raise RefusedError("empty_range", "since must be before until")
        try:
            stored_series.path_of(field)
        except ValueError as error:
            raise RefusedError("bad_field", str(error)) from error
        found = await database.read(
            lambda connection: stored_series.series(connection, device_id, stream, field, start, end, points)
        )
        columns = found._asdict()
        return SeriesView(stream=stream, field=field, since=start, until=end, count=columns.pop("counts"), **columns)

    return api


def seconds(moment: float | datetime | None) -> float | None:
    """A `Moment` as Unix seconds."""
    return moment.timestamp() if isinstance(moment, datetime) else moment


def _cursor(after: str) -> tuple[float, int]:
    ts, _, row_id = after.partition("~")
    try:
        seconds, number = float(ts), int(row_id)
    except ValueError as error:
        raise RefusedError("bad_cursor", f"{after!r} is not what `next` of a page said") from error
    if not math.isfinite(seconds) or number >= 2**63:
        raise RefusedError("bad_cursor", f"{after!r} is not what `next` of a page said")
    return seconds, number
