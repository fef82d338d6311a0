"""At most so many within a window."""

import pytest

from bridge.agents.limits import Limit, Pacer


def test_the_limit_is_reached_and_passes_with_the_window() -> None:
    limit = Limit(2, window=10.0)
    assert limit.allow(0.0)
    assert limit.allow(1.0)
    assert not limit.allow(9.9)
    assert limit.passed_over == 1
    assert limit.allow(10.0)
    assert limit.reached(10.5)
    assert not limit.reached(11.0)


def test_a_pacer_gives_turns_one_after_the_other_and_saves_none_up() -> None:
    pacer = Pacer(10)
    turns = [pacer.reserve(100.0) for _ in range(5)]
    assert turns == pytest.approx([100.0, 100.1, 100.2, 100.3, 100.4])
    assert pacer.reserve(200.0) == 200.0
    assert pacer.reserve(200.0) == pytest.approx(200.1)


def test_a_pacer_outlives_a_clock_that_was_set_back() -> None:
    pacer = Pacer(10)
    pacer.reserve(1_000_000.0)
    assert pacer.reserve(100.0) == 100.0
