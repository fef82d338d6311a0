"""The operator's API, `/api/v1`, with health and metrics beside it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from fastapi import Depends, FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from bridge import __version__
from bridge.agents.router import Router
from bridge.agents.services import Services
from bridge.commands import CommandRequest
from bridge.errors import RefusedError, StorageUnavailableError
from bridge.http import models
from bridge.metrics import CONTENT_TYPE, Metrics
from bridge.receipts import Ledger
from bridge.storage import commands as stored_commands
from bridge.storage import deadletters as stored_letters
from bridge.storage import devices as stored_devices
from bridge.storage import telemetry as stored_telemetry
from bridge.storage.database import Database

STORE_TIMEOUT = 10.0
"""Seconds that a command may take to be stored before the caller is told that the database is not there."""

Check = Callable[[], Awaitable[str | None]]
DeviceId = Annotated[str, Path(pattern=models.DEVICE_ID_PATTERN, examples=["fridge-7"])]


@dataclass(frozen=True, slots=True)
class Context:
    """What the API shows and acts on."""

    router: Router
    services: Services
    database: Database
    ledger: Ledger
    metrics: Metrics
    summary: Callable[[], Mapping[str, Any]]
    checks: Mapping[str, Check]
    """What must be right to be ready: each returns None, or what is wrong."""
    token: str | None


def build(context: Context) -> FastAPI:
    """The application."""
    app = FastAPI(title="MQTT Agent Bridge", version=__version__, docs_url=None, redoc_url=None)
    app.add_exception_handler(StarletteHTTPException, _http_problem)
    app.add_exception_handler(RequestValidationError, _validation_problem)
    app.add_exception_handler(RefusedError, _refused_problem)
    app.add_exception_handler(StorageUnavailableError, _unavailable_problem)
    _add_health(app, context)
    _add_devices(app, context)
    _add_commands(app, context)
    return app


def _add_health(app: FastAPI, context: Context) -> None:
    @app.get("/healthz", tags=["health"])
    async def healthz() -> dict[str, str]:
        """The process is there and its event loop turns."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["health"], responses={503: {"description": "Not ready; the parts say why."}})
    async def readyz() -> JSONResponse:
        """Database, broker and schema are as they must be."""
        faults = dict(zip(context.checks, await asyncio.gather(*(check() for check in context.checks.values())), strict=True))
        ready = not any(faults.values())
        body = {
            "status": "ready" if ready else "not ready",
            "checks": {name: fault or "ok" for name, fault in faults.items()},
        }
        return JSONResponse(body, status_code=200 if ready else 503)

    @app.get("/metrics", tags=["health"], response_class=Response)
    async def metrics() -> Response:
        """Metrics for Prometheus."""
        return Response(context.metrics.render(), media_type=CONTENT_TYPE)


def _guard(token: str | None) -> Callable[[Request], None]:
    def check(request: Request) -> None:
        if token is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not secrets.compare_digest(given.encode(), token.encode()):
            raise HTTPException(401, "send the token: Authorization: Bearer …", {"WWW-Authenticate": "Bearer"})

    return check


def _add_devices(app: FastAPI, context: Context) -> None:
    guarded = {"dependencies": [Depends(_guard(context.token))], "responses": _PROBLEMS}
    database = context.database

    @app.get("/api/v1/summary", tags=["bridge"], **guarded)
    async def summary() -> dict[str, Any]:
        """Devices, rates, commands, agents and the ledger at a glance."""
        return dict(context.summary())

    @app.get("/api/v1/ledger", tags=["bridge"], **guarded)
    async def ledger() -> dict[str, Any]:
        """What became of every message that was received."""
        return dict(context.ledger.as_dict())

    @app.get("/api/v1/devices", tags=["devices"], **guarded)
    async def devices(
        limit: Annotated[int, Query(ge=1, le=1000)] = 100, after: Annotated[str, Query(max_length=64)] = ""
    ) -> models.DevicePage:
        """Devices in the order of their ids; `after` is the last id of the page before."""
        page = await database.read(lambda connection: stored_devices.list_devices(connection, limit, after or None))
        more = page[-1].device_id if len(page) == limit else None
        return models.DevicePage(devices=[_device_view(snapshot) for snapshot in page], next=more)

    @app.get("/api/v1/devices/{device_id}", tags=["devices"], **guarded)
    async def device(device_id: DeviceId) -> models.DeviceView:
        """One device with the last reading of each stream."""
        snapshot = await context.services.loader.load(device_id)
        if snapshot is None:
            raise HTTPException(404, f"no device {device_id!r} has been heard of")
        return _device_view(snapshot)

    @app.get("/api/v1/devices/{device_id}/telemetry", tags=["devices"], **guarded)
    async def telemetry(
        device_id: DeviceId,
        stream: Annotated[str, Query(max_length=80)] = "default",
        since: float | None = None,
        until: float | None = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
    ) -> models.ReadingPage:
        """Readings of a stream, the latest first; `since` and `until` are Unix seconds."""
        rows = await database.read(
            lambda connection: stored_telemetry.readings(connection, device_id, stream, since, until, limit)
        )
        return models.ReadingPage(
            readings=[
                models.ReadingView(
                    stream=stream,
                    ts=models.moment(row.ts),
                    received_at=models.moment(row.received_at),
                    message_id=row.message_id,
                    values=msgspec.json.decode(row.payload),
                )
                for row in rows
            ]
        )

    @app.get("/api/v1/dead-letters", tags=["dead letters"], **guarded)
    async def dead_letters(limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> models.DeadLetterPage:
        """Messages that were refused, the latest first."""
        letters = await database.read(lambda connection: stored_letters.list_dead_letters(connection, limit))
        return models.DeadLetterPage(
            dead_letters=[
                models.DeadLetterView(
                    id=letter.id,
                    at=models.moment(letter.at),
                    topic=letter.topic,
                    device_id=letter.device_id,
                    reason=letter.reason,
                    error=letter.error,
                    payload=letter.payload[:4096].decode("utf-8", "backslashreplace"),
                )
                for letter in letters
            ]
        )


def _add_commands(app: FastAPI, context: Context) -> None:
    guarded = {"dependencies": [Depends(_guard(context.token))], "responses": _PROBLEMS}
    database = context.database

    @app.post("/api/v1/devices/{device_id}/commands", tags=["commands"], status_code=202, **guarded)
    async def send(device_id: DeviceId, body: models.CommandBody) -> models.CommandView:
        """Store a command and send it as soon as the device is there. Answered after the commit."""
        request = CommandRequest(name=body.name, args=body.args, id=body.id, ttl=body.ttl)
        try:
            async with asyncio.timeout(STORE_TIMEOUT):
                command, _created = await context.router.send(device_id, request, "api")
        except TimeoutError:
            raise StorageUnavailableError("the database does not answer; ask for the command by its id before sending it again") from None
        return models.CommandView.of(command)

    @app.get("/api/v1/commands/{command_id}", tags=["commands"], **guarded)
    async def command(
        command_id: Annotated[str, Path(max_length=64)],
        wait: Annotated[float, Query(ge=0, le=60)] = 0.0,
        after_seq: Annotated[int, Query(ge=0)] = 0,
    ) -> models.CommandWithEvents:
        """A command and its steps after `after_seq`. With `wait`, returns when there is such a step, or after that many seconds."""
        async def look() -> models.CommandWithEvents:
            found = await database.read(lambda connection: stored_commands.get_command(connection, command_id))
            if found is None:
                raise HTTPException(404, f"there is no command {command_id!r}")
            events = await database.read(lambda connection: stored_commands.command_events(connection, command_id, after_seq))
            return models.CommandWithEvents(
                command=models.CommandView.of(found),
                events=[
                    models.CommandEventView(seq=e.seq, status=e.status, at=models.moment(e.at), cause=e.cause, detail=e.detail)
                    for e in events
                ],
            )

        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        while True:
            news = asyncio.ensure_future(context.services.command_news(command_id, max(0.0, deadline - loop.time())))
            try:
                view = await look()
                if view.events or view.command.status.final or loop.time() >= deadline:
                    return view
                await news
            finally:
                news.cancel()


def _device_view(snapshot: stored_devices.DeviceSnapshot) -> models.DeviceView:
    streams = msgspec.json.decode(snapshot.state)["streams"] if snapshot.state else {}
    return models.DeviceView(
        device_id=snapshot.device_id,
        profile=snapshot.profile,
        status=snapshot.status,
        first_seen=models.moment(snapshot.first_seen),
        last_seen=models.moment(snapshot.last_seen),
        messages=snapshot.messages,
        streams={name: {"ts": models.moment(ts), "values": values} for name, (ts, values) in streams.items()},
    )


_PROBLEMS: dict[int | str, dict[str, Any]] = {
    code: {"model": models.Problem, "description": text, "content": {"application/problem+json": {}}}
    for code, text in {
        401: "The token is missing or wrong.",
        404: "There is no such thing.",
        422: "The request is not as it must be.",
        503: "The database is not there.",
    }.items()
}


def _problem(status: int, title: str, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    body = models.Problem(title=title, status=status, detail=detail).model_dump()
    return JSONResponse(body, status_code=status, media_type="application/problem+json", headers=headers)


async def _http_problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    return _problem(error.status_code, "Not possible", str(error.detail), error.headers)


async def _validation_problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = "; ".join(f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in error.errors())
    return _problem(422, "The request is not as it must be", faults)


async def _refused_problem(_request: Request, error: Exception) -> Response:
    return _problem(422, "Refused", str(error))


async def _unavailable_problem(_request: Request, error: Exception) -> Response:
    return _problem(503, "The database is not there", str(error), {"Retry-After": "1"})
