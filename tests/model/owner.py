"""A scheduler: it wins a group, owns its run, opens legs, folds, recovers, gives the group back.

In step with `steward.py`, `dispatch.py`, `fold.py`, `recovery.py`, `readers.py` and `attention.py` of the scheduler. A
batch is read and folded in one step here: nobody but the owner changes its card, so a batch that was read earlier is
one that was committed earlier.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.fold import fold
from model.moves import Emit, Moves, card_of
from model.state import Card, Control, Entry, Job, Scheduler, State

__all__ = ["Owner"]


@dataclass(frozen=True, slots=True)
class Owner:
    """The steps of both schedulers."""

    moves: Moves

    def steps(self, st: State, s: int, emit: Emit) -> None:
        """Everything that scheduler `s` may do now."""
        moves, scheduler = self.moves, st.schedulers[s]
        if scheduler.phase == "down":
            if st.permitted == -1:
                won = moves.scheduler(st, s, Scheduler("won"))
                emit(f"S{s} wins the group's key in etcd", True, won._replace(permitted=s))
            return
        if (x := moves.spend(st, "scheduler_crash")) is not None:
            emit(f"S{s} CRASHES", False, moves.down(x, s))
        if st.permitted == s:
            if (x := moves.spend(st, "session_lapse")) is not None:
                emit(f"S{s} is paused: its lease in etcd ends", False, x._replace(permitted=-1))
        else:
            emit(f"S{s} sees that its lease is lost, steps down", True, moves.down(st, s))
        if scheduler.phase == "won":
            self._take(st, s, emit)
            return
        if st.row.session != scheduler.session:
            emit(f"S{s} learns from its sweep that it was fenced, steps down", True, moves.down(st, s))
        if scheduler.job is not None:
            published = moves.scheduler(st, s, scheduler._replace(job=None))
            emit(
                f"S{s} publishes the job of leg {scheduler.job.leg}",
                True,
                published._replace(jobs=st.jobs | {scheduler.job}),
            )
        self._generation(st, s, emit)
        self._accepted(st, s, emit)
        self._reload(st, s, emit)
        if scheduler.unsure and moves.rules.reread:
            return  # nothing is judged or opened before the row was read again
        if scheduler.card is not None:
            self._fold(st, s, scheduler.card, emit)
            self._dispatch(st, s, scheduler.card, emit)
            self._recover(st, s, scheduler.card, emit)
        self._give(st, s, emit)
        self._purge(st, s, emit)

    # -- ownership ---------------------------------------------------------------------------------------------------

    def _take(self, st: State, s: int, emit: Emit) -> None:
        """The takeover, which ends the former session, and the read of the unfinished runs."""
        moves, row = self.moves, st.row
        session = st.ids.session + 1
        taken = moves.commit(st, row._replace(session=session))
        taken = taken._replace(ids=st.ids._replace(session=session))
        card = card_of(row) if row.accepted == 2 and not row.waiting else None
        if card is not None and self.moves.steps <= _steps(st):
            card = None
        folded = row.watermark if row.watermark_generation == row.generation else 0
        own = Scheduler("own", session, card, folded, row.generation)
        emit(f"S{s} takes the group: session {session}", True, moves.scheduler(taken, s, own))

    def _give(self, st: State, s: int, emit: Emit) -> None:
        """A graceful give: lanes settle, then one commit of the giver."""
        moves, scheduler = self.moves, st.schedulers[s]
        if st.permitted != s or scheduler.job is not None or moves.fenced(st, s):
            return
        if scheduler.card is not None and scheduler.card.phase == "opening":
            return
        if (x := moves.spend(st, "give")) is None:
            return
        marks = {scheduler.folded}
        if not moves.rules.give_judged:
            marks.add(len(st.journal))  # what was read and skipped counts as folded
        for mark in marks:
            row = st.row._replace(session=0, watermark=mark, watermark_generation=scheduler.generation)
            emit(f"S{s} gives the group, folded up to {mark}", False, moves.down(moves.commit(x, row, s), s))

    # -- runs that are not in memory ---------------------------------------------------------------------------------

    def _accepted(self, st: State, s: int, emit: Emit) -> None:
        moves, scheduler, row = self.moves, st.schedulers[s], st.row
        if scheduler.card is not None or row.accepted != 2 or _steps(st) >= moves.steps or moves.fenced(st, s):
            return
        seen = moves.scheduler(st, s, scheduler._replace(card=card_of(row)))
        if (row.adopt and moves.rules.sweep) or row.waiting:
            emit(f"S{s} finds the run with its sweep", True, seen)
        if st.nudge:
            emit(f"a nudge reaches S{s}", True, seen._replace(nudge=False))

    def _reload(self, st: State, s: int, emit: Emit) -> None:
        """After a commit without an answer: the row is read and the card made anew, before any lane goes on."""
        moves, scheduler, row = self.moves, st.schedulers[s], st.row
        if not moves.rules.reload_exclusive:
            self._reload_beside_lanes(st, s, emit)
        if not scheduler.unsure or moves.fenced(st, s):
            return
        card = scheduler.card
        if row.accepted != 2 or _steps(st) >= moves.steps:
            card = None
        elif card is None or card.change != row.change:
            card = card_of(row)
        looks_again = st.late is not None and moves.rules.accept_found
        read = scheduler._replace(card=card, unsure=looks_again)
        emit(f"S{s} reads its runs again", True, moves.scheduler(st, s, read))

    def _reload_beside_lanes(self, st: State, s: int, emit: Emit) -> None:
        """A read for another run's sake that is applied after other lanes have gone on."""
        moves, scheduler = self.moves, st.schedulers[s]
        read = scheduler.snapshot
        if read is None:
            if not moves.fenced(st, s) and (x := moves.spend(st, "unanswered")) is not None:
                emit(f"S{s} reads all of its runs", False, moves.scheduler(x, s, scheduler._replace(snapshot=st.row)))
            return
        card = scheduler.card
        if read.accepted != 2:
            card = None
        elif card is None or card.change != read.change:
            card = card_of(read)
        applied = scheduler._replace(snapshot=None, card=card)
        emit(f"S{s} makes its cards what it read", True, moves.scheduler(st, s, applied))

    # -- the fold ----------------------------------------------------------------------------------------------------

    def _fold(self, st: State, s: int, card: Card, emit: Emit) -> None:
        moves, scheduler = self.moves, st.schedulers[s]
        if not moves.stands(st, scheduler.generation) or scheduler.folded >= len(st.journal):
            return
        end = len(st.journal)
        result = fold(
            st.row,
            card,
            moves.unread(st, scheduler.folded),
            scheduler.session,
            scheduler.generation,
            moves.steps,
            moves.rules,
        )
        if not result.changed:
            emit(
                f"S{s} reads up to {end}: nothing that counts",
                True,
                moves.scheduler(st, s, scheduler._replace(folded=end)),
            )
            return
        if self._refused(st, s, card, "the fold", emit):
            return
        if result.wrong:
            moves.check.fail("I3", result.wrong)
        moves.check_left_behind(st, result.row)
        x, change = moves.commit_run(st, result.row, s)
        made = result.card
        if made is not None:
            made = made._replace(change=change)
        label = f"S{s} folds up to {end}: entry {len(result.row.history)}" + (
            "" if result.row.leg == st.row.leg else ", the leg is closed"
        )
        emit(label, True, moves.scheduler(x, s, scheduler._replace(card=made, folded=end)))
        if (y := moves.spend(x, "unanswered")) is not None:
            emit(label + " (NO ANSWER)", False, moves.scheduler(y, s, scheduler._replace(unsure=True)))

    def _refused(self, st: State, s: int, card: Card, what: str, emit: Emit) -> bool:
        """The statement's own checks: the fence, and the row's change number."""
        moves, scheduler = self.moves, st.schedulers[s]
        if moves.fenced(st, s):
            emit(f"S{s}: {what} is refused by the fence, it steps down", True, moves.down(st, s))
            return True
        if moves.rules.change and card.change != st.row.change:
            emit(f"S{s}: {what} finds another row", True, moves.scheduler(st, s, scheduler._replace(unsure=True)))
            return True
        return False

    # -- opening legs ------------------------------------------------------------------------------------------------

    def _dispatch(self, st: State, s: int, card: Card, emit: Emit) -> None:
        moves, scheduler, row = self.moves, st.schedulers[s], st.row
        if card.phase == "waiting":
            emit(
                f"S{s}: the run's time has come",
                True,
                moves.scheduler(st, s, scheduler._replace(card=card._replace(phase="ready"))),
            )
            return
        if card.phase not in ("ready", "opening") or scheduler.job is not None:
            return
        places = moves.may_open(st)
        if not places:
            return
        fresh = card.expected != -1 and (
            card.expected_generation == scheduler.generation or not moves.rules.sequence_generation
        )
        if not fresh:
            if moves.stands(st, scheduler.generation):
                sealed = moves.scheduler(
                    st,
                    s,
                    scheduler._replace(
                        card=card._replace(
                            phase="opening", expected=len(st.journal) + 1, expected_generation=scheduler.generation
                        )
                    ),
                )
                sealed = sealed._replace(journal=(*st.journal, Entry(0, scheduler.session, ())))
                emit(f"S{s} appends a SEAL at {len(sealed.journal)} for the next leg", True, sealed)
            return
        if self._refused(st, s, card, "the opening", emit):
            return
        number = 0 if moves.rules.nonce else row.number + 1
        leg = number or st.ids.leg + 1
        for w in places:
            incarnation = st.workers[w].incarnation
            opened = row._replace(
                leg=leg,
                number=number,
                claimant=incarnation,
                leg_generation=scheduler.generation,
                waiting=False,
                adopt=False,
            )
            x, change = moves.commit_run(st, opened, s)
            x = x._replace(ids=x.ids._replace(leg=max(leg, x.ids.leg)))
            made = card._replace(
                phase="open",
                change=change,
                leg=leg,
                claimant=incarnation,
                leg_generation=scheduler.generation,
                expected=-1,
                doubt=False,
            )
            job = Job(leg, row.history, card.expected, scheduler.generation, w, incarnation)
            label = f"S{s} opens leg {leg} at entry {len(row.history)} for W{w}"
            emit(label, True, moves.scheduler(x, s, scheduler._replace(card=made, job=job)))
            if (y := moves.spend(x, "unanswered")) is not None:
                back = scheduler._replace(card=card._replace(phase="ready"), unsure=True)
                emit(label + " (NO ANSWER)", False, moves.scheduler(y, s, back))

    # -- recovery ----------------------------------------------------------------------------------------------------

    def _recover(self, st: State, s: int, card: Card, emit: Emit) -> None:
        moves, rules, scheduler = self.moves, self.moves.rules, st.schedulers[s]
        if card.phase == "sealing":
            self._seal_again(st, s, card, emit)
        if card.phase != "open":
            return
        answer = next(
            (c for c in st.controls if c.answer and c.leg == card.leg and c.session == scheduler.session), None
        )
        if not moves.alive(st, card.claimant):
            self._seal(st, s, card, "its worker has ended", emit)
        elif answer is not None:
            self._seal(st._replace(controls=st.controls - {answer}), s, card, "released", emit)
        else:
            if not rules.permission and (x := moves.spend(st, "suspicion")) is not None:
                self._seal(x, s, card, "by its deadline alone", emit)
            if rules.release:
                self._ask(st, s, card, emit)

    def _ask(self, st: State, s: int, card: Card, emit: Emit) -> None:
        moves, scheduler = self.moves, st.schedulers[s]
        if any(c.leg == card.leg and c.session == scheduler.session for c in st.controls):
            return
        worker = next(w for w, x in enumerate(st.workers) if x.incarnation == card.claimant)
        lost = card.leg_generation != scheduler.generation
        if lost and not moves.rules.journal_lost:
            lost = False
        leg = st.workers[worker].leg
        running = leg is not None and leg.leg == card.leg
        coming = scheduler.job is not None or any(
            j.leg == card.leg and moves.takes(st.workers[j.worker], j) for j in st.jobs
        )
        early = not lost and (running or coming)
        x = moves.spend(st, "suspicion") if early else st
        if x is not None:
            question = Control(False, card.leg, worker, card.claimant, scheduler.session, lost)
            emit(
                f"S{s} asks W{worker} for leg {card.leg}" + (" (EARLY)" if early else ""),
                not early,
                x._replace(controls=x.controls | {question}),
            )

    def _seal(self, st: State, s: int, card: Card, why: str, emit: Emit) -> None:
        """Append the barrier (R10), or what a switched-off rule puts in its place."""
        moves, rules, scheduler = self.moves, self.moves.rules, st.schedulers[s]
        free = why != "by its deadline alone"
        if not rules.barrier or not rules.seal_write:
            self._close_without_seal(st, s, card, free, emit)
            return
        if not moves.stands(st, scheduler.generation):
            return
        x = st._replace(journal=(*st.journal, Entry(card.leg, scheduler.session, ())))
        label = f"S{s} appends a SEAL at {len(x.journal)} behind leg {card.leg}: {why}"
        sealing = scheduler._replace(card=card._replace(phase="sealing"))
        emit(label, free, moves.scheduler(x, s, sealing))
        if (y := moves.spend(x, "unanswered")) is not None:
            doubt = scheduler._replace(card=card._replace(doubt=True))
            emit(label + " (NO ANSWER)", False, moves.scheduler(y, s, doubt))

    def _seal_again(self, st: State, s: int, card: Card, emit: Emit) -> None:
        moves, scheduler = self.moves, st.schedulers[s]
        unread = moves.unread(st, scheduler.folded)
        if moves.rules.seal_again and not any(
            e.leg == card.leg and e.writer == scheduler.session and e.seal for _, e in unread
        ):
            again = scheduler._replace(card=card._replace(phase="open", doubt=True))
            emit(f"S{s} has waited too long for its SEAL", True, moves.scheduler(st, s, again))

    def _close_without_seal(self, st: State, s: int, card: Card, free: bool, emit: Emit) -> None:
        moves, scheduler = self.moves, st.schedulers[s]
        if self._refused(st, s, card, "closing the leg", emit):
            return
        row, made, end = st.row, card, scheduler.folded
        if moves.rules.barrier:
            end = len(st.journal)
            batch = moves.unread(st, scheduler.folded)
            result = fold(row, card, batch, scheduler.session, scheduler.generation, moves.steps, moves.rules)
            if result.card is None or result.card.phase not in ("open", "sealing"):
                return  # the leg has ended by itself; the fold sees to that
            if result.wrong:
                moves.check.fail("I3", result.wrong)
            row, made = result.row, result.card
        row = row._replace(leg=0, claimant=0)
        moves.check_left_behind(st, row)
        x, change = moves.commit_run(st, row, s)
        made = made._replace(
            phase="ready",
            change=change,
            leg=0,
            claimant=0,
            expected=moves.last_sequence(st),
            expected_generation=scheduler.generation,
        )
        emit(
            f"S{s} closes leg {card.leg} without a SEAL",
            free,
            moves.scheduler(x, s, scheduler._replace(card=made, folded=end)),
        )

    # -- the journal's generation ------------------------------------------------------------------------------------

    def _generation(self, st: State, s: int, emit: Emit) -> None:
        """A missing stream, or one that ends before what was folded, opens the next generation (R11)."""
        moves, scheduler, row = self.moves, st.schedulers[s], st.row
        missing = not moves.stands(st, scheduler.generation)
        if not missing and scheduler.folded <= len(st.journal):
            return
        if not moves.rules.generation:  # the stream is made again under its old name
            emit(
                f"S{s} makes the stream again",
                True,
                moves.scheduler(st, s, scheduler._replace(folded=0))._replace(stream=max(st.stream, row.generation)),
            )
            return
        if missing and row.generation != scheduler.generation and st.stream == row.generation:
            emit(
                f"S{s} goes on in generation {row.generation}",
                True,
                moves.scheduler(st, s, _moved(scheduler, row.generation)),
            )
            return
        if moves.fenced(st, s):
            return
        generation = row.generation + 1
        x = moves.commit(st, row._replace(generation=generation), s)
        x = x._replace(stream=generation, journal=(), damaged=False)
        emit(f"S{s} opens journal generation {generation}", True, moves.scheduler(x, s, _moved(scheduler, generation)))

    def _purge(self, st: State, s: int, emit: Emit) -> None:
        """Entries that were folded long ago leave the stream, by whoever is about: a deposed owner, too.

        What may leave is what PostgreSQL has as folded. A giver writes it down; an owner that goes on does so every few
        seconds, which is left out here: all that it has folded counts, when that is the whole stream.
        """
        moves, scheduler, row = self.moves, st.schedulers[s], st.row
        if not moves.stands(st, row.generation):
            return
        whole = scheduler.generation == row.generation and not moves.fenced(st, s)
        whole = whole and scheduler.folded == len(st.journal)
        written = row.watermark if row.watermark_generation == row.generation else 0
        upto = len(st.journal) if whole else min(written, len(st.journal))
        if not any(st.journal[:upto]):
            return  # leaving out earlier entries only makes no difference to anybody
        if (x := moves.spend(st, "purge")) is not None:
            emit(
                f"S{s} purges what is folded, up to {upto}",
                False,
                x._replace(journal=(None,) * upto + st.journal[upto:]),
            )


def _moved(scheduler: Scheduler, generation: int) -> Scheduler:
    card = scheduler.card
    if card is not None and card.phase == "sealing":
        card = card._replace(phase="open", doubt=False)  # its SEAL will never be read
    return scheduler._replace(generation=generation, folded=0, card=card)


def _steps(st: State) -> int:
    return sum(item.kind == "x" for item in st.row.history)
