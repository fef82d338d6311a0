"""How much goes into one commit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.storage.lane import COMMIT_GOAL, Pace


def settle(pace: Pace, empty: float, per_row: float, commits: int = 100) -> float:
    """Seconds that a full batch takes in the end, on a database that takes `empty` and `per_row` seconds."""
    for _ in range(commits):
        pace.measured(1, empty + per_row)
        pace.measured(pace.limit, empty + pace.limit * per_row)
    return empty + pace.limit * per_row


@pytest.mark.parametrize("per_row", [2e-6, 5e-6, 20e-6, 60e-6])
@pytest.mark.parametrize("empty", [0.0005, 0.002])
def test_a_full_batch_takes_about_as_long_as_it_should(empty: float, per_row: float) -> None:
    assert settle(Pace(64, 512, 100_000), empty, per_row) == pytest.approx(COMMIT_GOAL, rel=0.1)


def test_on_a_slow_disk_half_of_what_is_possible_is_done() -> None:
    pace = Pace(64, 512, 100_000)
    assert settle(pace, 0.050, 10e-6) == pytest.approx(0.100, rel=0.1)
    assert pace.limit == pytest.approx(5_000, rel=0.1)


def test_one_commit_that_was_held_up_changes_little() -> None:
    pace = Pace(64, 512, 100_000)
    settle(pace, 0.001, 10e-6)
    before = pace.limit
    pace.measured(before, 3.0)
    assert pace.limit > 0.8 * before


def test_small_batches_say_nothing_about_full_ones() -> None:
    pace = Pace(64, 512, 4_096)
    for _ in range(100):
        pace.measured(100, 0.001)
    assert pace.limit == 512


@given(
    st.tuples(st.integers(1, 100), st.integers(1, 5_000), st.integers(1, 5_000)),
    st.lists(st.tuples(st.integers(0, 10_000), st.floats(0.0, 60.0))),
)
def test_the_limit_stays_within_its_bounds(bounds: tuple[int, int, int], commits: list[tuple[int, float]]) -> None:
    least, first, most = bounds
    pace = Pace(least, first, most)
    for size, seconds in [(0, 0.0), *commits]:
        pace.measured(size, seconds)
        assert min(least, most) <= pace.limit <= most
