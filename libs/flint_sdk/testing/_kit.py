"""The simulation: a machine, a virtual clock, and stubs for the world.

One run at a time, without threads or tasks. Things happen in the order of their virtual moments; what has the same
moment happens in the order in which it was asked for. A call takes no time unless its stub says so.
"""

from __future__ import annotations

import heapq
import itertools
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import jq
import jsonschema_rs
import orjson

from flint_core.branches import (
    BranchesRequest,
    Chunk,
    Outcome,
    Spread,
    branch_input,
    concatenated,
    divide,
    join,
    request_of,
)
from flint_core.definition import Compiled, DefinitionLimits, compile_definition
from flint_core.definition.findings import Finding, Severity
from flint_core.effects import Await, AwaitKind, Call, CancelEffect, Deferred, Evaluate, Move, Timer
from flint_core.events import (
    CallFailed,
    CallSucceeded,
    Evaluated,
    EvaluateFailed,
    Event,
    Moved,
    Received,
    TimerFired,
)
from flint_core.expressions import compile_expression, compile_template
from flint_core.functions import FUNCTIONS
from flint_core.machine import Failed, Machine, MachineLimits, RunFacts, Succeeded
from flint_core.payloads import Payload, Reference, fill, reference_of, spill
from flint_core.plan import Schema
from flint_core.problems import Problem, ProblemType
from flint_core.program import Program
from flint_jq.wrapping import check_programs, wrap
from flint_sdk.testing import _stubs
from flint_sdk.testing._result import Attempt, CallMade, Result, attempt_of, problem_of
from flint_sdk.testing._stubs import Approval, Failure, Stubs, duration_ms

__all__ = ["DefinitionRefused", "SimulationError", "simulate"]

Definition = str | os.PathLike[str] | Mapping[str, Any]

START_MS: Final = 1_767_225_600_000
"""2026-01-01T00:00:00Z: where the virtual clock stands when a simulation begins, unless told otherwise."""
_VALIDATORS: Final = {
    name: jsonschema_rs.validator_for(spec.resolved, mask="the value") for name, spec in FUNCTIONS.items()
}
_RUN: Final = "00000000-0000-7000-8000-000000000001"


class SimulationError(AssertionError):
    """The simulation cannot go on: a step without a stub, a secret or a workflow that was not given."""


class DefinitionRefused(SimulationError):
    """The definition has errors; `findings` holds them all."""

    def __init__(self, source: str, findings: Sequence[Finding]) -> None:
        lines = [
            f"{source}:{finding.line}:{finding.column}: {finding.message} [{finding.rule}]"
            for finding in findings
            if finding.severity is Severity.ERROR
        ]
        super().__init__("\n".join(lines))
        self.findings = tuple(findings)


def simulate(
    definition: Definition,
    input: Any = None,
    *,
    stubs: Mapping[str, Any] | None = None,
    events: Sequence[_stubs.Event] = (),
    workflows: Mapping[str, Definition] | None = None,
    secrets: Mapping[str, str] | None = None,
    start_ms: int = START_MS,
    limits: MachineLimits | None = None,
) -> Result:
    """Runs a definition to its end and tells what it did.

    `definition`: a path, YAML or JSON text, or the document as an object. `stubs`: what steps give, by step name (see
    `Stub`). `events`: published during the run; those that the run emits itself reach its listeners too. `workflows`:
    definitions of the sub-workflows that have no stub, by name. `secrets`: values of `$secrets`. Raises
    DefinitionRefused, and SimulationError for what was not given.
    """
    program = _program(definition)
    simulation = _Simulation(
        program,
        {} if input is None else input,
        Stubs(stubs or {}),
        workflows or {},
        secrets or {},
        start_ms,
        limits or MachineLimits(),
    )
    for number, event in enumerate(events, 1):
        simulation.publish_at(start_ms + duration_ms(event.after), event.envelope(number))
    return simulation.run()


def _program(definition: Definition) -> Program:
    name = "definition"
    if isinstance(definition, Mapping):
        source = orjson.dumps(definition)
    elif isinstance(definition, os.PathLike) or "\n" not in str(definition):
        name = str(definition)
        source = Path(definition).read_bytes()
    else:
        source = str(definition).encode()
    compiled, findings = _compiled(source)
    if compiled.program is None or len(findings) > len(compiled.findings):
        raise DefinitionRefused(name, findings)
    return compiled.program


@lru_cache(maxsize=64)
def _compiled(source: bytes) -> tuple[Compiled, list[Finding]]:
    """Tests run one definition many times. The findings are also those of jq, for what only jq can check."""
    compiled = compile_definition(source, DefinitionLimits())
    findings = list(compiled.findings)
    for expression in compiled.guarded if compiled.program is not None else ():
        for program in check_programs(expression.source, sorted(expression.variables)):
            try:
                jq.compile(program)
            except ValueError as error:
                findings.append(expression.refused(str(error).splitlines()[0].removeprefix("jq: error: ")))
                break
    return compiled, findings


class _Simulation:
    def __init__(
        self,
        program: Program,
        input: Any,
        stubs: Stubs,
        workflows: Mapping[str, Definition],
        secrets: Mapping[str, str],
        start_ms: int,
        limits: MachineLimits,
        depth: int = 0,
        branches: Mapping[str, Any] | None = None,
    ) -> None:
        facts = RunFacts(_RUN, program.namespace, program.workflow_id, program.version, start_ms, 5, 0, 1 + depth)
        self._program = program
        self._stubs = stubs
        self._workflows = workflows
        self._secrets = secrets
        self._start_ms = self._now = start_ms
        self._limits = limits
        self._depth = depth
        self._order = itertools.count()
        self._agenda: list[tuple[int, int, Any]] = []  # (moment, order, event to feed, or CloudEvent to publish)
        self._gone: set[int] = set()
        self._listening: dict[int, Await] = {}
        self._awaits: dict[int, Await] = {}
        self._calls: list[CallMade] = []
        self._attempts: list[Attempt] = []
        self._emitted: list[Mapping[str, Any]] = []
        self._published = 0
        self._large: dict[str, bytes] = {}
        if branches is None:
            self._machine = Machine.start(program, facts, self._small(input, "the input"), start_ms, limits)
        else:
            self._machine = Machine.start_branch(program, facts, dict(branches), start_ms, limits)

    # --- the loop

    def publish_at(self, at_ms: int, envelope: Mapping[str, Any]) -> None:
        """An event from outside."""
        heapq.heappush(self._agenda, (at_ms, next(self._order), dict(envelope)))

    def run(self) -> Result:
        """To the end, or until nothing will happen any more."""
        self._settle()
        while self._machine.end is None and self._agenda:
            at_ms, _, item = heapq.heappop(self._agenda)
            if isinstance(item, dict):
                self._now = max(self._now, at_ms)
                self._publish(item)
            elif item.effect_id in self._gone:
                continue
            else:
                self._now = max(self._now, at_ms)
                self._machine.apply(item)
            self._settle()
        return self._result()

    def _settle(self) -> None:
        machine = self._machine
        while True:
            while machine.advance(1_000):
                pass
            self._attempts += [attempt_of(trace, self._start_ms) for trace in machine.take_records()]
            self._keep(machine.take_payloads())
            questions: list[Evaluate] = []
            moved = False
            for effect in machine.take_effects():
                match effect:
                    case Evaluate():
                        questions.append(effect)
                    case CancelEffect(effect_id):
                        self._gone.add(effect_id)
                        self._listening.pop(effect_id, None)
                        self._awaits.pop(effect_id, None)
                    case Timer(effect_id, until_ms):
                        self._later(until_ms, TimerFired(effect_id, until_ms))
                    case Move(effect_id):  # there is one place only
                        machine.apply(Moved(effect_id, self._now))
                        moved = True
                    case Call():
                        self._call(effect)
                    case Await():
                        self._await(effect)
            if not questions and not moved:
                return
            for question in questions:
                machine.apply(self._evaluated(question))

    def _later(self, at_ms: int, event: Event) -> None:
        heapq.heappush(self._agenda, (max(at_ms, self._now), next(self._order), event))

    def _result(self) -> Result:
        end = self._machine.end
        waits: tuple[str, ...] = ()
        if end is None:
            state, output, error = "waiting", None, None
            waits = tuple(wait.name for wait in self._awaits.values())
        elif isinstance(end, Succeeded):
            state, output, error = "succeeded", self._whole(end.output), None
        elif isinstance(end, Failed):
            state, output, error = "failed", None, problem_of(end.problem)
        else:
            state, output, error = "cancelled", None, None
        elapsed_s = (self._machine.now_ms - self._start_ms) / 1000
        return Result(
            state, output, error, tuple(self._calls), tuple(self._attempts), tuple(self._emitted), elapsed_s, waits
        )

    # --- large values

    def _keep(self, payloads: Sequence[Payload]) -> None:
        for payload in payloads:
            self._large[payload.reference.sha256] = payload.data

    def _small(self, value: Any, what: str) -> Any:
        """The value as the JSON that a run holds: large ones by reference."""
        small, payloads = spill(_json(value, what), self._limits.payload_bytes)
        self._keep(payloads)
        return small

    def _whole(self, value: Any) -> Any:
        """The value with what its references stand for."""
        return fill(value, self._content)

    def _content(self, reference: Reference) -> Any:
        if reference.sha256 not in self._large:
            raise SimulationError(f"the run holds a reference to a value that is not here: {reference.sha256}")
        return self._whole(orjson.loads(self._large[reference.sha256]))

    def _evaluated(self, question: Evaluate) -> Event:
        if question.operation:
            return Evaluated(question.effect_id, self._operated(question))
        data = self._whole(question.input)
        if question.schema is not None:
            return Evaluated(question.effect_id, Schema(question.schema).first_error(data))
        try:
            value = _jq(question.source, data, self._whole(question.variables), question.now_ms)
        except ValueError as error:
            detail = str(error).splitlines()[0] if str(error) else "the expression failed"
            problem = Problem(ProblemType.EXPRESSION, 400, "Expression failed", detail)
            return EvaluateFailed(question.effect_id, problem, question.now_ms)
        return Evaluated(question.effect_id, self._small(value, "a result"))

    def _operated(self, question: Evaluate) -> Any:
        if question.operation == "concat":
            parts = [orjson.dumps(self._stored(part)) for part in question.input]
            return self._small(orjson.loads(concatenated(parts)), "a result")
        items = self._stored(question.input)
        if not isinstance(items, list):
            return {"count": -1}
        division, payloads = divide(items, Spread(*question.variables["spread"]), self._limits.payload_bytes)
        self._keep(payloads)
        return division

    def _stored(self, value: Any) -> Any:
        """What a reference stands for, with the references that are in it."""
        reference = reference_of(value)
        return value if reference is None else orjson.loads(self._large[reference.sha256])

    # --- calls

    def _call(self, call: Call) -> None:
        arguments = self._whole(_resolved(call.arguments, self._secrets, self._now))
        self._calls.append(
            CallMade(
                call.step,
                call.name,
                call.iteration,
                call.attempt,
                call.function,
                arguments,
                call.idempotency_key,
            )
        )
        delay_ms = 0
        wrong = _first_error(call.function, arguments)
        if wrong:
            answer = Failure(400, "Invalid arguments", wrong, ProblemType.VALIDATION)
        elif call.name in self._stubs:
            answer = self._stubs.take(call.name, arguments)
        elif call.function == "noop":
            answer, delay_ms = _noop(arguments)
        elif call.function == "emit":
            answer = self._emit(call, arguments)
        else:
            known = f"give one as stubs={{{call.name!r}: …}}"
            raise SimulationError(f"the step {call.step} calls {call.function!r} and has no stub: {known}")
        at_ms = self._now + delay_ms
        if isinstance(answer, Failure):
            wish = None if answer.retry_after is None else duration_ms(answer.retry_after)
            self._later(at_ms, CallFailed(call.effect_id, answer.problem(call.step), self._now, at_ms, wish))
        else:
            output = self._small(answer, f"what the stub of {call.name!r} gives")
            self._later(at_ms, CallSucceeded(call.effect_id, output, self._now, at_ms))

    def _emit(self, call: Call, arguments: Mapping[str, Any]) -> Any:
        event = {
            "specversion": "1.0",
            "id": call.idempotency_key,
            "source": f"/namespaces/{self._program.namespace}/workflows/{self._program.workflow_id}",
            **dict(arguments.get("event") or {}),
        }
        self._emitted.append(event)
        self.publish_at(self._now, event)
        return event

    # --- awaits

    def _await(self, wait: Await) -> None:
        self._awaits[wait.effect_id] = wait
        if wait.kind is AwaitKind.EVENTS:
            self._listening[wait.effect_id] = wait
        elif wait.kind is AwaitKind.APPROVAL:
            self._approve(wait)
        elif wait.kind is AwaitKind.BRANCHES:
            self._branch(wait)
        else:
            self._start_child(wait)

    def _publish(self, envelope: dict[str, Any]) -> None:
        self._published += 1
        for effect_id in list(self._listening):
            self._machine.apply(Received(effect_id, f"event/{self._published}", envelope, self._now))

    def _approve(self, wait: Await) -> None:
        if wait.name not in self._stubs:
            return  # nobody decides; a deadline may
        answer = self._stubs.take(wait.name, wait.request)
        if isinstance(answer, str):
            answer = Approval(answer)
        if not isinstance(answer, Approval):
            raise SimulationError(f"the stub of the approval {wait.name!r} must be an Approval")
        at_ms = self._now + duration_ms(answer.after)
        content = {
            "decision": answer.decision,
            "by": answer.by,
            "comment": answer.comment,
            "fields": dict(answer.fields),
            "at": _moment(at_ms),
        }
        self._later(at_ms, Received(wait.effect_id, "decision", content, at_ms))

    def _branch(self, wait: Await) -> None:
        """A wide fork: its chunks one after the other, each from this moment on."""
        request = request_of(wait.request)
        outcomes = [self._chunk(request, request.chunk(number)) for number in range(request.chunks)]
        outcomes.sort(key=lambda outcome: outcome.order)
        for count in range(1, len(outcomes) + 1):
            answer = join(request, outcomes[:count])
            if answer is not None:
                at_ms = int(outcomes[count - 1].order)
                self._later(at_ms, Received(wait.effect_id, "branches", answer, at_ms))
                return

    def _chunk(self, request: BranchesRequest, chunk: Chunk) -> Outcome:
        document = branch_input(request, chunk.number)
        document["entry"] = self._stored(document["entry"])
        if "skip" in document:
            skip = document.pop("skip")
            document["items"] = self._stored(document["items"])[skip : skip + chunk.count]
        simulation = _Simulation(
            self._program,
            None,
            self._stubs,
            self._workflows,
            self._secrets,
            self._now,
            self._limits,
            self._depth,
            document,
        )
        simulation._large = self._large
        result = simulation.run()
        self._calls += result.calls
        self._emitted += result.events
        self._attempts += simulation._attempts
        end = simulation._machine.end
        order = self._now + result.elapsed_s * 1000
        if isinstance(end, Succeeded):
            return Outcome(chunk.number, "succeeded", order, end.output)
        if end is None:
            raise SimulationError("a branch waits for something that does not come")
        problem = end.problem.to_json() if isinstance(end, Failed) else None
        return Outcome(chunk.number, result.state, order, problem)

    def _start_child(self, wait: Await) -> None:
        request = wait.request
        name = request["workflow"]
        run = f"namespaces/{request['namespace']}/runs/{name}"
        content: dict[str, Any]
        took_ms = 0
        if wait.name in self._stubs:
            answer = self._stubs.take(wait.name, request)
            if isinstance(answer, Failure):
                content = {"state": "failed", "run": run, "error": answer.problem("").to_json()}
            else:
                output = self._small(answer, f"the stub of {wait.name!r}")
                content = {"state": "succeeded", "run": run, "output": output}
        elif name in self._workflows:
            child = self._child(name, self._whole(request["input"]))
            took_ms = round(child.elapsed_s * 1000)
            output = self._small(child.output, "a child's output")
            content = {"state": child.state, "run": run, "output": output, "error": child.error}
            if child.state == "waiting":
                return
        else:
            given = f"give workflows={{{name!r}: …}} or stubs={{{wait.name!r}: …}}"
            raise SimulationError(f"the step {wait.step} runs the workflow {name!r}, which is not here: {given}")
        if request["detached"]:
            content, took_ms = {"state": "started", "run": run}, 0
        self._later(self._now + took_ms, Received(wait.effect_id, "child", content, self._now + took_ms))

    def _child(self, name: str, input: Any) -> Result:
        if self._depth >= 20:
            raise SimulationError(f"the workflow {name!r} runs itself, more than 20 deep")
        child = _Simulation(
            _program(self._workflows[name]),
            input,
            self._stubs,
            self._workflows,
            self._secrets,
            self._now,
            self._limits,
            self._depth + 1,
        )
        result = child.run()
        self._calls += result.calls
        self._emitted += result.events
        return result


# --- pieces without state


def _json(value: Any, what: str) -> Any:
    """The value as the JSON that a run would hold."""
    try:
        return orjson.loads(orjson.dumps(value))
    except TypeError as error:
        raise SimulationError(f"{what} is not JSON: {error}") from None


def _moment(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _noop(arguments: Mapping[str, Any]) -> tuple[Any, int]:
    delay_ms = int(arguments.get("delay_ms") or 0)
    fail = arguments.get("fail")
    if fail is not None:
        return Failure(
            int(fail.get("status", 500)),
            str(fail.get("title", "Failed on demand")),
            str(fail.get("detail", "")),
            str(fail.get("type", ProblemType.RUNTIME)),
        ), delay_ms
    return arguments.get("output"), delay_ms


def _first_error(function: str, arguments: Any) -> str:
    """Why the arguments do not fit the function; the worker says the same."""
    validator = _VALIDATORS.get(function)
    for error in validator.iter_errors(arguments) if validator is not None else ():
        return f"{''.join(f'/{step}' for step in error.instance_path) or '/'}: {error.message[:300]}"
    return ""


@lru_cache(maxsize=512)
def _jq_program(source: str, names: tuple[str, ...]) -> Any:
    return jq.compile(wrap(source, list(names)))


def _jq(source: str, data: Any, variables: Mapping[str, Any], now_ms: int) -> Any:
    program = _jq_program(source, tuple(sorted(variables)))
    results = orjson.loads(program.input_text(orjson.dumps([data, dict(variables), now_ms]).decode()).first())
    if len(results) > 1:
        raise ValueError("the expression has more than one result")
    return results[0] if results else None


def _resolved(value: Any, secrets: Mapping[str, str], now_ms: int) -> Any:
    """Arguments with their secrets."""
    if isinstance(value, Mapping):
        return {key: _resolved(member, secrets, now_ms) for key, member in value.items()}
    if isinstance(value, list):
        return [_resolved(item, secrets, now_ms) for item in value]
    if not isinstance(value, Deferred):
        return value
    missing = [name for name in value.secrets if name != "*" and name not in secrets]
    if missing:
        raise SimulationError(f"the secret {missing[0]!r} was not given: pass secrets={{{missing[0]!r}: …}}")
    variables = {**value.variables, "secrets": dict(secrets)}
    names = frozenset(variables)
    if not value.template:
        expression = compile_expression(value.source, variables=names)
        if expression.fast:
            return expression.evaluate(value.input, variables, now_ms)
        return _jq(value.source, value.input, variables, now_ms)
    template = compile_template(value.source, variables=names, defer_secrets=False)
    parts = [_jq(part.source, value.input, variables, now_ms) for part in template.parts]
    return template.evaluate(value.input, variables, now_ms, parts)
