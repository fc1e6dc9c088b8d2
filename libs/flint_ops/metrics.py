"""Metrics: thin helpers around prometheus_client that give every name the same prefix and shape.

Names: `flint_<room>_<thing>[_total|_seconds|_bytes]`. Labels never hold ids. Metrics are made once, at module level; on
a hot path bind the label values once (`metric.labels(...)`) and keep the child.
"""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import Counter, Gauge, Histogram

__all__ = ["COUNT_BUCKETS", "SECONDS_BUCKETS", "counter", "gauge", "histogram"]

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
