"""Everything that can happen to a wide fork: its owners look and act, chunks end, the run takes the answer up."""

from __future__ import annotations

from model.branches.state import ALL_ON, FAULTS, BranchRules, Chunk, Look, State
from model.properties import Check

__all__ = ["PROPERTIES", "BranchModel"]

PROPERTIES = {
    "B1": "a chunk starts at most once",
    "B2": "the run takes up one answer: the outputs of all chunks that there are, or a failure",
    "B3": "no more chunks run at a time than the window allows",
    "B4": "no chunk starts when the fork is over",
    "I5": "from every state free steps lead to the end of the run and of its chunks, with nothing left behind",
}

_RUNS = ("running",)
_OVER = ("ok", "failed", "cancelled")

Step = tuple[str, bool, State]


class BranchModel:
    """One run at its fork; `chunks` of them, `window` at a time. Cancels and failures are counted beside `faults`."""

    def __init__(
        self, rules: BranchRules = ALL_ON, *, chunks: int = 2, window: int = 1, faults: int = 1, endless: bool = False
    ) -> None:
        self.rules = rules
        self.properties = frozenset(PROPERTIES)
        self._check = Check(self.properties)
        self._chunks = chunks
        self._window = window
        self._endless = endless  # the first chunk fails, the others end only when they are cancelled
        self._budget = (faults, faults, 1, 1, faults)
        self._found: list[Step] = []

    @staticmethod
    def canon(st: State) -> State:
        """States have no names to be told apart by."""
        return st

    def initial(self) -> State:
        """The run's leg has ended with the await open; its fold tells the owner."""
        none = Chunk()
        return State("open", (none,) * self._chunks, (Look(), Look()), True, (), (), False, False, self._budget)

    @staticmethod
    def ended(st: State) -> bool:
        """Whether all is over and nothing is left."""
        return (
            st.ended and st.waiting == "gone" and not st.inbox and all(c.state in ("none", *_OVER) for c in st.chunks)
        )

    def successors(self, st: State) -> list[Step]:
        """Every step from a state. Raises Violation."""
        self._found = []
        self._faults(st)
        self._owner(st)
        for place, look in enumerate(st.hands):
            if look.act:
                self._act(st, place, look)
        for number, chunk in enumerate(st.chunks):
            if chunk.state == "running":
                self._chunk(st, number, chunk)
        self._run(st)
        return self._found

    def _emit(self, label: str, after: State, *, free: bool = True) -> None:
        self._found.append((label, free, after))

    def _spend(self, st: State, fault: str) -> State | None:
        at = FAULTS.index(fault)
        counted = fault in ("takeover", "drop")
        if not st.budget[at] or (counted and not st.budget[-1]):
            return None
        left = list(st.budget)
        left[at] -= 1
        if counted:
            left[-1] -= 1
        return st._replace(budget=tuple(left))

    # -- faults ------------------------------------------------------------------------------------------------------

    def _faults(self, st: State) -> None:
        if (x := self._spend(st, "takeover")) is not None:
            again = x._replace(told=False)
            self._emit(
                "TAKEOVER, the former owner acts once more", again._replace(hands=(Look(), st.hands[0])), free=False
            )
            self._emit("TAKEOVER after a crash", again._replace(hands=(Look(), Look())), free=False)
        if st.told and (x := self._spend(st, "drop")) is not None:
            self._emit("the nudge IS LOST", x._replace(told=False), free=False)
        if not st.ended and not st.cancel and (x := self._spend(st, "cancel")) is not None:
            self._emit("somebody cancels the run", x._replace(cancel=True), free=False)

    # -- owners ------------------------------------------------------------------------------------------------------

    def _owner(self, st: State) -> None:
        """The owner reads how far the fork is, and decides what to do."""
        swept = st.waiting == "closed" or (st.waiting == "open" and self.rules.unserved)
        if not (st.told or swept) or st.hands[0].act:
            return
        if st.waiting == "closed":
            running = tuple(n for n, c in enumerate(st.chunks) if c.state == "running")
            look = Look("cancel", running)
        elif st.waiting == "open":
            look = self._decide(st)
        else:
            look = Look()
        self._emit(
            f"the owner looks: {look.act or 'nothing to do'}", st._replace(told=False, hands=(look, st.hands[1]))
        )

    def _decide(self, st: State) -> Look:
        states = [c.state for c in st.chunks]
        there = [n for n, state in enumerate(states) if state != "none"]
        bad = any(state in ("failed", "cancelled") for state in states)
        if bad and (self.rules.decided or all(state in _OVER for state in states)):
            return Look("answer", content="failed")
        wanted = self._chunks if self.rules.all_ended else len(there)
        if there and states.count("ok") == wanted:
            return Look("answer", content="ok")
        running = states.count("running") if self.rules.window else 0
        missing = [n for n in range(self._chunks) if n not in there]
        if not self.rules.lowest:
            missing.reverse()  # whichever comes to mind first, and that differs between owners
            missing = missing if st.hands[1].act else sorted(missing)
        room = max(0, self._window - running)
        return Look("start", tuple(missing[:room])) if room and missing else Look()

    def _act(self, st: State, place: int, look: Look) -> None:
        """One commit of what an owner had decided; what it had read may have changed since."""
        hands = (Look(), st.hands[1]) if place == 0 else (st.hands[0], Look())
        after = st._replace(hands=hands)
        who = "the former owner" if place else "the owner"
        if look.act == "start":
            self._emit(f"{who} stores chunks {look.numbers}", self._started(after, look.numbers))
        elif look.act == "answer":
            fits = (st.waiting == "open" or not self.rules.answer_open) and not st.ended
            if fits and (not self.rules.message_key or not (st.inbox or st.joined)):
                after = after._replace(inbox=(*st.inbox, look.content))
            served = "served" if st.waiting == "open" else st.waiting
            self._emit(f"{who} answers: {look.content}", after._replace(waiting=served))
        elif look.act == "cancel":
            chunks = tuple(
                c._replace(cancel=True) if n in look.numbers and self.rules.cancel_chunks else c
                for n, c in enumerate(st.chunks)
            )
            self._emit(f"{who} serves the closing", after._replace(chunks=chunks, waiting="gone"))

    def _started(self, st: State, numbers: tuple[int, ...]) -> State:
        chunks = list(st.chunks)
        for number in numbers:
            chunk = chunks[number]
            if st.waiting not in ("open", "served") and self.rules.start_open:
                continue
            if chunk.starts and self.rules.request_id:
                continue
            if st.waiting not in ("open", "served"):
                self._check.fail("B4", "a chunk starts when the fork is over")
            chunks[number] = Chunk("running", chunk.starts + 1)
            if chunk.starts:
                self._check.fail("B1", "a chunk starts twice")
        if sum(c.state in _RUNS for c in chunks) > self._window:
            self._check.fail("B3", "more chunks run than the window allows")
        return st._replace(chunks=tuple(chunks))

    # -- chunks ------------------------------------------------------------------------------------------------------

    def _chunk(self, st: State, number: int, chunk: Chunk) -> None:
        def over(state: str, base: State) -> State:
            chunks = list(base.chunks)
            chunks[number] = chunk._replace(state=state, cancel=False)
            return base._replace(chunks=tuple(chunks), told=True)

        if chunk.cancel:
            self._emit(f"chunk {number} is cancelled", over("cancelled", st))
            return
        if self._endless and not number:
            self._emit("chunk 0 fails", over("failed", st))
        elif not self._endless:
            self._emit(f"chunk {number} ends well", over("ok", st))
        if (x := self._spend(st, "failure")) is not None:
            self._emit(f"chunk {number} fails", over("failed", x), free=False)

    # -- the run -----------------------------------------------------------------------------------------------------

    def _run(self, st: State) -> None:
        if st.ended:
            return
        if st.cancel:
            self._emit("the cancelled run ends", self._over(st._replace(inbox=())))
        elif st.inbox:
            content, rest = st.inbox[0], st.inbox[1:]
            if st.joined:
                self._check.fail("B2", "the run takes up a second answer")
            if content == "ok" and [c.state for c in st.chunks] != ["ok"] * self._chunks:
                self._check.fail("B2", "the run goes on with outputs that are not there")
            joined = st._replace(inbox=rest, joined=(*st.joined, content))
            self._emit("the run takes the answer up, closes the await and goes on", self._close(joined))
        elif st.joined:
            self._emit("the run ends", self._over(st))

    def _close(self, st: State) -> State:
        if st.waiting not in ("open", "served"):
            return st
        return st._replace(waiting="closed" if self.rules.close_serves else "gone", told=True)

    def _over(self, st: State) -> State:
        return self._close(st)._replace(ended=True, inbox=())
