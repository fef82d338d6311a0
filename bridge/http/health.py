"""Health, readiness and metrics: open to everybody who reaches the port."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Depends, Response
from fastapi.responses import JSONResponse

from bridge.http import problems
from bridge.http.access import guard
from bridge.http.context import Context
from bridge.metrics import CONTENT_TYPE


def routes(context: Context) -> APIRouter:
    """`/healthz`, `/readyz`, `/metrics`."""
    api = APIRouter(tags=["health"])

    @api.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process is there and its event loop turns."""
        return {"status": "ok"}

    @api.get("/readyz", responses={503: {"description": "Not ready; the checks say why."}})
    async def readyz() -> JSONResponse:
        """Database, broker and schema are as they must be."""
        answers = await asyncio.gather(*(check() for check in context.checks.values()))
        faults = dict(zip(context.checks, answers, strict=True))
        ready = not any(answers)
        body = {
            "status": "ready" if ready else "not ready",
            "checks": {name: fault or "ok" for name, fault in faults.items()},
        }
        return JSONResponse(body, status_code=200 if ready else 503)

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
