"""The rollouts that are running: they give devices their command, a few at a time, and survive restarts."""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from typing import Final, final

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.agents.router import Router
from bridge.agents.services import Services
from bridge.commands import CommandStatus
from bridge.errors import RefusedError, StorageError, StorageUnavailableError
from bridge.rollout import Order, Progress, Rollout, RolloutStatus, new_rollout
from bridge.storage import rollouts as stored
from bridge.storage.database import Database

log = structlog.get_logger(__name__)

MAX_RUNNING: Final = 100
"""Rollouts at once; further ones are refused."""
PAGE: Final = 200
"""Devices that are read together. A rollout's place is stored once a page: after a restart the devices of the last
page are asked for again, which finds the commands that they have."""
RETRY: Final = 1.0
"""Seconds between two tries while the database is away, or refuses something."""


@final
class _Running:
    """A rollout in memory: `upcoming` are the devices of its page that have no command yet."""

    __slots__ = ("exhausted", "page_end", "progress", "rollout", "since", "turn", "upcoming")

    def __init__(self, rollout: Rollout, progress: Progress, since: float) -> None:
        self.rollout = rollout
        self.progress = progress
        self.since = since
        """When it was taken up, Unix seconds: commands that are older were counted then."""
        self.upcoming: deque[str] = deque()
        self.page_end = rollout.cursor
        self.exhausted = False
        self.turn = asyncio.Lock()
        """Held while devices are given their command, and while the rollout is cancelled."""


@final
class Rollouts:
    """Makes rollouts, runs them, and takes up after a restart those that were running.

    A device is asked under a key of the rollout and its id, so it gets one command however often it is its turn. That
    command, in the table, is what is known of the device; a rollout itself stores where it is and how it ended.
    """

    def __init__(self, router: Router, services: Services, database: Database) -> None:
        self._router = router
        self._services = services
        self._database = database
        self._running: dict[str, _Running] = {}
        self._news = asyncio.Event()

    @property
    def running(self) -> int:
        """How many are running."""
        return len(self._running)

    # ------------------------------------------------------------------ life

    async def start(self) -> None:
        """Take up what was running. The router has started, and no device is connected yet."""
        self._services.rollout_news = self._ended
        running, cancelled = await self._services.writer.submit(_unfinished)
        for rollout, open_ids, failures in running:
            self._take_up(rollout, Progress(rollout.order.at_once, _limit(rollout), open_ids, failures))
        for device_id, command_id in cancelled:
            await self._router.cancel(device_id, command_id, "rollout_cancelled")

    async def run(self) -> None:
        """Give devices their command until cancelled."""
        while True:
            self._news.clear()
            more = False
            try:
                for running in list(self._running.values()):
                    more |= await self._step(running)
            except (StorageError, StorageUnavailableError) as error:
                # Also what is refused: this looks after all of them, and its end would be the bridge's.
                log.warning("rollouts cannot go on; trying again", error=str(error))
                await asyncio.sleep(RETRY)
                continue
            if not more:
                await self._news.wait()

    # ------------------------------------------------------------------ from the operator

    async def create(self, order: Order, key: str | None, cause: str) -> tuple[Rollout, bool]:
        """Store a rollout and begin: the stored one, and whether it is new. Of the same key there is one.

        Raises RefusedError when it is not acceptable, fits no device, or when too many are running.
        """
        order.check(self._services.rules.command_max_ttl)
        total = await self._database.read(partial(stored.count_matching, target=order.target))
        rollout = new_rollout(order, key, total, cause, self._services.clock())
        if len(self._running) >= MAX_RUNNING:
            raise RefusedError("too_many_rollouts", f"{MAX_RUNNING} rollouts are running: wait for one to end")
        if total == 0:
            raise RefusedError("no_device", "no device that is known fits")
        found, created = await self._services.writer.submit(partial(stored.insert_rollout, rollout=rollout))
        if created:
            self._take_up(found, Progress(order.at_once, _limit(found)))
        elif found.order != order:
            raise RefusedError(
                "key_conflict", f"id {key!r} is that of another rollout ({found.rollout_id}): give this one its own"
            )
        return found, created

    async def cancel(self, rollout_id: str) -> bool:
        """Stop a rollout and cancel what it has not finished, also what an earlier call had to leave because it was
        given up; False if it is not running."""
        running = self._running.get(rollout_id)
        ended = False
        if running is not None:
            async with running.turn:
                ended = await self._end(running, RolloutStatus.CANCELLED, "api")
        left = await self._services.writer.submit(partial(stored.cancelled_commands, rollout_id=rollout_id))
        cancel = self._router.cancel
        await asyncio.gather(*(cancel(device_id, command_id, "rollout_cancelled") for device_id, command_id in left))
        self._services.command_changed(rollout_id)
        return ended

    # ------------------------------------------------------------------ one step

    def _take_up(self, rollout: Rollout, progress: Progress) -> None:
        self._running[rollout.rollout_id] = _Running(rollout, progress, self._services.clock())
        self._news.set()

    def _ended(self, rollout_id: str, command_id: str, status: CommandStatus) -> None:
        running = self._running.get(rollout_id)
        if running is not None:
            running.progress.ended(command_id, status)
            self._news.set()
        self._services.command_changed(rollout_id)

    async def _step(self, running: _Running) -> bool:
        """Do what can be done now; whether there is more to do without waiting for news."""
        progress, rollout = running.progress, running.rollout
        async with running.turn:
            if rollout.rollout_id not in self._running:
                return False
            if progress.gone_wrong:
                await self._end(running, RolloutStatus.STOPPED, f"{progress.failures} devices failed")
                return False
            if progress.room and not running.upcoming and not running.exhausted:
                await self._turn_page(running)
            count = min(progress.room, len(running.upcoming))
            if count:
                ids = [running.upcoming.popleft() for _ in range(count)]
                problems = await asyncio.gather(*(self._send(running, device_id) for device_id in ids))
                self._services.command_changed(rollout.rollout_id)
                left = [device_id for device_id, problem in zip(ids, problems, strict=True) if problem is not None]
                running.upcoming.extendleft(reversed(left))
                for problem in problems:
                    if problem is not None:
                        raise problem
            if running.exhausted and not running.upcoming and not progress.open:
                await self._end(running, RolloutStatus.FINISHED, "all devices have ended")
                return False
            return progress.gone_wrong or bool(progress.room and (running.upcoming or not running.exhausted))

    async def _turn_page(self, running: _Running) -> None:
        """The devices of the page before have their commands, all committed: store that, and read the next one."""
        rollout = running.rollout
        if running.page_end != rollout.cursor:
            rollout.cursor = running.page_end
            rollout.updated_at = self._services.clock()
            await self._services.writer.submit(partial(stored.save_cursor, rollout=rollout))
        target, after = rollout.order.target, rollout.cursor
        page = await self._database.read(partial(stored.matching, target=target, after=after, limit=PAGE))
        running.upcoming.extend(page)
        running.exhausted = len(page) < PAGE
        if page:
            running.page_end = page[-1]

    async def _send(self, running: _Running, device_id: str) -> StorageUnavailableError | None:
        """Give a device its command, unless the database is away: then it must be asked for again."""
        rollout = running.rollout
        try:
            command, created = await self._router.send(
                device_id, rollout.request_for(device_id), "rollout", rollout.rollout_id
            )
        except (RefusedError, StorageError) as error:
            log.warning("a device of a rollout gets no command", device=device_id, reason=str(error))
            rollout.refused += 1
            running.progress.refused()
            return None
        except StorageUnavailableError as error:
            return error
        if created or command.created_at >= running.since:
            # If not, it was sent before a restart, and counted when the rollout was taken up. One that is not new and
            # not so old was stored though the database could not say so.
            running.progress.sent(command.command_id, command.status)
        return None

    async def _end(self, running: _Running, status: RolloutStatus, cause: str) -> bool:
        rollout = running.rollout
        end = partial(
            stored.end_rollout,
            rollout_id=rollout.rollout_id,
            status=status,
            cause=cause,
            refused=rollout.refused,
            at=self._services.clock(),
        )
        ended = await self._services.writer.submit(end)
        self._running.pop(rollout.rollout_id, None)
        self._services.command_changed(rollout.rollout_id)
        return ended


def _limit(rollout: Rollout) -> int | None:
    return rollout.order.limit(rollout.total)


async def _unfinished(
    connection: AsyncConnection,
) -> tuple[list[tuple[Rollout, list[str], int]], list[tuple[str, str]]]:
    """Each running rollout with the ids of its unfinished commands and its failures; and the commands that a cancelled
    one has left."""
    running = []
    for rollout in await stored.running_rollouts(connection):
        open_ids = [command_id for _, command_id in await stored.unfinished_commands(connection, rollout.rollout_id)]
        failures = rollout.refused + await stored.count_failures(connection, rollout.rollout_id)
        running.append((rollout, open_ids, failures))
    return running, await stored.cancelled_commands(connection)
