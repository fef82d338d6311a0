"""The figures of simulated devices: quantiles that can be trusted, in memory that does not grow."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.simulate.figures import BUCKETS, SMALLEST, Figures, Latencies
from bridge.simulate.fleet import Plan
from bridge.simulate.sensor import DAY, Sensor


@given(
    st.lists(st.floats(min_value=SMALLEST, max_value=900.0), min_size=1, max_size=200),
    st.floats(min_value=0.01, max_value=1.0),
)
def test_a_quantile_is_never_too_short_and_at_most_2_percent_too_long(times: list[float], share: float) -> None:
    latencies = Latencies()
    for seconds in times:
        latencies.record(seconds)
    true = sorted(times)[math.ceil(share * len(times)) - 1]
    assert true * (1 - 1e-9) <= latencies.quantile(share) <= true * 1.02 * (1 + 1e-9)


def test_without_times_there_is_no_quantile() -> None:
    assert Latencies().quantile(0.99) == 0.0


@pytest.mark.parametrize("seconds", [0.0, 1e-9, 1e9])
def test_extreme_times_are_counted(seconds: float) -> None:
    latencies = Latencies()
    latencies.record(seconds)
    assert latencies.count == 1
    assert latencies.quantile(1.0) <= seconds
    assert len(latencies._buckets) == BUCKETS


def test_the_kinds_of_trouble_are_bounded() -> None:
    figures = Figures()
    for number in range(1000):
        figures.trouble(f"connection {number}")
    assert len(figures.troubles) <= 101
    assert figures.troubles.total() == 1000


def test_device_ids_are_as_documented_and_sort_by_number() -> None:
    assert Plan(devices=2).ids() == ["sim-0001", "sim-0002"]
    many = Plan(devices=10_000, prefix="x").ids()
    assert many == sorted(many)
    assert len(set(many)) == 10_000


def test_a_room_s_climate_stays_one() -> None:
    sensor = Sensor(random.Random(1), 0.0)
    readings = [sensor.measure(number * DAY / 500) for number in range(5_000)]
    assert all(5 < reading["temperature"] < 35 for reading in readings)
    assert all(5 <= reading["humidity"] <= 100 and 0 < reading["battery"] <= 100 for reading in readings)
    assert len({reading["temperature"] for reading in readings}) > 100, "it does not stand still"
