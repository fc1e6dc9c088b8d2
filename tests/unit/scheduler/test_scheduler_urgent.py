"""What urgent runs overtake beside the queue: full workers, and entries that wait to be folded."""

from __future__ import annotations

import os
import random
from collections import Counter
from typing import Any, cast

from flint_bus import StoredMessage
from flint_contracts.gen.flint.journal.v1 import journal_pb2
from flint_contracts.gen.flint.registry.v1 import registry_pb2
from flint_core.queueing import LEVELS, URGENT, Placement, slots_beyond
from flint_scheduler.announce import Announcer
from flint_scheduler.cards import Phase, RunBook, RunCard
from flint_scheduler.fleet import FleetView
from flint_scheduler.fold import Folder, Reading
from flint_scheduler.holdings import GroupHolding, Holdings
from flint_scheduler.places import PoolRule, PoolRules
from flint_scheduler.ready import SPARE, ReadyQueue
from flint_scheduler.shares import Shares

NORMAL = 5


def fleet_of(*slots: int) -> FleetView:
    fleet = FleetView(overcommit=1.0, lease_ttl_s=5)
    names = "abcdef"
    fleet.snapshot(
        {n: registry_pb2.WorkerCard(incarnation=n, worker_id=n, slots=s) for n, s in zip(names, slots, strict=False)},
        set(),
    )
    return fleet


def fill(fleet: FleetView) -> None:
    while fleet.reserve(level=NORMAL) is not None:
        pass


def card(level: int) -> RunCard:
    return RunCard(os.urandom(16), "a", "w", "1.0.0", b"", 0, level, 0, b"", Phase.READY)


async def test_urgent_legs_go_beyond_the_slots_of_full_workers() -> None:
    fleet = fleet_of(100, 150)
    fill(fleet)
    assert fleet.least() == URGENT
    assert fleet.reserve(level=1) is None
    taken = Counter(w.card.incarnation for w in iter(lambda: fleet.reserve(level=URGENT), None))
    assert taken == {"a": 2, "b": 3}
    assert (fleet.least(), fleet.has_room()) == (-1, False)
    fleet.release("b")
    assert fleet.least() == URGENT
    assert fleet.reserve(level=NORMAL) is None
    assert fleet.reserve(level=URGENT) is not None
    for _ in range(4):
        fleet.release("b")
    assert fleet.least() == LEVELS - 1, "more were released than went beyond"


async def test_nothing_goes_beyond_few_slots_nor_where_rules_keep_room() -> None:
    assert [slots_beyond(n) for n in (1, 49, 50, 500)] == [0, 0, 1, 10]
    small = fleet_of(8, 40)
    fill(small)
    assert (small.least(), small.reserve(level=URGENT)) == (-1, None)
    ruled = fleet_of(100)
    ruled.rule(PoolRules(usual=PoolRule(standby=1)))
    fill(ruled)
    assert ruled.reserve(level=URGENT) is not None, "the standby slot"
    assert (ruled.least(), ruled.reserve(level=URGENT)) == (-1, None)


async def test_what_is_beyond_is_counted_as_legs_and_workers_come_and_go() -> None:
    chance = random.Random(5)
    fleet = fleet_of(100, 60, 50)
    legs: list[str] = []
    for _ in range(6000):
        match chance.randrange(9):
            case 0 | 1 | 2 | 3 | 4:
                level = URGENT if chance.random() < 0.3 else NORMAL
                worker = fleet.reserve(level=level)
                if worker is not None:
                    legs.append(worker.card.incarnation)
                else:
                    assert fleet.least() < level
            case 5 | 6 if legs:
                fleet.release(legs.pop(chance.randrange(len(legs))))
            case 7:
                fleet.share_between(chance.choice((1, 1, 2, 3)))
            case 8:
                held = Counter(legs)
                name = chance.choice("abc")
                fleet.beat(registry_pb2.Beat(incarnation=name, legs=held[name]))
        workers = fleet.live
        assert {w.card.incarnation: w.legs for w in workers if w.legs} == Counter(legs)
        urgent_room = any(w.legs < w.room + w.beyond for w in workers)
        assert (fleet.least() >= URGENT) == urgent_room
        assert (fleet.least() >= NORMAL) == any(w.legs < w.room for w in workers)


def test_the_most_urgent_level_that_waits() -> None:
    queue = ReadyQueue()
    assert queue.most_urgent("default") == SPARE
    for level in (7, 3):
        queue.push(card(level), 0.0)
    assert (queue.most_urgent("default"), queue.most_urgent("other")) == (3, SPARE)
    elsewhere = card(1)
    elsewhere.placement = Placement("other")
    queue.push(elsewhere, 0.0)
    assert (queue.most_urgent("default"), queue.most_urgent("other")) == (3, 1)
    taken = queue.pop()
    assert taken is elsewhere
    queue.pop()
    assert (queue.most_urgent("default"), queue.most_urgent("other")) == (7, SPARE)


async def test_entries_of_urgent_runs_are_folded_before_those_that_wait_and_again_in_their_place() -> None:
    book, queue = RunBook(), ReadyQueue()
    runs = {level: card(level) for level in (URGENT, NORMAL)}
    for each in runs.values():
        book.add(each)
    missing = cast(Any, None)
    folder = Folder(missing, Holdings(1), book, queue, fleet_of(1), missing, Announcer(missing), 3, Shares(queue))
    holding = GroupHolding(0, 1, 0, 0)

    async def read(*levels: int) -> None:
        messages = [
            StoredMessage("s", n, journal_pb2.JournalEntry(run_id=runs[level].run_id).SerializeToString(), None, 0)
            for n, level in enumerate(levels, 1)
        ]
        await folder.read(Reading(holding, 1, messages, 0.0))

    def taken() -> list[tuple[bool, int]]:
        return [(unit.ahead, len(unit.messages)) for unit in folder._take() if isinstance(unit, Reading)]

    await read(NORMAL, NORMAL)
    await read(NORMAL, URGENT, NORMAL, URGENT)
    assert taken() == [(True, 2)]
    await read(URGENT)
    assert taken() == [(False, 2), (False, 4), (False, 1)], "others have their turn, and all of it"
    assert taken() == [(True, 1)]
    assert taken() == []
