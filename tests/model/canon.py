"""One representative for all states that no rule can tell apart.

Dropped or renamed: identities (ranks instead of values), entries, jobs, messages and memories that nothing can take for
anything any more, the order of the two schedulers and of the two workers. What is dropped depends on the rules: with a
rule switched off more is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.moves import Moves
from model.state import DEAD, FAULTS, GONE, Append, Entry, History, Ids, Item, Row, Scheduler, State, Worker

__all__ = ["Canon"]

_TAIL, _FAILOVER, _PURGE = (FAULTS.index(f) for f in ("tail_loss", "failover", "purge"))


@dataclass(frozen=True, slots=True)
class Canon:
    """Brings states of one scenario into their canonical form."""

    moves: Moves

    def __call__(self, st: State) -> State:
        """The representative of the state's class."""
        if not st.budget[-1] and any(st.budget):
            st = st._replace(budget=(0,) * len(st.budget))
        if st.former is not None and not st.budget[_FAILOVER]:
            st = st._replace(former=None)
        st = self._forget(st)
        st = self._trim(st)
        st = _Names(st, keep_number=not self.moves.rules.nonce).renamed(st)
        return _sorted(st)

    # -- what matters no more ----------------------------------------------------------------------------------------

    def _forget(self, st: State) -> State:
        rules = self.moves.rules
        if self.moves.lanes:
            st = self._job_forgotten(st)
        rows = {st.row.leg} | ({st.former.leg} if st.former is not None else set())
        cards = {s.card.leg for s in st.schedulers if s.card is not None} | {
            s.snapshot.leg for s in st.schedulers if s.snapshot is not None
        }
        held = {w.leg.leg for w in st.workers if w.leg is not None}
        jobs = frozenset(j for j in st.jobs if self.moves.takes(st.workers[j.worker], j))
        published = {j.leg for j in jobs} | {s.job.leg for s in st.schedulers if s.job is not None}
        live = (rows | cards | held | published) - {0}
        incarnations = {w.incarnation for w in st.workers}
        sessions = {s.session for s in st.schedulers}
        controls = frozenset(
            c
            for c in st.controls
            if c.leg in live
            and (c.session in sessions and c.leg in cards if c.answer else c.incarnation in incarnations)
        )
        journal = st.journal
        # In lanes entries keep their writers and sequences: what a lane holds last is expected.
        if rules.leg_check and rules.cas and not self.moves.lanes:
            journal = tuple(e if e is None or e.leg in live else _dead(e, st.row.session) for e in journal)
        appends = frozenset(a for a in st.appends if self._matters(st, a))
        workers = (_remember(st.workers[0], live), _remember(st.workers[1], live))
        return st._replace(journal=journal, jobs=jobs, controls=controls, appends=appends, workers=workers)

    def _job_forgotten(self, st: State) -> State:
        """Jobs and cards tell nothing of lanes, nor does anything of another generation's stream."""
        first, second = (
            s._replace(
                card=s.card._replace(expected=0) if s.card is not None and s.card.expected > 0 else s.card,
                job=s.job and s.job._replace(expected=0),
            )
            for s in st.schedulers
        )
        return st._replace(jobs=frozenset(j._replace(expected=0) for j in st.jobs), schedulers=(first, second))

    def _matters(self, st: State, append: Append) -> bool:
        leg = st.workers[append.worker].leg
        if leg is not None and leg.phase == "appending" and leg.history == append.entry.history:
            return True
        if not self.moves.rules.generation or not self.moves.rules.cas or st.budget[_TAIL]:
            return True
        if append.generation != st.stream or append.entry in st.journal:
            return False
        if self.moves.lanes:
            return True
        return append.expected >= len(st.journal) or (append.expected == 0 and bool(st.budget[_PURGE]))

    def _trim(self, st: State) -> State:
        """Leave out dead entries at the front, and count sequences from there."""
        rules = self.moves.rules
        if (
            self.moves.lanes
            or st.budget[_TAIL]
            or st.damaged
            or not (rules.generation and rules.sequence_generation and rules.cas)
        ):
            return st
        cut = 0
        while cut < len(st.journal) - 1 and ((e := st.journal[cut]) is None or e.leg == 0):
            cut += 1
        if not cut:
            return st

        def back(sequence: int) -> int:
            if sequence <= 0:
                return sequence  # the empty subject, or not known yet
            return sequence - cut if sequence > cut else GONE

        def row(r: Row) -> Row:
            return r._replace(watermark=max(0, r.watermark - cut))

        def scheduler(s: Scheduler) -> Scheduler:
            card = s.card and s.card._replace(expected=back(s.card.expected))
            job = s.job and s.job._replace(expected=back(s.job.expected))
            snapshot = s.snapshot and row(s.snapshot)
            return s._replace(card=card, job=job, snapshot=snapshot, folded=max(0, s.folded - cut))

        def worker(w: Worker) -> Worker:
            return w._replace(leg=w.leg and w.leg._replace(expected=back(w.leg.expected)))

        return st._replace(
            row=row(st.row),
            former=st.former and row(st.former),
            journal=st.journal[cut:],
            jobs=frozenset(j._replace(expected=back(j.expected)) for j in st.jobs),
            appends=frozenset(a._replace(expected=back(a.expected)) for a in st.appends),
            schedulers=(scheduler(st.schedulers[0]), scheduler(st.schedulers[1])),
            workers=(worker(st.workers[0]), worker(st.workers[1])),
        )


def _dead(entry: Entry, session: int) -> Entry:
    """A SEAL of the present owner is still its own: property I8 asks for that."""
    return Entry(0, session, ()) if entry.seal and entry.writer == session else DEAD


def _remember(worker: Worker, live: set[int]) -> Worker:
    if worker.taken <= live and worker.revoked <= live and (worker.valid or not worker.former):
        return worker
    former = worker.former and worker.valid
    return worker._replace(taken=worker.taken & live, revoked=worker.revoked & live, former=former)


class _Names:
    """Ranks of all identities that occur in a state."""

    def __init__(self, st: State, *, keep_number: bool) -> None:
        self._keep_number = keep_number
        self._seen_legs: set[int] = {0}
        self._seen_incarnations: set[int] = {0}
        self._seen_sessions: set[int] = {0}
        self._seen_changes: set[int] = {0}
        for row in (st.row, st.former, st.schedulers[0].snapshot, st.schedulers[1].snapshot):
            if row is not None:
                self._row_seen(row)
        self._messages_seen(st)
        self._processes_seen(st)
        self._legs = _ranks(self._seen_legs)
        self._incarnations = _ranks(self._seen_incarnations)
        self._sessions = _ranks(self._seen_sessions)
        self._changes = _ranks(self._seen_changes)
        self._unchanged = not keep_number and all(
            max(names) == len(names) - 1 for names in (self._legs, self._incarnations, self._sessions, self._changes)
        )
        if keep_number:
            self._legs = {leg: leg for leg in self._seen_legs}

    # -- which there are ---------------------------------------------------------------------------------------------

    def _history_seen(self, history: History) -> None:
        for item in history:
            self._seen_legs.add(item.leg)
            self._seen_incarnations.add(item.incarnation)

    def _entry_seen(self, entry: Entry) -> None:
        self._seen_legs.add(entry.leg)
        if entry.seal:
            self._seen_sessions.add(entry.writer)
        else:
            self._seen_incarnations.add(entry.writer)
            self._history_seen(entry.history)

    def _row_seen(self, row: Row) -> None:
        self._seen_legs.add(row.leg)
        self._seen_sessions.add(row.session)
        self._seen_changes.add(row.change)
        self._seen_incarnations.add(row.claimant)
        self._history_seen(row.history)

    def _messages_seen(self, st: State) -> None:
        for entry in st.journal:
            if entry is not None:
                self._entry_seen(entry)
        for append in st.appends:
            self._entry_seen(append.entry)
        for job in (*st.jobs, *(s.job for s in st.schedulers if s.job is not None)):
            self._seen_legs.add(job.leg)
            self._seen_incarnations.add(job.incarnation)
            self._history_seen(job.history)
        for control in st.controls:
            self._seen_legs.add(control.leg)
            self._seen_incarnations.add(control.incarnation)
            self._seen_sessions.add(control.session)
        if st.late is not None:
            self._seen_sessions.add(st.late[0])

    def _processes_seen(self, st: State) -> None:
        for worker in st.workers:
            self._seen_incarnations.add(worker.incarnation)
            self._seen_legs |= worker.taken | worker.revoked
            if worker.leg is not None:
                self._seen_legs.add(worker.leg.leg)
                self._history_seen(worker.leg.history)
        for scheduler in st.schedulers:
            self._seen_sessions.add(scheduler.session)
            if scheduler.card is not None:
                self._seen_changes.add(scheduler.card.change)
                self._seen_legs.add(scheduler.card.leg)
                self._seen_incarnations.add(scheduler.card.claimant)

    # -- renaming ----------------------------------------------------------------------------------------------------

    def _history(self, history: History) -> History:
        return tuple(Item(self._legs[i.leg], self._incarnations[i.incarnation], i.kind) for i in history)

    def _entry(self, entry: Entry) -> Entry:
        if entry.seal:
            return Entry(self._legs[entry.leg], self._sessions[entry.writer], ())
        return Entry(self._legs[entry.leg], self._incarnations[entry.writer], self._history(entry.history))

    def _row(self, row: Row) -> Row:
        return row._replace(
            session=self._sessions[row.session],
            change=self._changes[row.change],
            number=row.number if self._keep_number else 0,
            leg=self._legs[row.leg],
            claimant=self._incarnations[row.claimant],
            history=self._history(row.history),
        )

    def _worker(self, worker: Worker) -> Worker:
        legs, leg = self._legs, worker.leg
        if leg is not None:
            leg = leg._replace(leg=legs[leg.leg], history=self._history(leg.history))
        return worker._replace(
            incarnation=self._incarnations[worker.incarnation],
            taken=frozenset(legs[x] for x in worker.taken) if worker.taken else worker.taken,
            revoked=frozenset(legs[x] for x in worker.revoked) if worker.revoked else worker.revoked,
            leg=leg,
        )

    def _scheduler(self, scheduler: Scheduler) -> Scheduler:
        if scheduler.phase != "own":
            return scheduler
        card, job, snapshot = scheduler.card, scheduler.job, scheduler.snapshot
        if card is not None:
            card = card._replace(
                change=self._changes[card.change],
                leg=self._legs[card.leg],
                claimant=self._incarnations[card.claimant],
            )
        if job is not None:
            job = job._replace(
                leg=self._legs[job.leg],
                history=self._history(job.history),
                incarnation=self._incarnations[job.incarnation],
            )
        if snapshot is not None:
            snapshot = self._row(snapshot)
        session = self._sessions[scheduler.session]
        return scheduler._replace(session=session, card=card, job=job, snapshot=snapshot)

    def renamed(self, st: State) -> State:
        """The state under the new names."""
        if self._unchanged and not st.row.number:
            ids = Ids(*(len(x) - 1 for x in (self._legs, self._sessions, self._incarnations, self._changes)))
            return st if st.ids == ids else st._replace(ids=ids)
        legs, incarnations = self._legs, self._incarnations
        return st._replace(
            row=self._row(st.row),
            former=st.former and self._row(st.former),
            journal=tuple(e and self._entry(e) for e in st.journal),
            jobs=frozenset(
                j._replace(leg=legs[j.leg], history=self._history(j.history), incarnation=incarnations[j.incarnation])
                for j in st.jobs
            ),
            appends=frozenset(a._replace(entry=self._entry(a.entry)) for a in st.appends),
            workers=(self._worker(st.workers[0]), self._worker(st.workers[1])),
            schedulers=(self._scheduler(st.schedulers[0]), self._scheduler(st.schedulers[1])),
            controls=frozenset(
                c._replace(
                    leg=legs[c.leg],
                    incarnation=incarnations[c.incarnation],
                    session=self._sessions[c.session],
                )
                for c in st.controls
            ),
            late=st.late and (self._sessions[st.late[0]], st.late[1]),
            ids=Ids(
                max(legs.values()),
                max(self._sessions.values()),
                max(incarnations.values()),
                max(self._changes.values()),
            ),
        )


def _ranks(seen: set[int]) -> dict[int, int]:
    return {value: rank for rank, value in enumerate(sorted(seen))}


def _sorted(st: State) -> State:
    """Schedulers and workers in a fixed order."""
    first, second = st.schedulers
    if (first.phase, first.session, st.permitted == 0) > (second.phase, second.session, st.permitted == 1):
        permitted = st.permitted if st.permitted < 0 else 1 - st.permitted
        st = st._replace(schedulers=(second, first), permitted=permitted)
    if st.workers[0].incarnation > st.workers[1].incarnation:
        st = st._replace(
            workers=(st.workers[1], st.workers[0]),
            jobs=frozenset(j._replace(worker=1 - j.worker) for j in st.jobs),
            appends=frozenset(a._replace(worker=1 - a.worker) for a in st.appends),
            controls=frozenset(c._replace(worker=1 - c.worker) for c in st.controls),
            schedulers=(_swapped(st.schedulers[0]), _swapped(st.schedulers[1])),
            late=st.late and (st.late[0], 1 - st.late[1] if st.late[1] >= 0 else -1),
        )
    return st


def _swapped(scheduler: Scheduler) -> Scheduler:
    job = scheduler.job
    return scheduler if job is None else scheduler._replace(job=job._replace(worker=1 - job.worker))
