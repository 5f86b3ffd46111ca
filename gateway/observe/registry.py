"""Metrics that cost nothing until somebody reads them.

The hot path counts in plain integers of the part that counts; here a callback says where to find each, and it is called
when the metrics are read. Names and forms are those of Prometheus: counters end in ``_total``, units are seconds and
bytes. One registry per node, so that two nodes in one process (a test) do not meet.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

PREFIX: Final = "tidegate_"

Value = Callable[[], float]
LabelledValues = Callable[[], Mapping[Any, float]]


class Histogram:
    """Counts of observations by upper bound. Half a microsecond per observation; one writer at a time.

    Attributes:
        count: observations so far.
        total: their sum.
    """

    __slots__ = ("_bounds", "_counts", "count", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        assert list(bounds) == sorted(set(bounds)), "bounds must increase"
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self.count = 0
        self.total = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """Note ``count`` observations of the same value."""
        self._counts[bisect_left(self._bounds, value)] += count
        self.count += count
        self.total += value * count

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulated counts by upper bound, as Prometheus wants them."""
        result, cumulated = [], 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            cumulated += count
            result.append((bound, float(cumulated)))
        return result


class MetricRegistry(Collector):
    """All metrics of one node: where to find each value, its name and its meaning."""

    def __init__(self) -> None:
        self._families: list[Callable[[], Metric]] = []
        self._names: set[str] = set()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def counter(self, name: str, meaning: str, value: Value, *, prefix: str = PREFIX) -> None:
        """A value that only grows; ``name`` without prefix and without ``_total``."""
        full = self._claim(prefix + name)
        self._families.append(lambda: CounterMetricFamily(full, meaning, value=value()))

    def counters(self, name: str, meaning: str, label: str, values: LabelledValues) -> None:
        """Values that only grow, told apart by one label of few distinct values."""
        full = self._claim(PREFIX + name)

        def family() -> Metric:
            result = CounterMetricFamily(full, meaning, labels=[label])
            for key, value in sorted(values().items(), key=str):
                result.add_metric([str(key)], value)
            return result

        self._families.append(family)

    def gauge(self, name: str, meaning: str, value: Value, *, prefix: str = PREFIX) -> None:
        """A value that goes up and down."""
        full = self._claim(prefix + name)
        self._families.append(lambda: GaugeMetricFamily(full, meaning, value=value()))

    def histogram(self, name: str, meaning: str, bounds: Sequence[float]) -> Histogram:
        """A new histogram to observe values with."""
        full, histogram = self._claim(PREFIX + name), Histogram(bounds)
        self._families.append(
            lambda: HistogramMetricFamily(full, meaning, buckets=histogram.buckets(), sum_value=histogram.total)
        )
        return histogram

    def info(self, name: str, meaning: str, values: dict[str, str]) -> None:
        """Fixed facts, as labels of a metric that is 1."""
        full = self._claim(PREFIX + name)
        self._families.append(lambda: InfoMetricFamily(full, meaning, value=values))

    def names(self) -> Iterable[str]:
        """The names of all metrics, with prefix, without endings such as ``_total``."""
        return sorted(self._names)

    def render(self) -> bytes:
        """All metrics in the Prometheus text format."""
        return bytes(generate_latest(self._registry))

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client.registry.Collector."""
        for family in self._families:
            yield family()

    def _claim(self, name: str) -> str:
        assert name not in self._names, f"metric {name} exists already"
        self._names.add(name)
        return name
