"""Everything that can happen to the slots of two workers that two schedulers share."""

from __future__ import annotations

from model.lending.state import ALL_ON, FAULTS, LendingRules, Run, State, View
from model.properties import Check

__all__ = ["PROPERTIES", "LendingModel"]

PROPERTIES = {
    "L1": "no worker executes more legs than it has slots",
    "L2": "the legs that are open on a worker are never more than each scheduler's share and what it saw free",
    "L3": "no run is executed at two workers at a time",
    "L4": "a leg that was asked back has room at a slot that was seen free, and goes there",
    "I5": "from every state free steps lead to the end of every run that ends, with nothing borrowed that is not used",
}

Step = tuple[str, bool, State]


class LendingModel:
    """`runs`: for each scheduler, how many that end and how many that do not. `alone`: the second joins later."""

    def __init__(
        self,
        rules: LendingRules = ALL_ON,
        *,
        slots: int = 1,
        runs: tuple[tuple[int, int], tuple[int, int]] = ((1, 1), (1, 0)),
        alone: bool = False,
        takeovers: int = 0,
        drains: int = 0,
    ) -> None:
        self.rules = rules
        self.properties = frozenset(PROPERTIES)
        self._check = Check(self.properties)
        self._slots, self._runs, self._alone = slots, runs, alone
        self._budget = (takeovers, int(alone), drains)
        self._found: list[Step] = []

    @staticmethod
    def canon(st: State) -> State:
        """Workers are alike, and so are the runs of an owner that are of a kind."""
        flipped = st._replace(
            runs=tuple(r._replace(worker=1 - r.worker) if r.worker >= 0 else r for r in st.runs),
            views=tuple((b, a) for a, b in st.views),
            drains=frozenset(1 - w for w in st.drains),
        )
        return min(
            (st._replace(runs=tuple(sorted(st.runs))), flipped._replace(runs=tuple(sorted(flipped.runs)))),
            key=lambda x: (x.runs, x.views, sorted(x.drains)),
        )

    def initial(self) -> State:
        """Everything is queued."""
        runs = [
            Run(owner, endless)
            for owner, (short, long) in enumerate(self._runs)
            for endless in [False] * short + [True] * long
        ]
        views = ((View(), View()), (View(), View()))
        return State(tuple(sorted(runs)), views, 1 if self._alone else 2, frozenset(), self._budget)

    def ended(self, st: State) -> bool:
        """Whether all is done that can be done, and every loan is used or was given back."""
        over = all(r.state == "done" or r.endless for r in st.runs)
        lent = any(
            view.borrowed and self._legs(st, i, w) <= self._share(st)
            for i, views in enumerate(st.views)
            for w, view in enumerate(views)
        )
        return over and not lent

    def successors(self, st: State) -> list[Step]:
        """Every step from a state. Raises Violation."""
        self._found = []
        self._duties(st)
        for number, run in enumerate(st.runs):
            self._run(st, number, run)
        for i in range(st.members):
            for w in (0, 1):
                self._heartbeat(st, i, w)
                self._ask(st, i, w)
        return self._found

    # -- pieces --------------------------------------------------------------------------------------------------------

    def _emit(self, label: str, after: State, *, free: bool = True) -> None:
        for w in (0, 1):
            at_work = sum(r.worker == w and r.state == "runs" for r in after.runs)
            if at_work > self._slots:
                self._check.fail("L1", f"after: {label}")
            if self._held(after, w) + sum(r.worker == w and r.state == "sent" for r in after.runs) > 2 * self._slots:
                self._check.fail("L2", f"after: {label}")
        if any(r.twice and r.state == "runs" for r in after.runs):
            self._check.fail("L3", f"after: {label}")
        self._found.append((label, free, after))

    def _spend(self, st: State, fault: str) -> State | None:
        at = FAULTS.index(fault)
        if not st.budget[at]:
            return None
        return st._replace(budget=(*st.budget[:at], st.budget[at] - 1, *st.budget[at + 1 :]))

    @staticmethod
    def _with(st: State, number: int, run: Run) -> State:
        return st._replace(runs=(*st.runs[:number], run, *st.runs[number + 1 :]))

    @staticmethod
    def _viewed(st: State, i: int, w: int, view: View) -> State:
        mine = tuple(view if at == w else old for at, old in enumerate(st.views[i]))
        return st._replace(views=tuple(mine if at == i else old for at, old in enumerate(st.views)))

    @staticmethod
    def _legs(st: State, i: int, w: int) -> int:
        """Legs that the scheduler has open there."""
        return sum(r.owner == i and r.worker == w and r.state in ("sent", "waits", "runs") for r in st.runs)

    @staticmethod
    def _held(st: State, w: int) -> int:
        """Legs that the worker has."""
        return sum(r.worker == w and r.state in ("waits", "runs") for r in st.runs)

    def _share(self, st: State) -> int:
        return self._slots // st.members if self.rules.share else self._slots

    def _room(self, st: State, i: int, w: int) -> int:
        if w in st.drains:
            return 0
        view = st.views[i][w]
        return max(1, self._share(st) + view.borrowed)

    # -- duties and faults ---------------------------------------------------------------------------------------------

    def _duties(self, st: State) -> None:
        if st.members == 1 and (x := self._spend(st, "join")) is not None:
            self._emit("the second scheduler JOINS", self._forgotten(x)._replace(members=2))
        if st.members == 2 and (x := self._spend(st, "takeover")) is not None:
            runs = tuple(sorted(r._replace(owner=0) for r in x.runs))
            views = (self._forgotten(x).views[0], (View(), View()))
            self._emit("the second scheduler IS GONE", x._replace(runs=runs, views=views, members=1), free=False)
        for w in (0, 1):
            if not st.drains and (x := self._spend(st, "drain")) is not None:
                self._emit(f"worker {w} DRAINS", x._replace(drains=frozenset({w})), free=False)

    # -- runs ----------------------------------------------------------------------------------------------------------

    def _run(self, st: State, number: int, run: Run) -> None:
        if run.state == "queued" and run.owner < st.members:
            having = [w for w in (0, 1) if self._legs(st, run.owner, w) < self._room(st, run.owner, w)]
            vacant = [w for w in having if st.views[run.owner][w].kept and self._free(st, run.owner, w)]
            for w in vacant if vacant and self.rules.directed else having:
                if vacant and not self._free(st, run.owner, w):
                    self._check.fail("L4", f"scheduler {run.owner} sends {number} to {w}, which is full")
                view = st.views[run.owner][w]
                told = self._viewed(st, run.owner, w, View(view.borrowed, view.held + 1, max(0, view.kept - 1)))
                sent = run._replace(state="sent", worker=w)
                self._emit(f"scheduler {run.owner} sends {number} to {w}", self._with(told, number, sent))
        elif run.state == "sent":
            busy = sum(r.worker == run.worker and r.state == "runs" for r in st.runs)
            state = "runs" if busy < self._slots or not self.rules.queue else "waits"
            self._emit(f"{number} comes to {run.worker}: {state}", self._with(st, number, run._replace(state=state)))
        elif run.state == "waits":
            busy = sum(r.worker == run.worker and r.state == "runs" for r in st.runs)
            if busy < self._slots:
                self._emit(f"{number} begins at {run.worker}", self._with(st, number, run._replace(state="runs")))
            if run.worker in st.drains:
                self._emit(f"{number} is given back", self._with(self._left(st, run), number, self._back(run)))
        elif run.state == "runs" and not run.endless:
            done = run._replace(state="done", worker=-1)
            self._emit(f"{number} ends", self._with(self._left(st, run), number, done))

    def _left(self, st: State, run: Run, legs: int = 1) -> State:
        """Its owner knows that a leg is there no more."""
        view = st.views[run.owner][run.worker]
        return self._viewed(st, run.owner, run.worker, view._replace(held=max(0, view.held - legs)))

    def _free(self, st: State, i: int, w: int) -> int:
        """Slots that are free there, by all that the scheduler knows."""
        return max(0, self._slots - max(st.views[i][w].held, self._legs(st, i, w))) if w not in st.drains else 0

    @staticmethod
    def _forgotten(st: State) -> State:
        """Shares change: no slots are kept for anybody."""
        return st._replace(views=tuple(tuple(v._replace(kept=0) for v in views) for views in st.views))

    @staticmethod
    def _back(run: Run) -> Run:
        return run._replace(state="queued", worker=-1)

    # -- heartbeats ----------------------------------------------------------------------------------------------------

    def _heartbeat(self, st: State, i: int, w: int) -> None:
        view, held = st.views[i][w], self._held(st, w)
        heard = self._viewed(st, i, w, view._replace(held=held))
        legs, share, room = self._legs(heard, i, w), self._share(heard), self._room(heard, i, w)
        others = max(0, held - legs)
        left = max(0, self._slots - others - share) if self.rules.left else self._slots
        if w in st.drains and self.rules.leaving:
            left = 0
        needed = legs > share or legs >= room or (view.kept and self.rules.kept)
        wanted = view.borrowed if needed or not self.rules.returned else 0
        if legs >= room:
            wanted += (left - view.borrowed + 1) // 2
        borrowed = max(0, min(wanted, left))
        if (borrowed, held) != view[:2]:
            after = self._viewed(heard, i, w, View(borrowed, held, view.kept))
            label = f"scheduler {i} hears that {w} has {held}, and borrows {borrowed}"
            keeps = min(view.kept, self._free(after, i, w))
            if keeps and self._room(after, i, w) - legs < keeps:
                self._check.fail("L4", f"after: {label}")
            self._emit(label, after)
        if view.kept:
            label = f"scheduler {i} keeps the slots of {w} no longer"
            self._emit(label, self._viewed(st, i, w, view._replace(kept=0)))

    def _ask(self, st: State, i: int, w: int) -> None:
        """Legs that wait at a worker come back, when there is a slot for them elsewhere by all that is known."""
        other = 1 - w
        view = st.views[i][other]
        most = min(st.views[i][w].held - self._slots, self._free(st, i, other))
        if most <= 0 or not self.rules.ask:
            return
        states = ("waits",) if self.rules.waiting_only else ("waits", "runs")
        asked = [n for n, r in enumerate(st.runs) if r.owner == i and r.worker == w and r.state in states][:most]
        if asked:
            runs = tuple(
                self._back(r)._replace(twice=r.state == "runs" or r.twice) if n in asked else r
                for n, r in enumerate(st.runs)
            )
            legs = self._legs(st, i, other) + len(asked)
            borrowed = max(view.borrowed, legs - self._share(st)) if self.rules.granted else view.borrowed
            lent = self._viewed(st, i, other, View(borrowed, view.held, len(asked)))
            after = self._left(lent, st.runs[asked[0]], len(asked))._replace(runs=runs)
            label = f"scheduler {i} asks {w} for {asked} and gets them"
            if self._room(after, i, other) < legs:
                self._check.fail("L4", f"after: {label}")
            self._emit(label, after)
