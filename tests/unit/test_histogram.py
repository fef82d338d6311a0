"""What a histogram counts where."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bridge.histogram import LONG, SECONDS, Histogram


def test_a_value_belongs_to_the_bucket_whose_bound_it_is() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 99.0):
        histogram.observe(value)
    assert histogram.buckets() == [("1.0", 2), ("2.0", 3), ("+Inf", 4)]
    assert histogram.count == 4
    assert histogram.total == 102.0


def test_a_clock_that_was_set_back_takes_nothing_away() -> None:
    histogram = Histogram()
    histogram.observe(-5.0)
    assert histogram.buckets()[0][1] == 1
    assert histogram.total == 0.0


@given(st.lists(st.floats(0, 1e6)), st.sampled_from([SECONDS, LONG]))
def test_buckets_count_what_is_not_above_them(values: list[float], bounds: tuple[float, ...]) -> None:
    histogram = Histogram(bounds)
    for value in values:
        histogram.observe(value)
    assert histogram.buckets()[:-1] == [(str(b), sum(v <= b for v in values)) for b in bounds]
    assert histogram.buckets()[-1] == ("+Inf", len(values))
