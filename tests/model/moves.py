"""Helpers that all actors share: replacing parts of a state, commits, budgets."""

from __future__ import annotations

from collections.abc import Callable

from model.fold import fold
from model.properties import Check
from model.rules import Rules
from model.state import FAULTS, Card, Entry, Job, Row, Scheduler, State, Worker

__all__ = ["Emit", "Moves", "card_of"]

Emit = Callable[[str, bool, State], None]
"""Takes a step: its label, whether it is free (no fault), and the state that it leads to."""

_FAULT = {name: i for i, name in enumerate(FAULTS)}


def card_of(row: Row) -> Card:
    """The card of a run as it stands in the row."""
    phase = "open" if row.leg else "waiting" if row.waiting else "ready"
    return Card(phase, row.change, row.leg, row.claimant, row.leg_generation, len(row.history))


class Moves:
    """What is the same for all actors of one scenario."""

    def __init__(self, rules: Rules, steps: int, budget: dict[str, int], check: Check, *, lanes: bool) -> None:
        self.rules = rules
        self.steps = steps
        self.check = check
        self.lanes = lanes
        self.may_fail_over = budget.get("failover", 0) > 0

    def spend(self, st: State, fault: str) -> State | None:
        """The state with one less of a fault's budget; None when there is none left."""
        i = _FAULT[fault]
        left = st.budget
        if left[i] <= 0 or left[-1] <= 0:
            return None
        return st._replace(budget=(*left[:i], left[i] - 1, *left[i + 1 : -1], left[-1] - 1))

    @staticmethod
    def worker(st: State, w: int, worker: Worker) -> State:
        """With one worker replaced."""
        return st._replace(workers=(worker, st.workers[1]) if w == 0 else (st.workers[0], worker))

    @staticmethod
    def scheduler(st: State, s: int, scheduler: Scheduler) -> State:
        """With one scheduler replaced."""
        return st._replace(schedulers=(scheduler, st.schedulers[1]) if s == 0 else (st.schedulers[0], scheduler))

    def down(self, st: State, s: int) -> State:
        """A scheduler without memory, session and key."""
        st = self.scheduler(st, s, Scheduler())
        return st._replace(permitted=-1) if st.permitted == s else st

    def fenced(self, st: State, s: int) -> bool:
        """Whether the fence refuses this scheduler's commit."""
        return self.rules.fence and st.row.session != st.schedulers[s].session

    def commit(self, st: State, row: Row, s: int | None = None) -> State:
        """One commit of PostgreSQL. `s` is the owner that makes it; takeovers and foreign accepts have none."""
        if s is not None and st.row.session != st.schedulers[s].session:
            self.check.fail("I4", f"S{s} commits although its session was ended by a takeover")
        if not self.may_fail_over:
            return st._replace(row=row)
        return st._replace(row=row, former=st.row)

    def commit_run(self, st: State, row: Row, s: int) -> tuple[State, int]:
        """A commit that changes the run: it gets a new change number, which is answered too."""
        change = st.ids.change + 1
        st = st._replace(ids=st.ids._replace(change=change))
        return self.commit(st, row._replace(change=change), s), change

    def stands(self, st: State, generation: int) -> bool:
        """Whether an append to the stream of this generation reaches a stream."""
        return st.stream >= 0 and (generation == st.stream or not self.rules.generation)

    def last_sequence(self, st: State) -> int:
        """The subject's last sequence: 0 when all of its entries are gone."""
        return len(st.journal) if st.journal and st.journal[-1] is not None else 0

    def last_in_lane(self, st: State, incarnation: int) -> int:
        """The last sequence of what this incarnation appended; 0 when all of it is gone."""
        return next(
            (
                i
                for i in range(len(st.journal), 0, -1)
                if (e := st.journal[i - 1]) and not e.seal and e.writer == incarnation
            ),
            0,
        )

    def alive(self, st: State, incarnation: int) -> bool:
        """Whether the incarnation's lease holds."""
        return any(w.incarnation == incarnation and w.valid for w in st.workers)

    def may_open(self, st: State) -> list[int]:
        """Workers against which a leg may be opened now."""
        if self.rules.failover and any(w.valid and w.former for w in st.workers):
            return []
        return [w for w, worker in enumerate(st.workers) if worker.valid and not worker.draining]

    def takes(self, worker: Worker, job: Job) -> bool:
        """Whether the worker's table takes the job (R4)."""
        if self.rules.incarnation and job.incarnation != worker.incarnation:
            return False
        return not (self.rules.taken and job.leg in worker.taken) and job.leg not in worker.revoked

    def unread(self, st: State, folded: int) -> list[tuple[int, Entry]]:
        """The entries behind a reader's position."""
        return [(i, e) for i, e in enumerate(st.journal[folded:], folded + 1) if e is not None]

    def check_left_behind(self, st: State, row: Row) -> None:
        """I6: when a leg closes, everything of it that the journal acknowledged is recorded."""
        if st.damaged or not st.row.leg or row.leg == st.row.leg or "I6" not in self.check.properties:
            return
        whole = [(i, e) for i, e in enumerate(st.journal, 1) if e is not None and not e.seal]
        if self.lanes:  # what comes to a lane behind the SEAL was told to nobody who goes on: _arrive sees to that
            seals = [i for i, e in enumerate(st.journal, 1) if e == Entry(st.row.leg, st.row.session, ())]
            whole = [(i, e) for i, e in whole if not seals or i < seals[0]]
        open_leg = st.row._replace(history=row.history)
        card = card_of(open_leg)
        left = fold(open_leg, card, whole, -1, 0, self.steps, self.rules)
        if left.changed:
            self.check.fail("I6", f"the leg closes at entry {len(row.history)} although the journal holds one more")
