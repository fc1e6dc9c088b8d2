"""Which legs of a lost worker surely had not begun, and workers that take legs again."""

from __future__ import annotations

from typing import Any, cast

from flint_contracts.gen.flint.registry.v1 import registry_pb2
from flint_scheduler.cards import Phase, RunCard
from flint_scheduler.fleet import FleetView
from flint_scheduler.recovery import Recovery


def leg(number: int, sequence: int, level: int = 5) -> RunCard:
    card = RunCard(bytes([number]) * 16, "default", "w", "1.0.0", b"", 0, level, 0, b"", Phase.OPEN)
    card.claimant, card.job_sequence = "lost", sequence
    return card


def fleet(slots: int) -> FleetView:
    view = FleetView(1.5, 5.0)
    view.put("lost", registry_pb2.WorkerCard(pool="default", slots=slots, lease_ttl_ms=5000))
    return view


def unbegun(slots: int, *cards: RunCard) -> set[int]:
    view = fleet(slots)
    view.deleted("lost")
    nothing = cast(Any, None)
    found = Recovery(nothing, nothing, nothing, view, nothing, 60.0)._unbegun(cards)
    return {run_id[0] for run_id in found}


def test_what_is_beyond_a_workers_slots_had_not_begun() -> None:
    assert unbegun(2, leg(1, 1), leg(2, 2), leg(3, 3), leg(4, 4)) == {3, 4}


def test_a_large_worker_runs_urgent_legs_beyond_its_slots() -> None:
    assert unbegun(100, *(leg(n, n, level=0 if n > 100 else 5) for n in range(1, 103))) == set()
    assert unbegun(100, *(leg(n, n, level=0 if n > 102 else 5) for n in range(1, 105))) == {101, 102}


def test_the_less_urgent_waited() -> None:
    assert unbegun(1, leg(1, 3, level=0), leg(2, 2, level=9)) == {2}


def test_within_its_slots_every_leg_counts_and_so_does_one_whose_order_is_not_known() -> None:
    assert unbegun(4, leg(1, 1), leg(2, 2)) == set()
    assert unbegun(1, leg(1, 0), leg(2, 0)) == set()


def test_a_card_that_says_draining_can_be_taken_back_but_a_heartbeat_cannot() -> None:
    view = fleet(4)
    worker = view.get("lost")
    assert worker is not None and not worker.leaving
    card = registry_pb2.WorkerCard(pool="default", slots=4, lease_ttl_ms=5000)
    view.put("lost", registry_pb2.WorkerCard(pool="default", slots=4, lease_ttl_ms=5000, draining=True))
    assert worker.leaving and worker.room == 0
    view.put("lost", card)
    assert not worker.leaving and worker.room > 0
    view.beat(registry_pb2.Beat(incarnation="lost", draining=True))
    view.put("lost", card)
    assert worker.leaving and worker.room == 0
