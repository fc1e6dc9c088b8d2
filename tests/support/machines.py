"""A driver for machines in tests: carries out effects by a script, with a clock of its own."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jq

from flint_core.definition import compile_definition
from flint_core.effects import Await, Call, CancelEffect, Effect, Evaluate, Timer
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
from flint_core.machine import Machine, MachineLimits, RunFacts, StepTrace
from flint_core.problems import Problem, ProblemType
from flint_core.program import Program

HEAD = "document: {dsl: 1.0.3, namespace: default, name: demo, version: 1.0.0}\n"
FACTS = RunFacts("run-1", "default", "demo", "1.0.0", 1_000, 5, 0, 7)

Outcome = Callable[[Call], Any]
Mail = Callable[[Await], list[Any]]


def down(detail: str = "down", status: int = 503) -> Problem:
    return Problem(ProblemType.COMMUNICATION, status, "Communication failed", detail)


def program_of(body: str) -> Program:
    compiled = compile_definition(HEAD + body)
    assert compiled.program is not None, compiled.findings
    return compiled.program


def evaluate(effect: Evaluate) -> Event:
    try:
        results = jq.compile(effect.source, args=effect.variables).input_value(effect.input).all()
    except ValueError as error:
        problem = Problem(ProblemType.EXPRESSION, 400, "Expression failed", str(error))
        return EvaluateFailed(effect.effect_id, problem, effect.now_ms)
    return Evaluated(effect.effect_id, results[0] if results else None)


def echo(call: Call) -> Any:
    return call.arguments.get("output")


def no_mail(effect: Await) -> list[Any]:
    return []


@dataclass
class Driver:
    """Runs a machine to its end. A call's outcome is a value, or a Problem, or (Problem, retry-after ms).

    What comes for an await is a list of contents, one after the other.
    """

    machine: Machine
    outcome: Outcome = echo
    now: int = 1_000
    took_ms: int = 10
    calls: list[Call] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    records: list[StepTrace] = field(default_factory=list)
    due: list[tuple[int, int, Effect | Received]] = field(default_factory=list)
    gone: set[int] = field(default_factory=set)
    mail: Mail = no_mail
    awaits: list[Await] = field(default_factory=list)
    duration: Callable[[Driver, Call], int] | None = None

    def _due_at(self, effect: Call | Timer) -> int:
        if isinstance(effect, Timer):
            return effect.until_ms
        return self.now + (self.took_ms if self.duration is None else self.duration(self, effect))

    def settle(self) -> None:
        """Pure work, and guarded expressions, until the machine waits for the world."""
        while True:
            while self.machine.advance(50):
                pass
            self.records += self.machine.take_records()
            questions = []
            for effect in self.machine.take_effects():
                self.effects.append(effect)
                if isinstance(effect, Evaluate):
                    questions.append(effect)
                elif isinstance(effect, CancelEffect):
                    self.gone.add(effect.effect_id)
                elif isinstance(effect, Await):
                    self.awaits.append(effect)
                    for number, content in enumerate(self.mail(effect), 1):
                        at = self.now + self.took_ms * number
                        received = Received(effect.effect_id, f"{effect.effect_id}-{number}", content, at)
                        heapq.heappush(self.due, (at, effect.effect_id, received))
                else:
                    at = self._due_at(effect)
                    heapq.heappush(self.due, (at, effect.effect_id, effect))
                    if isinstance(effect, Call):
                        self.calls.append(effect)
            if not questions:
                return
            for question in questions:
                self.feed(evaluate(question))

    def feed(self, event: Event) -> None:
        self.events.append(event)
        self.machine.apply(event)

    def next(self) -> bool:
        """Let the next thing happen; False when nothing will."""
        self.settle()
        while self.due:
            at, effect_id, effect = heapq.heappop(self.due)
            if effect_id in self.gone:
                continue
            started, self.now = self.now, max(self.now, at)
            if isinstance(effect, Received):
                self.feed(effect)
                return True
            if isinstance(effect, Timer):
                self.feed(TimerFired(effect_id, self.now))
                return True
            assert isinstance(effect, Call)
            result = self.outcome(effect)
            wish = None
            if isinstance(result, tuple):
                result, wish = result
            if isinstance(result, Problem):
                self.feed(CallFailed(effect_id, result, started, self.now, wish))
            else:
                self.feed(CallSucceeded(effect_id, result, started, self.now))
            return True
        return False

    def run(self) -> Driver:
        while self.machine.end is None and self.next():
            pass
        self.settle()
        assert self.machine.end is not None, "the machine waits for nothing"
        return self

    def cancel(self) -> None:
        self.feed(CancelRequested(self.now))

    @property
    def output(self) -> Any:
        return self.machine.end.output  # type: ignore[union-attr]

    @property
    def problem(self) -> Problem:
        return self.machine.end.problem  # type: ignore[union-attr]

    def shown(self) -> list[str]:
        """Records in short: pointer[iteration]#attempt:state."""
        return [
            f"{record.step.rsplit('/', 1)[1]}{f'[{record.iteration}]' if record.iteration else ''}"
            f"{f'#{record.attempt}' if record.attempt > 1 else ''}:{record.state}"
            for record in self.records
        ]


def start(body: str, data: Any = None, outcome: Outcome = echo, limits: MachineLimits | None = None) -> Driver:
    return Driver(Machine.start(program_of(body), FACTS, data, 1_000, limits), outcome)
