"""Errors as problem details (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from bridge.errors import RefusedError, StorageUnavailableError
from bridge.http.models import Problem

MEDIA_TYPE: Final = "application/problem+json"


def described(**texts: str) -> dict[int | str, dict[str, Any]]:
    """Problems that an operation may answer with, for OpenAPI: `described(_404="There is no such device.")`."""
    return {
        int(code.lstrip("_")): {
            "description": text,
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for code, text in texts.items()
    }


RESPONSES: Final = described(
    _400="The request cannot be read.",
    _401="The token is missing or wrong.",
    _403="The caller's role does not allow it, or another site's page asked.",
    _404="There is no such thing.",
    _409="It contradicts what is there already.",
    _413="The request is too large.",
    _415="The content type is not taken.",
    _421="The bridge is not called by that name.",
    _422="The request is not as it must be.",
    _429="Too many wrong tokens, or too many such requests at once.",
    _500="The bridge made a mistake.",
    _503="The database is not there.",
)
"""What every operation may answer besides its result."""

_TITLES: Final = {401: "Who are you?", 403: "Not allowed", 404: "Not found", 405: "Not possible", 429: "Too many"}


def install(app: FastAPI) -> None:
    """Answer the errors of handlers with problem details."""

    @app.exception_handler(HTTPException)
    async def http(_request: Request, error: HTTPException) -> Response:
        title = _TITLES.get(error.status_code) or HTTPStatus(error.status_code).phrase
        return problem(error.status_code, title, str(error.detail), error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> Response:
        faults = (f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in error.errors())
        return problem(422, "The request is not as it must be", "; ".join(faults)[:4000])

    @app.exception_handler(RefusedError)
    async def refused(_request: Request, error: RefusedError) -> Response:
        if error.reason == "key_conflict":
            return problem(409, "Conflict", str(error))
        return problem(422, "Refused", str(error))

    @app.exception_handler(StorageUnavailableError)
    async def unavailable(_request: Request, error: StorageUnavailableError) -> Response:
        return problem(503, "The database is not there", str(error), {"Retry-After": "1"})


def problem(status: int, title: str, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The answer that says what went wrong."""
    # A detail may quote what was sent, with lone surrogates in it, which no answer can hold.
    text = detail.encode("utf-8", "replace").decode()
    body = Problem(title=title, status=status, detail=text).model_dump()
    return JSONResponse(body, status_code=status, media_type=MEDIA_TYPE, headers=headers)
