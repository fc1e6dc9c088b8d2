"""Entries in the middle of a leg are folded with what comes next of their run; none is lost, late or out of order."""

from __future__ import annotations

import os
import random
from collections import defaultdict
from typing import Any, cast

import pytest

from flint_bus import StoredMessage
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_contracts.gen.flint.journal.v1 import journal_pb2
from flint_contracts.journal import together
from flint_core.queueing import URGENT
from flint_scheduler.announce import Announcer
from flint_scheduler.cards import Phase, RunBook, RunCard
from flint_scheduler.company import Company
from flint_scheduler.drafts import Command, CommandKind
from flint_scheduler.fleet import FleetView
from flint_scheduler.fold import Folder
from flint_scheduler.holdings import GroupHolding, Holdings
from flint_scheduler.readings import Item, Reading
from flint_scheduler.ready import ReadyQueue
from flint_scheduler.shares import Shares

LATEST_S = 0.5
END = journal_pb2.LegEnd(succeeded=journal_pb2.Succeeded())


class Stream:
    """A group's journal, the runs it is about, and what goes on of it."""

    def __init__(self, runs: int, level: int = 5) -> None:
        self.book, self.announcer = RunBook(), Announcer(cast(Any, None))
        self.company = Company(self.book, self.announcer)
        self.holding = GroupHolding(3, 1, 0, 0)
        self.sequence = 0
        self.cards = [self.card(level) for _ in range(runs)]
        self.indexes: dict[bytes, int] = defaultdict(int)

    def card(self, level: int) -> RunCard:
        card = RunCard(os.urandom(16), "a", "w", "1.0.0", b"", 3, level, 0, b"", Phase.OPEN, leg=1, nonce=b"n")
        self.book.add(card)
        return card

    def entry(self, card: RunCard, **fields: Any) -> bytes:
        self.indexes[card.run_id] += 1
        index = self.indexes[card.run_id]
        return journal_pb2.JournalEntry(run_id=card.run_id, leg=1, index=index, **fields).SerializeToString()

    def reading(self, *messages: bytes) -> Reading:
        stored = []
        for data in messages:
            self.sequence += 1
            stored.append(StoredMessage("s", self.sequence, data, None, 0))
        reading = Reading(self.holding, 1, stored, 0.0)
        reading.decode()
        return reading

    def sort(self, *messages: bytes, now: float = 0.0) -> Reading:
        reading = self.reading(*messages)
        self.company.sort(reading, now)
        return reading


def shown(entries: list[Item]) -> list[tuple[bytes, int]]:
    return [(entry.run_id, entry.index) for _, _, entry in entries if entry is not None]


def test_a_leg_is_folded_at_its_end_with_all_that_came_before() -> None:
    stream = Stream(2)
    one, other = stream.cards
    for _ in range(3):
        assert stream.sort(stream.entry(one), stream.entry(other)).entries == []
    last = stream.sort(stream.entry(one, end=END))
    assert shown(last.entries) == [(one.run_id, n) for n in (1, 2, 3, 4)]
    assert last.upto == 1, "the other run's first entry waits still"
    (rest,) = stream.company.due(LATEST_S)
    assert (shown(rest.entries), rest.upto) == ([(other.run_id, n) for n in (1, 2, 3)], 7)
    assert stream.company.next_at is None


@pytest.mark.parametrize(
    "fields", [{"seal": True}, {"awaits_opened": [journal_pb2.AwaitOpened(key="1")]}, {"end": END}], ids=str
)
def test_what_somebody_waits_for_goes_at_once(fields: dict[str, Any]) -> None:
    stream = Stream(1)
    stream.sort(stream.entry(stream.cards[0]))
    assert len(stream.sort(stream.entry(stream.cards[0], **fields)).entries) == 2


def test_nothing_of_an_urgent_run_or_of_one_that_is_sealed_or_unknown_waits() -> None:
    urgent = Stream(1, URGENT)
    assert len(urgent.sort(urgent.entry(urgent.cards[0])).entries) == 1
    stream = Stream(2)
    sealing, gone = stream.cards
    sealing.phase = Phase.SEALING
    stream.book.drop(gone)
    assert len(stream.sort(stream.entry(sealing), stream.entry(gone), b"\xff").entries) == 3


def test_what_a_run_took_of_its_inbox_is_told_at_once_for_more_may_wait_behind_it() -> None:
    stream = Stream(2)
    handed, behind = stream.cards
    handed.mail, behind.more_mail = frozenset({"a"}), True
    assert len(stream.sort(stream.entry(handed, consumed=["a"]), stream.entry(behind)).entries) == 2
    handed.mail = frozenset()
    assert stream.sort(stream.entry(handed)).entries == []


async def test_steps_that_are_watched_are_told_at_once_an_end_that_is_waited_for_changes_nothing() -> None:
    stream = Stream(2)
    followed, awaited = stream.cards
    stream.announcer.interested(dispatch_pb2.Interest(run_id=followed.run_id, watcher="g", steps=True))
    stream.announcer.interested(dispatch_pb2.Interest(run_id=awaited.run_id, watcher="g"))
    assert shown(stream.sort(stream.entry(followed), stream.entry(awaited)).entries) == [(followed.run_id, 1)]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_each_entry_goes_on_once_in_order_and_no_watermark_passes_one(seed: int) -> None:
    chance, stream, now = random.Random(seed), Stream(12), 0.0
    came: dict[tuple[bytes, int], tuple[int, float]] = {}  # by run and index: sequence, when
    order: dict[bytes, int] = defaultdict(int)

    def waiting() -> list[tuple[int, float]]:
        return [where for (run_id, index), where in came.items() if index > order[run_id]]

    def check(reading: Reading) -> None:
        for run_id, index in shown(reading.entries):
            assert index == order[run_id] + 1
            order[run_id] = index
        assert reading.upto < min([sequence for sequence, _ in waiting()], default=stream.sequence + 1)

    for _ in range(150):
        now += chance.choice((0.0, 0.001, 0.05))
        messages = []
        for place in range(chance.randrange(1, 4)):
            entries = []
            for _ in range(chance.choice((1, 1, 5))):
                card = chance.choice(stream.cards)
                entries.append(stream.entry(card, **({"end": END} if chance.random() < 0.1 else {})))
                came[card.run_id, stream.indexes[card.run_id]] = stream.sequence + place + 1, now
            messages.append(together(entries) if len(entries) > 1 else entries[0])
        reading = stream.sort(*messages, now=now)
        if reading.entries:
            check(reading)
        if chance.random() < 0.1 and (taken := stream.company.take(3, chance.choice(stream.cards).run_id)):
            check(taken)
        due = stream.company.next_at
        if due is not None and due <= now:
            for late in stream.company.due(now):
                check(late)
        assert all(now - at <= LATEST_S for _, at in waiting())
    for rest in stream.company.due(float("inf")):
        check(rest)
    assert not waiting()
    assert order == stream.indexes
    assert (stream.company.next_at, stream.company._entries, stream.company._bytes) == (None, 0, 0)


def test_what_was_read_under_a_former_holding_is_forgotten() -> None:
    stream = Stream(1)
    (card,) = stream.cards
    stream.sort(stream.entry(card))
    stream.holding = GroupHolding(3, 2, 0, 0)
    stream.sequence = 0
    stream.indexes.clear()
    stream.sort(stream.entry(card))
    (rest,) = stream.company.due(LATEST_S)
    assert (rest.holding, shown(rest.entries), rest.upto) == (stream.holding, [(card.run_id, 1)], 1)
    assert stream.company._entries == 0


def test_no_more_waits_than_there_is_room_for() -> None:
    stream = Stream(1)
    stream.sort(stream.entry(stream.cards[0], events=bytes(9 * 2**20)))
    assert not stream.company.full
    stream.sort(stream.entry(stream.cards[0], events=bytes(9 * 2**20)))
    assert stream.company.full
    (rest,) = stream.company.due(float("inf"))
    assert (len(rest.entries), stream.company.full) == (2, False)


def test_the_same_entries_are_parsed_anew_when_they_are_judged_again() -> None:
    stream = Stream(2)
    one, other = stream.cards
    stream.sort(together([stream.entry(one, events=b"x"), stream.entry(other)]))
    reading = stream.sort(stream.entry(one, end=END))
    for _, _, entry in reading.entries:
        assert entry is not None
        entry.Clear()
    reading.spent = True
    reading.again()
    assert (shown(reading.entries), reading.spent) == ([(one.run_id, 1), (one.run_id, 2)], False)


async def test_a_command_comes_behind_what_had_come_of_its_run() -> None:
    stream = Stream(2)
    queue, fleet, missing = ReadyQueue(), FleetView(overcommit=1.0, lease_ttl_s=5), cast(Any, None)
    folder = Folder(missing, Holdings(4), stream.book, queue, fleet, missing, stream.announcer, 3, Shares(queue))
    one, other = stream.cards
    await folder.read(stream.reading(stream.entry(one), stream.entry(other)))
    assert folder.waiting == 0
    command = Command(one, CommandKind.TERMINATE)
    folder.command(command)
    first, then = folder._take()
    assert isinstance(first, Reading)
    assert (shown(first.entries), first.upto, then) == ([(one.run_id, 1)], 1, command)
