"""Starts, and what may befall the stores: PostgreSQL, JetStream, etcd."""

from __future__ import annotations

from dataclasses import dataclass

from model.moves import Emit, Moves
from model.state import Card, Job, Row, State

__all__ = ["StoreSteps"]


@dataclass(frozen=True, slots=True)
class StoreSteps:
    """Steps that belong to no owner and no worker."""

    moves: Moves

    def steps(self, st: State, emit: Emit) -> None:
        """Everything that may happen to the start and to the stores."""
        self._start(st, emit)
        self._late_commit(st, emit)
        self._nudge(st, emit)
        self._losses(st, emit)

    # -- starts (R0) -------------------------------------------------------------------------------------------------

    def _start(self, st: State, emit: Emit) -> None:
        moves, row = self.moves, st.row
        if row.accepted == 0:
            if st.answered:
                moves.check.fail("I1", "an answered start is not in PostgreSQL")
            elif st.late is None:
                emit("a start arrives", True, st._replace(row=row._replace(accepted=1)))
        elif row.accepted == 1:
            self._accept_foreign(st, emit)
            for s in (0, 1):
                self._accept_owned(st, s, emit)
            if (x := moves.spend(st, "scheduler_crash")) is not None:
                emit("the acceptor CRASHES", False, x._replace(row=row._replace(accepted=0)))
        if not st.answered and (row.accepted == 2 or (row.accepted == 1 and not moves.rules.answer_after_commit)):
            emit("the start is answered", True, st._replace(answered=True))

    def _accept_foreign(self, st: State, emit: Emit) -> None:
        x = self.moves.commit(st, st.row._replace(accepted=2, adopt=True))
        emit("a replica that does not own the run stores it and nudges", True, x._replace(nudge=True))

    def _accept_owned(self, st: State, s: int, emit: Emit) -> None:
        """The owner's commit, with the first leg in it where a worker has room."""
        moves, scheduler = self.moves, st.schedulers[s]
        if scheduler.phase != "own" or scheduler.unsure or scheduler.card is not None or moves.fenced(st, s):
            return
        for w in [-1, *moves.may_open(st)]:
            x, card, job = self._accepted(st, s, w)
            label = f"S{s} stores the run" + (f" and opens leg {job.leg} for W{w}" if job is not None else "")
            emit(label, True, moves.scheduler(x, s, scheduler._replace(card=card, job=job or scheduler.job)))
            unsure = scheduler._replace(unsure=True)
            if (y := moves.spend(x, "unanswered")) is not None:
                emit(label + " (NO ANSWER)", False, moves.scheduler(y, s, unsure))
            if (y := moves.spend(st, "unanswered")) is not None:
                y = y._replace(row=st.row._replace(accepted=0), late=(scheduler.session, w))
                emit(label + " (NO ANSWER, still under way)", False, moves.scheduler(y, s, unsure))

    def _accepted(self, st: State, s: int, w: int) -> tuple[State, Card, Job | None]:
        moves, scheduler, row = self.moves, st.schedulers[s], st.row
        generation = scheduler.generation
        if w < 0:
            x, change = moves.commit_run(st, row._replace(accepted=2), s)
            return x, Card("ready", change, expected=0, expected_generation=generation), None
        incarnation, leg = st.workers[w].incarnation, st.ids.leg + 1
        x, change = moves.commit_run(st, self._first_leg(row, leg, incarnation, generation), s)
        x = x._replace(ids=x.ids._replace(leg=leg))
        return x, Card("open", change, leg, incarnation, generation), Job(leg, (), 0, generation, w, incarnation)

    @staticmethod
    def _first_leg(row: Row, leg: int, incarnation: int, generation: int) -> Row:
        return row._replace(accepted=2, leg=leg, claimant=incarnation, leg_generation=generation)

    def _late_commit(self, st: State, emit: Emit) -> None:
        """A commit whose client is gone arrives at last, or is refused by the fence."""
        if st.late is None:
            return
        moves, row = self.moves, st.row
        session, w = st.late
        rest = st._replace(late=None)
        emit("the commit under way is lost", True, rest)
        if row.session != session:
            return
        leg, change = st.ids.leg, st.ids.change + 1
        stored = row._replace(accepted=2, change=change)
        if w >= 0:
            leg += 1
            stored = self._first_leg(stored, leg, st.workers[w].incarnation, row.generation)
        x = moves.commit(rest, stored)
        emit("the commit under way arrives", True, x._replace(ids=st.ids._replace(leg=leg, change=change)))

    def _nudge(self, st: State, emit: Emit) -> None:
        if st.nudge:
            emit("the nudge reaches nobody", True, st._replace(nudge=False))

    # -- losses ------------------------------------------------------------------------------------------------------

    def _losses(self, st: State, emit: Emit) -> None:
        moves = self.moves
        if st.journal and (x := moves.spend(st, "tail_loss")) is not None:
            for lost in range(1, len(st.journal) + 1):
                emit(
                    f"JetStream LOSES its last {lost} entries",
                    False,
                    x._replace(journal=st.journal[:-lost], damaged=True),
                )
        if st.stream >= 0 and (x := moves.spend(st, "journal_loss")) is not None:
            gone = x._replace(journal=(), jobs=frozenset(), stream=-1 if moves.rules.generation else st.stream)
            emit("JetStream LOSES its store", False, gone)
        if (x := moves.spend(st, "etcd_loss")) is not None:
            emit("etcd LOSES its store", False, x._replace(permitted=-1))
        former = st.former
        if former is not None and former != st.row and (x := moves.spend(st, "failover")) is not None:
            workers = st.workers
            if moves.rules.failover:
                workers = (workers[0]._replace(former=True), workers[1]._replace(former=True))
            emit("PostgreSQL FAILS OVER without its last commit", False, x._replace(row=former, workers=workers))
