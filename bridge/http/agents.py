"""The agents: how many are in memory, and what those are waiting for that take long."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import Field

from bridge.http import models
from bridge.http.context import Context
from bridge.http.paging import Limit


class WaitView(models.Model):
    """An agent that has not been done for some time."""

    device_id: str
    reason: Literal["state", "handler", "commit", "turn"] = Field(
        description="Its state is being loaded, a handler runs, what that has caused is being committed, or it waits "
        "for its turn."
    )
    handler: str = Field(description="The handler of its device logic, empty if it is none.")
    since: datetime
    seconds: float
    messages: int = Field(description="Messages that wait behind it.")


class AgentsView(models.Model):
    """The agents and what they work with."""

    awake: int
    asleep: int
    cold: int = Field(description="Known devices whose agents are not in memory.")
    restarts: int = Field(description="How often device logic has failed and was built anew since the start.")
    loop_lag_p99_ms: float = Field(description="How late the event loop was in the last minute.")
    uncommitted: int = Field(description="Rows and changes that wait for a commit.")
    congested: bool = Field(description="Whether connections are not read until something is committed.")
    ledger: dict[str, Any] = Field(description="What became of every message; `difference` is 0 unless one is lost.")
    waiting: list[WaitView] = Field(description="The slow ones, the longest wait first.")


def routes(context: Context) -> APIRouter:
    """`/agents`."""
    api = APIRouter(tags=["bridge"])

    @api.get("/agents")
    async def agents(
        longer_than: Annotated[float, Query(ge=0, le=86_400, description="Seconds that a wait is not slow yet.")] = 1.0,
        limit: Limit = 100,
    ) -> AgentsView:
        """How many agents there are, and what the slow ones are waiting for. Looks at every agent in memory."""
        services = context.services
        now = services.clock()
        return AgentsView(
            **context.router.activity(),
            restarts=services.census.restarts,
            loop_lag_p99_ms=context.summary()["loop_lag_p99_ms"],
            uncommitted=services.writer.pending,
            congested=services.writer.congested,
            ledger=dict(context.ledger.as_dict()),
            waiting=[
                WaitView(
                    device_id=wait.device_id,
                    reason=wait.reason,
                    handler=wait.handler,
                    since=models.moment(wait.since),
                    seconds=round(now - wait.since, 3),
                    messages=wait.messages,
                )
                for wait in context.router.waits(longer_than, limit)
            ],
        )

    return api
