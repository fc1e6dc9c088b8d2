"""The interpreter under whatever a driver may do to it: any order, answers twice, late and of the wrong kind, cancels.

It never raises, always ends or waits for something that it names, and goes on from its snapshot as from itself.
"""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Any

import jq
import orjson
import pytest

from flint_core.definition import compile_definition
from flint_core.effects import Await, AwaitKind, Call, CancelEffect, Evaluate, Timer
from flint_core.events import (
    CallFailed,
    CallSucceeded,
    CancelRequested,
    Evaluated,
    EvaluateFailed,
    Event,
    Received,
    TimerFired,
)
from flint_core.machine import Machine, MachineLimits, RunFacts
from flint_core.problems import Problem, ProblemType
from flint_core.program import Program
from flint_jq.wrapping import wrap
from support.random_workflows import generate_batch

FACTS = RunFacts("run-1", "default", "demo", "1.0.0", 1_000, 5, 0, 7)
LIMITS = MachineLimits(steps_per_run=2_000, payload_bytes=4_000, state_bytes=20_000)
PROGRAMS = 120


@lru_cache
def programs() -> list[Program]:
    found = [compile_definition(orjson.dumps(w.document)).program for w in generate_batch(5, PROGRAMS)]
    return [program for program in found if program is not None]


class Chaos:
    def __init__(self, program: Program, seed: int) -> None:
        self.program = program
        self.dice = random.Random(seed)
        self.machine = Machine.start(program, FACTS, {"url": "http://x", "key": "k", "n": 2}, 1_000, LIMITS)
        self.open: dict[int, Any] = {}
        self.past: list[Event] = []
        self.now = 1_000

    def settle(self, machine: Machine, open: dict[int, Any]) -> None:
        while True:
            while machine.advance(self.dice.choice([1, 3, 1_000])):
                pass
            machine.take_records()
            machine.take_payloads()
            question = None
            for effect in machine.take_effects():
                if isinstance(effect, CancelEffect):
                    open.pop(effect.effect_id, None)
                elif isinstance(effect, Evaluate):
                    question = effect
                else:
                    open[effect.effect_id] = effect
            if question is None:
                return
            machine.apply(self.evaluated(question))

    @staticmethod
    def evaluated(question: Evaluate) -> Event:
        problem = Problem(ProblemType.EXPRESSION, 400, "Expression failed", "no")
        try:
            body = orjson.dumps([question.input, question.variables, question.now_ms]).decode()
            text = jq.compile(wrap(question.source, sorted(question.variables))).input_text(body).first()
        except ValueError:
            return EvaluateFailed(question.effect_id, problem, question.now_ms)
        results = orjson.loads(orjson.dumps(text)) if not isinstance(text, str) else orjson.loads(text)
        if len(results) > 1:
            return EvaluateFailed(question.effect_id, problem, question.now_ms)
        return Evaluated(question.effect_id, results[0] if results else None)

    def answer(self, effect_id: int, effect: Any) -> Event:
        kind = self.dice.randrange(20)
        at = self.now = self.now + self.dice.randrange(50)
        problem = Problem(ProblemType.COMMUNICATION, self.dice.choice([404, 503]), "No", "no", "")
        wrong: list[Event] = [
            TimerFired(effect_id, at),
            CallSucceeded(effect_id, {"n": 1}, at, at),
            CallFailed(effect_id, problem, at, at, None),
            Received(effect_id, "k", {"type": "x", "data": {}}, at),
        ]
        if kind == 0:
            return self.dice.choice(wrong)
        if kind == 1:
            return CallSucceeded(self.dice.randrange(99), "unknown", at, at)
        if kind == 2 and self.past:
            return self.dice.choice(self.past)
        if isinstance(effect, Timer):
            self.now = max(self.now, effect.until_ms)
            return TimerFired(effect_id, self.now)
        if isinstance(effect, Call):
            if self.dice.random() < 0.2:
                return CallFailed(effect_id, problem, at, at, self.dice.choice([None, 5]))
            output = self.dice.choice([{"n": 1}, None, [1, "x"], "y" * 100, {"deep": [[[]]]}])
            return CallSucceeded(effect_id, output, at, at)
        return Received(effect_id, str(self.dice.randrange(6)), self.content(effect), at)

    def content(self, effect: Await) -> Any:
        if effect.kind is AwaitKind.APPROVAL:
            return {"decision": "approved", "by": "a", "comment": "", "fields": {}, "at": "2026-01-01T00:00:00Z"}
        if effect.kind is AwaitKind.RUN:
            return {"state": "started" if effect.request["detached"] else "succeeded", "run": "r", "output": {"n": 2}}
        found = orjson.dumps(effect.request).decode().partition('"type":"')[2].partition('"')[0]
        data = {"key": self.dice.choice(["k", "other"]), "n": 1}
        return {"specversion": "1.0", "id": "1", "source": "s", "type": found or "t", "data": data}

    def run(self, cancel: bool) -> None:
        self.settle(self.machine, self.open)
        for turn in range(400):
            if self.machine.end is not None:
                return
            assert self.open, "it waits for nothing"
            assert {e.effect_id for e in self.machine.pending()} == set(self.open)
            if turn % 7 == 3:
                self.compare_with_snapshot()
            effect_id = self.dice.choice(sorted(self.open))
            event = self.answer(effect_id, self.open[effect_id])
            if cancel and turn == 12:
                event = CancelRequested(self.now)
            self.past.append(event)
            for machine in (self.machine,):
                machine.apply(event)
            if getattr(event, "effect_id", None) == effect_id and not isinstance(self.open[effect_id], Await):
                fits = isinstance(event, TimerFired) == isinstance(self.open[effect_id], Timer)
                if fits and not isinstance(event, Received):
                    del self.open[effect_id]
            self.settle(self.machine, self.open)
            self.open = {e.effect_id: e for e in self.machine.pending()}

    def compare_with_snapshot(self) -> None:
        snapshot = self.machine.snapshot()
        again = Machine.restore(self.program, FACTS, snapshot, LIMITS)
        self.settle(again, {})
        assert {e.effect_id for e in again.pending()} == set(self.open)
        assert again.snapshot() == snapshot
        self.machine = again


@pytest.mark.parametrize("part", range(4))
def test_chaos(part: int) -> None:
    for number, program in enumerate(programs()):
        for variant in range(2):
            seed = part * 1_000 + number * 2 + variant
            try:
                Chaos(program, seed).run(cancel=variant == 1)
            except Exception as error:
                raise AssertionError(f"program {number} of generate_batch(5, {PROGRAMS}), seed {seed}") from error
