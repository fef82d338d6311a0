"""Rollouts and schedules on real agents and a real database: one command per device, whatever is killed in between."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from bridge.agents.rollouts import Rollouts
from bridge.agents.schedules import Schedules
from bridge.commands import CommandRequest
from bridge.errors import RefusedError, StorageUnavailableError
from bridge.presence import Status
from bridge.rollout import Order, Rollout, RolloutStatus, Target
from bridge.schedule import When
from bridge.storage import migrate
from bridge.storage import rollouts as stored
from bridge.storage import schedules as stored_schedules
from tests.integration.agents.house import House, Line, house
from tests.waiting import eventually

DEVICES = tuple(f"d{number:02}" for number in range(20))


@pytest.fixture
async def url(tmp_path: Path) -> str:
    """A migrated SQLite database: what is stored, and how, is tested on both kinds elsewhere."""
    url = f"sqlite+aiosqlite:///{tmp_path}/bridge.db"
    await migrate.upgrade(url)
    return url


class Fleet:
    """Devices that carry out what they are sent, each id once, and answer `answer(device_id)`, or nothing if that is
    None. Counts how many have not answered."""

    def __init__(self, built: House, answer: Callable[[str], str | None] = lambda _: "succeeded") -> None:
        self.built = built
        self.answer = answer
        self.executed: Counter[str] = Counter()
        self.busy: set[str] = set()
        self.most = 0
        self.gone = False
        """Their connections are cut: what they would answer does not arrive."""
        self._publish = built.services.publish
        built.services.publish = self.publish

    def connect(self, *device_ids: str) -> None:
        for device_id in device_ids:
            self.built.router.attached(device_id, Line(device_id), listening=True)
        self.built.router.catch_up()

    def publish(self, topic: str, payload: bytes, **more: Any) -> int:
        reached = self._publish(topic, payload, **more)
        _, device_id, name = topic.split("/", 2)
        if name == "command/request":
            self.executed[device_id] += 1
            self.busy.add(device_id)
            self.most = max(self.most, len(self.busy))
            if (status := self.answer(device_id)) is not None:
                body = {"id": msgspec.json.decode(payload)["id"], "status": status, "error": "as told"}
                asyncio.get_running_loop().call_later(0.005, self.respond, device_id, msgspec.json.encode(body))
        return reached

    def respond(self, device_id: str, body: bytes) -> None:
        self.busy.discard(device_id)
        if self.gone:
            return
        self.built.receive(f"devices/{device_id}/command/response", body)


@asynccontextmanager
async def running(built: House) -> AsyncIterator[tuple[Rollouts, Schedules]]:
    """Rollouts and schedules as a bridge has them; at the end they are gone in the middle of whatever they did."""
    rollouts = Rollouts(built.router, built.services, built.database)
    await rollouts.start()
    schedules = Schedules(rollouts, built.services, built.database)
    tasks = [asyncio.create_task(part.run()) for part in (rollouts, schedules)]
    try:
        yield rollouts, schedules
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def look(built: House, rollout_id: str) -> tuple[Rollout, dict[str, int]]:
    rollout = await built.database.read(partial(stored.get_rollout, rollout_id=rollout_id))
    assert rollout is not None
    return rollout, await built.database.read(partial(stored.count_by_status, rollout_id=rollout_id))


async def ended(built: House, rollouts: Rollouts, rollout_id: str) -> tuple[Rollout, dict[str, int]]:
    await eventually(lambda: not rollouts.running, timeout=20.0)
    return await look(built, rollout_id)


def order(*, at_once: int = 3, stop_after: str | None = None, devices: tuple[str, ...] = DEVICES) -> Order:
    return Order(CommandRequest("reboot", {"x": 1}), Target(devices), at_once, stop_after)


async def test_every_device_gets_it_once_a_few_at_a_time(url: str) -> None:
    async with house(url) as built, running(built) as (rollouts, _):
        fleet = Fleet(built)
        fleet.connect(*DEVICES)
        rollout, created = await rollouts.create(order(), "k", "api")
        again, created_again = await rollouts.create(order(), "k", "api")
        assert (created, created_again, again.rollout_id) == (True, False, rollout.rollout_id)
        with pytest.raises(RefusedError) as refused:
            await rollouts.create(order(at_once=4), "k", "api")
        assert refused.value.reason == "key_conflict"
        found, counts = await ended(built, rollouts, rollout.rollout_id)
        assert (found.status, counts) == (RolloutStatus.FINISHED, {"succeeded": 20})
        assert fleet.executed == dict.fromkeys(DEVICES, 1)
        assert fleet.most <= 3


@pytest.mark.parametrize("stop_after", ["4", "20%"])
async def test_it_stops_when_so_many_have_failed(url: str, stop_after: str) -> None:
    async with house(url) as built, running(built) as (rollouts, _):
        fleet = Fleet(built, lambda device_id: "failed" if device_id >= "d05" else "succeeded")
        fleet.connect(*DEVICES)
        rollout, _created = await rollouts.create(order(at_once=2, stop_after=stop_after), None, "api")
        found, counts = await ended(built, rollouts, rollout.rollout_id)
        assert found.status is RolloutStatus.STOPPED
        assert found.cause in ("4 devices failed", "5 devices failed"), (
            "those that were under way may be heard together"
        )
        await eventually(lambda: not fleet.busy)
        assert counts["succeeded"] == 5
        assert 4 <= sum(counts.values()) - 5 <= 5, "no more than those that were under way"


async def test_a_filter_reads_the_devices_in_pages(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.agents.rollouts.PAGE", 3)
    async with house(url) as built, running(built) as (rollouts, _):
        fleet = Fleet(built)
        fleet.connect(*DEVICES[:10])
        for device_id in DEVICES[10:]:
            built.receive(f"devices/{device_id}/telemetry", b"{}")
        await eventually(lambda: built.ledger.in_flight == 0)
        await built.writer.barrier()
        target = Target(status=Status.ONLINE)
        rollout, _created = await rollouts.create(Order(CommandRequest("reboot"), target), None, "api")
        assert rollout.total == 10
        _found, counts = await ended(built, rollouts, rollout.rollout_id)
        assert counts == {"succeeded": 10}
        assert set(fleet.executed) == set(DEVICES[:10])
        nobody = Order(CommandRequest("reboot"), Target(profile="there is none"))
        with pytest.raises(RefusedError, match="no device"):
            await rollouts.create(nobody, None, "api")


async def test_killed_at_any_moment_it_goes_on_with_once_per_device(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.agents.rollouts.PAGE", 7)
    executed: Counter[str] = Counter()
    rollout_id = ""
    for life in range(6):
        async with house(url) as built:
            fleet = Fleet(built)
            async with running(built) as (rollouts, _):
                fleet.connect(*DEVICES)
                if not rollout_id:
                    rollout, _created = await rollouts.create(order(), None, "api")
                    rollout_id = rollout.rollout_id
                wanted = 3 * life + 2
                await eventually(lambda: not rollouts.running or sum(fleet.executed.values()) >= wanted, timeout=20.0)  # noqa: B023 - awaited at once
            fleet.gone = True
        executed += fleet.executed
    async with house(url) as built, running(built) as (rollouts, _):
        fleet = Fleet(built)
        fleet.connect(*DEVICES)
        found, counts = await ended(built, rollouts, rollout_id)
    executed += fleet.executed
    assert (found.status, counts) == (RolloutStatus.FINISHED, {"succeeded": 20})
    # A request whose acknowledgement was lost with the bridge comes again, under the same id.
    assert set(executed) == set(DEVICES)


async def test_cancelled_it_ends_with_what_is_under_way(url: str) -> None:
    async with house(url) as built, running(built) as (rollouts, _):
        fleet = Fleet(built, lambda _: None)
        fleet.connect(*DEVICES)
        rollout, _created = await rollouts.create(order(), None, "api")
        await eventually(lambda: len(fleet.busy) == 3)
        assert await rollouts.cancel(rollout.rollout_id)
        assert not await rollouts.cancel(rollout.rollout_id)
        found, counts = await look(built, rollout.rollout_id)
        assert (found.status, counts) == (RolloutStatus.CANCELLED, {"cancelled": 3})
        assert sum(fleet.executed.values()) == 3


async def test_an_outage_costs_no_device_its_command(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.agents.rollouts.RETRY", 0.01)
    monkeypatch.setattr("bridge.agents.rollouts.PAGE", 7)
    async with house(url) as built, running(built) as (rollouts, _):
        fleet = Fleet(built, lambda device_id: "failed" if device_id == "d01" else "succeeded")
        fleet.connect(*DEVICES)
        asked: Counter[str] = Counter()
        send = built.router.send

        async def unsure(device_id: str, *args: Any) -> Any:
            asked[device_id] += 1
            if asked[device_id] == 1 and device_id != "d01":
                raise StorageUnavailableError("the database is away")
            answer = await send(device_id, *args)
            if asked[device_id] == 1:
                raise StorageUnavailableError("it was stored, and the answer is lost")
            return answer

        monkeypatch.setattr(built.router, "send", unsure)
        rollout, _created = await rollouts.create(order(stop_after="2"), None, "api")
        found, counts = await ended(built, rollouts, rollout.rollout_id)
        assert (found.status, counts) == (RolloutStatus.FINISHED, {"succeeded": 19, "failed": 1})
        assert fleet.executed == Counter(DEVICES)
        assert fleet.most <= 3
        asked.clear()
        again, _created = await rollouts.create(order(stop_after="1", at_once=1), "again", "api")
        found, counts = await ended(built, rollouts, again.rollout_id)
        assert (found.status, counts) == (RolloutStatus.STOPPED, {"succeeded": 1, "failed": 1}), (
            "it counts all the same"
        )


async def test_a_device_that_is_deleted_holds_up_no_rollout(url: str) -> None:
    async with house(url) as built, running(built) as (rollouts, _):
        fleet = Fleet(built, lambda device_id: None if device_id == "d00" else "succeeded")
        fleet.connect(*DEVICES)
        await built.writer.barrier()
        rollout, _created = await rollouts.create(order(at_once=1), None, "api")
        await eventually(lambda: fleet.executed["d00"])
        await built.registry.delete("d00")
        found, counts = await ended(built, rollouts, rollout.rollout_id)
        assert (found.status, counts) == (RolloutStatus.FINISHED, {"succeeded": 19})


async def test_a_cancelling_that_was_given_up_is_finished_by_the_next(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(url) as built, running(built) as (rollouts, _):
        fleet = Fleet(built, lambda _: None)
        fleet.connect(*DEVICES)
        rollout, _created = await rollouts.create(order(), None, "api")
        await eventually(lambda: len(fleet.busy) == 3)
        with monkeypatch.context() as patch:
            patch.setattr(built.router, "cancel", lambda *_: asyncio.sleep(60))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):  # as an operator's request has it
                    await rollouts.cancel(rollout.rollout_id)
        found, counts = await look(built, rollout.rollout_id)
        assert (found.status, counts) == (RolloutStatus.CANCELLED, {"sent": 3})
        await rollouts.cancel(rollout.rollout_id)
        found, counts = await look(built, rollout.rollout_id)
        assert (found.status, counts) == (RolloutStatus.CANCELLED, {"cancelled": 3})


async def test_a_schedule_starts_a_rollout_when_it_is_due_and_once(url: str) -> None:
    async with house(url) as built, running(built) as (rollouts, schedules):
        fleet = Fleet(built)
        fleet.connect("d00")
        when = When(at=time.time() + 1.5)
        schedule, created = await schedules.create(order(devices=("d00",)), when, 60.0, "k")
        assert created
        assert (await schedules.create(order(devices=("d00",)), when, 60.0, "k"))[1] is False
        assert not fleet.executed
        await eventually(lambda: fleet.executed["d00"] == 1)
        await eventually(lambda: not rollouts.running)
        runs = await built.database.read(partial(stored_schedules.last_runs, schedule_id=schedule.schedule_id))
        assert [run.outcome for run in runs] == ["started"]
        found = await built.database.read(partial(stored_schedules.get_schedule, schedule_id=schedule.schedule_id))
        assert found is not None
        assert (found.status.value, found.next_at) == ("done", None)


class Clock:
    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@pytest.mark.parametrize(("grace", "outcomes"), [(3600.0, ["started", "skipped"]), (1.0, ["skipped"])])
async def test_what_was_missed_while_the_bridge_was_down(url: str, grace: float, outcomes: list[str]) -> None:
    clock = Clock()
    async with house(url, clock=clock) as built, running(built) as (_, schedules):
        hourly = When(cron="17 * * * *", tz="Asia/Kathmandu")
        schedule, _created = await schedules.create(order(devices=("d00",)), hourly, grace, None)
        assert schedule.next_at is not None
    # Down until half an hour after its third run.
    clock.ahead = schedule.next_at + 2 * 3600.0 + 1800.0 - time.time()
    async with house(url, clock=clock) as built, running(built):
        read = partial(stored_schedules.last_runs, schedule_id=schedule.schedule_id)

        async def recorded() -> list[str]:
            return [run.outcome for run in await built.database.read(read)]

        deadline = time.monotonic() + 10.0
        while await recorded() != outcomes:
            assert time.monotonic() < deadline, await recorded()
            await asyncio.sleep(0.01)
        found = await built.database.read(partial(stored_schedules.get_schedule, schedule_id=schedule.schedule_id))
        assert found is not None
        assert found.next_at == schedule.next_at + 3 * 3600.0


async def test_a_cancelled_schedule_runs_no_more(url: str) -> None:
    clock = Clock()
    async with house(url, clock=clock) as built, running(built) as (_, schedules):
        schedule, _created = await schedules.create(order(), When(cron="* * * * *"), 60.0, None)
        assert await schedules.cancel(schedule.schedule_id)
        assert not await schedules.cancel(schedule.schedule_id)
        assert await built.database.read(stored_schedules.next_run) is None


async def test_what_the_database_refuses_ends_neither_rollouts_nor_schedules(url: str) -> None:
    """Whoever looks after all of them must outlive what goes wrong with one: its end would be the bridge's."""
    async with house(url) as built, running(built) as (rollouts, schedules):
        fleet = Fleet(built, lambda _: None)
        fleet.connect("d00")

        async def rename(before: str, after: str) -> None:
            statement = text(f"ALTER TABLE {before} RENAME TO {after}")
            await built.database.write(lambda connection: connection.execute(statement))

        await schedules.create(order(devices=("d00",)), When(at=time.time() + 0.2), 60.0, "k")
        await rename("schedules", "hidden")
        with capture_logs() as lines:
            await eventually(lambda: "schedules cannot go on" in str(lines))
        await rename("hidden", "schedules")
        await eventually(lambda: fleet.executed["d00"] == 1)

        await rename("rollouts", "hidden")
        with capture_logs() as lines:
            command = built.bodies("devices/d00/command/request")[-1]
            fleet.respond("d00", msgspec.json.encode({"id": command["id"], "status": "succeeded"}))
            await eventually(lambda: "rollouts cannot go on" in str(lines))
        await rename("hidden", "rollouts")
        await eventually(lambda: not rollouts.running)
