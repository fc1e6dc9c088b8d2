"""The order of the ready queue: fairness, deadlines, windows, ageing, changes of level; each run is served once."""

from __future__ import annotations

import os
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from flint_contracts.gen.flint.registry.v1 import registry_pb2
from flint_core.queueing import Placement, QueueHints
from flint_core.windows import parse_window
from flint_scheduler.backlog import backlog_of
from flint_scheduler.cards import Phase, RunCard
from flint_scheduler.fleet import FleetView
from flint_scheduler.ready import SPARE, ReadyQueue
from flint_scheduler.shares import Shares

NOON_MS = 1_700_049_600_000  # 2023-11-15 12:00 UTC


def card(namespace: str = "a", level: int = 5, hints: QueueHints | None = None, created_ms: int = 0) -> RunCard:
    made = RunCard(os.urandom(16), namespace, "w", "1.0.0", b"", 0, level, created_ms, b"", Phase.READY)
    made.hints = hints
    return made


def take(queue: ReadyQueue, least: int = SPARE) -> RunCard | None:
    found = queue.pop(least)
    if found is not None:
        found.phase = Phase.OPENING
    return found


def drain(queue: ReadyQueue, least: int = SPARE) -> list[RunCard]:
    found = []
    while (each := take(queue, least)) is not None:
        found.append(each)
    return found


RUNS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(3, 5), st.sampled_from(["", "x", "y"])), max_size=80)


@given(RUNS)
def test_everything_is_served_once_by_level_and_in_order_of_arrival(runs: list[tuple[str, int, str]]) -> None:
    """Work conserving: nothing waits while something is asked for; within tenant, level and key arrival decides."""
    queue = ReadyQueue()
    cards = [card(n, level, QueueHints(fairness_key=key) if key else None) for n, level, key in runs]
    for each in cards:
        queue.push(each, 0.0)
    assert len(queue) == len(cards)
    served = drain(queue)
    assert len(queue) == 0
    assert {id(c) for c in served} == {id(c) for c in cards}
    assert len(served) == len(cards)
    assert [c.level for c in served] == sorted(c.level for c in cards)
    by_flow: dict[tuple[str, int, str], list[int]] = {}
    for each in served:
        by_flow.setdefault((each.namespace, each.level, each.hints.fairness_key if each.hints else ""), []).append(
            each.arrival
        )
    assert all(arrivals == sorted(arrivals) for arrivals in by_flow.values())


@given(st.dictionaries(st.sampled_from("abcd"), st.integers(1, 20), min_size=2), st.integers(1, 60))
@settings(deadline=None)
def test_shares_follow_weights(weights: dict[str, int], rounds: int) -> None:
    """While all wait, what each was served differs from its weight by at most one run against each other."""
    queue = ReadyQueue()
    queue.weigh(weights)
    count = 20 * rounds + 20
    for namespace in weights:
        for _ in range(count):
            queue.push(card(namespace), 0.0)
    served: Counter[str] = Counter()
    for _ in range(rounds):
        found = take(queue)
        assert found is not None
        served[found.namespace] += 1
        for one in weights:
            for other in weights:
                assert served[one] / weights[one] - served[other] / weights[other] <= 1 / weights[one] + 1e-9


@given(st.integers(1, 50), st.integers(0, 40))
def test_who_comes_back_neither_waits_nor_makes_up(before: int, alone: int) -> None:
    queue = ReadyQueue()
    for _ in range(before + alone + 20):
        queue.push(card("busy"), 0.0)
    for _ in range(before):
        assert take(queue) is not None
    queue.push(card("late"), 0.0)
    queue.push(card("late"), 0.0)
    assert "late" in [found.namespace for found in (take(queue), take(queue)) if found is not None]
    served = Counter(found.namespace for found in (take(queue) for _ in range(4)) if found is not None)
    assert served["busy"] >= 3


def test_keys_of_a_namespace_take_turns() -> None:
    queue = ReadyQueue()
    for _ in range(50):
        queue.push(card("a", hints=QueueHints(fairness_key="flood")), 0.0)
    for _ in range(3):
        queue.push(card("a", hints=QueueHints(fairness_key="quiet")), 0.0)
    first = [take(queue) for _ in range(6)]
    assert Counter(c.hints.fairness_key for c in first if c and c.hints) == {"flood": 3, "quiet": 3}


@given(st.lists(st.integers(0, 100), min_size=1, max_size=30))
def test_the_earliest_deadline_goes_first(deadlines: list[int]) -> None:
    queue = ReadyQueue()
    for deadline in deadlines:
        queue.push(card("a", hints=QueueHints(deadline_ms=NOON_MS + deadline), created_ms=NOON_MS), 0.0)
    served = [c.hints.deadline_ms for c in drain(queue) if c.hints]
    assert served == sorted(served)


def test_deadlines_do_not_starve_runs_without() -> None:
    queue = ReadyQueue()
    plain = card("a", created_ms=NOON_MS)
    queue.push(plain, 0.0)
    for minute in range(1, 120):
        due = NOON_MS + (60 + minute) * 60_000
        queue.push(card("a", hints=QueueHints(deadline_ms=due), created_ms=NOON_MS), 0.0)
    assert take(queue) is plain  # as if it had to end an hour after it was accepted


def test_a_run_ages_into_all_levels_but_the_urgent_one() -> None:
    queue = ReadyQueue(ageing_s=10)
    old = card("a", level=9)
    queue.push(old, 0.0)
    for second in range(0, 200, 5):
        queue.tick(float(second))
    assert old.queue_level == 1
    assert old.level == 9
    normal, urgent = card("a", level=2), card("a", level=0)
    queue.push(normal, 200.0)
    queue.push(urgent, 200.0)
    assert [take(queue), take(queue), take(queue), take(queue)] == [urgent, old, normal, None]
    assert queue.by_level == [0] * 10


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=40))
def test_a_change_of_level_moves_a_waiting_run(changes: list[tuple[int, int]]) -> None:
    queue = ReadyQueue(ageing_s=60)
    cards = [card("a", level) for level, _ in changes]
    for each in cards:
        queue.push(each, 0.0)
    for each, (_, level) in zip(cards, changes, strict=True):
        queue.change_level(each, level)
    assert sum(queue.by_level) == len(cards)
    served = drain(queue)
    assert served == sorted(cards, key=lambda c: (c.level, c.arrival))


def test_a_run_waits_for_its_window_or_its_latest_start() -> None:
    now_ms = [NOON_MS]
    queue = ReadyQueue(now_ms=lambda: now_ms[0])
    night = QueueHints(window=parse_window("22:00-06:00"))
    late = QueueHints(window=parse_window("22:00-06:00"), latest_start_ms=NOON_MS + 3_600_000)
    strict, latest = card("a", hints=night), card("a", hints=late)
    queue.push(strict, 0.0)
    queue.push(latest, 0.0)
    assert take(queue) is None
    assert queue.next_moment_ms == NOON_MS + 3_600_000
    now_ms[0] += 3_600_000
    queue.tick(1.0)
    assert take(queue) is latest
    assert take(queue) is None
    now_ms[0] = NOON_MS + 10 * 3_600_000
    queue.tick(2.0)
    assert take(queue) is strict
    queue.push(strict, 3.0)  # given back: within the window it goes on at once
    assert take(queue) is strict


def test_off_peak_runs_take_what_is_left_over() -> None:
    now_ms = [NOON_MS]
    queue = ReadyQueue(off_peak=parse_window("22:00-06:00"), now_ms=lambda: now_ms[0])
    cheap, normal = card("a", level=1, hints=QueueHints(off_peak=True)), card("a", level=9)
    queue.push(cheap, 0.0)
    queue.push(normal, 0.0)
    assert not queue.waits_for("other")
    assert take(queue, 9) is normal
    assert take(queue, 9) is None
    assert take(queue, SPARE) is cheap
    queue.push(cheap, 0.0)
    now_ms[0] = NOON_MS + 10 * 3_600_000
    queue.tick(1.0)
    queue.push(normal, 1.0)
    assert take(queue, 9) is cheap  # its hour has come, and its level is 1
    assert queue.by_level[1] == 0


def test_a_cancelled_run_is_counted_no_more_after_a_while() -> None:
    queue = ReadyQueue()
    gone, held = card("a"), card("a", hints=QueueHints(not_before_ms=1 << 60))
    queue.push(gone, 0.0)
    queue.push(held, 0.0)
    gone.phase = held.phase = Phase.CLOSING
    queue.tick(100.0)
    assert len(queue) == 0
    assert queue.next_moment_ms is None


def test_a_namespace_has_no_more_under_way_than_its_share() -> None:
    queue = ReadyQueue()
    shares = Shares(queue)
    shares.limit({"a": 4}, [])
    shares.share_between(2)
    for _ in range(5):
        queue.push(card("a"), 0.0)
    queue.push(card("b"), 0.0)
    taken = []
    while (found := take(queue)) is not None:
        shares.occupy(found.namespace)
        taken.append(found.namespace)
    assert Counter(taken) == {"a": 2, "b": 1}
    shares.vacate("a")
    found = take(queue)
    assert found is not None
    assert found.namespace == "a"
    shares.occupy("a")
    assert take(queue) is None
    shares.limit({}, [])
    assert len(drain(queue)) == 2


def worker(name: str, slots: int, pool: str = "", region: str = "") -> registry_pb2.WorkerCard:
    return registry_pb2.WorkerCard(incarnation=name, worker_id=name, slots=slots, pool=pool, region=region)


async def test_pools_and_regions_are_apart_and_what_lacks_is_told() -> None:
    fleet = FleetView(1.0, 5)
    fleet.snapshot({"a": worker("a", 2, "default", "eu"), "g": worker("g", 1, "gpu", "us")}, set())
    assert fleet.least("gpu") == SPARE
    assert fleet.least("gpu", "eu") == -1
    assert fleet.reserve("gpu", "us") is not None
    assert fleet.least("gpu") == -1
    assert fleet.why_not("gpu", "us") == ""
    assert fleet.why_not("gpu", "eu") == "no worker of pool gpu in region eu"
    assert fleet.why_not("tpu", "") == "no worker of pool tpu"
    queue = ReadyQueue()
    for pool in ("tpu", "gpu"):
        queue.push(card(hints=QueueHints(pool=pool)), 0.0)
    moved = card()
    moved.placement = Placement("tpu", "", 2)
    queue.push(moved, 0.0)
    told = {p.pool: p for p in backlog_of(queue, fleet, "s", 3.0, 0).pools}
    assert list(told["tpu"].ready) == [0, 0, 1, 0, 0, 1, 0, 0, 0, 0]
    assert told["tpu"].waiting_for == "no worker of pool tpu"
    assert told["gpu"].waiting_for == ""
    assert told["gpu"].running == 1
    assert told["gpu"].oldest_wait_ms == 3000


async def test_headroom_is_for_the_urgent_and_spare_room_for_the_patient() -> None:
    fleet = FleetView(1.0, 5, headroom={"*": 0.2, "plain": 0.0}, urgent_level=1, spare_share=0.5)
    fleet.snapshot({"a": worker("a", 10, "default"), "b": worker("b", 1, "plain")}, set())
    assert fleet.least() == SPARE
    for _ in range(8):
        assert fleet.reserve(level=5) is not None
    assert fleet.reserve(level=5) is None
    assert fleet.least() == 1
    assert fleet.reserve(level=1) is not None
    assert fleet.reserve(level=0) is not None
    assert fleet.least() == -1
    assert fleet.least("plain") == SPARE
    fleet.release("a")
    assert fleet.least() == 1
    fleet.recount()
    assert fleet.least() == SPARE


async def test_a_warm_worker_is_preferred_while_it_has_room() -> None:
    fleet = FleetView(1.0, 5)
    fleet.snapshot({name: worker(name, 3) for name in "abcdefgh"}, set())
    first = fleet.reserve(sticky=("n", "k"))
    assert first is not None
    assert [fleet.reserve(sticky=("n", "k")) for _ in range(2)] == [first, first]
    other = fleet.reserve(sticky=("n", "k"))
    assert other is not None
    assert other is not first
