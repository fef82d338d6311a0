"""The live page at `/`, and the files that it is made of. They are read once, at the start, and never looked for again:
what a request names is a name in a table, not a path."""

from __future__ import annotations

import gzip
import hashlib
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import PurePosixPath
from typing import Final, NamedTuple

from fastapi import APIRouter, HTTPException, Request, Response

TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""The kinds of files that are served; others, as licences, only lie beside them."""


class Asset(NamedTuple):
    """One file as it is sent."""

    body: bytes
    zipped: bytes
    kind: str
    etag: str


def load() -> dict[str, Asset]:
    """All files by their names below `static/`, as `vendor/uPlot.min.css`."""
    return dict(_walk(files("bridge.http") / "static", ""))


def _walk(folder: Traversable, prefix: str) -> list[tuple[str, Asset]]:
    found: list[tuple[str, Asset]] = []
    for entry in folder.iterdir():
        name = prefix + entry.name
        if entry.is_dir():
            found += _walk(entry, name + "/")
        elif (kind := TYPES.get(PurePosixPath(name).suffix)) is not None:
            body = entry.read_bytes()
            etag = f'"{hashlib.sha256(body).hexdigest()[:20]}"'
            found.append((name, Asset(body, gzip.compress(body, mtime=0), kind, etag)))
    return found


def routes() -> APIRouter:
    """`/` and `/static/…`: open to everybody who reaches the port. They hold nothing but the page itself; what it shows
    comes from the API, which asks who is calling."""
    pages = APIRouter(include_in_schema=False)
    assets = load()

    @pages.get("/")
    async def index(request: Request) -> Response:
        return _answer(request, assets["index.html"])

    @pages.get("/static/{name:path}")
    async def static(request: Request, name: str) -> Response:
        asset = assets.get(name)
        if asset is None:
            raise HTTPException(404, f"the page has no file {name[:200]!r}")
        return _answer(request, asset)

    return pages


def _answer(request: Request, asset: Asset) -> Response:
    # Asked for anew each time, and sent only if it has changed: after an upgrade nobody sees half of the old page.
    headers = {"ETag": asset.etag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
    known = request.headers.get("if-none-match", "")
    if asset.etag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(asset.zipped, media_type=asset.kind, headers={**headers, "Content-Encoding": "gzip"})
    return Response(asset.body, media_type=asset.kind, headers=headers)
