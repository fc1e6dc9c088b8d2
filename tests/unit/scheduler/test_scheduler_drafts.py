"""What entries, SEALs and commands make of a run, before it is committed."""

from __future__ import annotations

import orjson
import pytest

from flint_contracts.gen.flint.journal.v1 import journal_pb2
from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_core.ids import group_of_run, make_run_id, run_id_text
from flint_scheduler.cards import Phase, RunCard
from flint_scheduler.drafts import Command, CommandKind, Draft, accept, draft_of, fold_of, obey, seal

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
