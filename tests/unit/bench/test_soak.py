"""When a soak test says that memory is flat."""

from __future__ import annotations

import pytest

from tests.bench.soak import WARM_ROWS, Sample, problems, slope


def run(resident: list[float], online: int = 10, difference: int = 0) -> list[Sample]:
    """A run with these megabytes, one look every ten seconds."""
    return [
        Sample(10.0 * n, int(mb * 1e6), online, {"difference": difference, "committed": WARM_ROWS + n}, 5.0)
        for n, mb in enumerate(resident)
    ]


def test_slope() -> None:
    assert slope([(0, 1), (1, 3), (2, 5)]) == pytest.approx(2)
    assert slope([(0, 1), (1, 2), (2, 1)]) == pytest.approx(0)
    assert slope([(5, 1)]) == 0


def test_what_grows_during_the_warm_up_only_is_flat() -> None:
    assert problems(run([50, 80, 100, 101, 100, 101, 100, 101, 100]), 10) == []


def test_what_grows_to_the_end_is_not() -> None:
    (found,) = problems(run([100 + 2 * n for n in range(9)]), 10)
    assert "memory has grown by 9.4%" in found


def test_one_high_sample_is_no_growth() -> None:
    assert problems(run([100, 100, 100, 100, 104, 100, 100, 100, 100]), 10) == []


def test_devices_and_ledger_count_too() -> None:
    assert len(problems(run([100] * 9, online=9, difference=1), 10)) == 2


def test_a_run_that_is_all_warm_up_tells_nothing() -> None:
    short = [s._replace(ledger={"difference": 0, "committed": 10}) for s in run([100] * 9)]
    assert "too short" in problems(short, 10)[0]
