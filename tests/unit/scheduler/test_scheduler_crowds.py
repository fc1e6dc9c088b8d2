"""Legs that wait at full workers: who is asked back and when, and that every leg finds a free slot in a few moves."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count, pairwise

import pytest

from flint_contracts.gen.flint.registry.v1 import registry_pb2
from flint_scheduler.cards import Phase, RunBook, RunCard
from flint_scheduler.crowds import Ask, Crowds, Relief
from flint_scheduler.fleet import FleetView


def leg(number: int, claimant: str = "", level: int = 5) -> RunCard:
    card = RunCard(number.to_bytes(16, "big"), "default", "w", "1.0.0", b"", 0, level, 0, b"", Phase.READY)
    if claimant:
        card.phase, card.claimant, card.nonce = Phase.OPEN, claimant, bytes([number])
    return card


def beat(fleet: FleetView, **legs: int) -> None:
    for name, number in legs.items():
        fleet.beat(registry_pb2.Beat(incarnation=name, legs=number))


class One:
    """One scheduler with legs at workers of four slots. They have one more, but the last: it has a free slot."""

    def __init__(self, *workers: str, headroom: float = 0.0, level: int = 5) -> None:
        self.fleet = FleetView(1.25, 5.0, headroom={"*": headroom})
        self.book = RunBook()
        self.crowds = Crowds(self.fleet, self.book)
        for name in workers:
            self.fleet.put(name, registry_pb2.WorkerCard(incarnation=name, slots=4))
        self.cards = {name: [leg(10 * at + n, name, level) for n in range(5)] for at, name in enumerate(workers[:-1])}
        self.cards[workers[-1]] = [leg(200 + n, workers[-1], level) for n in range(3)]
        for cards in self.cards.values():
            for card in cards:
                self.book.add(card)
                self.fleet.hold(card.claimant)
        beat(self.fleet, **{name: len(cards) for name, cards in self.cards.items()})

    def look(self, now: float) -> list[Relief]:
        crowded = self.crowds.look(now)
        for card in self.book:
            if card.claimant in crowded:
                self.crowds.note(card, now)
        return self.crowds.reliefs()

    def answer(self, relief: Relief, ask: Ask, *released: RunCard) -> None:
        nonces = [card.nonce for card in ask.cards]
        self.crowds.answered(relief, ask, nonces, [card in released for card in ask.cards])


def test_workers_are_asked_in_turn_until_enough_have_come_and_those_that_stay_not_again() -> None:
    one = One("a", "b", "c")
    (relief,) = one.look(10.0)
    first = relief.next()
    assert first is not None and len(first.cards) == 5 and first.at_most == 1
    assert one.look(11.0) == [], "one after another"
    one.answer(relief, first)  # all of them run: others' legs wait there
    second = relief.next()
    assert second is not None and {first.claimant, second.claimant} == {"a", "b"}
    one.answer(relief, second, second.cards[0])
    assert relief.next() is None
    one.crowds.finished(relief)
    asked = [ask for relief in one.look(12.0) if (ask := relief.next()) is not None]
    assert {ask.claimant for ask in asked} <= {second.claimant}, "no leg of the first one waits"


def test_a_leg_whose_job_came_after_the_question_is_asked_for_again_in_a_minute() -> None:
    one = One("a", "c")
    asked_at = []
    for now in range(10, 200):
        for relief in one.look(float(now)):
            ask = relief.next()
            assert ask is not None and len(ask.cards) == 5
            one.answer(relief, ask)
            one.crowds.finished(relief)
            asked_at.append(now)
    assert asked_at[0] == 10
    assert [b - a for a, b in pairwise(asked_at)] == [61] * 3


def test_who_does_not_answer_is_asked_with_the_next_look() -> None:
    one = One("a", "c")
    (relief,) = one.look(10.0)
    ask = relief.next()
    assert ask is not None and ask.claimant == "a"
    assert relief.next() is None
    one.crowds.finished(relief)
    assert one.look(10.5) == [], "once a second"
    (relief,) = one.look(11.0)
    again = relief.next()
    assert again is not None and len(again.cards) == 5


def test_a_leg_that_moved_in_vain_is_left_alone_twice_as_long_each_time() -> None:
    one = One("a", "c")
    (card, *others) = one.cards["a"]
    now, pauses = 100.0, []
    for _ in range(5):
        card.progress_at = opened = now
        ask = None
        while ask is None:
            now += 0.5
            for relief in one.look(now):
                found = relief.next()
                if found is not None and card in found.cards:
                    ask = found
                    one.answer(relief, ask, card)
                elif found is not None:
                    one.answer(relief, found)
                one.crowds.finished(relief)
        pauses.append(now - opened)
        card.nonce = bytes([len(pauses), 0])  # its next leg is sent to the same worker
        beat(one.fleet, a=5, c=3)
    assert all(twice > 1.5 * once for once, twice in pairwise(pauses)), pauses
    assert pauses[0] <= 2.5
    assert others


@pytest.mark.parametrize(("level", "asked"), [(5, 0), (0, 1)])
def test_slots_that_are_kept_for_urgent_legs_are_asked_back_for_by_these_alone(level: int, asked: int) -> None:
    assert len(One("a", "c", headroom=0.9, level=level).look(10.0)) == asked


# -- several schedulers and many workers, in a time of their own -------------------------------------------------------


@dataclass(slots=True)
class Slots:
    """A worker. Legs by scheduler."""

    running: list[tuple[Scheduler, RunCard]] = field(default_factory=list)
    waiting: list[tuple[Scheduler, RunCard]] = field(default_factory=list)


class World:
    """Runs a number of `legs` on `workers`. Whatever is sent takes its time, drawn by chance from the seed.

    `arrive_s`: within which the workers come. `lasts`: how long a leg does; None: it stays.
    """

    def __init__(
        self,
        seed: int,
        *,
        legs: int,
        schedulers: int = 2,
        workers: int = 12,
        slots: int = 8,
        overcommit: float = 1.25,
        arrive_s: float = 20.0,
        start_s: float = 0.0,
        lasts: Callable[[int], float | None] = lambda number: None,
    ) -> None:
        self.chance = random.Random(seed)
        self.now = 0.0
        self.slots = slots
        self.lasts = lasts
        self.workers: dict[str, Slots] = {}
        self.began: Counter[int] = Counter()
        self.moves: Counter[int] = Counter()
        self.asked_at: list[float] = []
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self.schedulers = [Scheduler(self, overcommit, schedulers) for _ in range(schedulers)]
        for number in range(workers):
            self.after(0.0, arrive_s, lambda name=f"w{number}": self._join(name))  # type: ignore[misc]
        for number in range(legs):
            self.after(0.0, start_s, lambda n=number: self.chance.choice(self.schedulers).accept(leg(n)))  # type: ignore[misc]

    def after(self, least_s: float, most_s: float, act: Callable[[], None]) -> None:
        heappush(self._later, (self.now + self.chance.uniform(least_s, most_s), next(self._order), act))

    def run(self, until: float) -> World:
        while self._later and self._later[0][0] <= until:
            self.now, _, act = heappop(self._later)
            act()
        self.now = until
        return self

    def _join(self, name: str) -> None:
        self.workers[name] = Slots()
        card = registry_pb2.WorkerCard(incarnation=name, worker_id=name, slots=self.slots)
        for scheduler in self.schedulers:
            self.after(0.0, 0.05, lambda s=scheduler: s.hears(lambda fleet: fleet.put(name, card)))  # type: ignore[misc]
        self.after(0.0, 1.5, lambda: self._beat(name))

    def _beat(self, name: str) -> None:
        worker = self.workers[name]
        told = registry_pb2.Beat(incarnation=name, legs=len(worker.running) + len(worker.waiting))
        for scheduler in self.schedulers:
            self.after(0.1, 0.17, lambda s=scheduler: s.hears(lambda fleet: fleet.beat(told)))  # type: ignore[misc]
        self.after(1.5, 1.5, lambda: self._beat(name))

    def arrive(self, name: str, owner: Scheduler, card: RunCard) -> None:
        worker = self.workers[name]
        if len(worker.running) < self.slots:
            self._begin(name, owner, card)
        else:
            worker.waiting.append((owner, card))

    def _begin(self, name: str, owner: Scheduler, card: RunCard) -> None:
        worker = self.workers[name]
        worker.running.append((owner, card))
        number = int.from_bytes(card.run_id, "big")
        self.began[number] += 1
        lasts_s = self.lasts(number)
        if lasts_s is not None:
            self.after(lasts_s, lasts_s, lambda: self._end(name, owner, card))

    def _end(self, name: str, owner: Scheduler, card: RunCard) -> None:
        worker = self.workers[name]
        worker.running = [pair for pair in worker.running if pair[1] is not card]
        if worker.waiting:
            self._begin(name, *worker.waiting.pop(0))
        self.after(0.005, 0.04, lambda: owner.ended(card))

    def release(self, owner: Scheduler, ask: Ask, nonces: list[bytes | None]) -> list[bool]:
        self.asked_at.append(self.now)
        worker = self.workers[ask.claimant]
        released = []
        for card, nonce in zip(ask.cards, nonces, strict=True):
            here = any(pair[1] is card for pair in worker.waiting) and card.nonce == nonce
            released.append(here and sum(released) < ask.at_most)
            if released[-1]:
                worker.waiting = [pair for pair in worker.waiting if pair[1] is not card]
        return released


class Scheduler:
    """What a scheduler does with its queue, its view of the fleet and its crowds."""

    def __init__(self, world: World, overcommit: float, schedulers: int) -> None:
        self.world = world
        self.fleet = FleetView(overcommit, 5.0)
        self.fleet.share_between(schedulers)
        self.book = RunBook()
        self.crowds = Crowds(self.fleet, self.book)
        self.queue: list[RunCard] = []
        self._sent = count(1)
        world.after(0.0, 1.0, self._look)

    def accept(self, card: RunCard) -> None:
        self.book.add(card)
        self.queue.append(card)
        self._dispatch()

    def hears(self, tell: Callable[[FleetView], None]) -> None:
        tell(self.fleet)
        self._dispatch()

    def ended(self, card: RunCard) -> None:
        card.phase = Phase.CLOSING
        self.book.drop(card)
        self.fleet.release(card.claimant)
        self._dispatch()

    def _dispatch(self) -> None:
        while self.queue and self.fleet.least() >= 5:
            card = self.queue.pop(0)
            worker = self.fleet.reserve(level=5)
            assert worker is not None, "there was room for its level"
            card.phase, card.claimant, card.job_sequence = Phase.OPEN, worker.card.incarnation, next(self._sent)
            card.nonce, card.progress_at = self.world.chance.randbytes(8), self.world.now
            self.world.after(0.005, 0.07, lambda c=card, w=card.claimant: self.world.arrive(w, self, c))  # type: ignore[misc]

    def _look(self) -> None:
        now = self.world.now
        crowded = self.crowds.look(now)
        for card in self.book:
            if card.phase is Phase.OPEN and card.claimant in crowded:
                self.crowds.note(card, now)
        for relief in self.crowds.reliefs():
            self._relieve(relief)
        self._dispatch()
        self.world.after(1.0, 1.01, self._look)

    def _relieve(self, relief: Relief) -> None:
        ask = relief.next()
        if ask is None:
            self.crowds.finished(relief)
            return
        nonces = [card.nonce for card in ask.cards]

        def asked() -> None:
            released = self.world.release(self, ask, nonces)
            self.world.after(0.001, 0.01, lambda: answered(released))

        def answered(released: list[bool]) -> None:
            self.crowds.answered(relief, ask, nonces, released)
            for card, nonce, free in zip(ask.cards, nonces, released, strict=True):
                if free and card.phase is Phase.OPEN and card.nonce == nonce:
                    card.phase = Phase.SEALING
                    self.world.after(0.01, 0.05, lambda c=card: self._back(c))  # type: ignore[misc]
            self._relieve(relief)

        self.world.after(0.001, 0.01, asked)

    def _back(self, card: RunCard) -> None:
        self.fleet.release(card.claimant)
        self.world.moves[int.from_bytes(card.run_id, "big")] += 1
        card.phase, card.claimant = Phase.READY, None
        self.queue.insert(0, card)
        self._dispatch()


@pytest.fixture(autouse=True)
def chance() -> Iterator[None]:
    """What the view draws is drawn by each test from its seed."""
    before = random.getstate()
    yield
    random.setstate(before)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("schedulers", "workers", "slots", "overcommit"),
    [(1, 12, 8, 1.25), (2, 12, 8, 1.25), (3, 12, 8, 2.0), (2, 20, 1, 1.0), (5, 12, 3, 1.0)],
)
def test_legs_that_stay_fill_all_slots(schedulers: int, workers: int, slots: int, overcommit: float, seed: int) -> None:
    """As many as there are slots, of workers that come one by one: the last one finds the last slot."""
    random.seed(seed)
    legs = workers * slots
    world = World(
        seed, legs=legs, schedulers=schedulers, workers=workers, slots=slots, overcommit=overcommit, arrive_s=10.0
    )
    world.run(130.0)
    assert world.began == dict.fromkeys(range(legs), 1), "each begins, and once"
    assert max(world.moves.values(), default=0) <= 7, "its patience doubles with each move"
    asked = len(world.asked_at)
    world.run(200.0)
    assert len(world.asked_at) == asked, "nobody waits, so nobody is asked"


@pytest.mark.parametrize("seed", range(3))
def test_with_fewer_slots_than_legs_nobody_goes_to_and_fro(seed: int) -> None:
    """More legs than slots, all of which stay: what exceeds these waits, in a queue or at a worker."""
    random.seed(seed)
    world = World(seed, legs=130, schedulers=3, arrive_s=10.0).run(60.0)
    assert sorted(world.began.values()) == [1] * 96
    moved, asked = world.moves.total(), len(world.asked_at)
    assert max(world.moves.values(), default=0) <= 6
    world.run(120.0)
    assert (world.moves.total(), len(world.asked_at)) == (moved, asked)


@pytest.mark.parametrize("seed", range(3))
def test_who_waits_behind_legs_that_stay_begins_among_many_that_pass(seed: int) -> None:
    """Of a stream of short legs some stay, until two slots of three are theirs."""
    random.seed(seed)
    world = World(
        seed,
        legs=900,
        workers=6,
        slots=4,
        arrive_s=2.0,
        start_s=60.0,
        lasts=lambda number: None if number % 56 == 0 else 0.1 + number % 7 / 10,
    )
    world.run(240.0)
    assert world.began == dict.fromkeys(range(900), 1)
    assert max(world.moves.values(), default=0) <= 7
