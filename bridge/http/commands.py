"""Commands: send one, follow it to its end, cancel it, list them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import APIRouter, HTTPException, Path, Query, Request
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.commands import Command, CommandStatus
from bridge.errors import StorageUnavailableError
from bridge.http import models
from bridge.http.audit import note
from bridge.http.context import Context
from bridge.http.devices import DeviceId
from bridge.http.paging import Before, Limit, cursor, place
from bridge.storage import commands as stored

CommandId = Annotated[str, Path(max_length=64)]
Wait = Annotated[float, Query(ge=0, le=60)]


def routes(context: Context) -> APIRouter:
    """`/devices/{device_id}/commands`, `/commands`, `/commands/{command_id}`, `/commands/{command_id}/cancel`."""
    api = APIRouter(tags=["commands"])

    @api.post("/devices/{device_id}/commands", status_code=202)
    async def send(device_id: DeviceId, body: models.CommandBody, request: Request) -> models.CommandView:
        """Store a command and send it as soon as the device is there. Answered after the commit. The id of a stored
        command gives that one; if it was asked for something else, 409."""
        async with in_time(context):
            command, created = await context.router.send(device_id, body.request(), "api")
        note(request, f"{command.name}, command {command.command_id}{'' if created else ', known'}")
        return models.CommandView.of(command)

    @api.get("/commands")
    async def page(
        device: Annotated[str | None, Query(max_length=64)] = None,
        status: CommandStatus | None = None,
        rollout: Annotated[str | None, Query(max_length=64)] = None,
        limit: Limit = 100,
        before: Before = None,
    ) -> models.CommandPage:
        """Commands, the newest first: all, or of a device, in a status, of a rollout. `before` is the `next` of the
        page before, null at the end. Where few of a device's very many match, a page may hold fewer than `limit`, or
        none, and still have a `next`."""
        wanted = stored.Wanted(device, status, rollout)
        found, end = await context.database.read(
            lambda connection: stored.list_commands(connection, wanted, limit, place(before))
        )
        return models.CommandPage(commands=[models.CommandView.of(command) for command in found], next=cursor(end))

    @api.post("/commands/{command_id}/cancel")
    async def cancel(command_id: CommandId, request: Request) -> models.CommandView:
        """End a command that has not ended yet, whether the device has it already or not; then it is told. 409 if the
        command has ended otherwise."""
        command = await found(command_id)
        if not command.status.final:
            async with in_time(context):
                await context.router.cancel(command.device_id, command_id, "api")
            command = await found(command_id)
        if command.status is not CommandStatus.CANCELLED:
            raise HTTPException(409, f"command {command_id} has {command.status.value} already")
        note(request, f"{command.name}, for {command.device_id}")
        return models.CommandView.of(command)

    async def found(command_id: str) -> Command:
        command = await context.database.read(lambda connection: stored.get_command(connection, command_id))
        if command is None:
            raise HTTPException(404, f"there is no command {command_id!r}")
        return command

    @api.get("/commands/{command_id}")
    async def follow(
        command_id: CommandId,
        wait: Wait = 0.0,
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


@asynccontextmanager
async def in_time(context: Context) -> AsyncIterator[None]:
    """Answers a change that is not stored within the writer's patience with the advice to try again: also one that
    does not come so far, as nobody can say what is stored of its device."""
    try:
        async with asyncio.timeout(context.services.writer.patience):
            yield
    except TimeoutError:
        raise StorageUnavailableError(
            "the database does not answer; with an id it is safe to send the same again"
        ) from None


async def _look(connection: AsyncConnection, command_id: str, after_seq: int) -> models.CommandWithEvents | None:
    found = await stored.with_events(connection, command_id, after_seq)
    if found is None:
        return None
    command, events = found
    return models.CommandWithEvents(
        command=models.CommandView.of(command),
        events=[
            models.CommandEventView(
                seq=event.seq, status=event.status, at=models.moment(event.at), cause=event.cause, detail=event.detail
            )
            for event in events
        ],
    )
