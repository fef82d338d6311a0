"""The operator's API, `/api/v1`, with health and metrics beside it."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Depends, FastAPI

from bridge import __version__
from bridge.http import (
    agents,
    commands,
    deadletters,
    devices,
    export,
    health,
    page,
    presence,
    problems,
    registry,
    rollouts,
    schedules,
    session,
    sinks,
    stream,
    telemetry,
    tokens,
    twins,
)
from bridge.http.access import guard
from bridge.http.audit import PREFIX, audited
from bridge.http.context import Context
from bridge.http.door import Door
from bridge.http.models import Problem

MAX_BODY: Final = 8 * 1024 * 1024
"""Bytes of a request's body: more than any operation needs, and no danger to memory."""

DESCRIPTION: Final = """
Devices, their readings and commands, and the bridge itself.

Callers show a token, `Authorization: Bearer …`; on a loopback address the default is that none is needed. A *viewer*
may read, an *operator* may also send commands and change twins, an *admin* everything. Times are RFC 3339 in UTC; where
a time is asked for, Unix seconds will do. What goes wrong is told as problem details (RFC 9457).
"""


def build(context: Context) -> FastAPI:
    """The application."""
    app = FastAPI(
        title="MQTT Agent Bridge",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        max_body_size=None,  # the door's affair, whose answer is a problem
    )
    problems.install(app)
    app.add_middleware(Door, hosts=context.hosts, max_body=MAX_BODY)
    app.include_router(health.routes(context))
    app.include_router(page.routes())
    access, audit = context.access, context.audit
    app.include_router(session.routes(access, audit, context.services.clock), prefix=PREFIX)
    api = APIRouter(
        prefix=PREFIX,
        dependencies=[Depends(guard(access)), Depends(audited(audit), scope="function")],
        responses=problems.RESPONSES,
    )
    api.include_router(devices.routes(context))
    api.include_router(agents.routes(context))
    api.include_router(telemetry.routes(context))
    api.include_router(export.routes(context))
    api.include_router(commands.routes(context))
    api.include_router(presence.routes(context))
    api.include_router(twins.routes(context))
    api.include_router(stream.routes(context))
    api.include_router(registry.routes(context))
    api.include_router(rollouts.routes(context))
    api.include_router(schedules.routes(context))
    api.include_router(deadletters.routes(context))
    api.include_router(sinks.routes(context))
    api.include_router(tokens.routes(access.keyring, context.database))
    app.include_router(api)
    _describe(app)
    return app


def _describe(app: FastAPI) -> None:
    """OpenAPI with what FastAPI does not know: the problem that every operation may answer with, and the token."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = made()
            components = schema.setdefault("components", {})
            components.setdefault("schemas", {})["Problem"] = Problem.model_json_schema()
            components["securitySchemes"] = {
                "token": {"type": "http", "scheme": "bearer"},
                "session": {"type": "apiKey", "in": "cookie", "name": "bridge_session"},
            }
            schema["security"] = [{"token": []}, {"session": []}, {}]
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to extend it
