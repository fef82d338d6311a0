"""Health, readiness and metrics: open to everybody who reaches the port."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import APIRouter, Depends, Response
from fastapi.responses import JSONResponse

from bridge.http import problems
from bridge.http.access import guard
from bridge.http.context import Check, Context
from bridge.metrics import CONTENT_TYPE


def routes(context: Context) -> APIRouter:
    """`/healthz`, `/readyz`, `/metrics`."""
    api = readiness(context.checks, context.degraded, context.concern)
    guarded = [] if context.metrics_open else [Depends(guard(context.access))]

    @api.get(
        "/metrics",
        response_class=Response,
        dependencies=guarded,
        responses={
            200: {"description": "The metrics.", "content": {"text/plain": {"schema": {"type": "string"}}}},
            **problems.RESPONSES,
        },
    )
    async def metrics() -> Response:
        """Metrics for Prometheus. Whether a token is needed is the setting `http.metrics_token`."""
        return Response(context.metrics.render(), media_type=CONTENT_TYPE)

    return api


def readiness(
    checks: Mapping[str, Check], degraded: Callable[[], str | None], concern: Callable[[], str | None] = lambda: None
) -> APIRouter:
    """`/healthz`, `/readyz`. `degraded`, `concern`: as in `Context`."""
    api = APIRouter(tags=["health"])

    @api.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process is there and its event loop turns."""
        return {"status": "ok"}

    @api.get("/readyz", responses={503: {"description": "Not ready; the checks say why."}})
    async def readyz() -> JSONResponse:
        """Database, broker and schema are as they must be; or `degraded`: what is received is acknowledged, and waits
        on the local disk until the database is as it must be, or something will go wrong if nobody does anything."""
        answers = await asyncio.gather(*(check() for check in checks.values()))
        faults = {name: fault for name, fault in zip(checks, answers, strict=True) if fault}
        reason = degraded()
        # While rows are spooled nobody who sends any needs the database.
        ready = not (faults.keys() - {"database"} if reason else faults)
        reason = reason or concern()
        body: dict[str, Any] = {
            "status": ("degraded" if reason else "ready") if ready else "not ready",
            "checks": {name: faults.get(name) or "ok" for name in checks},
        }
        if reason:
            body["reason"] = reason
        return JSONResponse(body, status_code=200 if ready else 503)

    return api
