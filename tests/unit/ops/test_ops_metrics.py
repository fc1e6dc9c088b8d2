"""Counts that take no lock, as they are told."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.exposition import generate_latest

from flint_ops.metrics import SECONDS_BUCKETS, Durations, Tally


def test_a_tally_is_told_as_a_counter() -> None:
    registry = CollectorRegistry()
    plain = Tally("plain", "Without a label", registry=registry)
    by_kind = Tally("kinds", "With one", "kind", registry=registry)
    assert registry.get_sample_value("flint_plain_total") == 0
    for _ in range(3):
        plain.inc()
    by_kind.inc("a")
    by_kind.inc("b")
    by_kind.inc("a")
    assert registry.get_sample_value("flint_plain_total") == 3
    assert registry.get_sample_value("flint_kinds_total", {"kind": "a"}) == 2
    assert registry.get_sample_value("flint_kinds_total", {"kind": "b"}) == 1
    assert b"# TYPE flint_kinds_total counter" in generate_latest(registry)


def test_durations_are_told_like_a_histogram() -> None:
    registry, other = CollectorRegistry(), CollectorRegistry()
    durations = Durations("took", "How long", ["kind"], registry=registry)
    histogram = Histogram("flint_took_seconds", "How long", ["kind"], buckets=SECONDS_BUCKETS, registry=other)
    for kind in ("a", "b"):
        for ms in (0, 1, 2, 3, 5, 6, 1_000, 59_999, 60_000, 60_001, 10_000_000):
            durations.add((kind,), ms)
            histogram.labels(kind).observe(ms / 1_000)
    told = [line for line in generate_latest(registry).splitlines() if b"_created" not in line]
    assert told == [line for line in generate_latest(other).splitlines() if b"_created" not in line]
