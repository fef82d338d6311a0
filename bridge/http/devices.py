"""Devices, and what was refused."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Path, Query

from bridge.http import models
from bridge.http.context import Context
from bridge.storage import deadletters, devices
from bridge.topics import DEVICE_ID

PAYLOAD_SHOWN = 4096
"""Bytes of a dead letter's payload that a list shows."""

DeviceId = Annotated[str, Path(pattern=f"^{DEVICE_ID.pattern}$", examples=["fridge-7"])]


def routes(context: Context) -> APIRouter:
    """`/summary`, `/ledger`, `/devices`, `/dead-letters`."""
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

    @api.get("/devices", tags=["devices"])
    async def page(
        limit: Annotated[int, Query(ge=1, le=1000)] = 100, after: Annotated[str, Query(max_length=64)] = ""
    ) -> models.DevicePage:
        """Devices in the order of their ids; `after` is the last id of the page before."""
        found = await database.read(lambda connection: devices.list_devices(connection, limit, after or None))
        following = found[-1].device_id if len(found) == limit else None
        return models.DevicePage(devices=[_view(now(snapshot)) for snapshot in found], next=following)

    @api.get("/devices/{device_id}", tags=["devices"])
    async def one(device_id: DeviceId) -> models.DeviceView:
        """A device with the last reading of each stream."""
        snapshot = await context.services.loader.load(device_id)
        if snapshot is None:
            raise HTTPException(404, f"no device {device_id!r} has been heard of")
        view = _view(now(snapshot))
        device = context.router.find(device_id)
        trips = None if device is None else device.liveness.round_trips
        if trips is not None:
            view.round_trip = models.RoundTripView(last=trips.last, p50=trips.quantile(0.5), p99=trips.quantile(0.99))
        return view

    @api.get("/dead-letters", tags=["dead letters"])
    async def dead_letters(limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> models.DeadLetterPage:
        """Messages that were refused, the latest first."""
        letters = await database.read(lambda connection: deadletters.list_dead_letters(connection, limit))
        return models.DeadLetterPage(
            dead_letters=[
                models.DeadLetterView(
                    id=letter.id,
                    at=models.moment(letter.at),
                    topic=letter.topic,
                    device_id=letter.device_id,
                    reason=letter.reason,
                    error=letter.error,
                    payload=letter.payload[:PAYLOAD_SHOWN].decode("utf-8", "backslashreplace"),
                )
                for letter in letters
            ]
        )

    return api


def _view(snapshot: devices.DeviceSnapshot) -> models.DeviceView:
    return models.DeviceView(
        device_id=snapshot.device_id,
        profile=snapshot.profile,
        status=snapshot.status,
        first_seen=models.moment(snapshot.first_seen),
        last_seen=models.moment(snapshot.last_seen),
        messages=snapshot.messages,
        streams=models.streams(snapshot.state),
    )
