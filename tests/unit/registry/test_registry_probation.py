"""How long quarantines last: twice as long each time in a row, within limits, and forgotten after a probation."""

from __future__ import annotations

from flint_contracts.gen.flint.registry.v1 import registry_pb2
from flint_ops.config import QuarantineSettings
from flint_registry.probation import length_ms, put_aside, put_on_probation

CARD = registry_pb2.WorkerCard(incarnation="a", worker_id="w", pool="p", region="r")


def test_each_in_a_row_is_twice_as_long() -> None:
    settings = QuarantineSettings(quarantine_s=10, longest_s=100)
    assert [length_ms(settings, times) // 1000 for times in (1, 2, 3, 4, 5, 1000)] == [10, 20, 40, 80, 100, 100]
    first = put_aside(CARD, "x" * 1000, None, settings, 5_000)
    assert (first.incarnation, first.worker_id, first.pool, first.region, len(first.reason)) == (
        "a",
        "w",
        "p",
        "r",
        500,
    )
    assert (first.state, first.times) == (registry_pb2.Quarantine.STATE_ASIDE, 1)
    assert first.end_time.ToMilliseconds() == 15_000
    back = put_on_probation(first, settings, 16_000)
    assert (back.state, back.times) == (registry_pb2.Quarantine.STATE_PROBATION, 1)
    assert back.end_time.ToMilliseconds() == 26_000 and first.end_time.ToMilliseconds() == 15_000
    second = put_aside(CARD, "again", back, settings, 20_000)
    assert (second.state, second.times) == (registry_pb2.Quarantine.STATE_ASIDE, 2)
    assert second.end_time.ToMilliseconds() == 40_000
    assert put_on_probation(second, settings, 40_000).end_time.ToMilliseconds() == 60_000


def test_without_a_length_it_does_not_come_back() -> None:
    told = put_aside(CARD, "why", None, QuarantineSettings(quarantine_s=0), 5_000)
    assert told.state == registry_pb2.Quarantine.STATE_UNSPECIFIED and not told.HasField("end_time")
