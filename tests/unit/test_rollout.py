"""Rollouts: who is meant, when enough have failed, and that each command counts once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.commands import CommandRequest, CommandStatus
from bridge.errors import RefusedError
from bridge.presence import Status
from bridge.rollout import MAX_NAMED, Order, Progress, Target, new_rollout

S = CommandStatus


@pytest.mark.parametrize(
    "target",
    [
        Target(), Target(("d1",), tag="cold"), Target(tag="cold", everyone=True), Target(("d 1",)),
        Target(tuple(f"d{n}" for n in range(MAX_NAMED + 1))),
    ],
)  # fmt: skip
def test_a_target_that_means_nobody_or_two_things_is_refused(target: Target) -> None:
    with pytest.raises(RefusedError) as refused:
        target.check()
    assert refused.value.reason == "bad_target"


def test_filters_may_be_combined_and_devices_come_in_order_each_once() -> None:
    Target(tag="cold", profile="fridge", status=Status.ONLINE).check()
    target = Target(("d2", "d1", "d3", "d1"))
    target.check()
    assert target.named_after("") == ["d1", "d2", "d3"]
    assert target.named_after("d1") == ["d2", "d3"]


@pytest.mark.parametrize(
    ("stop_after", "total", "limit"),
    [(None, 10, None), ("3", 10, 3), ("10%", 1000, 100), ("10%", 5, 1), ("0.5%", 1000, 5), ("100%", 7, 7)],
)
def test_it_stops_after_a_number_of_failures_or_a_percentage(
    stop_after: str | None, total: int, limit: int | None
) -> None:
    order = Order(CommandRequest("reboot"), Target(("d1",)), stop_after=stop_after)
    order.check(3600.0)
    assert order.limit(total) == limit


@pytest.mark.parametrize("wrong", ["0", "-1", "101%", "ten", "5 %", "1e3", "5%%", ""])
def test_a_limit_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(RefusedError, match="number or a percentage"):
        Order(CommandRequest("reboot"), Target(("d1",)), stop_after=wrong).check(3600.0)


def test_the_command_itself_is_checked() -> None:
    with pytest.raises(RefusedError, match="ttl"):
        Order(CommandRequest("reboot", ttl=-1), Target(("d1",))).check(3600.0)
    with pytest.raises(RefusedError, match="at once"):
        Order(CommandRequest("reboot"), Target(("d1",)), at_once=0).check(3600.0)


def test_a_device_is_asked_under_the_same_key_each_time() -> None:
    rollout = new_rollout(Order(CommandRequest("reboot", {"x": 1}), Target(("d1",))), None, 1, "api", 0.0)
    request = rollout.request_for("d1")
    assert (request.name, request.args, request.id) == ("reboot", {"x": 1}, f"{rollout.rollout_id}:d1")
    assert rollout.request_for("d1") == request


@given(st.data(), st.integers(1, 5), st.one_of(st.none(), st.integers(1, 4)))
def test_each_command_counts_once_whichever_is_heard_first(
    data: st.DataObject, at_once: int, limit: int | None
) -> None:
    progress = Progress(at_once, limit)
    ends: dict[str, CommandStatus] = {}
    waiting: list[str] = []
    for number in range(30):
        if progress.room and data.draw(st.booleans(), label="send"):
            # Its end may be there by the time its sending is answered; the news of it comes all the same.
            ended = data.draw(st.booleans(), label="ended at once")
            ends[f"c{number}"] = end = data.draw(st.sampled_from([S.SUCCEEDED, S.FAILED, S.EXPIRED, S.CANCELLED]))
            progress.sent(f"c{number}", end if ended else S.SENT)
            if ended:
                progress.ended(f"c{number}", end)
            else:
                waiting.append(f"c{number}")
        elif waiting:
            done = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
            progress.ended(done, ends[done])
            progress.ended(done, ends[done])
        assert progress.open == set(waiting)
        assert len(progress.open) <= at_once
        failures = sum(end in (S.FAILED, S.EXPIRED) for key, end in ends.items() if key not in waiting)
        assert progress.failures == failures
        assert progress.gone_wrong == (limit is not None and failures >= limit)
        if progress.gone_wrong:
            assert progress.room == 0
