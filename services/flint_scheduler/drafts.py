"""Drafts: a run as it will be after the fold's commit. Pure: what entries, SEALs and commands make of a card.

A draft begins as its card is; every accepted entry moves it; `fold_of` says what to commit. The card itself changes
only after the commit (fold.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from flint_contracts.gen.flint.journal.v1 import journal_pb2
from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_core.ids import group_of_run
from flint_core.problems import ProblemType
from flint_core.queueing import Placement, QueueHints, needs_permits
from flint_scheduler.announce import Ending
from flint_scheduler.answers import child_ended
from flint_scheduler.cards import Phase, RunCard
from flint_store.await_changes import AwaitChanges, AwaitOpening, ParentMessage
from flint_store.awaits import Target
from flint_store.fold import EntryRow, RunFold
from flint_store.permit_changes import PermitChange

__all__ = [
    "Command",
    "CommandKind",
    "Draft",
    "accept",
    "close_cancelled",
    "draft_of",
    "fold_of",
    "obey",
    "pause_closed",
    "seal",
    "unstorable",
]

_RELEASES = 10
_RUN = runs_pb2.Run
_SUCCEEDED = _RUN.STATE_SUCCEEDED
_END_KINDS = {"succeeded": 1, "failed": 2, "cancelled": 3, "blocked": 4, "yielded": 5}
_OPEN, _SEALING, _WAITING, _PAUSED = Phase.OPEN, Phase.SEALING, Phase.WAITING, Phase.PAUSED
_RECORD_STATES = {Phase.READY: _RUN.STATE_QUEUED, Phase.OPENING: _RUN.STATE_QUEUED, Phase.CLOSING: _RUN.STATE_QUEUED}


class CommandKind:
    """What the owner itself wants of a run."""

    CANCEL = "cancel"  # note the cancel; end the run when it has no leg
    TERMINATE = "terminate"  # end the run at once
    PAUSE = "pause"  # the run has no leg, or is about to have none: it holds still
    RESUME = "resume"  # it goes on
    FAIL = "fail"  # its leg cannot be delivered: close it and fail the run


@dataclass(slots=True)
class Command:
    """One change that does not come from the journal."""

    card: RunCard
    kind: str
    problem: runs_pb2.Problem | None = None
    reason: str = ""
    grace_ms: int = -1  # of a cancel; -1: the usual time


@dataclass(slots=True)
class Draft:
    """A run as it will be after the commit under way."""

    card: RunCard
    position: int
    losses: int
    generation: int  # of the journal when it was judged
    entries: list[EntryRow] = field(default_factory=list)
    told: list[journal_pb2.JournalEntry] = field(default_factory=list)  # their steps are announced after the commit
    snapshot: bytes | None = None
    snapshot_position: int = 0
    closed: bool = False
    over: bool = False  # its leg told so itself, or a SEAL stands for it: nobody executes it any more
    expected_sequence: int | None = None
    blocked: bool = False  # the run waits: for `wake_at_ms`, unless that is 0, and for its awaits
    waits: bool = False  # that is what the commit records: no message had come by then
    wake_at_ms: int = 0
    placement: journal_pb2.Placement | None = None  # where it goes on, as its step names it
    undoing: bool = False  # and is in the middle of undoing what it did
    paused: bool = False  # and holds still until it is resumed
    terminated: bool = False  # its worker is told to drop the leg
    ready: bool = False  # it has no leg, and gets one that undoes what it did
    ending: Ending | None = None
    cancel: bool = False
    compensates: bool = False
    error: runs_pb2.Problem | None = None  # noted before the end: that a cancel was asked for, and why
    awaits: AwaitChanges | None = None
    level_named: Callable[[str, str], int | None] = lambda namespace, name: None

    @property
    def placed(self) -> Placement | None:
        """Where the next leg goes; None: where the run belongs."""
        named = self.placement
        if named is None:
            return self.card.placement
        if not (named.pool or named.region or named.level):
            return None
        own = self.card.hints or QueueHints()
        level = int(named.level) if named.level.isdecimal() else self.level_named(self.card.namespace, named.level)
        return Placement(named.pool or own.pool, named.region or own.region, level, named.level)

    def changes(self) -> AwaitChanges:
        """What is to change of awaits and inboxes, to add to."""
        if self.awaits is None:
            self.awaits = AwaitChanges(self.card.run_id, self.card.group, self.card.namespace)
        return self.awaits


def draft_of(card: RunCard, generation: int) -> Draft:
    """The run as it is."""
    return Draft(card, card.position, card.losses, generation, compensates=card.compensates)


def accept(draft: Draft, entry: journal_pb2.JournalEntry) -> str:
    """Take up the next entry of the open leg; answers how the leg ends with it, or nothing. Takes the entry apart."""
    index = draft.position = entry.index
    draft.losses = draft.card.releases = 0
    draft.told.append(entry)
    draft.compensates = draft.compensates or entry.compensates
    if entry.snapshot:
        draft.snapshot = entry.snapshot
        draft.snapshot_position = index
    if entry.awaits_opened or entry.awaits_closed or entry.consumed or entry.taken:
        _note_awaits(draft.changes(), entry)
        for name in ("awaits_opened", "awaits_closed", "consumed", "taken"):
            entry.ClearField(name)
    end = _take_end(draft, entry.end) if entry.HasField("end") else ""
    events = entry.events
    draft.closed = draft.over = bool(end)
    # What stands elsewhere, or in columns of its own, is not stored twice. Empty is as good as cleared, and faster.
    entry.events = entry.run_id = entry.leg_nonce = b""
    entry.claimant = ""
    if draft.snapshot is not None:
        entry.snapshot = b""
    card = draft.card
    draft.entries.append(
        EntryRow(
            card.run_id,
            index,
            entry.leg,
            card.claimant or "",
            entry.SerializeToString(),
            events,
            _END_KINDS[end] if end else 0,
        )
    )
    if end == "yielded" and entry.end.yielded.asked:
        return "given back"  # for a pause: its worker goes on with others
    return end


def _take_end(draft: Draft, last: journal_pb2.LegEnd) -> str:
    """Note how the leg ends, and answer it; empty: in a way that this build does not know, so it does not."""
    end = last.WhichOneof("end")
    if end == "succeeded":
        succeeded = last.succeeded
        draft.ending = Ending(_SUCCEEDED, 0, output=succeeded.output)
        succeeded.ClearField("output")  # it stands in the run's row
    elif end == "failed":
        draft.ending = Ending(_RUN.STATE_FAILED, 0, error=last.failed.error)
    elif end == "cancelled":
        draft.ending = Ending(_RUN.STATE_CANCELLED, 0, error=draft.error or draft.card.cancel_error)
    elif end == "blocked":
        blocked = last.blocked
        draft.blocked = True
        draft.wake_at_ms = blocked.wake_at_ms
        draft.undoing = blocked.undoing
        if blocked.HasField("placement"):
            draft.blocked = False  # it goes on at once, elsewhere
            draft.placement = blocked.placement
    return end or ""


def _note_awaits(changes: AwaitChanges, entry: journal_pb2.JournalEntry) -> None:
    """What was opened and closed before the commit was never there: the statement could not close what it opens."""
    gone = set(entry.awaits_closed)
    if gone:
        changes.opened = [o for o in changes.opened if o.key not in gone]
        changes.closed += entry.awaits_closed
    for opened in entry.awaits_opened:
        changes.opened.append(
            AwaitOpening(
                key=opened.key,
                kind=opened.kind,
                step=opened.step,
                iteration=opened.iteration,
                request=opened.request,
                opened_ms=opened.open_time_ms,
            )
        )
    changes.consumed += entry.consumed
    changes.taken += entry.taken


def seal(draft: Draft, sequence: int, most_losses: int) -> None:
    """The leg is over: everything its worker had appended is folded before this."""
    card = draft.card
    draft.closed = draft.over = True
    # Behind the first of two SEALs stands the second: dispatch appends a fresh one then.
    draft.expected_sequence = None if card.seal_doubt else sequence
    if card.releases >= _RELEASES:
        draft.ending = _poisoned(
            "The run makes no progress",
            f"workers let {card.releases} legs in a row go without an entry while the run stood at entry "
            f"{draft.position}; the workers' logs say why",
        )
        return
    if not card.loss:
        return
    draft.losses += 1
    if draft.losses >= most_losses:
        draft.ending = _poisoned(
            "The run lost its worker too often",
            f"{draft.losses} workers in a row were lost while the run stood at entry {draft.position}; it was stopped "
            "so that it harms no more workers",
        )


def _poisoned(title: str, detail: str) -> Ending:
    problem = runs_pb2.Problem(type=ProblemType.POISON, status=500, title=title, detail=detail)
    return Ending(_RUN.STATE_FAILED, 0, error=problem)


def obey(draft: Draft, command: Command) -> None:
    """Take up what the owner wants of a run whose opening is not under way."""
    card = draft.card
    if command.kind == CommandKind.FAIL:
        if draft.ending is None:
            draft.closed = True
            draft.ending = Ending(_RUN.STATE_FAILED, 0, error=command.problem)
        return
    if command.kind == CommandKind.TERMINATE:
        _terminate(draft, command)
        return
    if command.kind in (CommandKind.PAUSE, CommandKind.RESUME):
        _hold(draft, command)
        return
    draft.changes().cancel_served = True
    if draft.ending is not None:
        return
    card.cancel_grace_ms = command.grace_ms
    card.pausing = draft.paused = False
    draft.cancel = True
    draft.error = (
        card.cancel_error
        or command.problem
        or runs_pb2.Problem(
            type=ProblemType.CANCELLED, status=499, title="The run was cancelled", detail=command.reason
        )
    )
    if draft.closed:
        close_cancelled(draft)
    elif card.phase in (Phase.READY, Phase.WAITING, Phase.CLOSING, Phase.PAUSED):
        if draft.compensates and card.cancel_requested:
            return  # it is queued for the leg that undoes, or that leg waits for something
        card.phase = Phase.CLOSING  # the queue and the timers skip it
        if draft.compensates:
            draft.ready = True
        else:
            draft.ending = Ending(_RUN.STATE_CANCELLED, 0, error=draft.error)


def _terminate(draft: Draft, command: Command) -> None:
    """The run ends with whatever is recorded; nothing is undone, and nothing of an open leg is recorded any more."""
    if draft.ending is not None:
        return
    card = draft.card
    if card.nonce is None:
        card.phase = Phase.CLOSING
    draft.closed = draft.terminated = card.nonce is not None
    draft.paused = draft.ready = False
    problem = runs_pb2.Problem(
        type=ProblemType.TERMINATED, status=499, title="The run was terminated", detail=command.reason
    )
    draft.ending = Ending(_RUN.STATE_CANCELLED, 0, error=problem)


def _hold(draft: Draft, command: Command) -> None:
    """Pause a run without a leg, or let a paused one go on. One whose leg is open is paused when that ends."""
    card = draft.card
    pause = command.kind == CommandKind.PAUSE
    if draft.ending is not None:
        return
    if pause and (card.phase in (Phase.OPEN, Phase.SEALING) and not draft.closed):
        card.pausing = True  # the row stays until it is done
        return
    draft.changes().consumed.append(command.kind)
    if pause:
        if not (card.cancel_requested or draft.cancel or card.phase is Phase.PAUSED):
            pause_closed(draft)
        return
    card.pausing = draft.paused = False
    if card.phase is Phase.PAUSED:
        card.phase = Phase.CLOSING  # as after a cancel: nobody else's until the commit
        draft.ready = True


def pause_closed(draft: Draft) -> None:
    """The run has no leg, or its leg is over: it is paused now."""
    if not draft.closed:
        draft.card.phase = Phase.CLOSING  # the queue and the timers skip it
    draft.paused, draft.ready, draft.blocked = True, False, False
    if CommandKind.PAUSE not in draft.changes().consumed:
        draft.changes().consumed.append(CommandKind.PAUSE)


def close_cancelled(draft: Draft) -> None:
    """The leg of a run that is to be cancelled is over: the run ends, unless it has something to undo.

    Then another leg begins, which is told of the cancel; not at once when it already waits in the middle of undoing.
    """
    if not draft.compensates:
        draft.ending = Ending(_RUN.STATE_CANCELLED, 0, error=draft.error or draft.card.cancel_error)
    elif not draft.undoing:
        draft.blocked = False


def unstorable(card: RunCard, generation: int, why: str) -> Draft:
    """The run with the failure that takes the place of an entry which PostgreSQL refuses."""
    draft = draft_of(card, generation)
    draft.closed = True
    problem = runs_pb2.Problem(
        type=ProblemType.UNSTORABLE,
        status=500,
        title="The run's progress cannot be recorded",
        detail=f"PostgreSQL refused the entry after position {card.position}: {why}"[:1000],
    )
    draft.ending = Ending(_RUN.STATE_FAILED, 0, error=problem)
    return draft


def fold_of(draft: Draft, groups: int) -> RunFold:
    """What the commit changes. `groups`: number of shard groups. May be asked again after a commit that failed."""
    card, ending = draft.card, draft.ending
    wake_at_ms = 0
    if ending is not None:
        state = ending.state
        _close_all(draft, ending, groups)
    elif draft.paused:
        state = _RUN.STATE_PAUSED
    elif draft.closed:
        draft.waits = draft.blocked and not _has_mail(draft)
        if draft.waits:
            state = _RUN.STATE_WAITING
            wake_at_ms = draft.wake_at_ms
        else:
            state = _RUN.STATE_QUEUED
    elif card.phase is _OPEN or card.phase is _SEALING:
        state = _RUN.STATE_RUNNING
    elif card.phase is _WAITING:
        state = _RUN.STATE_WAITING
        wake_at_ms = card.wake_at_ms
    elif card.phase is _PAUSED:
        state = _RUN.STATE_PAUSED
    else:
        state = _RECORD_STATES[card.phase]
    error = (ending.error if ending is not None else None) or draft.error
    snapshot = None if ending is not None else draft.snapshot
    # By place: so many names would cost as much as all the rest of this.
    return RunFold(
        card.run_id,
        card.change + 1,
        draft.position,
        state,
        draft.closed or ending is not None,
        draft.losses,
        draft.cancel,
        snapshot,
        draft.snapshot_position,
        ending.output if ending is not None and state == _SUCCEEDED else None,
        error.SerializeToString() if error is not None else None,
        wake_at_ms or None,
        ending is not None,
        draft.compensates,
        _placement(draft) if draft.placement is not None else None,
        draft.awaits,
        _permits(draft) if ending is not None and card.hints is not None and needs_permits(card.hints) else None,
    )


def _permits(draft: Draft) -> PermitChange:
    """The run's end frees its permits; one that its leg may not know of leaves them until that leg is over."""
    card = draft.card
    if draft.over or card.nonce is None:
        return PermitChange(card.run_id)
    return PermitChange(card.run_id, card.claimant, card.nonce)


def _placement(draft: Draft) -> bytes | None:
    """Where the next leg goes as it is stored; empty: where the run belongs; None: as before."""
    if draft.placement is None or draft.ending is not None:
        return None
    placed = draft.placed
    return placed.to_json() if placed is not None else b""


def _has_mail(draft: Draft) -> bool:
    """Whether messages came for the run while its leg was ending."""
    card = draft.card
    consumed = draft.awaits.consumed if draft.awaits is not None else ()
    return card.more_mail or bool(card.mail.difference(consumed))


def _close_all(draft: Draft, ending: Ending, groups: int) -> None:
    """The run's end closes its awaits, and answers its parent's."""
    card = draft.card
    if card.has_awaits or draft.awaits is not None:
        changes = draft.changes()
        changes.ended = True
        changes.opened, changes.closed, changes.consumed = [], [], []
    if card.parent_key is not None and card.parent_run_id is not None and card.is_branch:
        draft.changes().branch_of = Target(card.parent_run_id, group_of_run(card.parent_run_id, groups))
    elif card.parent_key is not None and card.parent_run_id is not None:
        draft.changes().parent = ParentMessage(
            run_id=card.parent_run_id,
            await_key=card.parent_key,
            group=group_of_run(card.parent_run_id, groups),
            payload=child_ended(card.run_id, ending.state, ending.output, ending.error or draft.error),
        )
