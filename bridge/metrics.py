"""Prometheus metrics that are read when they are scraped: counting a message costs an integer, not a library call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import final

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from bridge.histogram import Histogram

Number = int | float
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@final
class Metrics(Collector):
    """Named numbers, each with the function that tells it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._families: list[Callable[[], Metric]] = []
        self.registry.register(self)
        # Memory, processor time, open files; the interpreter and its garbage collector.
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def counter(self, name: str, text: str, read: Callable[[], Number]) -> None:
        """A number that only grows; `name` without the `_total` that is added."""
        self._families.append(lambda: CounterMetricFamily(name, text, value=read()))

    def gauge(self, name: str, text: str, read: Callable[[], Number]) -> None:
        """A number that goes up and down."""
        self._families.append(lambda: GaugeMetricFamily(name, text, value=read()))

    def counters(self, name: str, text: str, label: str, read: Callable[[], Mapping[str, Number]]) -> None:
        """One growing number for each value of `label`. The values must be few: never ids of devices."""

        def family() -> Metric:
            metric = CounterMetricFamily(name, text, labels=[label])
            for value, number in read().items():
                metric.add_metric([value], number)
            return metric

        self._families.append(family)

    def gauges(self, name: str, text: str, label: str, read: Callable[[], Mapping[str, Number]]) -> None:
        """One number for each value of `label`. The values must be few: never ids of devices."""

        def family() -> Metric:
            metric = GaugeMetricFamily(name, text, labels=[label])
            for value, number in read().items():
                metric.add_metric([value], number)
            return metric

        self._families.append(family)

    def histogram(self, name: str, text: str, values: Histogram) -> None:
        """A distribution; `name` says its unit."""
        self._families.append(
            lambda: HistogramMetricFamily(name, text, buckets=values.buckets(), sum_value=values.total)
        )

    def histograms(self, name: str, text: str, label: str, values: Mapping[str, Histogram]) -> None:
        """One distribution for each value of `label`. The values must be few: never ids of devices."""

        def family() -> Metric:
            metric = HistogramMetricFamily(name, text, labels=[label])
            for value, histogram in values.items():
                metric.add_metric([value], histogram.buckets(), histogram.total)
            return metric

        self._families.append(family)

    def collect(self) -> Iterable[Metric]:
        """All families as they are now."""
        for family in self._families:
            yield family()

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)
