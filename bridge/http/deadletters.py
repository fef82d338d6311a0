"""Dead letters: what was refused and why, handed in again after a fix, or thrown away."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from functools import partial
from typing import Annotated, Final, Self

from fastapi import APIRouter, HTTPException, Path, Query, Request
from pydantic import Field, model_validator

from bridge.agents.replay import Replay
from bridge.errors import RefusedError
from bridge.http import models
from bridge.http.audit import note
from bridge.http.commands import in_time
from bridge.http.context import Context
from bridge.http.paging import Limit
from bridge.receipts import Outcome
from bridge.storage import deadletters as stored

REPLAYED: Final = 1_000
"""Letters in one request."""
TOGETHER: Final = 20
"""Letters in memory at once: each may be as large as the largest packet."""

LetterId = Annotated[int, Path(ge=0, le=2**63 - 1)]
Reason = Annotated[
    str | None, Query(max_length=64, description="Only those refused for this reason.", examples=["bad_payload"])
]


class DeadLetterView(models.Model):
    """A message that was refused. `payload` is its beginning as text, in one letter all that was kept; what is not
    UTF-8 is shown as `\\xNN`."""

    id: int
    at: datetime
    topic: str
    device_id: str | None
    reason: str = Field(description="A fixed word.", examples=["bad_payload"])
    error: str
    size: int = Field(description="Bytes of the whole payload.")
    payload: str

    @classmethod
    def of(cls, letter: stored.DeadLetter) -> Self:
        """The view of a stored letter."""
        return cls(
            id=letter.id,
            at=models.moment(letter.at),
            topic=letter.topic,
            device_id=letter.device_id,
            reason=letter.reason,
            error=letter.error,
            size=letter.size,
            payload=letter.payload.decode("utf-8", "backslashreplace"),
        )


class DeadLetterPage(models.Model):
    """Dead letters, the latest first. `next` is the `before` of the following page."""

    dead_letters: list[DeadLetterView]
    next: int | None


class Replayed(models.Model):
    """What became of a letter that was handed in again."""

    outcome: Outcome = Field(
        description="`committed`; `deduplicated`: it was known already; `dead_lettered`: refused again, and a new"
        " letter with today's reason took its place."
    )


class ReplayBody(models.Model):
    """Which letters: those named, or all that fit every filter given."""

    ids: list[Annotated[int, Field(ge=0, le=2**63 - 1)]] | None = Field(
        None, min_length=1, max_length=REPLAYED, examples=[[17, 18]]
    )
    reason: str | None = Field(None, max_length=64)
    device: str | None = Field(None, max_length=64)
    everything: bool = Field(False, description="All that there are.")
    limit: int = Field(REPLAYED, ge=1, le=REPLAYED, description="At most so many of those that fit, the oldest first.")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        filtered = self.reason is not None or self.device is not None
        if (self.ids is not None) + filtered + self.everything != 1:
            raise ValueError("name ids, or a filter (reason, device), or everything: true")
        return self


class Left(models.Model):
    """A letter that leads nowhere, and stays."""

    id: int
    reason: str
    detail: str


class ManyReplayed(models.Model):
    """What became of letters that were handed in again, the oldest first."""

    outcomes: dict[str, int] = Field(
        description="How many came to each outcome; `refused`: they lead nowhere, and stay.",
        examples=[{"committed": 17, "dead_lettered": 1, "refused": 1}],
    )
    left: list[Left] = Field(description="Those that lead nowhere, and why.")
    missing: list[int] = Field(description="Ids that no letter has.")
    last: int | None = Field(description="The highest id looked at.")


def routes(context: Context) -> APIRouter:
    """`/dead-letters`, `/dead-letters/replay`, `/dead-letters/{letter_id}` and its `/replay`."""
    api = APIRouter(tags=["dead letters"])
    database = context.database
    replay = Replay(context.services, context.router, context.ledger)

    @api.get("/dead-letters")
    async def page(
        reason: Reason = None,
        device: Annotated[str | None, Query(max_length=64, description="Only this device's.")] = None,
        limit: Limit = 100,
        before: Annotated[int | None, Query(ge=0, le=2**63 - 1, description="`next` of the page before.")] = None,
    ) -> DeadLetterPage:
        """Messages that were refused, the latest first, with the first bytes of each."""
        letters = await database.read(
            lambda connection: stored.list_dead_letters(
                connection, limit, before, reason=reason, device_id=device, shown=stored.SHOWN
            )
        )
        return DeadLetterPage(
            dead_letters=[DeadLetterView.of(letter) for letter in letters],
            next=letters[-1].id if len(letters) == limit else None,
        )

    @api.post("/dead-letters/replay")
    async def replay_many(body: ReplayBody, request: Request) -> ManyReplayed:
        """Hand letters in again, the oldest first. What is taken now, or was known, is a letter no more; what is
        refused again becomes a new one. When the database goes away half-way the answer is 503, and what is left is
        still there: the same request goes on."""
        ids = body.ids
        if ids is None:
            ids = await database.read(
                lambda connection: stored.oldest(connection, body.limit, reason=body.reason, device_id=body.device)
            )
        ids = sorted(set(ids))
        outcomes: Counter[str] = Counter()
        left: list[Left] = []
        missing: list[int] = []
        for start in range(0, len(ids), TOGETHER):
            portion = ids[start : start + TOGETHER]
            letters = await database.read(partial(stored.get_dead_letters, letter_ids=portion))
            missing += sorted(set(portion) - {letter.id for letter in letters})
            for letter, answer in zip(letters, await replay.many(letters), strict=True):
                outcomes["refused" if isinstance(answer, RefusedError) else answer.value] += 1
                if isinstance(answer, RefusedError):
                    left.append(Left(id=letter.id, reason=answer.reason, detail=str(answer)))
        note(request, ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items()) or "none")
        return ManyReplayed(outcomes=dict(outcomes), left=left, missing=missing, last=ids[-1] if ids else None)

    @api.get("/dead-letters/{letter_id}")
    async def one(letter_id: LetterId) -> DeadLetterView:
        """One letter with all of its payload that was kept."""
        return DeadLetterView.of(await found(letter_id))

    @api.post("/dead-letters/{letter_id}/replay")
    async def replay_one(letter_id: LetterId, request: Request) -> Replayed:
        """Hand a letter in again. 409 if it leads nowhere: then it stays."""
        letter = await found(letter_id)
        try:
            outcome = await replay.one(letter)
        except RefusedError as error:
            raise HTTPException(409, f"{error.reason}: {error}") from error
        note(request, f"{outcome.value}: {letter.topic[:200]}")
        return Replayed(outcome=outcome)

    @api.delete("/dead-letters/{letter_id}", status_code=204)
    async def drop(letter_id: LetterId, request: Request) -> None:
        """Throw a letter away."""
        letter = await found(letter_id)
        async with in_time(context):
            await context.services.writer.submit(partial(stored.delete_dead_letter, letter_id=letter_id))
        note(request, f"{letter.reason}: {letter.topic[:200]}")

    async def found(letter_id: int) -> stored.DeadLetter:
        letter = await database.read(partial(stored.get_dead_letter, letter_id=letter_id))
        if letter is None:
            raise HTTPException(404, f"there is no dead letter {letter_id}")
        return letter

    return api
