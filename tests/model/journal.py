"""JetStream: appends arrive, are stored or refused, and the worker that waits for one goes on or stops (R8, R9)."""

from __future__ import annotations

from dataclasses import dataclass

from model.moves import Emit, Moves
from model.state import EXECUTED, Append, State, steps_of

__all__ = ["JournalSteps"]


@dataclass(frozen=True, slots=True)
class JournalSteps:
    """What happens to appends under way."""

    moves: Moves

    def steps(self, st: State, emit: Emit) -> None:
        """Every append may arrive, be lost, or arrive and stay under way for a second time."""
        moves = self.moves
        for append in st.appends:
            rest = st._replace(appends=st.appends - {append})
            name = f"entry {len(append.entry.history)} of leg {append.entry.leg}"
            if (x := moves.spend(rest, "drop")) is not None:
                emit(f"{name} IS LOST on its way", False, x)
            self._arrive(rest, append, name, True, emit)
            if (x := moves.spend(st, "duplicate")) is not None:
                self._arrive(x, append, name + " (a copy stays under way)", False, emit)
            if (x := moves.spend(rest, "unanswered")) is not None:
                self._arrive(x, append, name + " (NO ANSWER)", False, emit, answer=False)

    def _arrive(self, st: State, append: Append, name: str, free: bool, emit: Emit, *, answer: bool = True) -> None:
        moves, rules, entry = self.moves, self.moves.rules, append.entry
        leg = st.workers[append.worker].leg
        waits = answer and leg is not None and leg.phase == "appending" and leg.history == entry.history
        if not moves.stands(st, append.generation):
            emit(f"no stream for {name}", free, st)  # the worker sends it again until it is told to give up
            return
        journal = st.journal
        if entry in journal:
            sequence = journal.index(entry) + 1  # its id is known
        elif not rules.cas or append.expected == self._last(st, append):
            journal = (*journal, entry)
            sequence = len(journal)
            st = st._replace(journal=journal)
            goes_on = waits and (st.workers[append.worker].valid or not rules.lease)
            if entry.leg != st.row.leg and (goes_on or not moves.lanes):
                moves.check.fail("I6", f"the journal acknowledges {name}, whose leg is closed: it will be refused")
        else:
            self._mismatch(st, append, name, waits, free, emit)
            return
        emit(
            f"the journal stores {name} at {sequence}", free, self._acknowledged(st, append, sequence) if waits else st
        )

    def _last(self, st: State, append: Append) -> int:
        """The last sequence of the subject that the append goes to."""
        return self.moves.last_in_lane(st, append.entry.writer) if self.moves.lanes else self.moves.last_sequence(st)

    def _acknowledged(self, st: State, append: Append, sequence: int) -> State:
        worker = st.workers[append.worker]
        leg = worker.leg
        if leg is None:
            return st
        over = leg.history[-1].kind != EXECUTED or steps_of(leg.history) >= self.moves.steps
        after = None if over else leg._replace(phase="ready", expected=sequence)
        lane = (leg.generation, sequence) if self.moves.lanes else worker.lane
        return self.moves.worker(st, append.worker, worker._replace(leg=after, lane=lane))

    def _mismatch(self, st: State, append: Append, name: str, waits: bool, free: bool, emit: Emit) -> None:
        """Error 10071. The subject's last message is not the entry itself: that was found above by its id."""
        moves, worker = self.moves, st.workers[append.worker]
        leg = worker.leg
        if not waits or leg is None:
            emit(f"the journal refuses {name}", free, st)
            return
        last = self._last(st, append)
        lane = (leg.generation, last) if moves.lanes else worker.lane
        if last == 0 and moves.rules.empty_subject:
            again = leg._replace(expected=0, phase="calling")
            emit(
                f"the journal refuses {name}: its subject is empty",
                free,
                moves.worker(st, append.worker, worker._replace(leg=again, lane=lane)),
            )
            return
        if moves.lanes and moves.rules.lane_first and not any(item.leg == leg.leg for item in leg.history[:-1]):
            again = leg._replace(expected=last, phase="calling")
            emit(
                f"the journal refuses {name}: the lane lost what it held of other legs",
                free,
                moves.worker(st, append.worker, worker._replace(leg=again, lane=lane)),
            )
            return
        behind = st.journal[max(0, append.expected) :]
        owner = st.row.session
        mine = moves.lanes or (owner != 0 and all(e is None or (e.seal and e.writer == owner) for e in behind))
        if mine and worker.valid and leg.leg == st.row.leg and leg.leg not in worker.revoked and not st.damaged:
            moves.check.fail("I8", f"{name} is refused although its leg is current and was not fenced")
        emit(
            f"the journal refuses {name}: W{append.worker} stops the leg",
            free,
            moves.worker(st, append.worker, worker._replace(leg=None, lane=lane)),
        )
