"""The bridge at a glance, and devices."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Path, Query

from bridge.http import models
from bridge.http.access import ADMIN
from bridge.http.context import Context
from bridge.http.paging import Limit
from bridge.presence import Status
from bridge.registry import Entry
from bridge.storage import devices, listing, registry
from bridge.topics import DEVICE_ID

DeviceId = Annotated[str, Path(pattern=f"^{DEVICE_ID.pattern}$", examples=["fridge-7"])]


def routes(context: Context) -> APIRouter:
    """`/summary`, `/ledger`, `/settings`, `/devices`."""
    api = APIRouter()
    database = context.database

    def now(stored: devices.DeviceSnapshot) -> devices.DeviceSnapshot:
        # What an agent in memory knows is newer than what it has stored.
        device = context.router.find(stored.device_id)
        return stored if device is None else device.snapshot()

    @api.get("/summary", tags=["bridge"])
    async def summary() -> dict[str, Any]:
        """Devices, rates, commands, agents and the ledger at a glance."""
        return dict(context.summary())

    @api.get("/ledger", tags=["bridge"])
    async def ledger() -> dict[str, Any]:
        """What became of every message that was received."""
        return dict(context.ledger.as_dict())

    @api.get("/summary/history", tags=["bridge"])
    async def history() -> dict[str, list[float]]:
        """The last hour in columns, a sample every ten seconds: `ts` (Unix seconds) and one column for each figure."""
        return context.history.columns()

    @api.get("/settings", tags=["bridge"], dependencies=[ADMIN])
    async def settings() -> models.SettingList:
        """Every setting, its value and where it came from; secrets are masked."""
        return models.SettingList(
            settings=[
                models.SettingView(key=key, value=value, origin=origin) for key, value, origin in context.settings
            ]
        )

    @api.get("/devices", tags=["devices"])
    async def page(
        status: Annotated[Status | None, Query(description="Only those of which this is known.")] = None,
        profile: Annotated[str | None, Query(max_length=64, description="Only those of this profile.")] = None,
        tag: Annotated[str | None, Query(max_length=64, description="Only those with this tag.")] = None,
        prefix: Annotated[
            str | None, Query(pattern=f"^{DEVICE_ID.pattern}$", description="How their ids begin.")
        ] = None,
        search: Annotated[
            str | None,
            Query(max_length=64, description="Part of the id, or of `name` in the metadata, in upper or lower case."),
        ] = None,
        sort: listing.Sort = "id",
        limit: Limit = 100,
        after: Annotated[
            str,
            Query(pattern=r"^(([0-9.e+-]{1,32}~)?[A-Za-z0-9._:-]{1,64})?$", description="`next` of the page before."),
        ] = "",
    ) -> models.DevicePage:
        """Devices, page after page: `next` is the `after` of the following one, null at the end. A page may hold fewer
        than `limit` devices, or none, and still have a `next`: where few of very many match, so many were looked at.

        `known` is how many there are of that status, or of all; null where nobody has counted."""
        wanted = listing.Wanted(status and status.value, profile, tag, prefix, search)
        found = await database.read(lambda connection: listing.list_page(connection, wanted, sort, after, limit))
        counts = context.services.census.devices
        counted = not (profile or tag or prefix or search)
        return models.DevicePage(
            devices=[_view(now(snapshot), entry) for snapshot, entry in found.devices],
            next=found.next,
            known=(counts.total() if status is None else counts[status.value]) if counted else None,
        )

    @api.get("/devices/{device_id}", tags=["devices"])
    async def one(device_id: DeviceId) -> models.DeviceView:
        """A device with the last reading of each stream."""
        snapshot = await context.services.loader.load(device_id)
        if snapshot is None:
            raise HTTPException(404, f"no device {device_id!r} has been heard of")
        known = await database.read(lambda connection: registry.describe(connection, [device_id]))
        view = _view(now(snapshot), known.get(device_id))
        device = context.router.find(device_id)
        trips = None if device is None else device.liveness.round_trips
        if trips is not None:
            view.round_trip = models.RoundTripView(last=trips.last, p50=trips.quantile(0.5), p99=trips.quantile(0.99))
        return view

    return api


def _view(snapshot: devices.DeviceSnapshot, entry: Entry | None) -> models.DeviceView:
    return models.DeviceView(
        tags=[] if entry is None else list(entry.tags or ()),
        metadata={} if entry is None else entry.metadata or {},
        device_id=snapshot.device_id,
        profile=snapshot.profile,
        status=snapshot.status,
        first_seen=models.moment(snapshot.first_seen),
        last_seen=models.moment(snapshot.last_seen),
        messages=snapshot.messages,
        streams=models.streams(snapshot.state),
    )
