"""Metrics: thin helpers around prometheus_client that give every name the same prefix and shape.

Names: `flint_<room>_<thing>[_total|_seconds|_bytes]`. Labels never hold ids. Metrics are made once, at module level; on
a hot path bind the label values once (`metric.labels(...)`) and keep the child.

Those take a lock and a few calls each time. What is counted for every step is a `Tally` or `Durations`: plain numbers
of the one thread that counts, read when somebody asks for the metrics.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

__all__ = ["COUNT_BUCKETS", "SECONDS_BUCKETS", "Durations", "Tally", "counter", "gauge", "histogram"]

SECONDS_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""For durations, from half a millisecond to a minute."""

COUNT_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
"""For sizes of batches."""


def counter(name: str, documentation: str, labels: Sequence[str] = ()) -> Counter:
    """A count that only grows: `flint_<name>_total`."""
    return Counter(f"flint_{name}", documentation, labels)


def gauge(name: str, documentation: str, labels: Sequence[str] = ()) -> Gauge:
    """A value that goes up and down: `flint_<name>`."""
    return Gauge(f"flint_{name}", documentation, labels)


def histogram(
    name: str, documentation: str, labels: Sequence[str] = (), buckets: Sequence[float] = SECONDS_BUCKETS
) -> Histogram:
    """A distribution: `flint_<name>`; durations end in `_seconds`."""
    return Histogram(f"flint_{name}", documentation, labels, buckets=tuple(buckets))


class Tally(Collector):
    """A count that only grows: `flint_<name>_total`. Added to by one thread, without a lock."""

    def __init__(self, name: str, documentation: str, label: str = "", registry: CollectorRegistry = REGISTRY) -> None:
        """`label`: where there is one, things are counted by its values, which are a fixed set."""
        self._name = f"flint_{name}"
        self._documentation = documentation
        self._label = label
        self._counts: dict[str, int] = {} if label else {"": 0}
        registry.register(self)

    def inc(self, value: str = "") -> None:
        """One more, with this value of the label."""
        self._counts[value] = self._counts.get(value, 0) + 1

    def add(self, number: int) -> None:
        """So many more, where there is no label."""
        self._counts[""] += number

    def describe(self) -> Iterator[CounterMetricFamily]:
        """The name, for the registry."""
        yield self._family()

    def collect(self) -> Iterator[CounterMetricFamily]:
        """The counts now."""
        family = self._family()
        for value, count in list(self._counts.items()):
            family.add_metric([value] if self._label else [], count)
        yield family

    def _family(self) -> CounterMetricFamily:
        return CounterMetricFamily(self._name, self._documentation, labels=[self._label] if self._label else [])


class Durations(Collector):
    """A distribution of milliseconds, told as seconds: `flint_<name>_seconds`.

    Added to by one thread, without a lock.
    """

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str],
        buckets: Sequence[float] = SECONDS_BUCKETS,
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self._name = f"flint_{name}_seconds"
        self._documentation = documentation
        self._labels = tuple(labels)
        self._bounds = [bound * 1000 for bound in buckets]
        self._names = [*(str(float(bound)) for bound in buckets), "+Inf"]
        self._sums: dict[tuple[str, ...], list[int]] = {}  # milliseconds, then how many by bucket
        registry.register(self)

    def add(self, labels: tuple[str, ...], ms: int) -> None:
        """One more, of so many milliseconds. Labels are values of a fixed set, in their order."""
        sums = self._sums.get(labels)
        if sums is None:
            sums = self._sums[labels] = [0] * (len(self._names) + 1)
        sums[0] += ms
        sums[1 + bisect_left(self._bounds, ms)] += 1

    def describe(self) -> Iterator[HistogramMetricFamily]:
        """The name, for the registry."""
        yield HistogramMetricFamily(self._name, self._documentation, labels=self._labels)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """The distribution now."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        for labels, (ms, *counts) in list(self._sums.items()):
            buckets = list(zip(self._names, accumulate(counts), strict=True))
            family.add_metric(labels, buckets, ms / 1000)
        yield family
