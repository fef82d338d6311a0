"""When a schedule is due: cron in a time zone with its gaps and overlaps, and what was missed."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.commands import CommandRequest
from bridge.errors import RefusedError
from bridge.rollout import Order, Target
from bridge.schedule import Plan, Schedule, When, new_schedule

BERLIN = ZoneInfo("Europe/Berlin")
ORDER = Order(CommandRequest("defrost"), Target(("d1",)))
HOUR = 3600.0


def local(text: str, fold: int = 0) -> float:
    """Unix seconds of a time as clocks in Berlin show it."""
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN, fold=fold).timestamp()


def runs(cron: str, after: float, count: int) -> list[float]:
    found = []
    when = When(cron=cron, tz="Europe/Berlin")
    for _ in range(count):
        following = when.after(after)
        assert following is not None
        found.append(after := following)
    return found


def test_a_fixed_time_stays_the_same_on_the_clock_through_summer_and_winter() -> None:
    assert runs("30 4 * * *", local("2026-03-28T12:00"), 2) == [local("2026-03-29T04:30"), local("2026-03-30T04:30")]
    assert local("2026-03-30T04:30") - local("2026-03-28T04:30") == 47 * HOUR


def test_a_time_that_the_clock_leaves_out_comes_when_it_has_jumped() -> None:
    """On 2026-03-29 two o'clock is three o'clock."""
    assert runs("30 2 * * *", local("2026-03-28T12:00"), 2) == [local("2026-03-29T03:00"), local("2026-03-30T02:30")]


def test_a_time_that_comes_twice_comes_once_the_first_time() -> None:
    """On 2026-10-25 three o'clock is two o'clock again."""
    first, following = runs("30 2 * * *", local("2026-10-24T12:00"), 2)
    assert (first, following) == (local("2026-10-25T02:30"), local("2026-10-26T02:30"))
    assert following - first == 25 * HOUR


def test_a_time_of_the_second_pass_has_been_when_the_second_pass_begins() -> None:
    """Whoever asks in the second pass is not given a time that has passed."""
    when = When(cron="30 2 * * *", tz="Europe/Berlin")
    assert when.after(local("2026-10-25T02:10", fold=1)) == local("2026-10-26T02:30")


def test_every_quarter_goes_by_the_time_that_passes_through_both() -> None:
    for day in ("2026-03-29T01:30", "2026-10-25T01:30"):
        found = runs("*/15 * * * *", local(day), 16)
        assert [later - earlier for earlier, later in pairwise(found)] == [900.0] * 15


@given(
    st.integers(1_577_836_800, 1_893_456_000),
    st.sampled_from(["*/15 * * * *", "30 2 * * *", "0 0 1 * *", "15 1,2,3 * * 0", "0 12 * * 1-5", "59 23 31 * *"]),
    st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]),
)
def test_the_next_run_is_always_ahead_and_nothing_lies_between(after: int, cron: str, tz: str) -> None:
    when = When(cron=cron, tz=tz)
    following = when.after(float(after))
    assert following is not None
    assert following > after
    assert when.after(following - 1.0) == following
    assert when.latest(float(after) + 1.0, following) == following
    assert when.latest(float(after) + 1.0, following - 1.0) is None


@pytest.mark.parametrize(
    "when",
    [
        When(), When(at=5.0, cron="* * * * *"), When(cron="* * * *"), When(cron="* * * * * *"), When(cron="61 * * * *"),
        When(cron="0 0 31 2 *"), When(cron="* * * * *", tz="Mars/Olympus"), When(cron="* * * * *", tz="../etc/passwd"),
        When(cron="* * * * *", tz=""), When(at=999.0),
    ],
)  # fmt: skip
def test_what_can_never_be_is_refused(when: When) -> None:
    with pytest.raises(RefusedError) as refused:
        new_schedule(ORDER, when, 60.0, None, 1000.0)
    assert refused.value.reason == "bad_schedule"


def schedule(when: When, grace: float, now: float) -> Schedule:
    return new_schedule(ORDER, when, grace, None, now)


def test_a_run_that_is_due_takes_place_and_the_next_one_is_waited_for() -> None:
    hourly = schedule(When(cron="0 * * * *"), 60.0, 10.0)
    assert hourly.plan(3599.0) == Plan(None, None, 3600.0)
    assert hourly.plan(3600.5) == Plan(3600.0, None, 7200.0)


def test_a_time_comes_once() -> None:
    once = schedule(When(at=5000.0), 60.0, 10.0)
    assert once.plan(5001.0) == Plan(5000.0, None, None)
    assert once.plan(5061.0) == Plan(None, 5000.0, None), "it is too late"


@pytest.mark.parametrize(
    ("now", "plan"),
    [
        (3 * HOUR + 59.0, Plan(3 * HOUR, HOUR, 4 * HOUR)),
        (3 * HOUR + 61.0, Plan(None, HOUR, 4 * HOUR)),
        (HOUR + 61.0, Plan(None, HOUR, 2 * HOUR)),
        (HOUR + 60.0, Plan(HOUR, None, 2 * HOUR)),
    ],
)
def test_of_missed_runs_the_last_takes_place_unless_it_is_too_late(now: float, plan: Plan) -> None:
    assert schedule(When(cron="0 * * * *"), 60.0, 10.0).plan(now) == plan


def test_a_year_of_missed_minutes_is_planned_at_once() -> None:
    minutely = schedule(When(cron="* * * * *"), 300.0, 10.0)
    year = 366 * 86_400.0
    assert minutely.plan(year + 30.0) == Plan(year, 60.0, year + 60.0)
