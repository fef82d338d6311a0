"""What is answered while the database has not been reached since the start, or has not what was spooled before: health,
metrics, and to all else that."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fastapi import FastAPI, Response

from bridge.errors import StorageUnavailableError
from bridge.http import health, problems
from bridge.http.context import Check
from bridge.metrics import CONTENT_TYPE, Metrics


def build(checks: Mapping[str, Check], degraded: Callable[[], str | None], metrics: Metrics | None) -> FastAPI:
    """The application. `metrics` are open to everybody; None where they are not."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    problems.install(app)
    app.include_router(health.readiness(checks, degraded))
    if metrics is not None:

        @app.get("/metrics")
        async def scraped() -> Response:
            return Response(metrics.render(), media_type=CONTENT_TYPE)

    @app.api_route("/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
    async def all_else(path: str) -> Response:
        raise StorageUnavailableError(f"/{path[:200]} needs the database with all that is in the spool: see /readyz")

    return app
