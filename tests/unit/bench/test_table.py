"""What the table says about a goal follows from the medians."""

from __future__ import annotations

from tests.bench.measure import percentiles
from tests.bench.table import Goal, Row, markdown


def test_a_ratio_is_of_medians() -> None:
    """One bad run on either side changes nothing."""
    row = Row(
        "rate", "1/s", Goal(3.0, at_least=True, ratio=True), bridge=[1.0, 300.0, 310.0], peer=[100.0, 100.0, 900.0]
    )
    assert row.ratio == 3.0
    assert row.met is True
    row.bridge = [299.0]
    assert row.met is False


def test_an_upper_bound() -> None:
    """A goal on the value itself needs no peer."""
    assert Row("p99", "ms", Goal(50.0), bridge=[50.0]).met is True
    assert Row("p99", "ms", Goal(50.0), bridge=[50.1]).met is False


def test_nothing_measured_is_neither_met_nor_missed() -> None:
    """A goal without figures is left open."""
    row = Row("rate", "1/s", Goal(3.0, at_least=True, ratio=True), peer=[100.0])
    assert row.met is None
    assert row.as_dict()["bridge_median"] is None
    assert markdown([row]).splitlines()[-1] == "| rate | 1/s |  | 100 |  | ≥ 3 x |  |"


def test_percentiles_are_nearest_rank() -> None:
    """In milliseconds, from values that were measured."""
    found = percentiles([number / 1000 for number in range(1, 101)])
    assert (found["p50"], found["p99"], found["max"], found["samples"]) == (50.0, 99.0, 100.0, 100)
    assert percentiles([]) == {}
