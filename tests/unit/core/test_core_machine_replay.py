"""Any order of crash and resume gives the same result and the same effects as no crash."""

from __future__ import annotations

from typing import Any

import jq
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flint_core.definition import compile_definition
from flint_core.effects import Await, AwaitKind, Call, CancelEffect, Evaluate, Timer
from flint_core.events import (
    CallFailed,
    CallSucceeded,
    CancelRequested,
    Evaluated,
    EvaluateFailed,
    Received,
    decode_events,
    encode_events,
)
from flint_core.events import TimerFired as Fired
from flint_core.machine import Machine, MachineLimits, RunFacts
from flint_core.problems import Problem, ProblemType

FACTS = RunFacts("run-1", "default", "demo", "1.0.0", 1_000, 5, 0, 11)
LIMITS = MachineLimits(steps_per_run=400)

SLOW = "${ [limit(3; (.. | numbers), 0, 1)] | length }"  # beyond the fast path
FIRST = {"with": {"type": "t.a"}, "correlate": {"o": {"from": ".data.o"}}}
SECOND = {
    "with": {"type": "t\\.[bc]", "data": "${ .n > 1 }"},
    "correlate": {"o": {"from": "[limit(1; .data.o)] | .[0]"}},
}
STRATEGIES: list[dict[str, Any]] = [
    {"one": {"with": {"type": "t.b", "source": '${ .source | test("s") }'}}},
    {"any": [FIRST, {"with": {"type": "t.b"}}], "until": "[limit(1; length)] | .[0] > 1"},
    {"any": [FIRST, SECOND], "until": {"one": {"with": {"type": "t.c"}}}},
    {"any": [], "until": "length > 2"},
    {"all": [FIRST, SECOND]},
]
CONDITIONS = ["true", "false", ". != null", "(.. | numbers) // 0 | . >= 0", "$context == null"]


@st.composite
def tasks(draw: st.DrawFn, depth: int, loops: bool = True) -> dict[str, Any]:
    # Simple examples come last in what hypothesis shrinks from: composites first, so that most examples have them.
    leaves = ["call", "call", "wait", "call", "slow", "set", "call", "raise", "call", "switch"]
    leaves += ["listen", "child", "approve", "emit", "listen"]
    composites = ["try", "for", "fork", "do", "for", "each event"]
    kind = draw(st.sampled_from(composites if depth and draw(st.integers(0, 4)) else leaves))
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
        items = draw(st.sampled_from(["[1, 2]", "[3, 4, 5]", "[]"]))
        task = {"for": {"each": "x", "in": items}, "do": draw(scopes(depth - 1))}
        if draw(st.booleans()):
            task["metadata"] = {"flint": {"parallel": draw(st.integers(1, 3))}}
        elif draw(st.booleans()):
            task["while"] = draw(st.sampled_from(["$index < 2", "[limit(1; $x)] | .[0] < 5"]))
    elif kind == "fork":
        task = {"fork": {"branches": draw(scopes(depth - 1)), "compete": draw(st.booleans())}}
    elif kind in ("listen", "each event"):
        task = {
            "listen": {"to": draw(st.sampled_from(STRATEGIES)), "read": draw(st.sampled_from(["data", "envelope"]))}
        }
        if kind == "each event":
            task["foreach"] = {"item": "x", "do": draw(scopes(depth - 1))}
            if draw(st.booleans()):
                task["foreach"] |= {"output": {"as": "[limit(1; $x)]"}, "export": {"as": "{seen: ., at: $index}"}}
    elif kind == "child":
        task = {"run": {"workflow": {"name": "child", "input": {"n": "${ . }"}}, "await": draw(st.booleans())}}
    elif kind == "approve":
        task = {"call": "approval", "with": {"title": "Do?", "deadline": draw(st.sampled_from(["PT1S", "PT1H"]))}}
    elif kind == "emit":
        task = {"emit": {"event": {"with": {"type": "t.done", "data": "${ [limit(1; .)] }"}}}}
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
    if draw(st.integers(0, 9)) == 9:
        task["if"] = draw(st.sampled_from(CONDITIONS))
    if draw(st.integers(0, 4)) == 4:
        task["timeout"] = {"after": draw(st.sampled_from(["PT2S", "PT1M"]))}
    if draw(st.integers(0, 3)) == 3:
        task["output"] = {"as": draw(st.sampled_from([". ", "[.. | scalars] | length", "{o: .}"]))}
    if draw(st.integers(0, 3)) == 3:
        task["export"] = {"as": draw(st.sampled_from([".", "{last: .}"]))}
    return task


@st.composite
def scopes(draw: st.DrawFn, depth: int) -> list[dict[str, Any]]:
    return [{f"t{n}": draw(tasks(depth))} for n in range(draw(st.integers(2, 3)))]


NOT, WITH_SNAPSHOT, FROM_BEFORE, UNSETTLED = range(4)


class World:
    """Gives outcomes by what is asked, not by when: the same for every history."""

    def __init__(self, plan: list[int]) -> None:
        self.plan = plan

    def answer(self, effect: Call | Timer | Await, now: int, before: int = 0) -> Any:
        """`before`: how much has come for an await already."""
        if isinstance(effect, Await):
            return Received(effect.effect_id, f"k{before // 2}", self.brought(effect, before // 2), now + 1)
        if isinstance(effect, Timer):
            return Fired(effect.effect_id, max(now, effect.until_ms))
        chosen = self.plan[effect.effect_id % len(self.plan)]
        if chosen in (6, 7) and effect.name != "first":
            problem = Problem(ProblemType.COMMUNICATION, 500 + chosen, "Communication failed", "down")
            return CallFailed(effect.effect_id, problem, now, now + 5, 4_000 if chosen == 6 else None)
        return CallSucceeded(effect.effect_id, effect.arguments.get("output"), now, now + 5)

    def brought(self, effect: Await, before: int) -> dict[str, Any]:
        chosen = self.plan[effect.effect_id % len(self.plan)]
        if effect.kind is AwaitKind.APPROVAL:
            return {"decision": "approved", "by": "ada", "comment": "", "fields": {}, "at": "2026-01-01T00:00:00Z"}
        if effect.kind is AwaitKind.RUN:
            if effect.request["detached"]:
                return {"state": "started", "run": "r"}
            if chosen in (6, 7):
                error = {"type": ProblemType.COMMUNICATION, "status": 503, "title": "No", "instance": "/do/9"}
                return {"state": "failed" if chosen == 6 else "cancelled", "run": "r", "error": error}
            return {"state": "succeeded", "run": "r", "output": effect.request["input"]}
        kind = ("t.a", "other", "t.b", "t.c")[(before + chosen) % 4]
        data = {"n": before, "o": before // 3 % 2}
        return {"specversion": "1.0", "id": str(before), "source": "s", "type": kind, "data": data}


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

    def __init__(
        self,
        program: Any,
        world: World,
        order: list[int],
        cancel_at: int | None,
        budget: int,
        limits: MachineLimits = LIMITS,
    ) -> None:
        self.limits = limits
        self.program = program
        self.world = world
        self.order = order
        self.cancel_at = cancel_at
        self.budget = budget
        self.machine = Machine.start(program, FACTS, {"n": 1}, 1_000, limits)
        self.log: list[bytes] = []  # recorded since the snapshot
        self.snapshot: bytes | None = None
        self.asked: dict[int, Any] = {}
        self.open: dict[int, Call | Timer | Await] = {}
        self.brought: dict[int, int] = {}  # what came for each await, everything twice
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
        if how == WITH_SNAPSHOT:  # a snapshot was taken just before
            self.snapshot = self.machine.snapshot()
            self.log, self.recorded = [], 0
        limits = self.limits
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

    def choose(self, wish: int) -> int:
        """Calls end in any order; a timer fires when no call is open, or early when the script says so."""
        calls = sorted(key for key, effect in self.open.items() if isinstance(effect, Call))
        if not calls or wish == 1:
            awaits = sorted(key for key, effect in self.open.items() if isinstance(effect, Await))
            if awaits and (wish % 2 or len(awaits) == len(self.open)):
                return awaits[wish % len(awaits)]
        timers = [(effect.until_ms, key) for key, effect in self.open.items() if isinstance(effect, Timer)]
        if calls and not (timers and wish == 5):
            return calls[wish % len(calls)]
        return min(timers)[1]

    def run(self, crashes: list[int]) -> tuple[Any, ...]:
        self.settle()
        for turn in range(1_000):
            fate = crashes[turn % len(crashes)]
            if fate in (WITH_SNAPSHOT, FROM_BEFORE) and self.machine.end is None:
                self.crash(fate)
            if self.machine.end is not None:
                break
            if turn == self.cancel_at:
                event: Any = CancelRequested(self.now)
            else:
                assert self.open, "the machine waits for nothing"
                effect = self.open[self.choose(self.order[turn % len(self.order)])]
                event = self.world.answer(effect, self.now, self.brought.get(effect.effect_id, 0))
                if isinstance(effect, Await):  # stays open until the machine takes it back
                    self.brought[effect.effect_id] = self.brought.get(effect.effect_id, 0) + 1
                else:
                    del self.open[effect.effect_id]
            self.now = max(self.now, event.at_ms)
            self.machine.apply(event)
            self.log.append(encode_events([event]))
            if fate == UNSETTLED:  # crash between the record and the work that follows from it
                self.crash(fate, settled=False)
            self.settle()
        return self.machine.end, self.asked, self.records


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    body=scopes(3),
    plan=st.lists(st.integers(1, 9), min_size=4, max_size=8),
    order=st.lists(st.integers(0, 5), min_size=2, max_size=8),
    cancel_at=st.none() | st.integers(0, 20),
    budget=st.integers(1, 40),
    crashes=st.lists(st.sampled_from([NOT, WITH_SNAPSHOT, FROM_BEFORE, UNSETTLED]), min_size=4, max_size=12),
)
def test_crashes_change_nothing(body, plan, order, cancel_at, budget, crashes):
    document = {
        "document": {"dsl": "1.0.3", "namespace": "default", "name": "demo", "version": "1.0.0"},
        "do": body,
    }
    compiled = compile_definition(orjson.dumps(document))
    assert compiled.program is not None, compiled.findings
    calm = History(compiled.program, World(plan), order, cancel_at, 1_000).run([NOT])
    shaken = History(compiled.program, World(plan), order, cancel_at, budget).run(crashes)
    assert shaken[0] == calm[0]
    assert shaken[1] == calm[1]
    assert shaken[2] == calm[2]


RICH = """
document: {dsl: 1.0.3, namespace: default, name: demo, version: 1.0.0}
timeout: {after: PT1H}
do:
  - first: {call: noop, with: {output: {k: '${ [limit(1; 3, 4)] | .[0] }'}}, export: {as: '{first: .k}'}}
  - both:
      fork:
        branches:
          - loop:
              for: {each: x, at: i, in: '[1, 2, 3]'}
              while: '[limit(1; $x)] | .[0] < 3'
              do:
                - guarded:
                    try:
                      - risky: {call: noop, timeout: {after: PT10S}, with: {output: '${ $x + $context.first }'}}
                      - shown: {set: {was: '${ . }', i: '${ $i }', slow: '${ [limit(1; $x)] | .[0] }'}}
                    catch:
                      as: why
                      when: '[limit(1; $why.status)] | .[0] >= 500'
                      retry:
                        delay: PT2S
                        backoff: {exponential: {}}
                        jitter: {from: PT0S, to: PT1S}
                        limit: {attempt: {count: 3, duration: PT20S}}
                      do:
                        - handled: {call: noop, with: {output: {status: '${ $why.status }', x: '${ $x }'}}}
                        - rest: {wait: PT1S}
                - noted: {call: noop, with: {output: '${ {last: ., c: $context} }'}, export: {as: '{first: 1}'}}
          - racing:
              fork:
                compete: true
                branches:
                  - slow: {wait: PT30S}
                  - quick: {do: [{nap: {wait: PT3S}}, {answer: {call: noop, with: {output: quick}}}]}
  - route: {switch: [{odd: {when: '[limit(1; .[0].last)] == []', then: end}}, {other: {then: last}}]}
  - last: {set: {all: '${ . }', from: '${ $steps.first.k }'}}
"""


@pytest.mark.parametrize("plan", [[1], [6], [1, 6], [7, 1, 1], [1, 1, 7, 6, 1]], ids=str)
@pytest.mark.parametrize("fate", [WITH_SNAPSHOT, FROM_BEFORE, UNSETTLED])
def test_a_crash_at_each_turn_of_a_rich_run(plan, fate):
    compiled = compile_definition(RICH)
    assert compiled.program is not None, compiled.findings
    calm = History(compiled.program, World(plan), [0, 1], None, 1_000).run([NOT])
    assert len(calm[1]) > 8
    for turn in range(40):
        # A snapshot some turns before the crash, so that events are replayed on top of it.
        crashes = [NOT] * 41
        crashes[max(turn - 3, 0)] = WITH_SNAPSHOT
        crashes[turn] = fate
        assert History(compiled.program, World(plan), [0, 1], None, 7).run(crashes) == calm


CROWDED = """
document: {dsl: 1.0.3, namespace: default, name: demo, version: 1.0.0}
do:
  - first: {call: noop, with: {output: {text: '${ "x" * 500 }'}}}
  - loop:
      for: {each: x, at: i, in: '[1, 2, 3, 4, 5]'}
      do:
        - guarded:
            try:
              - both:
                  fork:
                    branches:
                      - left: {call: noop, with: {output: {l: '${ $steps.first.text }'}}}
                      - right: {set: {r: '${ [limit(1; $steps.first.text)] | .[0] }'}}
              - grown: {set: {all: '${ $context + [.] }'}, export: {as: '${ .all }'}}
            catch:
              do: [{full: {call: noop, with: {output: '${ {at: $error.instance, why: $error.detail} }'}}}]
  - last: {set: {all: '${ . }', first: '${ $steps.full }', left: '${ $steps.left.l | length }'}}
"""


@pytest.mark.parametrize("state_bytes", [1_000, 2_600, 3_300, 4_700, 20_000])
@pytest.mark.parametrize("fate", [WITH_SNAPSHOT, FROM_BEFORE, UNSETTLED])
def test_what_does_not_fit_is_the_same_after_a_crash(state_bytes, fate):
    compiled = compile_definition(CROWDED)
    assert compiled.program is not None, compiled.findings
    limits = MachineLimits(payload_bytes=4_000, state_bytes=state_bytes)
    calm = History(compiled.program, World([1]), [0, 1], None, 1_000, limits).run([NOT])
    for turn in range(20):
        crashes = [NOT] * 41
        crashes[max(turn - 3, 0)] = WITH_SNAPSHOT
        crashes[turn] = fate
        assert History(compiled.program, World([1]), [0, 1], None, 7, limits).run(crashes) == calm


AWAITING = """
document: {dsl: 1.0.3, namespace: default, name: demo, version: 1.0.0}
do:
  - told: {emit: {event: {with: {type: t.begun, data: '${ [limit(1; .n)] }'}}}}
  - some:
      metadata: {flint: {parallel: 2}}
      for: {each: x, in: '[[limit(4; 5, 6, 7)][]]'}
      do:
        - one: {call: noop, with: {output: '${ $x }'}}
        - two: {set: {v: '${ [limit(1; .)] | .[0] }', at: '${ $index }'}}
  - guarded:
      try:
        - child: {run: {workflow: {name: child, input: {all: '${ . }'}}}}
      catch:
        retry: {delay: PT1S, limit: {attempt: {count: 2}}}
        do: [{instead: {set: {failed: '${ $error.instance }'}}}]
  - heard:
      listen:
        to:
          any:
            - with: {type: 't\\.[ab]', data: {n: '${ [limit(1; .n)] | .[0] >= 0 }'}}
              correlate: {o: {from: '[limit(1; .data.o)] | .[0]'}}
          until: '[limit(1; length)] | .[0] > 2'
      foreach:
        item: e
        at: i
        do: [{look: {call: noop, with: {output: '${ [$e.n, $i] }'}}}, {rest: {wait: PT1S}}]
        output: {as: '[limit(1; [., $e])] | .[0]'}
        export: {as: '{last: $i}'}
  - asked: {call: approval, with: {title: 'Enough? ${ length }', deadline: PT1M}}
  - last: {set: {by: '${ .by }', context: '${ $context }', heard: '${ $steps.heard }'}}
"""


@pytest.mark.parametrize("plan", [[1], [2, 3, 1, 1], [1, 1, 1, 6, 1, 7, 1], [2, 3, 6, 1, 8]], ids=str)
@pytest.mark.parametrize("fate", [WITH_SNAPSHOT, FROM_BEFORE, UNSETTLED])
def test_a_crash_at_each_turn_of_a_run_that_awaits(plan, fate):
    compiled = compile_definition(AWAITING)
    assert compiled.program is not None, compiled.findings
    calm = History(compiled.program, World(plan), [0, 1], None, 1_000).run([NOT])
    assert calm[0] is not None
    if 6 not in plan:
        assert {effect.kind for effect in calm[1].values() if isinstance(effect, Await)} == set(AwaitKind) - {
            AwaitKind.BRANCHES
        }
    for turn in range(fate, 34, 3):
        crashes = [NOT] * 41
        crashes[max(turn - 3, 0)] = WITH_SNAPSHOT
        crashes[turn] = fate
        assert History(compiled.program, World(plan), [0, 1], None, 7).run(crashes) == calm
