"""A worker: it takes jobs, executes, appends, answers its owners, drains, and begins anew when its lease has lapsed.

In step with the worker's `table.py`, `leg.py`, `turns.py`, `journal.py`, `control.py` and `lease.py`. The lease's end
in etcd and on the worker's own clock are one step; that etcd's comes later is a delay of whoever acts upon it.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.moves import Emit, Moves
from model.state import BLOCKED, EXECUTED, YIELDED, Append, Control, Entry, Item, Job, Leg, State, Worker, steps_of

__all__ = ["WorkerSteps"]


@dataclass(frozen=True, slots=True)
class WorkerSteps:
    """The steps of both workers."""

    moves: Moves

    def steps(self, st: State, w: int, emit: Emit) -> None:
        """Everything that worker `w` may do now."""
        self._life(st, w, emit)
        self._jobs(st, w, emit)
        self._questions(st, w, emit)
        if (leg := st.workers[w].leg) is not None:
            self._leg(st, w, leg, emit)

    # -- incarnations ------------------------------------------------------------------------------------------------

    def _anew(self, st: State, w: int) -> State:
        incarnation = st.ids.incarnation + 1
        return self.moves.worker(st, w, Worker(incarnation))._replace(ids=st.ids._replace(incarnation=incarnation))

    def _life(self, st: State, w: int, emit: Emit) -> None:
        moves, worker = self.moves, st.workers[w]
        if (x := moves.spend(st, "worker_crash")) is not None:
            emit(f"W{w} CRASHES, registers anew", False, self._anew(x, w))
        if not worker.valid:
            if moves.rules.lapse:
                emit(f"W{w} sees that its lease is lost: a new incarnation", True, self._anew(st, w))
            else:
                emit(
                    f"W{w} sees that its lease is lost, renews it",
                    True,
                    moves.worker(st, w, worker._replace(valid=True, leg=None)),
                )
            return
        if (x := moves.spend(st, "lease_lapse")) is not None:
            emit(f"W{w} is paused: its lease ends", False, moves.worker(x, w, worker._replace(valid=False)))
        if worker.former:
            emit(f"W{w} registers anew after the failover", True, self._anew(st, w))
        if worker.draining:
            if worker.leg is None:
                emit(f"W{w} has drained: it leaves, another comes", True, self._anew(st, w))
        elif (x := moves.spend(st, "drain")) is not None:
            emit(f"W{w} is told to drain", False, moves.worker(x, w, worker._replace(draining=True)))

    # -- jobs --------------------------------------------------------------------------------------------------------

    def _jobs(self, st: State, w: int, emit: Emit) -> None:
        moves, worker = self.moves, st.workers[w]
        for job in st.jobs:
            if job.worker != w:
                continue
            rest = st._replace(jobs=st.jobs - {job})
            if (x := moves.spend(rest, "drop")) is not None:
                emit(f"the job of leg {job.leg} IS LOST", False, x)
            if not moves.takes(worker, job):
                emit(f"W{w} refuses the job of leg {job.leg}", True, rest)
            elif worker.leg is None:
                leg = Leg("ready", job.leg, job.history, self._expected(worker, job), job.generation)
                took = worker._replace(leg=leg, taken=worker.taken | {job.leg})
                emit(f"W{w} takes the job of leg {job.leg}", True, moves.worker(rest, w, took))
                if (y := moves.spend(st, "duplicate")) is not None:
                    emit(f"W{w} takes the job of leg {job.leg} (it comes AGAIN)", False, moves.worker(y, w, took))

    def _expected(self, worker: Worker, job: Job) -> int:
        """What the leg's first append expects: the job tells the run's subject, the worker knows its own lane."""
        rules = self.moves.rules
        if not self.moves.lanes:
            return job.expected
        generation, last = worker.lane
        return last if rules.lane and (generation == job.generation or not rules.sequence_generation) else 0

    # -- release -----------------------------------------------------------------------------------------------------

    def _questions(self, st: State, w: int, emit: Emit) -> None:
        moves, worker = self.moves, st.workers[w]
        for control in st.controls:
            if control.worker != w:
                continue
            rest = st._replace(controls=st.controls - {control})
            if (x := moves.spend(rest, "drop")) is not None:
                emit(f"{'an answer' if control.answer else 'a question'} about leg {control.leg} IS LOST", False, x)
            if control.answer:
                continue
            after = self._release(worker, control)
            if after is None:
                emit(f"W{w} does not release leg {control.leg}", True, rest)
                continue
            answer = control._replace(answer=True)
            emit(
                f"W{w} RELEASES leg {control.leg}",
                True,
                moves.worker(rest._replace(controls=rest.controls | {answer}), w, after),
            )

    def _release(self, worker: Worker, question: Control) -> Worker | None:
        """The worker after a release; None when it does not release the leg."""
        rules, leg = self.moves.rules, worker.leg
        if question.incarnation != worker.incarnation:
            return None  # nobody listens on an ended incarnation's subject
        revoked = worker.revoked | {question.leg} if rules.revoked else worker.revoked
        if leg is None or leg.leg != question.leg:
            if question.leg in worker.taken and question.leg not in worker.revoked and not rules.release_ended:
                return None
            return worker._replace(revoked=revoked)
        begun = leg.phase != "ready" or any(item.leg == leg.leg for item in leg.history)
        if begun and not (question.journal_lost and leg.phase != "calling"):
            return None if rules.release_idle else worker._replace(revoked=revoked)
        return worker._replace(revoked=revoked, leg=None)

    # -- the leg -----------------------------------------------------------------------------------------------------

    def _leg(self, st: State, w: int, leg: Leg, emit: Emit) -> None:
        moves, worker = self.moves, st.workers[w]
        if not worker.valid and moves.rules.lease:
            return
        if leg.phase == "ready":
            if worker.draining:
                self._end(st, w, leg, YIELDED, emit)
                return
            self._execute(st, w, leg, emit)
            if (x := moves.spend(st, "block")) is not None:
                self._end(x, w, leg, BLOCKED, emit)
        elif leg.phase == "calling":
            emit(f"W{w} appends entry {len(leg.history)}", True, self._send(st, w, leg))
        elif not any(a.worker == w and a.entry.history == leg.history for a in st.appends):
            if moves.rules.retry:
                emit(f"W{w} appends entry {len(leg.history)} again", True, self._send(st, w, leg))
            else:
                if moves.stands(st, leg.generation) and leg.leg == st.row.leg and not st.damaged:
                    moves.check.fail("I8", f"W{w} gives up entry {len(leg.history)} of the current leg")
                emit(f"W{w} gives up its append", True, moves.worker(st, w, worker._replace(leg=None)))

    def _execute(self, st: State, w: int, leg: Leg, emit: Emit) -> None:
        moves, worker = self.moves, st.workers[w]
        step = steps_of(leg.history) + 1
        if steps_of(st.row.history) >= step:
            moves.check.fail("I2", f"W{w} begins step {step} in leg {leg.leg}, whose outcome is recorded")
        other = st.workers[1 - w]
        if (
            other.valid
            and other.leg is not None
            and other.leg.leg != leg.leg
            and other.leg.phase != "ready"
            and other.leg.history[-1].kind == EXECUTED
            and steps_of(other.leg.history) == step
        ):
            moves.check.fail("I7", f"W{w} begins step {step} in leg {leg.leg} while W{1 - w} is at it")
        item = Item(leg.leg, worker.incarnation, EXECUTED)
        calling = leg._replace(phase="calling", history=(*leg.history, item))
        emit(f"W{w} EXECUTES step {step} in leg {leg.leg}", True, moves.worker(st, w, worker._replace(leg=calling)))

    def _end(self, st: State, w: int, leg: Leg, kind: str, emit: Emit) -> None:
        worker = st.workers[w]
        ending = leg._replace(history=(*leg.history, Item(leg.leg, worker.incarnation, kind)))
        free = kind == YIELDED
        emit(f"W{w} appends that leg {leg.leg} " + ("yields" if free else "waits"), free, self._send(st, w, ending))

    def _send(self, st: State, w: int, leg: Leg) -> State:
        worker = st.workers[w]
        entry = Entry(leg.leg, worker.incarnation, leg.history)
        append = Append(entry, leg.expected, leg.generation, w)
        x = self.moves.worker(st, w, worker._replace(leg=leg._replace(phase="appending")))
        return x._replace(appends=x.appends | {append})
