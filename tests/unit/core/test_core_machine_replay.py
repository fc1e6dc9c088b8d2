"""Any order of crash and resume gives the same result and the same effects as no crash."""

from __future__ import annotations

from typing import Any

import jq
import orjson
from flint_core.definition import compile_definition
from flint_core.effects import Call, CancelEffect, Evaluate, Timer
from flint_core.events import (
    CallFailed,
    CallSucceeded,
    CancelRequested,
    Evaluated,
    EvaluateFailed,
    decode_events,
    encode_events,
)
from flint_core.events import TimerFired as Fired
from flint_core.machine import Machine, MachineLimits, RunFacts
from flint_core.problems import Problem, ProblemType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FACTS = RunFacts("run-1", "default", "demo", "1.0.0", 1_000, 5, 0, 11)
LIMITS = MachineLimits(steps_per_run=400)

SLOW = "${ [limit(3; (.. | numbers), 0, 1)] | length }"  # beyond the fast path
CONDITIONS = ["true", "false", ". != null", "(.. | numbers) // 0 | . >= 0", "$context == null"]


@st.composite
def tasks(draw: st.DrawFn, depth: int, loops: bool = True) -> dict[str, Any]:
    kinds = ["set", "call", "call", "wait", "raise", "slow"]
    if depth:
        kinds += ["do", "for", "fork", "try", "try", "switch"]
    kind = draw(st.sampled_from(kinds))
    task: dict[str, Any]
    if kind == "set":
        task = {"set": draw(st.sampled_from([{"v": 1}, {"v": "${ . }"}, {"n": "${ $context }"}]))}
    elif kind == "slow":
        task = {"set": {"n": SLOW, "m": f"n={SLOW}"}}
    elif kind == "call":
        output = draw(st.sampled_from(["${ . }", {"k": "${ $input }"}, 3, "now ${ now }"]))
        task = {"call": "noop", "with": {"output": output}}
    elif kind == "wait":
        task = {"wait": draw(st.sampled_from(["PT1S", "PT30S", "PT0S"]))}
    elif kind == "raise":
        task = {"raise": {"error": {"type": "https://example.com/no", "status": draw(st.sampled_from([400, 503]))}}}
    elif kind == "do":
        task = {"do": draw(scopes(depth - 1))}
    elif kind == "for":
        items = draw(st.sampled_from(["[1, 2]", "[]", "[3, 4, 5]"]))
        task = {"for": {"each": "x", "in": items}, "do": draw(scopes(depth - 1))}
        if draw(st.booleans()):
            task["while"] = draw(st.sampled_from(["$index < 2", "[limit(1; $x)] | .[0] < 5"]))
    elif kind == "fork":
        task = {"fork": {"branches": draw(scopes(depth - 1)), "compete": draw(st.booleans())}}
    elif kind == "switch":
        cases = [{f"c{n}": {"when": draw(st.sampled_from(CONDITIONS)), "then": "continue"}} for n in range(2)]
        task = {"switch": cases}
    else:
        catch: dict[str, Any] = {}
        if draw(st.booleans()):
            catch["when"] = draw(st.sampled_from(["$error.status >= 500", '$error.type | test("example")']))
        if draw(st.booleans()):
            limit: dict[str, Any] = {"attempt": {"count": draw(st.integers(1, 3))}}
            if draw(st.booleans()):
                limit["attempt"]["duration"] = "PT3S"
            catch["retry"] = {"delay": "PT2S", "limit": limit, "jitter": {"from": "PT0S", "to": "PT1S"}}
        if draw(st.booleans()):
            catch["do"] = draw(scopes(depth - 1))
        task = {"try": draw(scopes(depth - 1)), "catch": catch}
    if draw(st.integers(0, 4)) == 0:
        task["if"] = draw(st.sampled_from(CONDITIONS))
    if draw(st.integers(0, 4)) == 0:
        task["timeout"] = {"after": draw(st.sampled_from(["PT2S", "PT1M"]))}
    if draw(st.integers(0, 3)) == 0:
        task["output"] = {"as": draw(st.sampled_from([". ", "[.. | scalars] | length", "{o: .}"]))}
    if draw(st.integers(0, 3)) == 0:
        task["export"] = {"as": draw(st.sampled_from([".", "{last: .}"]))}
    return task


@st.composite
def scopes(draw: st.DrawFn, depth: int) -> list[dict[str, Any]]:
    return [{f"t{n}": draw(tasks(depth))} for n in range(draw(st.integers(1, 3)))]


class World:
    """Gives outcomes by what is asked, not by when: the same for every history."""

    def __init__(self, plan: list[int]) -> None:
        self.plan = plan

    def answer(self, effect: Call | Timer, now: int) -> Any:
        if isinstance(effect, Timer):
            return Fired(effect.effect_id, max(now, effect.until_ms))
        chosen = self.plan[effect.effect_id % len(self.plan)]
        if chosen % 3 == 0:
            problem = Problem(ProblemType.COMMUNICATION, 500 + chosen, "Communication failed", "down")
            return CallFailed(effect.effect_id, problem, now, now + 5, 4_000 if chosen == 6 else None)
        return CallSucceeded(effect.effect_id, effect.arguments.get("output"), now, now + 5)


def evaluated(effect: Evaluate) -> Evaluated | EvaluateFailed:
    try:
        results = jq.compile(effect.source, args=effect.variables).input_value(effect.input).all()
    except ValueError as error:
        problem = Problem(ProblemType.EXPRESSION, 400, "Expression failed", str(error))
        return EvaluateFailed(effect.effect_id, problem, effect.now_ms)
    if len(results) > 1:
        problem = Problem(ProblemType.EXPRESSION, 400, "Expression failed", "several results")
        return EvaluateFailed(effect.effect_id, problem, effect.now_ms)
    return Evaluated(effect.effect_id, results[0] if results else None)


class History:
    """One run, driven by a script; `crashes` says after which events the machine is lost and how it comes back."""

    def __init__(self, program: Any, world: World, order: list[int], cancel_at: int | None, budget: int) -> None:
        self.program = program
        self.world = world
        self.order = order
        self.cancel_at = cancel_at
        self.budget = budget
        self.machine = Machine.start(program, FACTS, {"n": 1}, 1_000, LIMITS)
        self.log: list[bytes] = []  # recorded since the snapshot
        self.snapshot: bytes | None = None
        self.asked: dict[int, Any] = {}
        self.open: dict[int, Call | Timer] = {}
        self.records: list[Any] = []
        self.recorded = 0  # records since the snapshot that were taken before a crash
        self.now = 1_000

    def settle(self, drop: int = 0) -> None:
        fresh: list[Any] = []
        while True:
            while self.machine.advance(self.budget):
                fresh += self.machine.take_records()
            fresh += self.machine.take_records()
            question = None
            for effect in self.machine.take_effects():
                if isinstance(effect, CancelEffect):
                    assert self.open.pop(effect.effect_id, None) is not None
                elif isinstance(effect, Evaluate):
                    assert question is None
                    question = effect
                else:
                    before = self.asked.setdefault(effect.effect_id, effect)
                    assert before == effect
                    self.open[effect.effect_id] = effect
            if question is None:
                break
            answer = evaluated(question)
            self.machine.apply(answer)
            if isinstance(answer, EvaluateFailed):
                self.log.append(encode_events([answer]))
        self.records += fresh[drop:]
        self.recorded += len(fresh[drop:])

    def crash(self, how: int, settled: bool = True) -> None:
        if how == 1:  # a snapshot was taken just before
            self.snapshot = self.machine.snapshot()
            self.log, self.recorded = [], 0
        limits = LIMITS
        if self.snapshot is None:
            self.machine = Machine.start(self.program, FACTS, {"n": 1}, 1_000, limits)
        else:
            self.machine = Machine.restore(self.program, FACTS, self.snapshot, limits)
        for entry in self.log:
            for event in decode_events(entry):
                self.machine.apply(event)
        expected, self.open = self.open, {}
        self.settle(drop=self.recorded)
        assert not settled or self.open == expected
        # A restored machine tells the same as it waits for.
        assert {effect.effect_id: effect for effect in self.machine.pending()} == self.open

    def run(self, crashes: dict[int, int]) -> tuple[Any, ...]:
        self.settle()
        for turn in range(1_000):
            if turn in crashes and self.machine.end is None:
                self.crash(crashes[turn])
            if self.machine.end is not None:
                break
            if turn == self.cancel_at:
                event: Any = CancelRequested(self.now)
            else:
                assert self.open, "the machine waits for nothing"
                ids = sorted(self.open)
                chosen = ids[self.order[turn % len(self.order)] % len(ids)]
                event = self.world.answer(self.open.pop(chosen), self.now)
            self.now = max(self.now, event.at_ms)
            self.machine.apply(event)
            self.log.append(encode_events([event]))
            if crashes.get(-turn - 1) == 2:  # crash between the record and the work that follows from it
                self.crash(0, settled=False)
            self.settle()
        return self.machine.end, self.asked, self.records


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    body=scopes(3),
    plan=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    order=st.lists(st.integers(0, 5), min_size=1, max_size=8),
    cancel_at=st.none() | st.integers(0, 12),
    budget=st.integers(1, 40),
    crashes=st.dictionaries(st.integers(-10, 12), st.integers(0, 2), max_size=6),
)
def test_crashes_change_nothing(body, plan, order, cancel_at, budget, crashes):
    document = {
        "document": {"dsl": "1.0.3", "namespace": "default", "name": "demo", "version": "1.0.0"},
        "do": body,
    }
    compiled = compile_definition(orjson.dumps(document))
    assert compiled.program is not None, compiled.findings
    calm = History(compiled.program, World(plan), order, cancel_at, 1_000).run({})
    shaken = History(compiled.program, World(plan), order, cancel_at, budget).run(crashes)
    assert shaken[0] == calm[0]
    assert shaken[1] == calm[1]
    assert shaken[2] == calm[2]
