"""Sinks: how each of them gets on."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import Field

from bridge.breaker import State
from bridge.http.context import Context
from bridge.http.models import Model


class SinkView(Model):
    """One sink since the start of the bridge."""

    name: str
    delivered: int = Field(description="Records that it has taken.")
    refused: int = Field(description="Records that it would not take, and that were passed over.")
    retries: int
    trouble: str | None = Field(description="Why the last delivery failed; null when it did not.")
    lag: float = Field(description="Seconds: how old the oldest record is that waits for it; 0 when none does.")
    breaker: State


class SinkList(Model):
    """All sinks, in the order of the settings."""

    sinks: list[SinkView]


def routes(context: Context) -> APIRouter:
    """`/sinks`."""
    api = APIRouter(tags=["bridge"])

    @api.get("/sinks")
    async def sinks() -> SinkList:
        """Where readings are passed on to, and whether they arrive."""
        return SinkList(sinks=[SinkView.model_validate(figures) for figures in context.sinks()])

    return api
