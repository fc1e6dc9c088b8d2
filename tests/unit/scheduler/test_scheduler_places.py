"""Rules of pools: standby slots stay free for urgent levels, dedicated places take legs of their namespace alone."""

from __future__ import annotations

import pytest

from flint_contracts.gen.flint.registry.v1 import registry_pb2
from flint_core.queueing import LEVELS, QueueHints
from flint_scheduler.backlog import backlog_of
from flint_scheduler.cards import Phase, RunCard
from flint_scheduler.fleet import FleetView
from flint_scheduler.places import NOBODY, PoolRule, PoolRules
from flint_scheduler.ready import ReadyQueue

NORMAL = 5


def card(incarnation: str, slots: int, region: str = "eu", pool: str = "default") -> registry_pb2.WorkerCard:
    return registry_pb2.WorkerCard(
        incarnation=incarnation, worker_id=incarnation, slots=slots, region=region, pool=pool, lease_ttl_ms=5000
    )


def fleet(*cards: registry_pb2.WorkerCard, rules: PoolRules, sharers: int = 1, overcommit: float = 1.0) -> FleetView:
    view = FleetView(overcommit, 5.0)
    view.snapshot({c.incarnation: c for c in cards}, set())
    view.share_between(sharers)
    view.rule(rules)
    return view


def take(view: FleetView, level: int, region: str = "") -> int:
    """How many legs of the level find a slot."""
    count = 0
    while view.least("default", region) >= level and view.reserve("default", region, level=level) is not None:
        count += 1
    return count


def standby(slots: int, region: str = "eu") -> PoolRules:
    return PoolRules(by_place={(region, "default"): PoolRule(standby=slots)})


@pytest.mark.parametrize("overcommit", [1.0, 1.25, 2.0])
@pytest.mark.parametrize("kept", [1, 3, 9])
def test_standby_slots_are_left_to_urgent_legs_and_they_are_slots(kept: int, overcommit: float) -> None:
    view = fleet(card("a", 4), card("b", 6), rules=standby(kept), overcommit=overcommit)
    assert take(view, NORMAL) == 10 - kept
    assert view.least() == 0
    assert view.reserve(level=NORMAL) is None
    assert take(view, 0) == 4 * overcommit // 1 + 6 * overcommit // 1 - (10 - kept)
    view.release("a")
    assert view.least() == 0, "what comes free is kept again first"


def test_standby_of_all_slots_takes_urgent_legs_alone() -> None:
    view = fleet(card("a", 4), rules=standby(4))
    assert take(view, NORMAL) == 0
    assert take(view, 0) == 4


@pytest.mark.parametrize("sharers", [2, 3, 5])
def test_schedulers_keep_together_at_least_what_is_to_be_kept(sharers: int) -> None:
    views = [fleet(card("a", 60), rules=standby(7), sharers=sharers) for _ in range(sharers)]
    assert sum(take(view, NORMAL) for view in views) <= 60 - 7
    assert all(take(view, 0) >= 1 for view in views), "each has room for an urgent one at once"


def test_what_is_lent_leaves_the_standby_free() -> None:
    view = fleet(card("a", 10), rules=standby(2), sharers=2)
    began = take(view, NORMAL)
    for _ in range(10):  # the other scheduler has nothing to do
        view.beat(registry_pb2.Beat(incarnation="a", legs=began))
        began += take(view, NORMAL)
    assert began == 10 - 2


def test_standby_counts_by_region() -> None:
    view = fleet(card("a", 4, "eu"), card("b", 4, "us"), rules=standby(3, "eu"))
    assert take(view, NORMAL, "eu") == 1
    assert take(view, NORMAL) == 4, "legs without a region leave the standby of each alone"
    assert (view.least("default", "eu"), view.least("default", "us")) == (0, -1)
    assert take(view, 0) == 3


def test_off_peak_runs_leave_standby_and_spare() -> None:
    view = fleet(card("a", 8), rules=standby(2))
    assert take(view, LEVELS) == 8 - 2 - 2


def test_rules_come_and_go() -> None:
    view = fleet(card("a", 4), rules=standby(4))
    told: list[int] = []
    view.on_rules = lambda: told.append(1)
    view.rule(standby(4))
    assert not told
    view.rule(PoolRules(home="eu"))
    assert told and not view.ruled
    assert take(view, NORMAL) == 4


def test_a_place_is_one_namespaces_own() -> None:
    acme = PoolRule(namespace="acme")
    all_places = PoolRules(home="eu", by_pool={"default": acme})
    assert fleet(card("a", 1), rules=all_places).only("default", "") == "acme"
    assert fleet(rules=all_places).only("default", "") == "acme", "without a worker too: none is started for others"
    assert fleet(card("a", 1, pool="gpu"), rules=all_places).only("gpu", "") is None
    one = PoolRules(by_place={("eu", "default"): acme})
    view = fleet(card("a", 1, "eu"), card("b", 1, "us"), rules=one)
    assert (view.only("default", "eu"), view.only("default", "us"), view.only("default", "")) == ("acme", None, None)
    taken = view.reserve(level=0)
    assert taken is not None and taken.card.region == "us"
    assert view.reserve(level=0) is None, "legs of no region do not go to what is one's own"
    two = PoolRules(by_place={("eu", "default"): acme, ("us", "default"): PoolRule(namespace="other")})
    view = fleet(card("a", 1, "eu"), card("b", 1, "us"), rules=two)
    assert view.only("default", "") == NOBODY
    assert "name one" in view.why_not("default", "")


def run(number: int, namespace: str, pool: str = "") -> RunCard:
    return RunCard(
        run_id=number.to_bytes(16, "big"),
        namespace=namespace,
        workflow_id="w",
        version="1",
        definition_hash=b"",
        group=0,
        level=NORMAL,
        created_ms=number,
        trace_id=b"",
        phase=Phase.READY,
        hints=QueueHints(pool=pool) if pool else None,
    )


async def test_a_dedicated_lane_serves_its_namespace_and_tells_why_others_wait() -> None:
    rules = PoolRules(home="eu", by_pool={"default": PoolRule(namespace="acme")})
    view = fleet(card("a", 4), rules=rules)
    queue = ReadyQueue()
    view.on_rules = queue.admit_all
    for number, namespace in enumerate(("other", "acme", "other", "acme"), 1):
        queue.push(run(number, namespace), float(number))
    (lane,) = queue.order()
    lane.admit(view.only("default", ""))
    first, second = queue.take(lane, LEVELS), queue.take(lane, LEVELS)
    assert first is not None and second is not None
    first.phase = second.phase = Phase.OPENING
    assert (first.namespace, second.namespace) == ("acme", "acme")
    assert queue.take(lane, LEVELS) is None
    queue.push(run(5, "acme"), 5.0)
    (told,) = backlog_of(queue, view, "s", 10.0, 0).pools
    assert (sum(told.ready), told.held) == (1, 2), "runs that wait in vain are no reason for more workers"
    assert told.oldest_wait_ms == 5000
    assert told.waiting_for == "pool default is dedicated to the namespace acme; runs of others wait in vain"
    third = queue.take(lane, LEVELS)
    assert third is not None and third.namespace == "acme"
    view.rule(PoolRules())
    rest = [queue.take(lane, LEVELS), queue.take(lane, LEVELS)]
    assert [c.namespace for c in rest if c is not None] == ["other", "other"]


def test_a_namespace_that_may_begin_no_more_runs_stays_parked_where_it_is_alone() -> None:
    queue = ReadyQueue()
    for number, namespace in enumerate(("acme", "other"), 1):
        queue.push(run(number, namespace), 0.0)
    (lane,) = queue.order()
    queue.full.add("acme")
    lane.admit("acme")
    assert queue.take(lane, LEVELS) is None
    queue.unpark("acme")
    found = queue.take(lane, LEVELS)
    assert found is not None and found.namespace == "acme"
