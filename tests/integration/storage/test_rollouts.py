"""Rollouts and schedules as they are stored, and agents' timers, on both databases."""

from __future__ import annotations

from functools import partial

import pytest

from bridge.commands import PREDECESSORS, CommandRequest, CommandStatus, new_command
from bridge.presence import Status
from bridge.registry import Admission, Entry
from bridge.rollout import Order, Rollout, RolloutStatus, Target, new_rollout
from bridge.schedule import Schedule, ScheduleStatus, When, new_schedule
from bridge.storage import commands, registry, rollouts, schedules
from bridge.storage.agents import AgentLoader, AgentState, waiting_for_time
from bridge.storage.database import Database
from bridge.storage.schedules import Run
from bridge.storage.writer import Writer

ORDER = Order(CommandRequest("update", {"to": "2.0 \0 ü"}), Target(tag="cold"), at_once=7, stop_after="10%")


def rollout(key: str | None = None, at: float = 100.0, order: Order = ORDER) -> Rollout:
    return new_rollout(order, key, total=3, cause="api", now=at)


def schedule(key: str | None = None, when: When | None = None, now: float = 0.0) -> Schedule:
    return new_schedule(ORDER, when or When(cron="*/5 * * * *"), 60.0, key, now)


@pytest.mark.parametrize(
    ("target", "fitting"),
    [
        (Target(devices=("d3", "d1", "unheard-of")), ["d1", "d3", "unheard-of"]),
        (Target(tag="cold"), ["d1", "d2"]),
        (Target(tag="cold", profile="big"), ["d2"]),
        (Target(status=Status.UNKNOWN), ["d1", "d2", "d3"]),
        (Target(status=Status.ONLINE), []),
        (Target(tag="\0"), []),
        (Target(everyone=True), ["d1", "d2", "d3"]),
    ],
)
async def test_who_is_meant(database: Database, target: Target, fitting: list[str]) -> None:
    """Those in quarantine are not; pages go on where the last one ended."""
    entries = [
        Entry("d1", None, ("cold",)), Entry("d2", "big", ("cold", "new")), Entry("d3"), Entry("d4", None, ("cold",)),
    ]  # fmt: skip
    known = dict.fromkeys(("d1", "d2", "d3", "d4"), "default")
    await database.write(lambda connection: registry.put_devices(connection, entries, known, 1.0))
    await database.write(lambda connection: registry.set_admission(connection, "d4", Admission.QUARANTINED))
    found: list[str] = []
    while page := await database.read(
        partial(rollouts.matching, target=target, after=found[-1] if found else "", limit=2)
    ):
        found += page
    assert found == fitting
    assert await database.read(partial(rollouts.count_matching, target=target)) == len(fitting)


async def test_a_rollout_comes_back_as_it_was_stored_and_ends_once(database: Database) -> None:
    first, same, later = rollout("k \0 1"), rollout("k \0 1", at=101.0), rollout(at=102.0)
    assert await database.write(partial(rollouts.insert_rollout, rollout=first)) == (first, True)
    known, new = await database.write(partial(rollouts.insert_rollout, rollout=same))
    assert (known.rollout_id, new) == (first.rollout_id, False)
    await database.write(partial(rollouts.insert_rollout, rollout=later))
    assert [r.rollout_id for r in await database.read(rollouts.running_rollouts)] == [
        first.rollout_id,
        later.rollout_id,
    ]
    newest, place = await database.read(partial(rollouts.list_rollouts, limit=1))
    assert (newest, place) == ([later], (later.created_at, later.rollout_id))
    page, place = await database.read(partial(rollouts.list_rollouts, limit=5, before=place))
    assert ([r.rollout_id for r in page], place) == ([first.rollout_id], None)
    later.cursor, later.refused, later.updated_at = "d2", 1, 103.0
    await database.write(partial(rollouts.save_cursor, rollout=later))
    end = partial(
        rollouts.end_rollout, rollout_id=later.rollout_id, status=RolloutStatus.STOPPED, cause="failures", refused=2,
        at=104.0,
    )  # fmt: skip
    assert await database.write(end)
    assert not await database.write(end)
    later.cursor = "d3"
    await database.write(partial(rollouts.save_cursor, rollout=later))  # it has ended: nothing moves any more
    stored = await database.read(partial(rollouts.get_rollout, rollout_id=later.rollout_id))
    assert stored is not None
    assert (stored.status, stored.cause, stored.refused, stored.cursor, stored.order) == (
        RolloutStatus.STOPPED, "failures", 2, "d2", ORDER,
    )  # fmt: skip
    assert await database.read(partial(rollouts.get_rollout, rollout_id="r-none")) is None


async def test_the_commands_of_a_rollout(database: Database, writer: Writer) -> None:
    made = rollout()
    await writer.submit(partial(rollouts.insert_rollout, rollout=made))
    ids = {}
    for device_id in ("d1", "d2", "d3"):
        request = made.request_for(device_id)
        command = new_command(device_id, request, 100.0, ttl=60, max_ttl=60, rollout_id=made.rollout_id)
        await writer.submit(partial(commands.insert_command, command=command, cause="rollout"))
        ids[device_id] = command.command_id
    expired = CommandStatus.EXPIRED
    await writer.submit(
        lambda connection: commands.advance_command(
            connection, ids["d3"], expected=PREDECESSORS[expired], status=expired, at=101.0, cause="time"
        )
    )
    rollout_id = made.rollout_id
    assert await database.read(partial(rollouts.count_by_status, rollout_id=rollout_id)) == {"queued": 2, "expired": 1}
    assert await database.read(partial(rollouts.count_failures, rollout_id=rollout_id)) == 1
    unfinished = {(device_id, ids[device_id]) for device_id in ("d1", "d2")}
    assert set(await database.read(partial(rollouts.unfinished_commands, rollout_id=rollout_id))) == unfinished
    assert await database.read(rollouts.cancelled_commands) == []
    await writer.submit(
        lambda connection: rollouts.end_rollout(connection, rollout_id, RolloutStatus.CANCELLED, "api", 0, 102.0)
    )
    assert set(await database.read(rollouts.cancelled_commands)) == unfinished


async def test_a_schedule_comes_back_as_it_was_stored(database: Database) -> None:
    cron, once = schedule("nightly"), schedule(when=When(at=1000.0), now=1.0)
    assert await database.write(partial(schedules.insert_schedule, schedule=cron)) == (cron, True)
    known, new = await database.write(partial(schedules.insert_schedule, schedule=schedule("nightly", now=5.0)))
    assert (known, new) == (cron, False)
    await database.write(partial(schedules.insert_schedule, schedule=once))
    assert await database.read(schedules.count_active) == 2
    assert await database.read(schedules.next_run) == 300.0
    assert await database.read(partial(schedules.due_schedules, now=299.0, limit=9)) == []
    assert await database.read(partial(schedules.due_schedules, now=1000.0, limit=9)) == [cron, once]
    newest, place = await database.read(partial(schedules.list_schedules, limit=1))
    assert (newest, place) == ([once], (once.created_at, once.schedule_id))
    assert await database.read(partial(schedules.list_schedules, limit=9, before=place)) == ([cron], None)
    assert await database.write(lambda connection: schedules.cancel_schedule(connection, once.schedule_id, 7.0))
    assert not await database.write(lambda connection: schedules.cancel_schedule(connection, once.schedule_id, 8.0))
    ended = await database.read(partial(schedules.get_schedule, schedule_id=once.schedule_id))
    assert ended is not None
    assert (ended.status, ended.next_at, ended.updated_at) == (ScheduleStatus.CANCELLED, None, 7.0)


async def test_a_run_takes_place_once_and_the_last_ones_are_remembered(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedules, "MAX_RUNS", 2)
    made = schedule()
    await database.write(partial(schedules.insert_schedule, schedule=made))
    for due in (300.0, 600.0, 900.0):
        run = Run(due, due + 1, "started", "r-1 \0")
        advance = partial(
            schedules.advance_schedule,
            schedule=made,
            following=due + 300 if due < 900 else None,
            runs=[run],
            at=due + 1,
        )
        assert await database.write(advance)
        assert not await database.write(advance), "somebody else has been there before"
        found = await database.read(partial(schedules.get_schedule, schedule_id=made.schedule_id))
        assert found is not None
        made = found
    assert (made.status, made.next_at) == (ScheduleStatus.DONE, None)
    runs = await database.read(partial(schedules.last_runs, schedule_id=made.schedule_id))
    assert [run.due_at for run in runs] == [900.0, 600.0]


async def test_states_of_agents_and_who_waits_for_a_time(database: Database, writer: Writer) -> None:
    for device_id, due in (("d1", 50.0), ("d2", None)):
        state = AgentState(device_id, "counter", 3, '{"n": 1}', "[]", due)
        await writer.add_together([], None, state)
    await writer.barrier()
    loader = AgentLoader(database)
    assert await loader.load(("d1", "counter")) == AgentState("d1", "counter", 3, '{"n": 1}', "[]", 50.0)
    assert await loader.load(("d1", "other")) is None
    assert await database.read(partial(waiting_for_time, agents=["counter", "other"])) == [("d1", 50.0)]
    assert await database.read(partial(waiting_for_time, agents=["other"])) == []
