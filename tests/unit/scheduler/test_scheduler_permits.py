"""Who asks for permits next: nobody who waits is forgotten, whatever comes in between, and no timer has to help."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from flint_core.queueing import ConcurrencyKey, QueueHints
from flint_scheduler.cards import Phase, RunBook, RunCard
from flint_scheduler.permits import Permits
from flint_scheduler.ready import ReadyQueue
from flint_store.fence import OwnerSession
from flint_store.legs import LegOpening
from flint_store.permit_changes import PermitChange
from flint_store.permits import PLACE, PermitAnswer


@dataclass
class Places:
    """Counts places as the record does, for one owner. Its answers come when `gate` lets them."""

    limits: dict[str, int]
    holders: dict[str, set[bytes]] = field(default_factory=dict)
    asked: list[RunCard] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def lane(self, name: str, work: Any) -> list[PermitAnswer]:
        answers = [self._answer(card) for card in self.asked]
        await self.gate.wait()
        return answers

    def _answer(self, card: RunCard) -> PermitAnswer:
        assert card.hints is not None
        keys = [k.key for k in card.hints.concurrency]
        for key in keys:
            held = self.holders.setdefault(key, set())
            if card.run_id not in held and len(held) >= self.limits[key]:
                return PermitAnswer(False, 0, PLACE, key, "queue")
        for key in keys:
            self.holders[key].add(card.run_id)
        return PermitAnswer(True, 0)

    def free(self, run_id: bytes) -> None:
        for held in self.holders.values():
            held.discard(run_id)


class Silence:
    """A bus on which nobody else is."""

    def publish_now(self, subject: str, data: bytes) -> None:
        """Nobody hears it."""

    async def subscribe(self, subject: str, handler: Any) -> None:
        """Nobody says anything."""


class Desk:
    """What the dispatcher and the fold do around `Permits`, with legs that end when the test says so."""

    def __init__(self, limits: dict[str, int], slots: int = 8) -> None:
        self.book, self.queue, self.places = RunBook(), ReadyQueue(), Places(limits)
        nothing = cast(Any, None)
        self.permits = Permits(cast(Any, self.places), nothing, self.book, self.queue, nothing, cast(Any, Silence()))
        self.slots = slots
        self.open: list[RunCard] = []
        self.ended = 0

    def start(self, number: int, keys: list[str], level: int = 5, legs: int = 1) -> RunCard:
        hints = QueueHints(concurrency=tuple(ConcurrencyKey(k, self.places.limits[k]) for k in keys))
        run_id = number.to_bytes(16, "big")
        card = RunCard(run_id, "default", "w", "1.0.0", b"", 0, level, number, b"", Phase.READY, hints=hints)
        card.position = legs  # legs to come
        self.book.add(card)
        self.queue.push(card, 0.0)
        return card

    async def turn(self, meanwhile: Any = None) -> bool:
        """One commit of openings; False when nobody asked."""
        batch: list[RunCard] = []
        while len(batch) < self.slots - len(self.open) and (card := self.queue.pop()) is not None:
            if self.book.get(card.run_id) is card and self.permits.may_ask(card):
                card.phase = Phase.OPENING
                batch.append(card)
        if not batch:
            return False
        self.places.asked = batch
        self.places.gate.clear()
        openings = [LegOpening(c.run_id, 1, c.leg + 1, b"", "w", 1) for c in batch]
        asking = asyncio.ensure_future(self.permits.ask(cast(OwnerSession, None), batch, openings))
        await asyncio.sleep(0)  # it is under way
        if meanwhile is not None:
            meanwhile()
        self.places.gate.set()
        answers = await asking
        self.permits.decided(batch, answers)
        for card, answer in zip(batch, answers, strict=True):
            if answer.granted:
                card.phase = Phase.OPEN
                card.leg += 1
                self.open.append(card)
        return True

    def end_leg(self, card: RunCard) -> None:
        """The leg is over: the run has ended, or is ready for its next one and keeps what it holds."""
        self.open.remove(card)
        card.position -= 1
        if card.position:
            self.queue.push(card, 0.0)
            return
        self.places.free(card.run_id)
        card.phase = Phase.CLOSING
        self.book.drop(card)
        self.ended += 1
        self.permits.ended([(card, PermitChange(card.run_id))])


async def test_a_run_that_holds_its_permit_goes_on_before_older_ones_that_wait_for_it() -> None:
    desk = Desk({"a": 1})
    young = desk.start(9, ["a"], legs=2)
    assert await desk.turn()
    old, urgent = desk.start(1, ["a"]), desk.start(5, ["a"], level=0)
    assert await desk.turn()
    assert desk.open == [young]
    desk.end_leg(young)  # it waited for a timer, lost its worker, was paused …
    assert await desk.turn()
    assert desk.open == [young], "nobody else can go on before it ends"
    desk.end_leg(young)
    for expected in (urgent, old):
        assert await desk.turn()
        assert desk.open == [expected]
        desk.end_leg(expected)
    assert desk.ended == 3 and not desk.permits.waiting


@pytest.mark.parametrize("seed", range(24))
async def test_nobody_is_forgotten(seed: int) -> None:
    chance = random.Random(seed)
    desk = Desk({key: chance.randint(1, 4) for key in "abc"}, slots=chance.randint(1, 12))
    started = 0
    for _ in range(4_000):
        if started < 60 and chance.random() < 0.3:
            keys = sorted(chance.sample("abc", chance.choice((1, 1, 1, 2))))
            number = chance.randrange(1_000) * 100 + started
            desk.start(number, keys, level=chance.randrange(3, 6), legs=chance.choice((1, 1, 2, 3)))
            started += 1

        def ends() -> None:
            for card in list(desk.open):
                if chance.random() < 0.4:
                    desk.end_leg(card)

        idle = started == 60 and not desk.open
        if not await desk.turn(ends if chance.random() < 0.7 else None) and idle:
            break
        if chance.random() < 0.7:
            ends()
        for key, held in desk.places.holders.items():
            assert len(held) <= desk.places.limits[key]
    assert (started, desk.ended, desk.permits.waiting, len(desk.queue)) == (60, 60, 0, 0), f"seed {seed}"
