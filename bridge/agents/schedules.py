"""The schedules: each run that is due starts a rollout, once, whatever happens in between."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final, final

import structlog

from bridge.agents.rollouts import Rollouts
from bridge.agents.services import Services
from bridge.errors import RefusedError, StorageError, StorageUnavailableError
from bridge.rollout import Order
from bridge.schedule import Schedule, When, new_schedule
from bridge.storage import schedules as stored
from bridge.storage.database import Database
from bridge.storage.schedules import Run

log = structlog.get_logger(__name__)

MAX_ACTIVE: Final = 10_000
"""Schedules with runs to come; further ones are refused."""
PAGE: Final = 100
"""Schedules that are looked at together."""
LOOK: Final = 30.0
"""Seconds after which the clock is looked at again at the latest: it may have been set."""
RETRY: Final = 1.0
"""Seconds between two tries while the database is away, or refuses something."""


@final
class Schedules:
    """Makes schedules and starts their runs.

    A run's rollout has a key of the schedule and the time at which it was due. A bridge that is killed after it
    started one, and before it stored that, starts it again and finds it there.
    """

    def __init__(self, rollouts: Rollouts, services: Services, database: Database) -> None:
        self._rollouts = rollouts
        self._services = services
        self._database = database
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Start what is due until cancelled."""
        while True:
            self._news.clear()
            try:
                pause = await self._start_due()
            except (StorageError, StorageUnavailableError) as error:
                # Also what is refused: this looks after all of them, and its end would be the bridge's.
                log.warning("schedules cannot go on; trying again", error=str(error))
                pause = RETRY
            try:
                async with asyncio.timeout(pause):
                    await self._news.wait()
            except TimeoutError:
                pass  # the time has come to look

    async def create(self, order: Order, when: When, grace: float, key: str | None) -> tuple[Schedule, bool]:
        """Store a schedule: the stored one, and whether it is new. Of the same key there is one.

        Raises RefusedError when it is not acceptable or there are too many.
        """
        order.check(self._services.rules.command_max_ttl)
        schedule = new_schedule(order, when, grace, key, self._services.clock())
        if await self._database.read(stored.count_active) >= MAX_ACTIVE:
            raise RefusedError("too_many_schedules", f"there are {MAX_ACTIVE} schedules: cancel some first")
        found, created = await self._services.writer.submit(partial(stored.insert_schedule, schedule=schedule))
        if not created and (found.order, found.when) != (order, when):
            raise RefusedError(
                "key_conflict", f"id {key!r} is that of another schedule ({found.schedule_id}): give this one its own"
            )
        self._news.set()
        return found, created

    async def cancel(self, schedule_id: str) -> bool:
        """End a schedule; False if it has ended. What it has started goes on."""
        cancel = partial(stored.cancel_schedule, schedule_id=schedule_id, at=self._services.clock())
        return await self._services.writer.submit(cancel)

    async def _start_due(self) -> float:
        """Start what is due; the seconds until the next look."""
        while True:
            now = self._services.clock()
            due = await self._database.read(partial(stored.due_schedules, now=now, limit=PAGE))
            for schedule in due:
                await self._start(schedule, now)
            if len(due) < PAGE:
                break
        following = await self._database.read(stored.next_run)
        if following is None:
            return LOOK
        return min(LOOK, max(0.0, following - self._services.clock()))

    async def _start(self, schedule: Schedule, now: float) -> None:
        plan = schedule.plan(now)
        runs = []
        if plan.missed is not None:
            log.warning("runs of a schedule were missed", schedule=schedule.schedule_id, since=plan.missed)
            runs.append(Run(plan.missed, now, "skipped", f"late by more than {schedule.grace:g} s, or not the last"))
        if plan.run is not None:
            key = f"{schedule.schedule_id}:{plan.run:.0f}"
            try:
                rollout, _ = await self._rollouts.create(schedule.order, key, "schedule")
            except RefusedError as error:
                log.warning("a scheduled command is refused", schedule=schedule.schedule_id, reason=str(error))
                runs.append(Run(plan.run, now, "refused", str(error)))
            else:
                runs.append(Run(plan.run, now, "started", rollout.rollout_id))
        advance = partial(stored.advance_schedule, schedule=schedule, following=plan.following, runs=runs, at=now)
        if not await self._services.writer.submit(advance):
            log.info("a schedule was cancelled while it ran", schedule=schedule.schedule_id)
