"""What entries, SEALs and commands make of a run, before it is committed."""

from __future__ import annotations

import orjson
import pytest

from flint_contracts.gen.flint.journal.v1 import journal_pb2
from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_core.ids import group_of_run, make_run_id, run_id_text
from flint_scheduler.cards import Phase, RunCard
from flint_scheduler.drafts import Command, CommandKind, Draft, accept, close_cancelled, draft_of, fold_of, obey, seal

GROUPS = 16
RUN = make_run_id(5, 1_795_000_000_000, bytes(9))
PARENT = make_run_id(7, 1_795_000_000_000, bytes(9))
STATE = runs_pb2.Run


def card(**changes: object) -> RunCard:
    made = RunCard(
        run_id=RUN,
        namespace="default",
        workflow_id="w",
        version="1.0.0",
        definition_hash=b"",
        group=group_of_run(RUN, GROUPS),
        level=5,
        created_ms=0,
        trace_id=b"",
        phase=Phase.OPEN,
        leg=1,
        nonce=b"n" * 16,
        claimant="w1",
    )
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def entry(index: int = 1, **parts: object) -> journal_pb2.JournalEntry:
    return journal_pb2.JournalEntry(run_id=RUN, leg=1, index=index, events=b"[]", **parts)  # type: ignore[arg-type]


def opened(*keys: str) -> list[journal_pb2.AwaitOpened]:
    return [journal_pb2.AwaitOpened(key=key, kind=journal_pb2.AwaitOpened.KIND_RUN, request=b"{}") for key in keys]


def blocked(wake_at_ms: int = 0) -> journal_pb2.LegEnd:
    return journal_pb2.LegEnd(blocked=journal_pb2.Blocked(wake_at_ms=wake_at_ms))


def drafted(made: RunCard, *entries: journal_pb2.JournalEntry) -> Draft:
    draft = draft_of(made, 1)
    for each in entries:
        accept(draft, each)
    return draft


def test_a_run_without_awaits_changes_nothing_but_its_row() -> None:
    succeeded = journal_pb2.LegEnd(succeeded=journal_pb2.Succeeded(output=b"1"))
    for end in (None, blocked(99), succeeded):
        assert fold_of(drafted(card(), entry(end=end)), GROUPS).awaits is None


def test_awaits_are_recorded_and_told_only_once() -> None:
    draft = drafted(
        card(),
        entry(1, awaits_opened=opened("1", "2")),
        entry(2, awaits_opened=opened("3"), awaits_closed=["1", "0"], consumed=["k"]),
    )
    fold = fold_of(draft, GROUPS)
    assert fold.awaits is not None
    # What was opened and closed before the commit was never there.
    assert [o.key for o in fold.awaits.opened] == ["2", "3"]
    assert (fold.awaits.closed, fold.awaits.consumed) == (["1", "0"], ["k"])
    recorded = journal_pb2.JournalEntry.FromString(draft.entries[1].steps)
    assert not recorded.awaits_opened
    assert not recorded.consumed


@pytest.mark.parametrize(
    ("mail", "more", "consumed", "state"),
    [
        ((), False, [], STATE.STATE_WAITING),
        (("a",), False, ["a"], STATE.STATE_WAITING),
        (("a", "b"), False, ["a"], STATE.STATE_QUEUED),
        (("a",), True, ["a"], STATE.STATE_QUEUED),
    ],
)
def test_a_blocked_run_with_mail_is_ready(mail: tuple[str, ...], more: bool, consumed: list[str], state: int) -> None:
    made = card(mail=frozenset(mail), more_mail=more)
    fold = fold_of(drafted(made, entry(consumed=consumed, end=blocked(77))), GROUPS)
    assert (fold.state, fold.wake_at_ms) == (state, 77 if state == STATE.STATE_WAITING else None)
    assert fold.leg_closed


def test_what_the_commit_records_of_a_wait_counts_after_it() -> None:
    """Mail that turns out to be none while the commit is under way does not make it a wait: it has no wake time."""
    made = card(more_mail=True)
    draft = drafted(made, entry(end=blocked(77)))
    fold_of(draft, GROUPS)
    made.more_mail = False
    assert draft.blocked and not draft.waits
    fold_of(draft, GROUPS)  # asked again after a commit that failed
    assert draft.waits


def test_blocked_without_a_timer_has_no_wake_time() -> None:
    fold = fold_of(drafted(card(), entry(awaits_opened=opened("1"), end=blocked())), GROUPS)
    assert (fold.state, fold.wake_at_ms) == (STATE.STATE_WAITING, None)


def test_an_end_closes_everything_and_answers_the_parent() -> None:
    made = card(has_awaits=True, parent_run_id=PARENT, parent_key="4")
    end = journal_pb2.LegEnd(succeeded=journal_pb2.Succeeded(output=b'{"n": 1}'))
    fold = fold_of(drafted(made, entry(1, awaits_opened=opened("9"), consumed=["k"], end=end)), GROUPS)
    changes = fold.awaits
    assert changes is not None
    assert (changes.ended, changes.opened, changes.consumed) == (True, [], [])
    assert changes.parent is not None
    assert (changes.parent.run_id, changes.parent.await_key) == (PARENT, "4")
    assert changes.parent.group == group_of_run(PARENT, GROUPS)
    assert orjson.loads(changes.parent.payload) == {"state": "succeeded", "run": run_id_text(RUN), "output": {"n": 1}}


def test_every_way_to_end_answers_the_parent() -> None:
    parent = {"parent_run_id": PARENT, "parent_key": "4"}
    lost = drafted(card(**parent, loss=True))
    seal(lost, 7, 1)
    cancelled = drafted(card(**parent, phase=Phase.WAITING))
    obey(cancelled, Command(cancelled.card, CommandKind.CANCEL, reason="enough"))
    problem = runs_pb2.Problem(type="about:large", status=413, title="Too large")
    undeliverable = drafted(card(**parent))
    obey(undeliverable, Command(undeliverable.card, CommandKind.FAIL, problem))
    answers = []
    for draft in (lost, cancelled, undeliverable):
        changes = fold_of(draft, GROUPS).awaits
        assert changes is not None
        assert changes.parent is not None
        answers.append(orjson.loads(changes.parent.payload))
    assert [a["state"] for a in answers] == ["failed", "cancelled", "failed"]
    assert [a["error"]["status"] for a in answers] == [500, 499, 413]
    assert answers[1]["error"]["detail"] == "enough"


def test_a_cancel_is_noted_while_the_leg_runs() -> None:
    draft = drafted(card())
    obey(draft, Command(draft.card, CommandKind.CANCEL, reason="why"))
    fold = fold_of(draft, GROUPS)
    assert (fold.state, fold.cancel_requested, fold.ended) == (STATE.STATE_RUNNING, True, False)
    assert fold.awaits is not None
    assert (fold.awaits.cancel_served, fold.awaits.ended) == (True, False)


def cancelled(made: RunCard, *entries: journal_pb2.JournalEntry) -> Draft:
    draft = drafted(made, *entries)
    obey(draft, Command(draft.card, CommandKind.CANCEL, reason="enough"))
    return draft


@pytest.mark.parametrize("phase", [Phase.WAITING, Phase.READY])
def test_a_cancel_of_a_run_without_a_leg_ends_it_unless_it_has_something_to_undo(phase: Phase) -> None:
    fold = fold_of(cancelled(card(phase=phase, nonce=None, claimant=None)), GROUPS)
    assert (fold.state, fold.ended) == (STATE.STATE_CANCELLED, True)
    draft = cancelled(card(phase=phase, nonce=None, claimant=None, compensates=True, wake_at_ms=99))
    fold = fold_of(draft, GROUPS)
    assert (fold.state, fold.ended, fold.cancel_requested) == (STATE.STATE_QUEUED, False, True)
    assert (draft.ready, fold.wake_at_ms, draft.card.phase) == (True, None, Phase.CLOSING)
    assert runs_pb2.Problem.FromString(fold.error or b"").detail == "enough"
    obey(draft, Command(draft.card, CommandKind.CANCEL))  # judged again after a commit that failed
    assert draft.ready and draft.ending is None


def test_a_second_cancel_of_a_run_that_undoes_changes_nothing() -> None:
    for phase in (Phase.WAITING, Phase.READY):
        draft = cancelled(card(phase=phase, nonce=None, claimant=None, compensates=True, cancel_requested=True))
        fold = fold_of(draft, GROUPS)
        assert (draft.ready, draft.ending, draft.card.phase) == (False, None, phase)
        assert fold.awaits is not None and fold.awaits.cancel_served


def test_what_an_entry_tells_of_compensation_stays() -> None:
    draft = drafted(card(), entry(1, compensates=True), entry(2))
    assert fold_of(draft, GROUPS).compensates
    assert not fold_of(drafted(card(), entry(1)), GROUPS).compensates
    assert fold_of(drafted(card(compensates=True), entry(1)), GROUPS).compensates


def ends_of_legs() -> list[tuple[str, journal_pb2.LegEnd | None]]:
    yielded = journal_pb2.LegEnd(yielded=journal_pb2.Yielded())
    return [("blocked", blocked(99)), ("yielded", yielded), ("lost", None)]


@pytest.mark.parametrize(("how", "end"), ends_of_legs())
@pytest.mark.parametrize("compensates", [True, False])
@pytest.mark.parametrize("later", [True, False])
def test_a_leg_that_ends_while_a_cancel_is_asked_for(
    how: str, end: journal_pb2.LegEnd | None, compensates: bool, later: bool
) -> None:
    made = card(cancel_requested=not later, loss=how == "lost")
    draft = drafted(made, entry(1, compensates=compensates, end=end))
    if end is None:
        seal(draft, 7, 3)
    if later:
        obey(draft, Command(made, CommandKind.CANCEL))
    else:
        close_cancelled(draft)
    fold = fold_of(draft, GROUPS)
    expected = STATE.STATE_QUEUED if compensates else STATE.STATE_CANCELLED
    assert (fold.state, fold.ended, fold.wake_at_ms) == (expected, not compensates, None)
    assert fold.leg_closed


def test_a_run_that_waits_while_it_undoes_is_left_alone() -> None:
    end = journal_pb2.LegEnd(blocked=journal_pb2.Blocked(wake_at_ms=99, undoing=True))
    draft = drafted(card(cancel_requested=True), entry(1, compensates=True, end=end))
    close_cancelled(draft)
    fold = fold_of(draft, GROUPS)
    assert (fold.state, fold.wake_at_ms, fold.ended) == (STATE.STATE_WAITING, 99, False)
