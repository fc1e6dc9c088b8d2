"""Exploring every reachable state, breadth first, so that a violation's trace is a shortest one."""

from __future__ import annotations

import gc
import time
from array import array
from collections import deque
from dataclasses import dataclass, field

from model.canon import Canon
from model.journal import JournalSteps
from model.moves import Moves
from model.owner import Owner
from model.properties import Check, Violation
from model.rules import Rules
from model.state import FAULTS, Card, Ids, Row, Scheduler, State, Worker, steps_of
from model.stores import StoreSteps
from model.worker import WorkerSteps

__all__ = ["Model", "Result", "explore"]

Step = tuple[str, bool, State]


class Model:
    """The protocol under some rules, with a budget for what may go wrong."""

    def __init__(
        self,
        rules: Rules,
        budget: dict[str, int],
        faults: int,
        properties: frozenset[str],
        *,
        steps: int = 2,
        from_start: bool = False,
        lanes: bool = False,
    ) -> None:
        unknown = budget.keys() - set(FAULTS)
        if unknown:
            raise ValueError(f"no such faults: {sorted(unknown)}")
        self.steps = steps
        self.properties = properties
        self._from_start = from_start
        self._budget = (*(budget.get(f, 0) for f in FAULTS), faults)
        self._moves = Moves(rules, steps, budget, Check(properties), lanes=lanes)
        self._owner, self._worker = Owner(self._moves), WorkerSteps(self._moves)
        self._journal, self._stores = JournalSteps(self._moves), StoreSteps(self._moves)
        self.canon = Canon(self._moves)

    def initial(self) -> State:
        """S0 owns the group; the run is stored and ready, or nothing has happened yet."""
        row = Row(session=1) if self._from_start else Row(accepted=2, session=1)
        card = None if self._from_start else Card("ready", 1, expected=0, expected_generation=1)
        return State(
            row=row,
            former=row if self._moves.may_fail_over else None,
            answered=not self._from_start,
            permitted=0,
            stream=1,
            journal=(),
            damaged=False,
            jobs=frozenset(),
            appends=frozenset(),
            workers=(Worker(1), Worker(2)),
            schedulers=(Scheduler("own", 1, card, 0, 1), Scheduler()),
            controls=frozenset(),
            nudge=False,
            late=None,
            budget=self._budget,
            ids=Ids(0, 1, 2, 1),
        )

    def ended(self, st: State) -> bool:
        """Whether the run's end is recorded."""
        return st.row.accepted == 2 and steps_of(st.row.history) >= self.steps

    def successors(self, st: State) -> list[Step]:
        """Every step from a state. Raises Violation."""
        found: list[Step] = []

        def emit(label: str, free: bool, after: State) -> None:
            found.append((label, free, after))

        self._stores.steps(st, emit)
        for i in (0, 1):
            self._owner.steps(st, i, emit)
        for i in (0, 1):
            self._worker.steps(st, i, emit)
        self._journal.steps(st, emit)
        return found


@dataclass(slots=True)
class Result:
    """What an exploration found."""

    states: int
    edges: int
    seconds: float  # of processor time
    complete: bool
    violation: str = ""
    trace: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """One word or the violation."""
        return self.violation or ("ok" if self.complete else "no violation so far (limit reached)")


def explore(model: Model, *, limit: int = 1_000_000) -> Result:
    """Explore until a violation is found, everything is seen, or the limit of states is reached."""
    collects = gc.isenabled()
    gc.disable()  # states hold no cycles; looking for some among millions of tuples takes most of the time
    try:
        return _explore(model, limit)
    finally:
        if collects:
            gc.enable()


def _explore(model: Model, limit: int) -> Result:
    begun = time.process_time()
    canon = model.canon
    start = canon(model.initial())
    ids: dict[State, int] = {start: 0}
    parents = array("l", [-1])
    sources, targets = array("l"), array("l")  # of free steps
    queue = deque([start])
    ended: list[int] = []
    index, edges, complete = -1, 0, True

    def result(violation: str, last: int) -> Result:
        trace = [*_replay(model, list(ids), parents, last), f"=> {violation}"] if violation else []
        return Result(len(ids), edges, time.process_time() - begun, complete, violation, trace)

    while queue:
        state = queue.popleft()
        index += 1
        if model.ended(state):
            ended.append(index)
        try:
            steps = model.successors(state)
        except Violation as violation:
            return result(str(violation), index)
        for _, free, raw in steps:
            edges += 1
            after = canon(raw)
            number = ids.get(after)
            if number is None:
                if len(ids) >= limit:
                    complete = False
                    continue
                number = ids[after] = len(parents)
                parents.append(index)
                queue.append(after)
            if free and number != index:
                sources.append(index)
                targets.append(number)
    if complete and "I5" in model.properties:
        stuck = _stuck(len(ids), ended, sources, targets)
        if stuck >= 0:
            return result("I5: no free steps lead from here to the run's end", stuck)
    return result("", 0)


def _stuck(states: int, ended: list[int], sources: array[int], targets: array[int]) -> int:
    """The first state from which no free steps lead to an end; -1 when there is none."""
    before: list[list[int]] = [[] for _ in range(states)]
    for source, target in zip(sources, targets, strict=True):
        before[target].append(source)
    good = bytearray(states)
    for state in ended:
        good[state] = 1
    stack = list(ended)
    while stack:
        for state in before[stack.pop()]:
            if not good[state]:
                good[state] = 1
                stack.append(state)
    return good.find(0)


def _replay(model: Model, states: list[State], parents: array[int], last: int) -> list[str]:
    """The labels on the way to a state, with the names of processes and legs kept along the way."""
    path = []
    while last > 0:
        path.append(last)
        last = parents[last]
    state, labels = model.initial(), []
    for number in reversed(path):
        label, state = next(
            ((label, after) for label, _, after in model.successors(state) if model.canon(after) == states[number]),
            ("(a step under another name)", states[number]),
        )
        labels.append(label)
    return labels
