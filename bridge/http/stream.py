"""What happens, as server-sent events (HTML, 9.2: https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Header, HTTPException, Query, Request
from fastapi.responses import StreamingResponse

from bridge.agents.feed import Feed
from bridge.errors import RefusedError, StorageUnavailableError
from bridge.http.access import Access
from bridge.http.context import Context
from bridge.storage import registry
from bridge.topics import DEVICE_ID

HEARTBEAT: Final = 15.0
"""Seconds of silence after which a comment is sent, and the caller's token is looked at again."""
RETRY: Final = 2_000
"""Milliseconds after which a browser that has lost its connection comes back."""
MAX_DEVICES: Final = 100
MAX_TAGGED: Final = 10_000
"""Devices with the tag that a client follows: their ids are in memory for each client."""

Kind = Literal["telemetry", "event", "presence", "command", "twin", "dead_letter"]

EXAMPLE: Final = (
    "id: 1764000000000001\nevent: telemetry\n"
    'data: {"device_id":"fridge-7","stream":"default","ts":1764000000.0,"received_at":1764000000.1,'
    '"values":{"temperature":4.2}}\n\n'
)
RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "Events for as long as the connection lasts.",
        "content": {"text/event-stream": {"schema": {"type": "string"}, "example": EXAMPLE}},
    }
}


class EventStream(StreamingResponse):
    """An answer that goes on."""

    media_type = "text/event-stream"


def routes(context: Context) -> APIRouter:
    """`/stream`."""
    api = APIRouter(tags=["stream"])
    feed, access = context.services.feed, context.access

    @api.get("/stream", response_class=EventStream, responses=RESPONSES)
    async def stream(
        request: Request,
        device: Annotated[
            list[Annotated[str, Query(pattern=f"^{DEVICE_ID.pattern}$")]],
            Query(max_length=MAX_DEVICES, description="Only these devices; all if there is none."),
        ] = [],  # noqa: B006 - FastAPI copies it
        tag: Annotated[
            str | None,
            Query(max_length=64, description=f"Only devices with this tag, of which there may be {MAX_TAGGED:,}."),
        ] = None,
        kind: Annotated[list[Kind], Query(max_length=10, description="Only these kinds; all if there is none.")] = [],  # noqa: B006 - FastAPI copies it
        last_event_id: Annotated[str | None, Header(pattern="^[0-9]{1,18}$")] = None,
    ) -> EventStream:
        """What happens, as it happens: telemetry and events once they are committed, presence, each step of a command,
        twins, dead letters. Times are Unix seconds.

        A client that reads too slowly loses the oldest; the event `gap` then says how many of them
        (`{"missed": 12}`, or null where nobody knows). With `Last-Event-ID`, which browsers send by themselves, the
        stream goes on after that event, or begins with a gap if that is too long ago. Comments keep it alive. Which
        devices have a tag is looked at again every 15 seconds.
        """
        if feed.listeners >= context.max_streams:
            raise HTTPException(
                429, f"there are {context.max_streams} streams already (http.max_streams)", {"Retry-After": "10"}
            )
        after = None if last_event_id is None else int(last_event_id)
        named = set(device) or None

        async def watched() -> set[str] | None:
            """The devices that fit both filters; None: all. Raises StorageUnavailableError, RefusedError."""
            if tag is None:
                return named
            ids = await context.database.read(lambda connection: registry.tagged(connection, tag, MAX_TAGGED + 1))
            if len(ids) > MAX_TAGGED:
                raise RefusedError("too_many", f"more than {MAX_TAGGED:,} devices have the tag {tag!r}: follow fewer")
            return set(ids) if named is None else named & set(ids)

        return EventStream(
            _frames(request, access, feed, kind, await watched(), watched, after), headers={"X-Accel-Buffering": "no"}
        )

    return api


async def _frames(
    request: Request,
    access: Access,
    feed: Feed,
    kinds: list[Kind],
    devices: set[str] | None,
    watched: Callable[[], Awaitable[set[str] | None]],
    after: int | None,
) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    looked = loop.time()
    with feed.listen(kinds, devices, after) as listener:
        yield b"retry: %d\n\n" % RETRY
        while not listener.closed:
            happened = await listener.wait(HEARTBEAT)
            if happened and (frames := listener.take()):
                yield frames
            if devices is not None and loop.time() - looked >= HEARTBEAT:
                looked = loop.time()
                # While the database is away, or there are too many now: those that were known go on.
                with contextlib.suppress(StorageUnavailableError, RefusedError):
                    listener.watch(await watched() or ())
            if happened:
                continue
            try:
                await access.identify(request)
            except HTTPException:
                return  # logged out, or the token was revoked
            yield b": still here\n\n"
