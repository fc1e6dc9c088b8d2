"""Fold: the journal becomes the record, hundreds of entries in one commit (R2, R5).

Entries come from the groups' readers in the order of the stream, those in the middle of a leg with what comes next of
their run (company.py); commands (a cancel's end, a SEAL's verdict, a run that cannot be delivered) join the same lane,
so that one run is never changed by two commits at a time. A batch is judged against the cards, committed as one fenced
statement, and only then are cards, watchers and slots told.

Entries of urgent runs are also put before all that waits, as a reading of their own (`ahead`): what stands between
them in the journal is other runs'. They are judged again in their place, as duplicates, so that the group's watermark,
and what happens when a commit fails, are as if nothing had overtaken. While such entries come, batches are small.

When the commit fails: PostgreSQL gone → the same batch is judged again after the groups were read anew (the commit
may have happened; entries that it recorded are duplicates then). A value that cannot be stored → the batch is halved
until the one run is found, which fails with a typed error; the others go on. Fenced → the steward steps down and
drops everything.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Awaitable, Callable

from sqlalchemy.exc import DBAPIError, IntegrityError

from flint_contracts.gen.flint.journal.v1 import journal_pb2
from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_ops.logging import get_logger
from flint_scheduler.announce import Announcer
from flint_scheduler.cards import Phase, RunBook, RunCard
from flint_scheduler.clock import RecordClock
from flint_scheduler.company import Company
from flint_scheduler.drafts import (
    Command,
    CommandKind,
    Draft,
    accept,
    close_cancelled,
    draft_of,
    fold_of,
    obey,
    pause_closed,
    seal,
    unstorable,
)
from flint_scheduler.fleet import FleetView
from flint_scheduler.holdings import Holdings
from flint_scheduler.judgement import Verdict, judge
from flint_scheduler.lane import Lane, LaneClosed
from flint_scheduler.metrics import COMMIT_ROWS, ENTRIES, FOLD_LAG, RUNS_ENDED
from flint_scheduler.readings import Item, Reading
from flint_scheduler.ready import ReadyQueue
from flint_scheduler.record import Record, RecordUnavailable
from flint_scheduler.shares import Shares
from flint_store.await_changes import AwaitChanges
from flint_store.awaits import Target
from flint_store.control_changes import FailedRun
from flint_store.fence import Fenced, OwnerSession
from flint_store.fold import ROW_DIFFERS, fold_runs
from flint_store.permit_changes import PermitChange

__all__ = ["Command", "CommandKind", "Folder", "Reading"]

log = get_logger(__name__)

_BATCH = 1000
_BATCH_BESIDE_URGENT = 200
_URGENT_S = 1.0
_RETRY_S = 0.5
_DIFFERENCES = 20
_OPENING_S = 0.02
_MOST_PENDING_BYTES = 32 * 2**20
_RUN = runs_pb2.Run
_ACCEPT, _STALE, _SEAL, _GAP = Verdict.ACCEPT, Verdict.STALE, Verdict.SEAL, Verdict.GAP
_OPEN, _SEALING, _WAITING, _PAUSED = Phase.OPEN, Phase.SEALING, Phase.WAITING, Phase.PAUSED


class _Differs(Exception):
    """A run's row is not as its card says: somebody else's commit, or one of mine whose answer was lost."""


class Folder(Lane[Reading | Command]):
    """The fold lane of one scheduler."""

    def __init__(
        self,
        record: Record,
        holdings: Holdings,
        book: RunBook,
        queue: ReadyQueue,
        fleet: FleetView,
        clock: RecordClock,
        announcer: Announcer,
        leg_losses: int,
        shares: Shares,
    ) -> None:
        super().__init__(_BATCH)
        self._record = record
        self._holdings = holdings
        self._book = book
        self._queue = queue
        self._fleet = fleet
        self._clock = clock
        self._announcer = announcer
        self._leg_losses = leg_losses
        self._shares = shares
        self.level_named: Callable[[str, str], int | None] = lambda namespace, name: None
        self._room = asyncio.Event()
        self._room.set()
        self._company = Company(book, announcer)
        self._timer: asyncio.TimerHandle | None = None  # of what waits for company
        self._judged: list[Reading] = []
        self._accepted = 0  # entries, not counted by the metric yet
        self._ended: Counter[runs_pb2.Run.State.ValueType] = Counter()  # runs by state, likewise
        self._ahead: deque[Reading] = deque()
        self._ahead_at = -_URGENT_S  # loop time
        self._overtook = False
        self._pending_bytes = 0
        self.on_given_up: Callable[[int], None] = lambda group: None
        self.on_cancel_nonce: Callable[[bytes, str, bytes], None] = lambda run_id, claimant, nonce: None
        self.on_ready: Callable[[], None] = lambda: None
        self.on_waiting: Callable[[RunCard], None] = lambda card: None
        self.on_mail: Callable[[list[bytes]], None] = lambda run_ids: None
        self.on_awaits: Callable[[list[bytes]], None] = lambda run_ids: None
        self.on_answered: Callable[[list[Target]], None] = lambda targets: None
        self.on_branches: Callable[[list[Target]], None] = lambda targets: None
        self.on_cancel: Callable[[RunCard], None] = lambda card: None
        self.on_drop: Callable[[bytes, str, bytes], None] = lambda run_id, claimant, nonce: None
        self.on_paused: Callable[[RunCard], None] = lambda card: None
        self.counts_failures: Callable[[str, str], bool] = lambda namespace, workflow_id: False
        self.on_failures: Callable[[], None] = lambda: None
        self.on_permits: Callable[[list[tuple[RunCard, PermitChange]]], None] = lambda changes: None
        self.on_ended: Callable[[str], None] = lambda request_id: None
        self.reload: Callable[[set[int]], Awaitable[None]] | None = None

    # -- in ------------------------------------------------------------------------------------------------------------

    async def read(self, reading: Reading) -> None:
        """Hand over messages of a group's journal; waits while the lane is far behind."""
        await self._room.wait()
        reading.decode()
        now = asyncio.get_running_loop().time()
        urgent = self._company.sort(reading, now)
        if reading.entries:
            self._put(reading)
            self._pending_bytes += reading.size
            if self._pending_bytes > _MOST_PENDING_BYTES:
                self._room.clear()
        if urgent:
            self._overtake(reading, urgent)
        if self._company.full:
            self._go_on(float("inf"))
        elif self._timer is None:
            self._plan()

    def _overtake(self, reading: Reading, urgent: list[Item]) -> None:
        messages = list({message.sequence: message for message, _, _ in urgent}.values())
        # Judging takes entries apart, and in their place they are judged once more: these are parsed anew.
        ahead = Reading(reading.holding, reading.generation, messages, reading.read_at, urgent, ahead=True, spent=True)
        self._ahead.append(ahead)
        self._ahead_at = reading.read_at

    def _plan(self) -> None:
        due = self._company.next_at
        if due is not None:
            self._timer = asyncio.get_running_loop().call_at(due, self._waited)

    def _waited(self) -> None:
        self._timer = None
        self._go_on(asyncio.get_running_loop().time())
        self._plan()

    def _go_on(self, now: float) -> None:
        """Entries that waited for company until then wait no longer."""
        with contextlib.suppress(LaneClosed):
            for reading in self._company.due(now):
                self._put(reading)

    def _take(self) -> list[Reading | Command]:
        """What overtakes is committed by itself, and in turn with the others."""
        if self._ahead and not self._overtook:
            self._overtook = True
            ahead: list[Reading | Command] = [*self._ahead]
            self._ahead.clear()
            return ahead
        self._overtook = False
        urgent = asyncio.get_running_loop().time() - self._ahead_at < _URGENT_S
        self._batch_weight = _BATCH_BESIDE_URGENT if urgent else _BATCH
        return super()._take()

    def command(self, command: Command) -> None:
        """Hand over a change of the owner's own: behind what has come of the run."""
        waiting = self._company.take(command.card.group, command.card.run_id)
        if waiting is not None:
            self._put(waiting)
        self._put(command)

    def _weight(self, unit: Reading | Command) -> int:
        if not isinstance(unit, Reading):
            return 1
        return max(len(unit.messages), len(unit.entries)) + unit.size // 4096

    def _refuse(self, unit: Reading | Command, error: Exception) -> None:
        """Entries stay in the journal, inbox rows in PostgreSQL; after a defect both are read again."""
        group = unit.holding.group if isinstance(unit, Reading) else unit.card.group
        if not isinstance(error, LaneClosed):
            self._holdings.reread({group})
            self.on_given_up(group)

    # -- judging -------------------------------------------------------------------------------------------------------

    async def _commit(self, batch: list[Reading | Command]) -> None:
        self._pending_bytes -= sum(unit.size for unit in batch if isinstance(unit, Reading))
        if self._pending_bytes <= _MOST_PENDING_BYTES // 2:
            self._room.set()
        differences = 0
        chunk = _BATCH
        while True:
            session = self._holdings.session
            drafts = self._judge(batch, session)
            if not drafts or session is None:
                break
            pending = list(drafts.values())
            try:
                for at in range(0, len(pending), chunk):
                    await self._store(pending[at : at + chunk], session)
                break
            except RecordUnavailable as error:
                log.warning("fold_waits_for_postgresql", error=str(error), runs=len(drafts))
                chunk = max(1, min(chunk, len(pending)) // 2)  # it may have been too much for one statement
                await self._read_again(drafts)
            except _Differs as error:
                differences += 1
                log.warning("run_differs_from_record", run=str(error), time=differences)
                if differences > _DIFFERENCES:
                    raise RuntimeError(f"run {error} keeps differing from its record") from error
                await self._read_again(drafts)
            except Fenced as fenced:
                self._holdings.fenced(fenced.session)
                return
        self._advance()

    async def _read_again(self, drafts: dict[bytes, Draft]) -> None:
        """After a commit whose answer was lost: nothing is judged before the cards are what the record says."""
        groups = {d.card.group for d in drafts.values()}
        while True:
            await asyncio.sleep(_RETRY_S)
            if self._holdings.lost.is_set() or self.reload is None:
                return
            try:
                await self.reload(groups)
                return
            except RecordUnavailable as error:
                log.warning("record_still_unavailable", error=str(error))

    def _judge(self, batch: list[Reading | Command], session: OwnerSession | None) -> dict[bytes, Draft]:
        drafts: dict[bytes, Draft] = {}
        self._judged = []
        if session is None:
            return drafts
        session_id = session.session_id.bytes
        for unit in batch:
            if isinstance(unit, Command):
                self._obey(unit, drafts)
                continue
            # What was read under a holding that is over (given away, taken anew) is the next owner's to read.
            group = unit.holding.group
            mine = self._holdings.owns(group) and self._holdings.groups[group] is unit.holding
            if not mine or unit.generation != self._holdings.generation:
                continue
            self._judged.append(unit)
            if unit.spent:
                unit.again()
            for message, _, entry in unit.entries:
                if entry is None:
                    ENTRIES.labels("undecodable").inc()
                    log.error("journal_entry_undecodable", subject=message.subject, sequence=message.sequence)
                else:
                    self._judge_entry(entry, message.sequence, session_id, drafts, unit.ahead)
            unit.spent = True  # judging takes entries apart
        _VERDICTS[_ACCEPT].inc(self._accepted)
        self._accepted = 0
        return drafts

    def _judge_entry(
        self,
        entry: journal_pb2.JournalEntry,
        sequence: int,
        session_id: bytes,
        drafts: dict[bytes, Draft],
        ahead: bool = False,
    ) -> None:
        run_id = entry.run_id
        draft = drafts.get(run_id)
        if draft is not None:
            card, position, over = draft.card, draft.position, draft.closed
        else:
            found = self._book.get(run_id)
            if found is None:
                _VERDICTS[_STALE].inc()
                return
            card, position, over = found, found.position, False
        sealing = card.phase is _SEALING
        if over or not (sealing or card.phase is _OPEN):
            _VERDICTS[_STALE].inc()
            return
        verdict = judge(entry, card.nonce, card.leg, card.claimant, position, session_id, sealing)
        if verdict is _ACCEPT:
            self._accepted += 1
        else:
            _VERDICTS[verdict].inc()
            if verdict is _STALE:
                self._tell_former(card, entry)
            if verdict is _GAP and not ahead:  # else it may be the first since the run is urgent
                log.error("journal_gap", run=card.run_id.hex(), index=entry.index, position=position)
            if verdict is not _SEAL:
                return
        if draft is None:
            draft = drafts[card.run_id] = draft_of(card, self._holdings.generation)
            draft.level_named = self.level_named
        if verdict is _SEAL:
            seal(draft, sequence, self._leg_losses)
        elif accept(draft, entry) == "yielded" and card.claimant is not None:
            self._fleet.drains(card.claimant)
        if draft.closed and draft.ending is None:
            if card.cancel_requested or draft.cancel:
                close_cancelled(draft)
            elif card.pausing:
                pause_closed(draft)

    def _tell_former(self, card: RunCard, entry: journal_pb2.JournalEntry) -> None:
        """A leg goes on although a later one is open: it was closed over its worker, who did not hear of it."""
        former = card.nonce is not None and not entry.seal and entry.leg < card.leg and not entry.HasField("end")
        if former and self._fleet.get(entry.claimant) is not None:
            self.on_drop(card.run_id, entry.claimant, entry.leg_nonce)

    def _obey(self, command: Command, drafts: dict[bytes, Draft]) -> None:
        card = command.card
        if self._book.get(card.run_id) is not card:
            return
        # Its opening is being committed by the other lane, or a reset: come back after it.
        if card.phase in (Phase.OPENING, Phase.RESETTING):
            asyncio.get_running_loop().call_later(_OPENING_S, self._again, command)
            return
        draft = drafts.get(card.run_id)
        if draft is None:
            draft = drafts[card.run_id] = draft_of(card, self._holdings.generation)
        obey(draft, command)

    def _again(self, command: Command) -> None:
        with contextlib.suppress(LaneClosed):
            self.command(command)

    # -- committing ----------------------------------------------------------------------------------------------------

    async def _store(self, drafts: list[Draft], session: OwnerSession) -> None:
        """Commit; on a value that PostgreSQL refuses, halve until the one run is found and fail that one only."""
        for draft in drafts:
            self._note_failure(draft)
        folds = [fold_of(d, self._holdings.group_count) for d in drafts]
        entries = [e for d in drafts for e in d.entries]
        try:
            at = await self._record.lane("fold", lambda c: fold_runs(c, session, folds, entries))
        except DBAPIError as error:
            if len(drafts) > 1:
                half = len(drafts) // 2
                await self._store(drafts[:half], session)
                await self._store(drafts[half:], session)
                return
            await self._store_refused(drafts[0], error, session)
            return
        self._clock.heard(at)
        COMMIT_ROWS.labels("fold").observe(len(entries))
        at_ms = int(at.timestamp() * 1000)
        now = asyncio.get_running_loop().time()
        for draft in drafts:
            self._committed(draft, at_ms, now)
        for state, count in self._ended.items():
            _ENDED[state].inc(count)
        self._ended.clear()
        self._announcer.flush()
        changes = [f.awaits for f in folds if f.awaits is not None]
        if changes:
            self._awaits_changed(changes)
            if any(c.failed is not None for c in changes):
                self.on_failures()
        permits = [(d.card, f.permits) for d, f in zip(drafts, folds, strict=True) if f.permits is not None]
        if permits:
            self.on_permits(permits)

    def _note_failure(self, draft: Draft) -> None:
        """Failures that a policy of the workflow counts are noted by the same commit."""
        card = draft.card
        failed = draft.ending is not None and draft.ending.state == _RUN.STATE_FAILED
        if failed and self.counts_failures(card.namespace, card.workflow_id):
            draft.changes().failed = FailedRun(card.workflow_id, card.change + 1)

    async def _store_refused(self, draft: Draft, refusal: DBAPIError, session: OwnerSession) -> None:
        card, why = draft.card, str(refusal.orig)
        # An entry that is there already means the same as a row that differs: memory is behind the record.
        if getattr(refusal.orig, "sqlstate", "") == ROW_DIFFERS or isinstance(refusal, IntegrityError):
            raise _Differs(card.run_id.hex())
        if not draft.entries and draft.snapshot is None:
            raise refusal  # what is left holds no value of the run's: a defect
        log.error("entry_refused_by_record", run=card.run_id.hex(), position=card.position, error=why)
        failed = unstorable(card, self._holdings.generation, why)
        claimant, nonce = card.claimant, card.nonce
        await self._store([failed], session)
        if claimant is not None and nonce is not None:
            self.on_cancel_nonce(card.run_id, claimant, nonce)  # its worker need not go on

    # -- after the commit ----------------------------------------------------------------------------------------------

    def _committed(self, draft: Draft, at_ms: int, loop_time: float) -> None:
        card = draft.card
        if self._book.get(card.run_id) is not card:
            return  # stepped down while the commit was under way; whoever owns the run reads it from PostgreSQL
        card.change += 1
        card.position = draft.position
        card.losses = draft.losses
        card.progress_at = loop_time
        card.cancel_requested = card.cancel_requested or draft.cancel
        card.cancel_error = draft.error or card.cancel_error
        card.compensates = draft.compensates
        if draft.awaits is not None:
            self._note_awaits(card, draft.awaits)
        # Asked now, not when it was judged: who began to watch meanwhile must not get the change without its steps.
        steps = [s for e in draft.told for s in e.steps] if self._announcer.wants_steps(card.run_id) else []
        had_leg = card.nonce is not None
        if draft.terminated and card.claimant is not None and card.nonce is not None:
            self.on_drop(card.run_id, card.claimant, card.nonce)
        if had_leg and (draft.closed or draft.ending is not None):
            if card.held:
                self._fleet.release(card.claimant, card.job_sequence)
                card.held = False
                self._shares.vacate(card.namespace)
            card.nonce = None
            card.claimant = None
            card.loss = card.seal_doubt = False
            card.job_sequence = 0
        if draft.ending is not None:
            draft.ending.at_ms = at_ms
            self._book.drop(card)
            self._announcer.changed(card, steps, draft.ending)
            self._ended[draft.ending.state] += 1
            self.on_ended(card.request_id)
            self.on_ready()
            return
        if draft.paused or (card.phase is _PAUSED and not draft.ready):
            card.phase = _PAUSED
            card.pausing = False
            card.wake_at_ms = 0
            self._book.drop(card)  # what comes next comes by a row in its inbox
            self._announcer.changed(card, steps)
            self.on_paused(card)
            return
        if draft.closed:
            if draft.placement is not None:
                card.placement = draft.placed
            if draft.generation == self._holdings.generation:
                card.expected_sequence = draft.expected_sequence
            card.start = None
            if draft.waits and not card.has_mail:  # else it came while the leg was ending
                card.phase = _WAITING
                card.wake_at_ms = draft.wake_at_ms
                self._announcer.changed(card, steps)
                self._announcer.waits(card)
                self.on_waiting(card)
                return
            self._queue.push(card, loop_time)
            self.on_ready()
        elif draft.ready:
            card.wake_at_ms = 0
            self._queue.push(card, loop_time)
            self.on_ready()
        elif card.phase is _WAITING:
            self.on_waiting(card)  # a cancel brought it back into memory, and there was nothing to do
        elif draft.cancel:
            self.on_cancel(card)
        self._announcer.changed(card, steps)

    def _note_awaits(self, card: RunCard, changes: AwaitChanges) -> None:
        if changes.opened:
            card.has_awaits = True
        if changes.consumed and card.mail:
            card.mail = card.mail.difference(changes.consumed)
            if card.more_mail and not card.mail:
                self.on_mail([card.run_id])  # what did not fit the last time

    def _awaits_changed(self, changes: list[AwaitChanges]) -> None:
        """Tell those who serve awaits, and the owners of parents."""
        changed = [c.run_id for c in changes if c.opened or c.closed or c.ended]
        if changed:
            self.on_awaits(changed)
        parents = [Target(c.parent.run_id, c.parent.group) for c in changes if c.parent is not None]
        if parents:
            self.on_answered(parents)
        branches = [c.branch_of for c in changes if c.branch_of is not None]
        if branches:
            self.on_branches(branches)

    def _advance(self) -> None:
        now = asyncio.get_running_loop().time()
        for unit in self._judged:
            if not unit.ahead and unit.generation == self._holdings.generation:
                unit.holding.folded = max(unit.holding.folded, unit.upto)
                FOLD_LAG.observe(now - unit.read_at)


_VERDICTS = {verdict: ENTRIES.labels(verdict.value) for verdict in Verdict}
_STATE_LABELS = {
    _RUN.STATE_SUCCEEDED: "succeeded",
    _RUN.STATE_FAILED: "failed",
    _RUN.STATE_CANCELLED: "cancelled",
}
_ENDED = {state: RUNS_ENDED.labels(label) for state, label in _STATE_LABELS.items()}
