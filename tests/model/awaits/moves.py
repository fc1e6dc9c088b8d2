"""Everything that can happen: the leg, the owner, the agents of awaits, the child."""

from __future__ import annotations

from model.awaits.state import (
    ALL_ON,
    BEGUN,
    CANCELLED,
    DONE,
    FAULTS,
    WAITS,
    AwaitRules,
    Card,
    Entry,
    Leg,
    Row,
    State,
)
from model.properties import Check

__all__ = ["PROPERTIES", "AwaitModel"]

PROPERTIES = {
    "A1": "a child is started at most once",
    "A2": "the record has no await as open that its run has closed",
    "A3": "the parent takes up one answer at most, and only of an await that is open",
    "A5": "a cancelled run that has something to undo ends after it was undone",
    "I5": "from every state free steps lead to the end of parent and child, with nothing left behind",
}

_OPEN = ("open", "served")

Step = tuple[str, bool, State]


class AwaitModel:
    """One parent and the child that it waits for.

    `endless`: the child never ends by itself, and the parent's wait has a timeout, as it has with `timeout`; else the
    parent waits as long as it takes. `faults` at most in all, and `each` of a kind; cancels are counted beside them.
    """

    def __init__(
        self,
        rules: AwaitRules = ALL_ON,
        *,
        faults: int = 1,
        each: int = 1,
        endless: bool = False,
        timeout: bool = False,
    ) -> None:
        self.rules = rules
        self.properties = frozenset(PROPERTIES)
        self._check = Check(self.properties)
        self._endless = endless
        self._timeout = timeout or endless
        self._budget = (*(each for _ in FAULTS), faults)
        self._found: list[Step] = []

    @staticmethod
    def canon(st: State) -> State:
        """States have no names to be told apart by."""
        return st

    def initial(self) -> State:
        """The parent is stored and ready."""
        return State(
            Row(),
            "none",
            False,
            False,
            "none",
            False,
            0,
            (),
            None,
            Card("ready"),
            False,
            ("", ""),
            frozenset(),
            self._budget,
        )

    def ended(self, st: State) -> bool:
        """Whether both have ended and nothing is left of the await."""
        left = st.waiting != "none" or st.mail or st.cancels or st.child_cancels
        return st.row.state == "ended" and st.child in ("none", "ended") and not left

    def successors(self, st: State) -> list[Step]:
        """Every step from a state. Raises Violation."""
        self._found = []
        self._faults(st)
        if st.leg is not None:
            self._leg(st, st.leg)
        self._fold(st)
        self._owner(st)
        self._agents(st)
        self._child(st)
        return self._found

    def _emit(self, label: str, after: State, *, free: bool = True) -> None:
        self._found.append((label, free, after))

    def _spend(self, st: State, fault: str) -> State | None:
        at = FAULTS.index(fault)
        if not st.budget[at] or not st.budget[-1]:
            return None
        left = list(st.budget)
        left[at] -= 1
        if fault != "cancel":
            left[-1] -= 1
        return st._replace(budget=tuple(left))

    # -- faults ------------------------------------------------------------------------------------------------------

    def _faults(self, st: State) -> None:
        if st.leg is not None and (x := self._spend(st, "worker_lost")) is not None:
            self._emit("the parent's WORKER IS LOST", x._replace(leg=None, delivery=False), free=False)
        if (x := self._spend(st, "takeover")) is not None:
            phases = {"queued": Card("ready"), "running": Card("open"), "waiting": None, "ended": None}
            taken = x._replace(card=phases[st.row.state], nudges=frozenset())
            self._emit(
                "TAKEOVER, the former owner goes on a while", taken._replace(hands=("", st.hands[0])), free=False
            )
            self._emit("TAKEOVER after a crash", taken._replace(hands=("", "")), free=False)
        for nudge in sorted(st.nudges):
            if (x := self._spend(st, "drop")) is not None:
                self._emit(f"the nudge about {nudge} IS LOST", x._replace(nudges=st.nudges - {nudge}), free=False)
        if st.delivery and (x := self._spend(st, "drop")) is not None:
            self._emit("the delivery IS LOST", x._replace(delivery=False), free=False)
        if st.row.state != "ended" and not st.cancels and (x := self._spend(st, "cancel")) is not None:
            asked = x._replace(cancels=True, nudges=st.nudges | {"mail"})
            self._emit("somebody cancels the parent", asked, free=False)

    # -- the leg -----------------------------------------------------------------------------------------------------

    def _leg(self, st: State, leg: Leg) -> None:
        if st.delivery:
            got = leg if leg.taken and self.rules.letters_once else leg._replace(inbox=leg.inbox + 1, taken=True)
            self._emit("the delivery reaches the leg", st._replace(delivery=False, leg=got))
        if st.row.cancel and not leg.cancel:
            self._emit("the cancel reaches the leg", st._replace(leg=leg._replace(cancel=True)))
        if leg.inbox:
            self._feed(st, leg)
        if leg.position == WAITS and self._timeout:
            over = leg._replace(position=DONE, fresh=True)
            self._emit("the parent's wait times out", st._replace(leg=over))
        if leg.cancel and leg.position != CANCELLED:
            if leg.position == BEGUN:
                self._append(st, leg, "ended")
            else:
                self._emit("the leg takes up the cancel", st._replace(leg=leg._replace(position=CANCELLED, fresh=True)))
        opens = leg.position == WAITS and not leg.told
        closes = leg.position != WAITS and leg.told
        if leg.fresh or opens or closes or leg.consumed:
            self._append(st, leg, "")
            if opens and leg.fresh:
                self._append(st, leg, "", split=True)
        else:
            self._quiet(st, leg)
        if leg.position == WAITS and not leg.inbox:
            self._append(st, leg, "blocked")
        if leg.position == DONE or (leg.position == CANCELLED and leg.undone):
            self._append(st, leg, "ended")

    def _quiet(self, st: State, leg: Leg) -> None:
        """Calls begin when everything before is told."""
        if leg.position == BEGUN and not leg.cancel:
            self._emit("the parent's step is done", st._replace(leg=leg._replace(position=WAITS, fresh=True)))
        if leg.position == CANCELLED and not leg.undone:
            self._emit("the step is undone", st._replace(leg=leg._replace(undone=True, fresh=True)))
        if (x := self._spend(st, "drain")) is not None:
            self._append(x, leg, "yielded", free=False)

    def _feed(self, st: State, leg: Leg) -> None:
        fed = leg._replace(inbox=leg.inbox - 1, consumed=True, fresh=True)
        if leg.position == WAITS or not self.rules.too_late:
            if leg.position != WAITS:
                self._check.fail("A3", "an answer is taken up after its await was over")
            fed = fed._replace(answers=leg.answers + 1, position=DONE)
        self._emit("the leg is fed the answer", st._replace(leg=fed))

    def _append(self, st: State, leg: Leg, end: str, *, free: bool = True, split: bool = False) -> None:
        is_open = leg.position == WAITS and not split
        entry = Entry(
            leg.position,
            leg.undone,
            opens=is_open and not leg.told and end != "ended",
            closes=leg.told and leg.position != WAITS and end != "ended",
            consumes=leg.consumed,
            answers=leg.answers,
            compensates=leg.position != BEGUN and end != "ended" and (self.rules.undo_told or bool(end)),
            end=end,
        )
        told = leg.told if split else is_open
        after = None if end else leg._replace(told=told, consumed=False, answers=0, fresh=False)
        delivery = st.delivery and not end
        label = f"the leg appends {end or ('a part' if split else 'an entry')} at {leg.position}"
        self._emit(label, st._replace(journal=(*st.journal, entry), leg=after, delivery=delivery), free=free)

    # -- the fold ----------------------------------------------------------------------------------------------------

    def _fold(self, st: State) -> None:
        if st.card is None or st.card.phase != "open":
            return
        for count in range(1, len(st.journal) + 1):
            self._emit(f"{count} entries are folded", self._folded(st, st.journal[:count], st.journal[count:]))
        if st.leg is None and not st.journal:
            self._emit("a SEAL closes the lost leg", self._closed(st, st.card, "lost"))

    def _folded(self, st: State, entries: tuple[Entry, ...], rest: tuple[Entry, ...]) -> State:
        row, card, waiting, mail = st.row, st.card, st.waiting, st.mail
        assert card is not None
        opened, closed = False, False
        for entry in entries:
            row = row._replace(
                position=entry.position,
                undone=entry.undone,
                answered=row.answered + entry.answers,
                compensates=row.compensates or entry.compensates,
            )
            if entry.closes:
                opened, closed = opened and not self.rules.batch, True
            opened = opened or entry.opens
            if entry.consumes:
                mail, card = False, card._replace(mail=False)
        if row.answered > 1:
            self._check.fail("A3", "the parent took up two answers")
        nudges = st.nudges | ({"awaits"} if opened or closed else set())
        if closed:
            waiting = self._close(waiting)  # what was there before the statement
        if opened and waiting == "none":
            waiting = "open"
        end = entries[-1].end
        told_closed = closed and not entries[-1].opens
        if told_closed and waiting in _OPEN and end != "ended":
            self._check.fail("A2", "the record has the await as open after its closing was folded")
        st = st._replace(row=row, card=card, waiting=waiting, mail=mail, nudges=nudges, journal=rest)
        return self._closed(st, card, end) if end else st

    def _close(self, waiting: str) -> str:
        if waiting == "served" and not self.rules.close_serves:
            return "forgotten"
        return "closed" if waiting in _OPEN else waiting

    def _closed(self, st: State, card: Card, end: str) -> State:
        """The leg is over."""
        row = st.row
        if end == "ended":
            return self._ended(st)
        if row.cancel:
            if not (row.compensates and self.rules.undo_leg):
                return self._ended(st)
            return st._replace(row=row._replace(state="queued"), card=Card("ready"))
        if end == "blocked" and not ((card.mail or card.more) and self.rules.mail_ready):
            return st._replace(row=row._replace(state="waiting"), card=None)
        return st._replace(row=row._replace(state="queued"), card=Card("ready"))

    def _ended(self, st: State) -> State:
        row = st.row
        if row.cancel and row.position in (WAITS, CANCELLED) and not row.undone:
            self._check.fail("A5", "the run is cancelled and what it did is not undone")
        waiting = self._close(st.waiting) if self.rules.end_closes else st.waiting
        ended = row._replace(state="ended")
        nudges = st.nudges | {"awaits"}
        return st._replace(row=ended, card=None, waiting=waiting, mail=False, cancels=False, nudges=nudges)

    # -- the owner ---------------------------------------------------------------------------------------------------

    def _owner(self, st: State) -> None:
        card, row = st.card, st.row
        if card is not None and card.phase == "ready":
            self._emit("the owner reads what a leg begins with", st._replace(card=Card("opening", mail=st.mail)))
        if card is not None and card.phase == "opening":
            told = st.waiting in _OPEN if self.rules.compare else row.position == WAITS
            leg = Leg(row.position, row.undone, told, int(card.mail), card.mail, cancel=row.cancel)
            opened = st._replace(row=row._replace(state="running"), leg=leg, card=card._replace(phase="open"))
            if card.mail and not self.rules.consume_in_fold:
                opened = opened._replace(mail=False)
            self._emit("a leg opens", opened)
        if self._timeout and row.state == "waiting" and card is None:
            self._emit("the wait's time comes", st._replace(card=Card("ready")))
        if (st.mail or st.cancels) and ("mail" in st.nudges or self.rules.sweep):
            self._inbox(st, card)

    def _inbox(self, st: State, card: Card | None) -> None:
        row = st.row
        st = st._replace(nudges=st.nudges - {"mail"})
        if row.state == "ended":
            self._emit("the inbox of an ended run is emptied", st._replace(mail=False, cancels=False))
            return
        if st.cancels and (card is None or card.phase != "opening"):
            noted = st._replace(cancels=False, row=row._replace(cancel=True))
            if card is not None and card.phase == "open":
                self._emit("the owner notes the cancel", noted)
            elif row.compensates and self.rules.undo_leg:
                again = noted._replace(row=noted.row._replace(state="queued"), card=Card("ready"))
                self._emit("the cancelled run gets a leg", again)
            else:
                self._emit("the cancelled run ends", self._ended(noted))
        if not st.mail:
            return
        if card is None and self.rules.mail_ready:
            self._emit("a message makes the run ready", st._replace(card=Card("ready")))
        elif card is not None and card.phase == "opening":
            self._emit("a message finds a leg about to open", st._replace(card=card._replace(more=True)))
        elif card is not None and card.phase == "open" and st.leg is not None and not st.delivery:
            sent = st._replace(card=card._replace(mail=True, more=False), delivery=True)
            if not self.rules.consume_in_fold:
                sent = sent._replace(mail=False)
            self._emit("the owner delivers the message", sent)

    # -- agents and the child ----------------------------------------------------------------------------------------

    def _agents(self, st: State) -> None:
        asked = "awaits" in st.nudges or self.rules.sweep
        if not st.hands[0] and st.waiting in ("open", "closed") and asked:
            read = st._replace(hands=(st.waiting, st.hands[1]), nudges=st.nudges - {"awaits"})
            self._emit(f"the agent reads the {st.waiting} await", read)
        for which, hand in enumerate(st.hands):
            if hand:
                self._hand(st, which, hand)

    def _hand(self, st: State, which: int, hand: str) -> None:
        def now(what: str, x: State) -> State:
            return x._replace(hands=(what, x.hands[1]) if which == 0 else (x.hands[0], what))

        name = "the agent" if which == 0 else "the FORMER agent"
        if hand == "open":
            x = st
            may = st.waiting in _OPEN or not self.rules.start_open
            if may and not (st.starts and self.rules.request_id):
                if st.starts:
                    self._check.fail("A1", "a second child is started")
                x = x._replace(child="live", starts=1)
            self._emit(f"{name} starts the child" if x is not st else f"{name} starts none", now("acted", x))
        elif hand == "acted":
            waiting = "served" if st.waiting == "open" else st.waiting
            if st.waiting == "closed" and not self.rules.settle_open:
                waiting = "forgotten"
            self._emit(f"{name} settles what it opened", now("", st._replace(waiting=waiting)))
        elif hand == "closed":
            x = st
            if st.child == "live" and self.rules.cancel_child:
                x = x._replace(child_cancels=True, nudges=st.nudges | {"child"})
            self._emit(f"{name} cancels the child", now("cancelled", x))
        else:
            waiting = "none" if st.waiting == "closed" else st.waiting
            self._emit(f"{name} settles what it closed", now("", st._replace(waiting=waiting)))

    def _child(self, st: State) -> None:
        if st.child == "untold":
            self._emit("the child's end is told", self._answered(st._replace(child="ended")))
            if (x := self._spend(st, "takeover")) is not None:
                self._emit("the child's owner CRASHES before it tells", x._replace(child="ended"), free=False)
        if st.child != "live":
            if st.child_cancels:
                self._emit("the inbox of the ended child is emptied", st._replace(child_cancels=False))
            return
        if not self._endless:
            self._emit("the child ends", self._end_child(st))
        if st.child_cancels and ("child" in st.nudges or self.rules.sweep):
            x = st._replace(child_cancels=False, nudges=st.nudges - {"child"})
            self._emit("the child is cancelled", self._end_child(x))

    def _end_child(self, st: State) -> State:
        if not self.rules.answer_in_fold:
            return st._replace(child="untold")
        return self._answered(st._replace(child="ended"))

    @staticmethod
    def _answered(st: State) -> State:
        if st.waiting not in _OPEN:
            return st
        return st._replace(mail=True, nudges=st.nudges | {"mail"})
