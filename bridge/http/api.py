"""The operator's API, `/api/v1`, with health and metrics beside it."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request

from bridge import __version__
from bridge.http import commands, devices, health, problems
from bridge.http.context import Context


def build(context: Context) -> FastAPI:
    """The application."""
    app = FastAPI(title="MQTT Agent Bridge", version=__version__, docs_url=None, redoc_url=None)
    problems.install(app)
    app.include_router(health.routes(context))
    api = APIRouter(prefix="/api/v1", dependencies=[Depends(_guard(context.token))], responses=problems.RESPONSES)
    api.include_router(devices.routes(context))
    api.include_router(commands.routes(context))
    app.include_router(api)
    return app


def _guard(token: str | None) -> Callable[[Request], None]:
    def check(request: Request) -> None:
        if token is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not secrets.compare_digest(given.encode(), token.encode()):
            raise HTTPException(401, "send the token: Authorization: Bearer …", {"WWW-Authenticate": "Bearer"})

    return check
