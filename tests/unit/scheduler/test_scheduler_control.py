"""Commands on drafts, and where a run can be taken back to."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from flint_contracts.gen.flint.journal.v1 import journal_pb2
from flint_contracts.gen.flint.runs.v1 import control_pb2, runs_pb2
from flint_core.events import CallSucceeded, CancelRequested, encode_events
from flint_core.ids import make_run_id
from flint_rpc.errors import Refused
from flint_scheduler.cards import Phase, RunCard
from flint_scheduler.control.points import kept_entries
from flint_scheduler.control.wishes import cancel_payload, cancel_wish
from flint_scheduler.drafts import Command, CommandKind, Draft, draft_of, fold_of, obey, pause_closed, seal
from flint_store.resets import EntryFacts

RUN = make_run_id(5, 1_795_000_000_000, bytes(9))
STATE = runs_pb2.Run


def card(phase: Phase, **changes: object) -> RunCard:
    made = RunCard(RUN, "default", "w", "1.0.0", b"", 5, 5, 0, b"", phase, leg=1)
    if phase in (Phase.OPEN, Phase.SEALING):
        made.nonce, made.claimant = b"n" * 16, "w1"
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def commanded(made: RunCard, *kinds: str) -> Draft:
    draft = draft_of(made, 1)
    for kind in kinds:
        obey(draft, Command(made, kind, reason="why"))
    return draft


@pytest.mark.parametrize("phase", [Phase.READY, Phase.WAITING])
def test_a_run_without_a_leg_is_paused_at_once(phase: Phase) -> None:
    made = card(phase, wake_at_ms=5_000)
    fold = fold_of(commanded(made, CommandKind.PAUSE), 16)
    assert fold.state == STATE.STATE_PAUSED and fold.wake_at_ms is None and not fold.leg_closed
    assert fold.awaits is not None and fold.awaits.consumed == ["pause"]
    assert made.phase is Phase.CLOSING, "nobody else begins it"


def test_a_run_with_a_leg_is_paused_when_that_ends() -> None:
    made = card(Phase.OPEN)
    draft = commanded(made, CommandKind.PAUSE)
    assert made.pausing and draft.awaits is None, "the row stays until it is done"
    assert fold_of(draft, 16).state == STATE.STATE_RUNNING
    draft = draft_of(made, 1)
    seal(draft, 7, 3)
    pause_closed(draft)
    fold = fold_of(draft, 16)
    assert fold.state == STATE.STATE_PAUSED and fold.leg_closed
    assert fold.awaits is not None and fold.awaits.consumed == ["pause"]


def test_a_resume_makes_a_paused_run_ready() -> None:
    draft = commanded(card(Phase.PAUSED), CommandKind.RESUME)
    assert draft.ready and fold_of(draft, 16).state == STATE.STATE_QUEUED
    draft = commanded(card(Phase.OPEN, pausing=True), CommandKind.RESUME)
    assert not draft.card.pausing and fold_of(draft, 16).state == STATE.STATE_RUNNING


def test_a_cancel_ends_a_paused_run_or_lets_it_undo() -> None:
    draft = commanded(card(Phase.PAUSED), CommandKind.CANCEL)
    assert draft.ending is not None and fold_of(draft, 16).state == STATE.STATE_CANCELLED
    draft = commanded(card(Phase.PAUSED, compensates=True), CommandKind.CANCEL)
    assert draft.ready and fold_of(draft, 16).state == STATE.STATE_QUEUED


def test_a_cancel_takes_back_a_pause_that_has_not_happened() -> None:
    made = card(Phase.OPEN)
    commanded(made, CommandKind.PAUSE, CommandKind.CANCEL)
    assert not made.pausing
    draft = commanded(card(Phase.WAITING, cancel_requested=True, compensates=True), CommandKind.PAUSE)
    assert not draft.paused, "it is being undone"


@pytest.mark.parametrize("phase", [Phase.READY, Phase.WAITING, Phase.PAUSED, Phase.OPEN, Phase.SEALING])
def test_a_terminated_run_ends_whatever_it_has_to_undo(phase: Phase) -> None:
    draft = commanded(card(phase, compensates=True), CommandKind.TERMINATE)
    fold = fold_of(draft, 16)
    assert fold.ended and fold.state == STATE.STATE_CANCELLED
    assert draft.terminated is (phase in (Phase.OPEN, Phase.SEALING)), "its worker is told"
    assert fold.error is not None and runs_pb2.Problem.FromString(fold.error).type.endswith("/terminated")


def test_the_grace_of_a_cancel_goes_with_it() -> None:
    assert cancel_wish(cancel_payload("late", 1500).decode()) == ("late", 1500)
    assert cancel_wish(cancel_payload('{"grace_ms":1}', -1).decode()) == ('{"grace_ms":1}', -1)
    assert cancel_wish("plain text of an older build") == ("plain text of an older build", -1)


# -- points


def entry(index: int, *steps: tuple[str, str], end: int = 0, cancelled: bool = False) -> EntryFacts:
    records = [runs_pb2.StepRecord(step=step, iteration=iteration) for step, iteration in steps]
    events = [CancelRequested(1)] if cancelled else [CallSucceeded(index, None, 0, 0)]
    return EntryFacts(index, end, journal_pb2.JournalEntry(steps=records).SerializeToString(), encode_events(events))


async def backwards(entries: list[EntryFacts]) -> AsyncIterator[EntryFacts]:
    for each in sorted(entries, key=lambda e: -e.index):
        yield each


async def kept(entries: list[EntryFacts], *, ended: bool = True, **point: object) -> int:
    last = max((e.index for e in entries), default=0)
    return await kept_entries(
        backwards(entries),
        control_pb2.ResetPoint(**point),  # type: ignore[arg-type]
        ended=ended,
        position=last,
    )


A, B = ("/do/0/a", ""), ("/do/1/b", "")


async def test_the_entry_of_the_failure_is_given_up() -> None:
    assert await kept([entry(1, A), entry(2, B, end=2)], failed_step=True) == 1
    assert await kept([entry(1, A), entry(2, B)], failed_step=True) == 2, "ended from outside: it goes on behind it"
    assert await kept([entry(1, A), entry(2, cancelled=True), entry(3, B, end=3)], failed_step=True) == 1
    with pytest.raises(Refused):
        await kept([entry(1, A, end=1)], failed_step=True)
    with pytest.raises(Refused):
        await kept([entry(1, A)], ended=False, failed_step=True)


async def test_a_step_is_found_with_what_is_within_it() -> None:
    loop = [entry(1, A), entry(2, ("/do/1/b/do/0/c", "0")), entry(3, ("/do/1/b/do/0/c", "1")), entry(4, B, end=1)]
    assert await kept(loop, step=control_pb2.ResetStep(step="/do/1/b")) == 1
    assert await kept(loop, step=control_pb2.ResetStep(step="/do/1/b/do/0/c", iteration="1")) == 2
    assert await kept(loop, ended=False, step=control_pb2.ResetStep(step="/do/0/a")) == 0
    assert await kept(loop, start=True) == 0
    with pytest.raises(Refused):
        await kept(loop, step=control_pb2.ResetStep(step="/do/9/z"))


async def test_what_was_undone_only_begins_anew() -> None:
    undone = [entry(1, A), entry(2, B), entry(3, ("/do/0/a/metadata/flint/compensate", ""), end=2)]
    for point in ({"failed_step": True}, {"step": control_pb2.ResetStep(step="/do/1/b")}):
        with pytest.raises(Refused):
            await kept(undone, **point)
    assert await kept(undone, start=True) == 0
