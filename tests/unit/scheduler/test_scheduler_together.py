"""Entries that travelled together are judged one by one, as if each had come by itself; both forms are read."""

from __future__ import annotations

import os
from typing import Any, cast

import pytest

from flint_bus import StoredMessage
from flint_contracts.gen.flint.journal.v1 import journal_pb2
from flint_contracts.gen.flint.registry.v1 import registry_pb2
from flint_contracts.journal import together
from flint_core.queueing import URGENT
from flint_scheduler.announce import Announcer
from flint_scheduler.cards import Phase, RunBook, RunCard
from flint_scheduler.drafts import Draft
from flint_scheduler.fleet import FleetView
from flint_scheduler.fold import Folder, Reading
from flint_scheduler.holdings import GroupHolding, Holdings
from flint_scheduler.ready import ReadyQueue
from flint_scheduler.shares import Shares

NORMAL = 5
SESSION = bytes(16)


class Owner:
    """A fold lane that owns a few open legs, each at its second one."""

    def __init__(self, levels: list[int]) -> None:
        book, queue, fleet = RunBook(), ReadyQueue(), FleetView(overcommit=1.0, lease_ttl_s=5)
        fleet.snapshot({"w": registry_pb2.WorkerCard(incarnation="w", worker_id="w", slots=9)}, set())
        self.runs = []
        for level in levels:
            run = RunCard(os.urandom(16), "a", "w", "1.0.0", b"", 0, level, 0, b"", Phase.OPEN)
            run.leg, run.nonce, run.claimant = 2, os.urandom(16), "w"
            book.add(run)
            self.runs.append(run)
        missing = cast(Any, None)
        self.folder = Folder(missing, Holdings(1), book, queue, fleet, missing, Announcer(missing), 3, Shares(queue))
        self.told: list[tuple[bytes, str, bytes]] = []
        self.folder.on_drop = lambda *leg: self.told.append(leg)

    def entry(self, run: int, index: int = 1, **fields: Any) -> bytes:
        card = self.runs[run]
        values = {"run_id": card.run_id, "leg": card.leg, "leg_nonce": card.nonce, "claimant": "w", "index": index}
        return journal_pb2.JournalEntry(**(values | fields)).SerializeToString()

    def judged(self, *messages: bytes) -> dict[bytes, Draft]:
        reading = self.reading(*messages)
        reading.decode()
        drafts: dict[bytes, Draft] = {}
        for message, _, entry in reading.entries:
            assert entry is not None
            self.folder._judge_entry(entry, message.sequence, SESSION, drafts)
        return drafts

    def reading(self, *messages: bytes) -> Reading:
        stored = [StoredMessage("s", n, data, None, 0) for n, data in enumerate(messages, 1)]
        return Reading(GroupHolding(0, 1, 0, 0), 1, stored, 0.0)


def test_several_in_one_message_are_the_same_as_each_in_its_own() -> None:
    owner = Owner([NORMAL] * 3)
    entries = [owner.entry(n, index, events=bytes(n)) for index in (1, 2) for n in range(3)]
    apart = owner.judged(*entries)
    mixed = owner.judged(entries[0], together(entries[1:4]), together(entries[4:]))
    assert [run.position for run in mixed.values()] == [2, 2, 2]
    assert [(d.position, d.entries, d.closed) for d in mixed.values()] == [
        (d.position, d.entries, d.closed) for d in apart.values()
    ]


def test_what_counts_is_decided_for_each_by_itself() -> None:
    owner = Owner([NORMAL] * 3)
    stale, gap = owner.entry(0, leg_nonce=os.urandom(16), leg=3), owner.entry(1, 2)
    ended = owner.entry(2, end=journal_pb2.LegEnd(yielded=journal_pb2.Yielded(asked=True)))
    drafts = owner.judged(together([stale, gap, ended, owner.entry(2, 2)]))
    assert [(d.card.run_id, d.position, d.closed) for d in drafts.values()] == [(owner.runs[2].run_id, 1, True)]


@pytest.mark.parametrize("large", [0, 127, 128, 20_000, 300_000])
def test_lengths_of_every_size(large: int) -> None:
    sizes = [1, large, 3]
    encoded = [journal_pb2.JournalEntry(run_id=b"r", events=bytes(size)).SerializeToString() for size in sizes]
    read = journal_pb2.JournalEntry.FromString(together(encoded))
    assert [len(entry.events) for entry in read.together] == sizes
    assert [entry.SerializeToString() for entry in read.together] == encoded
    read.ClearField("together")
    assert read == journal_pb2.JournalEntry()


async def test_a_message_with_an_urgent_runs_entry_goes_ahead_once() -> None:
    owner = Owner([NORMAL, URGENT])
    await owner.folder.read(
        owner.reading(owner.entry(0), together([owner.entry(0, 2), owner.entry(1), owner.entry(1, 2)]))
    )
    (ahead,) = (unit for unit in owner.folder._take() if isinstance(unit, Reading))
    assert (ahead.ahead, [message.sequence for message in ahead.messages]) == (True, [2])


def test_the_worker_of_a_former_leg_that_goes_on_is_told_again() -> None:
    owner = Owner([NORMAL])
    run, former = owner.runs[0], os.urandom(16)
    over = journal_pb2.LegEnd(yielded=journal_pb2.Yielded())
    owner.judged(
        owner.entry(0, leg=1, leg_nonce=former),
        owner.entry(0, leg=1, leg_nonce=former, end=over),  # it has said its last word
        owner.entry(0, leg=1, leg_nonce=former, claimant="gone"),
        owner.entry(0, leg=3, leg_nonce=os.urandom(16)),  # newer than what this owner knows
        owner.entry(0, leg=1, leg_nonce=former, claimant="", seal=True),
    )
    assert owner.told == [(run.run_id, "w", former)]
    run.nonce = None
    run.phase = Phase.READY
    owner.judged(owner.entry(0, leg=1, leg_nonce=former))
    assert len(owner.told) == 1
