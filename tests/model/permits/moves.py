"""Everything that can happen to the holders of one key."""

from __future__ import annotations

from model.permits.state import ALL_ON, FAULTS, PermitRules, Run, State
from model.properties import Check

__all__ = ["PROPERTIES", "PermitModel"]

PROPERTIES = {
    "P1": "the record never shows more holders than the limit",
    "P2": "outsiders never see more runs at work than the limit",
    "P3": "no run is let past an older one that asked lately and was refused",
    "I5": "from every state free steps lead to the end of every run that nothing else keeps, and no permit is left",
}

Step = tuple[str, bool, State]


class PermitModel:
    """`limit` permits for `runs` runs, which two owners share. `faults` at most in all, and one of each kind."""

    def __init__(self, rules: PermitRules = ALL_ON, *, runs: int = 3, limit: int = 1, faults: int = 1) -> None:
        self.rules = rules
        self.properties = frozenset(PROPERTIES)
        self._check = Check(self.properties)
        self._runs, self._limit = runs, limit
        self._budget = (*(1 for _ in FAULTS), faults)
        self._found: list[Step] = []

    @staticmethod
    def canon(st: State) -> State:
        """Every state is its own picture."""
        return st

    def initial(self) -> State:
        """All runs are stored and ready, at one owner and the other in turn."""
        return State(tuple(Run(number % 2) for number in range(self._runs)), frozenset(), self._budget)

    @staticmethod
    def ended(st: State) -> bool:
        """Whether nothing is left to be done and no permit is held."""
        return all((r.stalled or r.state == "ended") and not r.permit and r.waits != "asked" for r in st.runs)

    def successors(self, st: State) -> list[Step]:
        """Every step from a state. Raises Violation."""
        self._found = []
        for number, run in enumerate(st.runs):
            self._faults(st, number, run)
            self._opening(st, number, run)
            self._work(st, number, run)
            self._freeing(st, number, run)
            self._waking(st, number, run)
        for owner in sorted(st.heard):
            self._hears(st, owner)
        return self._found

    def _emit(self, label: str, after: State, *, free: bool = True) -> None:
        if sum(bool(r.permit) for r in after.runs) > self._limit:
            self._check.fail("P1", f"after: {label}")
        if sum(r.work == "busy" for r in after.runs) > self._limit:
            self._check.fail("P2", f"after: {label}")
        self._found.append((label, free, after))

    def _spend(self, st: State, fault: str) -> State | None:
        at = FAULTS.index(fault)
        if not st.budget[at] or not st.budget[-1]:
            return None
        left = list(st.budget)
        left[at] -= 1
        left[-1] -= 1
        return st._replace(budget=tuple(left))

    @staticmethod
    def _with(st: State, number: int, run: Run, *, tell: bool = False) -> State:
        heard = st.heard | {0, 1} if tell else st.heard
        return st._replace(runs=(*st.runs[:number], run, *st.runs[number + 1 :]), heard=heard)

    # -- faults ------------------------------------------------------------------------------------------------------

    def _faults(self, st: State, number: int, run: Run) -> None:
        if run.work == "busy" and (x := self._spend(st, "worker_lost")) is not None:
            lost = self._with(x, number, run._replace(work="lost"))
            self._emit(f"the WORKER of {number} IS LOST, its lease ends", lost, free=False)
        if number == 0 and (x := self._spend(st, "takeover")) is not None:
            for owner in (0, 1):
                taken = tuple(self._reread(r) if r.owner == owner else r for r in x.runs)
                after = x._replace(runs=taken, heard=x.heard - {owner})
                self._emit(f"TAKEOVER of what owner {owner} owns", after, free=False)
        if number in st.heard and number < 2 and (x := self._spend(st, "drop")) is not None:
            self._emit(f"the word to owner {number} IS LOST", x._replace(heard=x.heard - {number}), free=False)
        if run.state == "open" and run.work == "busy" and (x := self._spend(st, "abandon")) is not None:
            ended = run._replace(state="ended", permit="after" if self.rules.linger else "", card="freeing")
            after = self._with(x, number, ended, tell=not self.rules.linger)
            self._emit(f"{number} IS ENDED while its worker is at work", after, free=False)
        if run.state == "queued" and not run.permit and not run.stalled and (x := self._spend(st, "stall")) is not None:
            self._emit(f"{number} STALLS", self._with(x, number, run._replace(stalled=True)), free=False)

    @staticmethod
    def _reread(run: Run) -> Run:
        return run._replace(card={"queued": "ready", "open": "open", "ended": ""}[run.state])

    # -- opening -----------------------------------------------------------------------------------------------------

    def _opening(self, st: State, number: int, run: Run) -> None:
        if run.stalled:
            return
        if run.state == "queued" and run.card == "ready":
            if not self.rules.lock:
                label = f"{number} counts the holders"
                self._emit(label, self._with(st, number, run._replace(card="saw" if self._room(st, run) else "parked")))
            else:
                self._ask(st, number, run)
        elif run.state == "queued" and run.card == "saw":
            self._open(st, number, run)
        elif run.state == "open" and run.card == "opened":
            room = self._room(st, run)
            held = run._replace(card="open", permit="held" if room else "")
            self._emit(f"{number} takes its permit", self._with(st, number, held))

    def _room(self, st: State, run: Run) -> bool:
        if run.permit == "held" and self.rules.reuse:
            return True
        return sum(bool(r.permit) for r in st.runs) < self._limit

    def _ask(self, st: State, number: int, run: Run) -> None:
        """One commit, under the key's lock."""
        held = sum(bool(r.permit) for r in st.runs)
        older = sum(r.waits == "asked" for r in st.runs[:number])
        mine = run.permit == "held" and self.rules.reuse
        room = not self.rules.same_commit or mine or held < self._limit
        if room and self.rules.order and not mine and held + older >= self._limit:
            room = False
        if room:
            if not mine and held + older >= self._limit and self.rules.same_commit:
                self._check.fail("P3", f"{number} is let past an older one")
            self._open(st, number, run)
        else:
            self._emit(f"{number} is refused", self._with(st, number, run._replace(card="parked", waits="asked")))

    def _open(self, st: State, number: int, run: Run) -> None:
        took = run._replace(state="open", permit="held", waits="", work="busy", card="open")
        if not self.rules.same_commit:
            took = took._replace(permit=run.permit, card="opened")
        self._emit(f"{number} begins", self._with(st, number, took))

    # -- work and the fold -------------------------------------------------------------------------------------------

    def _work(self, st: State, number: int, run: Run) -> None:
        if run.work == "busy":
            self._emit(f"the worker of {number} is done", self._with(st, number, run._replace(work="told")))
        if run.state != "open" or run.card != "open":
            return
        if run.work == "told":
            if self.rules.in_fold:
                ended = run._replace(state="ended", permit="", work="", card="")
                self._emit(f"the end of {number} is folded", self._with(st, number, ended, tell=True))
            else:
                ended = run._replace(state="ended", work="", card="freeing")
                self._emit(f"the end of {number} is folded", self._with(st, number, ended))
        elif run.work == "lost":
            again = run._replace(state="queued", work="", card="ready")
            self._emit(f"a SEAL closes the leg of {number}", self._with(st, number, again))
            poisoned = run._replace(state="ended", work="", card="", permit="")
            self._emit(f"{number} is poison", self._with(st, number, poisoned, tell=True))

    # -- permits that outlive their run ------------------------------------------------------------------------------

    def _freeing(self, st: State, number: int, run: Run) -> None:
        if run.state != "ended" or not run.permit:
            return
        if run.permit == "held":  # its end did not free it
            if run.card == "freeing":
                self._emit(f"{number} is freed", self._with(st, number, run._replace(permit="", card=""), tell=True))
            return
        if run.card != "freeing":
            if self.rules.sweep_after:
                self._emit(
                    f"the owner of {number} finds what is to be freed",
                    self._with(st, number, run._replace(card="freeing")),
                )
            return
        freed = run._replace(permit="", card="")
        if run.work != "busy":
            self._emit(f"the worker of {number} has ended: it is freed", self._with(st, number, freed, tell=True))
        elif not self.rules.sure and (x := self._spend(st, "suspicion")) is not None:
            self._emit(
                f"the worker of {number} IS SUSPECTED: it is freed", self._with(x, number, freed, tell=True), free=False
            )

    # -- parked runs -------------------------------------------------------------------------------------------------

    def _hears(self, st: State, owner: int) -> None:
        woken = tuple(r._replace(card="ready") if r.owner == owner and r.card == "parked" else r for r in st.runs)
        self._emit(f"owner {owner} hears of it", st._replace(runs=woken, heard=st.heard - {owner}))

    def _waking(self, st: State, number: int, run: Run) -> None:
        if run.card == "parked" and not run.stalled and self.rules.sweep:
            self._emit(f"{number} is tried again", self._with(st, number, run._replace(card="ready")))
        if run.waits == "asked" and run.stalled and self.rules.patience:
            self._emit(f"{number} has not asked for long", self._with(st, number, run._replace(waits="old")))
