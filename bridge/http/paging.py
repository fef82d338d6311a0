"""Pages of lists: how many rows there are on one, and where the next one begins where the newest come first."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import Query

from bridge.storage.keyset import Place

CURSOR: Final = r"^\d+(\.\d+)?~[0-9A-Za-z-]{1,64}$"
"""A place in a list whose newest come first: Unix seconds, and an id."""

Limit = Annotated[int, Query(ge=1, le=1000)]
Before = Annotated[str | None, Query(max_length=120, pattern=CURSOR)]


def place(before: str | None) -> Place | None:
    """The place in `before`, which CURSOR has let through."""
    if before is None:
        return None
    at, _, last = before.partition("~")
    return float(at), last


def cursor(end: Place | None) -> str | None:
    """The `next` of a page that ends there; None at the end of the list."""
    return None if end is None else f"{end[0]!r}~{end[1]}"
