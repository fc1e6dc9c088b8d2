"""Crowds: legs that wait at full workers while others of their pool and region have free slots (decision 0009).

    a worker has more legs than slots ── another has free ones, by the heartbeats
        │
        ├─ for every leg that is to come back, one of these is kept (and lent, where the room is used up)
        └─ workers are asked one after another, until so many legs have come back

An answer tells more than who comes back: of the legs that stay, none waits, unless as many came as were asked for.
They are not asked for again for a minute (a job may have been on its way, and wait by then). A leg that came back is
asked back anew only after twice the time of before, so that whatever the heartbeats say it moves a few times and not
for ever.

With n schedulers each fills an n-th of the free slots at a time, at least one: they do not know of each other.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flint_contracts.gen.flint.registry.v1 import registry_pb2
from flint_scheduler.cards import RunBook, RunCard

if TYPE_CHECKING:
    from flint_scheduler.fleet import FleetView, WorkerView

__all__ = ["Ask", "Crowd", "Crowds", "Relief", "crowds_among", "lend", "vacant_slot"]

_SETTLED_S = 1.0
"""Legs that were opened later than this ago may begin at once where they are."""
_MOST_S = 60.0
_LOOK_S = 0.9
_LOOKS = 3
"""For so many looks free slots are kept for legs that were asked back."""
_MOST_WORKERS = 50
_MOST_LEGS = 500


@dataclass(slots=True)
class Crowd:
    """One pool in one region. `beyond`: legs that exceed the slots, by worker."""

    pool: str
    region: str
    beyond: dict[str, int] = field(default_factory=dict)
    vacant: list[WorkerView] = field(default_factory=list)
    free: int = 0  # slots that this scheduler may fill now
    common: bool = True  # False: what is free is kept for urgent levels


def crowds_among(workers: Mapping[str, WorkerView], sharers: int) -> list[Crowd]:
    """Where legs wait that could begin elsewhere."""
    found: dict[tuple[str, str], Crowd] = {}
    for incarnation, worker in workers.items():
        beyond = worker.held - worker.card.slots
        if beyond <= 0 or worker.pool is None:
            continue
        beyond = min(beyond, worker.legs, worker.there - worker.card.slots)
        if beyond > 0:
            key = worker.pool.name, worker.card.region
            if key not in found:
                found[key] = Crowd(*key)
            found[key].beyond[incarnation] = beyond
    crowds = []
    for crowd in found.values():
        pool = next(iter(workers[i] for i in crowd.beyond)).pool
        if pool is None:
            continue
        crowd.vacant = [w for w in pool.workers(crowd.region) if w.there < w.card.slots]
        if crowd.vacant:
            slots = [w.card.slots - w.there for w in crowd.vacant]
            crowd.free = -(-sum(slots) // sharers)
            lent = sum(max(0, s - max(0, w.room - w.legs)) for s, w in zip(slots, crowd.vacant, strict=True))
            place = crowd.vacant[0].place  # theirs all: they are of one region
            crowd.common = pool.free + lent > pool.headroom and (place is None or place.free + lent > place.kept)
            crowds.append(crowd)
    return crowds


def lend(crowd: Crowd, legs: int, share_of: Callable[[registry_pb2.WorkerCard], int]) -> None:
    """Keep so many of the free slots for legs that are asked back, on workers drawn by chance."""
    random.shuffle(crowd.vacant)
    for worker in crowd.vacant:
        if legs <= 0:
            return
        taken = min(legs, worker.card.slots - worker.there)
        legs -= taken
        worker.vacant = _LOOKS
        worker.borrowed = max(worker.borrowed, worker.legs + taken - share_of(worker.card))


def vacant_slot(vacant: list[WorkerView], order: list[WorkerView]) -> WorkerView | None:
    """One of those with a free slot that take the leg too."""
    having = [w for w in vacant if w.legs < w.room and w.there < w.card.slots and any(w is x for x in order)]
    return random.choice(having) if having else None


@dataclass(slots=True)
class Ask:
    """These legs of a worker, of which so many may come back."""

    claimant: str
    cards: list[RunCard]
    at_most: int


@dataclass(slots=True)
class Relief:
    """Workers of one crowd, asked one after another until so many legs have come back."""

    key: tuple[str, str]
    legs: int
    asks: list[Ask]

    def next(self) -> Ask | None:
        """The next one to be asked; None when enough have come, or everybody was asked."""
        if self.legs <= 0 or not self.asks:
            return None
        ask = self.asks.pop()
        ask.at_most = min(ask.at_most, self.legs)
        return ask


class _Known:
    """What is known of a run's leg: how often it moved, and of which leg that it did not wait, until when it counts."""

    __slots__ = ("moves", "stays", "until")

    def __init__(self) -> None:
        self.moves = 0
        self.stays: bytes | None = None
        self.until = 0.0


class Crowds:
    """Which legs are asked back, for one scheduler. Costs nothing while no worker has more legs than slots."""

    def __init__(self, fleet: FleetView, book: RunBook) -> None:
        self._fleet = fleet
        self._book = book
        self._known: dict[bytes, _Known] = {}
        self._most_known = 1000
        self._crowds: list[Crowd] = []
        self._waiting: dict[str, list[RunCard]] = {}
        self._asking: set[tuple[str, str]] = set()
        self._next_look = 0.0

    def look(self, now: float) -> Set[str]:
        """Workers whose legs are to be noted, and then `reliefs` to be taken; none before a second has passed."""
        self._crowds = []
        if now < self._next_look:
            return frozenset()
        self._next_look = now + _LOOK_S
        self._fleet.forget_vacant()
        self._waiting = {}
        self._crowds = [c for c in self._fleet.crowds() if (c.pool, c.region) not in self._asking]
        return frozenset(w for c in self._crowds for w in c.beyond)

    def note(self, card: RunCard, now: float) -> None:
        """An open leg of one of these workers. It may wait there, unless it is known not to."""
        known = self._known.get(card.run_id)
        patience_s = _SETTLED_S
        if known is not None:
            if known.stays == card.nonce and now < known.until:
                return
            patience_s = min(_SETTLED_S * 2**known.moves, _MOST_S)
        if now - card.progress_at > patience_s:
            self._waiting.setdefault(card.claimant or "", []).append(card)

    def reliefs(self) -> list[Relief]:
        """For each crowd, whom to ask. `answered` is to be told each answer, `finished` the end of each."""
        found = []
        for crowd in self._crowds:
            waiting = {w: cards for w in crowd.beyond if (cards := self._of(crowd, w))}
            legs = min(crowd.free, sum(min(crowd.beyond[w], len(cards)) for w, cards in waiting.items()))
            if legs > 0:
                self._fleet.make_room(crowd, legs)
                workers = random.sample(list(waiting), min(len(waiting), _MOST_WORKERS))
                asks = [Ask(w, waiting[w], crowd.beyond[w]) for w in workers]
                found.append(Relief((crowd.pool, crowd.region), legs, asks))
                self._asking.add((crowd.pool, crowd.region))
        return found

    def _of(self, crowd: Crowd, worker: str) -> list[RunCard]:
        cards = self._waiting.get(worker, [])
        if not crowd.common:
            cards = [card for card in cards if card.queue_level <= self._fleet.urgent_level]
        cards.sort(key=lambda card: (card.level, -card.job_sequence))  # those sent last wait
        return cards[:_MOST_LEGS]

    def answered(self, relief: Relief, ask: Ask, nonces: Iterable[bytes | None], released: Iterable[bool]) -> None:
        """What the worker answered of each leg, by the nonce that was asked for."""
        answers = list(zip(ask.cards, nonces, released, strict=True))
        came = sum(free for _, _, free in answers)
        relief.legs -= came
        for card, nonce, free in answers:
            if not free and came >= ask.at_most:
                continue  # it may wait or not
            known = self._known.get(card.run_id)
            if known is None:
                known = self._known[card.run_id] = _Known()
            if free:
                known.moves += 1
            else:
                known.stays, known.until = nonce, self._next_look + _MOST_S
        if came:
            self._fleet.shun(ask.claimant)
        if len(self._known) > self._most_known:
            self._known = {run: known for run, known in self._known.items() if self._book.get(run) is not None}
            self._most_known = max(1000, 2 * len(self._known))

    def finished(self, relief: Relief) -> None:
        """Nobody more is asked: the next look may find the same crowd."""
        self._asking.discard(relief.key)
