"""Errors as problem details (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from bridge.errors import RefusedError, StorageUnavailableError
from bridge.http.models import Problem

MEDIA_TYPE: Final = "application/problem+json"

RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    code: {"model": Problem, "description": text, "content": {MEDIA_TYPE: {}}}
    for code, text in {
        401: "The token is missing or wrong.",
        404: "There is no such thing.",
        422: "The request is not as it must be.",
        503: "The database is not there.",
    }.items()
}
"""What every operation may answer besides its result, for OpenAPI."""


def install(app: FastAPI) -> None:
    """Answer the errors of handlers with problem details."""

    @app.exception_handler(HTTPException)
    async def http(_request: Request, error: HTTPException) -> Response:
        return _problem(error.status_code, "Not possible", str(error.detail), error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> Response:
        faults = (f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in error.errors())
        return _problem(422, "The request is not as it must be", "; ".join(faults))

    @app.exception_handler(RefusedError)
    async def refused(_request: Request, error: RefusedError) -> Response:
        return _problem(422, "Refused", str(error))

    @app.exception_handler(StorageUnavailableError)
    async def unavailable(_request: Request, error: StorageUnavailableError) -> Response:
        return _problem(503, "The database is not there", str(error), {"Retry-After": "1"})


def _problem(status: int, title: str, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    body = Problem(title=title, status=status, detail=detail).model_dump()
    return JSONResponse(body, status_code=status, media_type=MEDIA_TYPE, headers=headers)
