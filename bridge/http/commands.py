"""Commands: send one, and follow it to its end."""

from __future__ import annotations

import asyncio
from typing import Annotated, Final

from fastapi import APIRouter, HTTPException, Path, Query
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.commands import CommandRequest
from bridge.errors import StorageUnavailableError
from bridge.http import models
from bridge.http.context import Context
from bridge.http.devices import DeviceId
from bridge.storage import commands as stored

STORE_TIMEOUT: Final = 10.0
"""Seconds that a command may take to be stored before the caller is told that the database is not there."""


def routes(context: Context) -> APIRouter:
    """`/devices/{device_id}/commands`, `/commands/{command_id}`."""
    api = APIRouter(tags=["commands"])

    @api.post("/devices/{device_id}/commands", status_code=202)
    async def send(device_id: DeviceId, body: models.CommandBody) -> models.CommandView:
        """Store a command and send it as soon as the device is there. Answered after the commit."""
        request = CommandRequest(name=body.name, args=body.args, id=body.id, ttl=body.ttl)
        try:
            async with asyncio.timeout(STORE_TIMEOUT):
                command, _created = await context.router.send(device_id, request, "api")
        except TimeoutError:
            raise StorageUnavailableError(
                "the database does not answer; give the command an id and send it again with the same one"
            ) from None
        return models.CommandView.of(command)

    @api.get("/commands/{command_id}")
    async def follow(
        command_id: Annotated[str, Path(max_length=64)],
        wait: Annotated[float, Query(ge=0, le=60)] = 0.0,
        after_seq: Annotated[int, Query(ge=0)] = 0,
    ) -> models.CommandWithEvents:
        """A command and its steps after `after_seq`. With `wait` it answers as soon as there is such a step, or after
        that many seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        while True:
            # Listen first, then look: a step between the two would otherwise be waited for in vain.
            with context.services.news_of(command_id) as news:
                view = await context.database.read(lambda connection: _look(connection, command_id, after_seq))
                if view is None:
                    raise HTTPException(404, f"there is no command {command_id!r}")
                if view.events or view.command.status.final or loop.time() >= deadline:
                    return view
                await asyncio.wait([news], timeout=deadline - loop.time())

    return api


async def _look(connection: AsyncConnection, command_id: str, after_seq: int) -> models.CommandWithEvents | None:
    command = await stored.get_command(connection, command_id)
    if command is None:
        return None
    events = await stored.command_events(connection, command_id, after_seq)
    return models.CommandWithEvents(
        command=models.CommandView.of(command),
        events=[
            models.CommandEventView(
                seq=event.seq, status=event.status, at=models.moment(event.at), cause=event.cause, detail=event.detail
            )
            for event in events
        ],
    )
