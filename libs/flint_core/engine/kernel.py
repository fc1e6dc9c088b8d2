"""The kernel: strands, frames, effects, and how a result or a fault moves through them.

It knows what all tasks have in common (data flow, timeouts, faults, the end of a run); what each kind does is in
`bodies` and `catching`. It is a single-threaded object without I/O and without a clock: `now` is the time of the last event.

Determinism. Ready strands run in the order in which they became ready, each until it waits. A guarded expression
(`Evaluate`) stops everything until it is answered, so that nothing else can move the state meanwhile: the state is a
function of the recorded events alone, however the driver slices the work.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NoReturn

import orjson

from flint_core.bindings import Binding
from flint_core.durations import DurationError, parse_duration
from flint_core.effects import Call, CancelEffect, Effect, Evaluate, Timer, TimerKind
from flint_core.engine.frames import NO_VARIABLES, Frame, Phase, Strand
from flint_core.events import Evaluated, EvaluateFailed
from flint_core.expressions import ExpressionFault
from flint_core.problems import Problem, ProblemType
from flint_core.program import Flow, FlowKind
from flint_core.traces import StepState, StepTrace

if TYPE_CHECKING:
    from flint_core.plan import Moment, Plan, Schema, TaskPlan

__all__ = ["Cancelled", "End", "Failed", "Fault", "Kernel", "MachineLimits", "RunFacts", "Succeeded", "Suspended"]

RUNTIME: Final = {"name": "Flint", "version": "0.1.0", "metadata": {}}


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What never changes about a run. `seed` makes its jitter its own; `reset` counts resets to an earlier step."""

    run_id: str
    namespace: str
    workflow_id: str
    version: str
    created_ms: int
    level: int
    reset: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class MachineLimits:
    """Sizes in bytes of encoded JSON; `steps_per_run` counts tasks begun, also those that need no call."""

    payload_bytes: int = 262_144
    state_bytes: int = 262_144
    steps_per_run: int = 100_000


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The run ended well."""

    output: Any


@dataclass(frozen=True, slots=True)
class Failed:
    """The run ended with an error that nothing caught."""

    problem: Problem


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The run was asked to end."""


End = Succeeded | Failed | Cancelled


class Fault(Exception):
    """The task on top of the strand fails with this problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.title)
        self.problem = problem


class Suspended(Exception):
    """The handler cannot go on before an expression is evaluated; it is entered again with the result."""


_SUSPENDED: Final = Suspended()
CONTINUE: Final = Flow()


class Kernel:
    """State of one run and the moves on it."""

    def __init__(self, plan: Plan, facts: RunFacts, limits: MachineLimits) -> None:
        self.plan = plan
        self.facts = facts
        self.limits = limits
        self.now = 0
        self.started = 0
        self.steps_begun = 0
        self.next_effect = 1
        self.next_strand = 0
        self.context: Any = None
        self.outputs: dict[int, Any] = {}
        self.strands: dict[int, Strand] = {}
        self.ready: deque[Strand] = deque()
        self.evaluating = 0
        self.question: Evaluate | None = None
        self.answers: dict[int, Evaluated | EvaluateFailed] = {}
        self.owners: dict[int, tuple[Strand, Frame]] = {}
        self.outbox: dict[int, Effect] = {}
        self.cancelled: list[CancelEffect] = []
        self.records: list[StepTrace] = []
        self.end: End | None = None

    # --- strands and frames

    def open_strand(self, parent: int, branch: int) -> Strand:
        """A new line of execution, not yet ready."""
        strand = Strand(self.next_strand, parent, branch)
        self.next_strand += 1
        self.strands[strand.id] = strand
        return strand

    def wake(self, strand: Strand) -> None:
        """Put the strand at the end of the ready queue, unless it is there."""
        if not strand.queued:
            strand.queued = True
            self.ready.append(strand)

    def sleep(self, strand: Strand) -> None:
        """Take the strand, which is the one being run, from the ready queue: it waits now."""
        strand.queued = False
        self.ready.popleft()

    def push(
        self, strand: Strand, plan: TaskPlan, raw: Any, attempt: int, iteration: str, variables: dict[str, Any]
    ) -> None:
        """Begin a task on top of the strand."""
        self.steps_begun += 1
        if self.steps_begun > self.limits.steps_per_run:
            self.finish(
                Failed(
                    Problem(
                        ProblemType.LIMIT_EXCEEDED,
                        429,
                        "Too many steps",
                        f"The run began more than {self.limits.steps_per_run} steps.",
                        plan.pointer,
                    )
                )
            )
            return
        strand.stack.append(Frame(plan, raw, self.now, attempt, iteration, variables))

    def turn(self, strand: Strand) -> None:
        """One move of the strand's top frame."""
        frame = strand.stack[-1]
        try:
            _STATIONS[frame.phase](self, strand, frame)
        except Suspended:
            return
        except Fault as fault:
            self.fault(strand, fault.problem)

    # --- values

    def value(
        self, frame: Frame, binding: Binding, data: Any, output: Any = None, scope_input: Any = NO_VARIABLES
    ) -> Any:
        """The binding's value for `data`. Raises Suspended until guarded expressions are answered, or Fault."""
        if binding.constant:
            return binding.value
        variables = NO_VARIABLES
        if binding.names:
            source = frame.input if scope_input is NO_VARIABLES else scope_input
            variables = self._variables(frame, binding.names, source, output)
        results: list[Any] = NO_RESULTS
        if binding.externals:
            results = frame.results or []
            while len(results) < len(binding.externals):
                results = [*results, self._evaluate(frame, binding.externals[len(results)], data, variables)]
                frame.results = results
            frame.results = None
        try:
            return binding.run(data, variables, self.now, results)
        except ExpressionFault as error:
            raise Fault(self._expression_problem(frame, error.detail)) from None

    def _evaluate(self, frame: Frame, source: str, data: Any, variables: dict[str, Any]) -> Any:
        effect_id = self.evaluating or self.next_effect
        if not self.evaluating:
            self.next_effect += 1
            self.evaluating = effect_id
        answer = self.answers.pop(effect_id, None)
        if answer is None:
            self.question = self.outbox[effect_id] = Evaluate(effect_id, source, data, variables, self.now)
            raise _SUSPENDED
        self.evaluating = 0
        self.question = None
        self.outbox.pop(effect_id, None)
        if isinstance(answer, Evaluated):
            return answer.value
        self.now = max(self.now, answer.at_ms)
        frame.results = None
        raise Fault(_at(answer.problem, frame))

    def _variables(self, frame: Frame, names: Iterable[str], scope_input: Any, output: Any) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name in names:
            if name in frame.variables:
                values[name] = frame.variables[name]
            elif name == "input":
                values[name] = scope_input
            elif name == "context":
                values[name] = self.context
            elif name == "steps":
                visible = frame.plan.steps
                values[name] = {key: self.outputs[task] for key, task in visible.items() if task in self.outputs}
            elif name == "output":
                values[name] = output
            elif name == "task":
                values[name] = self._task_variable(frame, output)
            elif name == "workflow":
                values[name] = self._workflow_variable()
            elif name == "runtime":
                values[name] = RUNTIME
        return values

    def _task_variable(self, frame: Frame, output: Any) -> dict[str, Any]:
        return {
            "name": frame.plan.name,
            "reference": frame.plan.pointer,
            "definition": frame.plan.definition,
            "input": frame.raw,
            "output": output,
            "startedAt": _moment(frame.started),
        }

    def _workflow_variable(self) -> dict[str, Any]:
        root = self.strands[0].stack[0]
        return {
            "id": self.facts.run_id,
            "definition": self.plan.program.document,
            "input": root.raw,
            "startedAt": _moment(self.started),
        }

    def checked(self, frame: Frame, value: Any, what: str) -> Any:
        """The value, if it is within the payload limit. Raises Fault."""
        if value is None or value is True or value is False:
            return value
        try:
            size = len(orjson.dumps(value, default=_deferred_size))
        except orjson.JSONEncodeError as error:
            raise Fault(self._expression_problem(frame, f"{what} cannot be written as JSON: {error}")) from None
        if size > self.limits.payload_bytes:
            detail = f"{what} is {size} bytes of JSON; the limit is {self.limits.payload_bytes}."
            raise Fault(
                Problem(ProblemType.PAYLOAD_TOO_LARGE, 413, "Payload too large", detail, frame.plan.pointer)
            ) from None
        return value

    def until(self, frame: Frame, moment: Moment, data: Any) -> int:
        """When the duration of a place ends that begins now. Raises Suspended or Fault."""
        if moment.duration is not None:
            return moment.duration.after(self.now)
        try:
            return parse_duration(self.value(frame, moment.binding, data)).after(self.now)
        except DurationError as error:
            raise Fault(self._expression_problem(frame, str(error))) from None

    @staticmethod
    def _expression_problem(frame: Frame, detail: str) -> Problem:
        return Problem(ProblemType.EXPRESSION, 400, "Expression failed", detail, frame.plan.pointer)

    def expression_fault(self, frame: Frame, detail: str) -> NoReturn:
        """Fail the task because an expression's value is not what its place needs."""
        raise Fault(self._expression_problem(frame, detail))

    @staticmethod
    def validate(frame: Frame, schema: Schema, value: Any, what: str) -> None:
        """Check a value against a schema. Raises Fault."""
        message = schema.first_error(value)
        if message is not None:
            detail = f"{what} does not match its schema: {message}"
            raise Fault(Problem(ProblemType.VALIDATION, 400, "Validation failed", detail, frame.plan.pointer))

    # --- effects

    def effect_id(self) -> int:
        """The next effect's id."""
        effect_id = self.next_effect
        self.next_effect += 1
        return effect_id

    def emit_timer(self, strand: Strand, frame: Frame, until_ms: int, kind: TimerKind) -> int:
        """Set a timer that belongs to the frame. Its id."""
        effect_id = self.effect_id()
        self.owners[effect_id] = (strand, frame)
        self.outbox[effect_id] = Timer(effect_id, until_ms, kind)
        return effect_id

    def emit_call(self, strand: Strand, frame: Frame) -> None:
        """Ask for the call that the frame describes."""
        frame.effect = self.effect_id()
        self.owners[frame.effect] = (strand, frame)
        self.outbox[frame.effect] = self.call_of(frame)

    def call_of(self, frame: Frame) -> Call:
        """The call that the frame waits for; the same after a restore."""
        plan = frame.plan
        iteration = frame.iteration
        return Call(
            frame.effect,
            plan.pointer,
            plan.name,
            iteration,
            frame.attempt,
            plan.function,
            frame.args,
            f"{self.facts.run_id}/{self.facts.reset}{plan.pointer}/{iteration}",
        )

    def retract(self, effect_id: int) -> None:
        """An effect is no longer wanted: forget it, and tell the driver if it was taken."""
        self.owners.pop(effect_id, None)
        if self.outbox.pop(effect_id, None) is None:
            self.cancelled.append(CancelEffect(effect_id))

    def settle(self, effect_id: int) -> None:
        """An effect was answered."""
        del self.owners[effect_id]
        self.outbox.pop(effect_id, None)

    # --- leaving tasks

    def leave(self, strand: Strand, frame: Frame) -> None:
        """The top task ended well with `frame.value`; hand it to the scope around it."""
        flow = frame.flow or frame.plan.flow
        self.close(strand, StepState.SUCCEEDED, None)
        if self.end is None:
            self._hand_over(strand, frame, flow)

    def skip(self, strand: Strand, frame: Frame) -> None:
        """The top task's condition is false: its input passes on."""
        self.close(strand, StepState.SKIPPED, None)
        self._hand_over(strand, frame, CONTINUE)

    def _hand_over(self, strand: Strand, frame: Frame, flow: Flow) -> None:
        kind = flow.kind
        if kind is FlowKind.END or kind == FlowKind.END:
            self._end_run(strand, frame.value)
        elif strand.stack:
            parent = strand.stack[-1]
            parent.value = frame.value
            if kind == FlowKind.CONTINUE:
                parent.cursor += 1
            elif kind == FlowKind.EXIT:
                parent.cursor = SCOPE_LEFT
            else:
                if flow.position <= parent.cursor:
                    parent.round += 1
                parent.cursor = flow.position
        elif strand.parent >= 0:
            self._branch_done(strand, frame)
        else:
            self.finish(Succeeded(frame.value))

    def close(self, strand: Strand, state: StepState, problem: Problem | None) -> None:
        """Take the top frame off the strand, with its timers and branches, and record how it ended."""
        frame = strand.stack.pop()
        if frame.deadline:
            self.retract(frame.deadline)
            frame.deadline = 0
        if frame.effect:
            self.retract(frame.effect)
            frame.effect = 0
        if frame.branches:
            self.kill(frame.branches)
            frame.branches = None
        if strand.stack and strand.stack[-1].used < frame.used:
            strand.stack[-1].used = frame.used
        plan = frame.plan
        if plan.index == 0:
            return
        if state is StepState.SUCCEEDED and plan.keep:
            self.outputs[plan.index] = frame.value
        self.records.append(
            StepTrace(
                plan.pointer,
                frame.iteration,
                frame.attempt,
                state,
                plan.kind,
                plan.function,
                frame.started,
                self.now,
                problem,
            )
        )

    def note_waiting(self, frame: Frame) -> None:
        """Record that the step waits for a timer."""
        plan = frame.plan
        self.records.append(
            StepTrace(
                plan.pointer,
                frame.iteration,
                frame.attempt,
                StepState.WAITING,
                plan.kind,
                plan.function,
                frame.started,
                None,
                None,
            )
        )

    def kill(self, strands: list[int]) -> None:
        """End strands, and those below them, that are no longer wanted."""
        doomed = list(strands)
        while doomed:
            strand = self.strands.pop(doomed.pop())
            strand.dead = True
            while strand.stack:
                top = strand.stack[-1]
                if top.branches:
                    doomed.extend(top.branches)
                    top.branches = None
                self.close(strand, StepState.CANCELLED, None)

    def _branch_done(self, strand: Strand, frame: Frame) -> None:
        parent = self.strands[strand.parent]
        fork = parent.stack[-1]
        del self.strands[strand.id]
        strand.dead = True
        fork.used = max(fork.used, frame.used)
        branches = [branch for branch in fork.branches or () if branch != strand.id]
        if fork.plan.compete:
            fork.branches = None
            self.kill(branches)
            fork.value = frame.value
        else:
            results = list(fork.items)
            results[strand.branch] = frame.value
            fork.items = results
            fork.branches = branches
            if branches:
                return
            fork.branches = None
            fork.value = results
        fork.items = None
        fork.phase = fork.plan.after_body
        self.wake(parent)

    # --- faults

    def fault(self, strand: Strand, problem: Problem, retry_after_ms: int | None = None) -> None:
        """The top task of the strand failed: unwind to the next `try` that may catch it, else fail the run."""
        while True:
            frame = strand.stack[-1]
            self.close(strand, StepState.FAILED, problem)
            if not strand.stack:
                if strand.parent < 0:
                    self.finish(Failed(problem))
                    return
                parent = self.strands[strand.parent]
                fork = parent.stack[-1]
                fork.used = max(fork.used, frame.used)
                del self.strands[strand.id]
                strand.dead = True
                branches = [branch for branch in fork.branches or () if branch != strand.id]
                fork.branches = branches or None
                if fork.plan.compete and branches:
                    return
                strand = parent
                continue
            above = strand.stack[-1]
            if above.plan.catch is not None and above.station == TRYING:
                if above.effect:
                    self.retract(above.effect)
                    above.effect = 0
                above.problem = problem
                above.retry_after = retry_after_ms
                above.station = CAUGHT
                self.wake(strand)
                return

    def expire(self, strand: Strand, frame: Frame) -> None:
        """The task's timeout has passed: everything above it ends, and it fails."""
        frame.deadline = 0
        while strand.stack[-1] is not frame:
            self.close(strand, StepState.CANCELLED, None)
        what = "The workflow" if frame.plan.index == 0 else f"'{frame.plan.name}'"
        detail = f"{what} did not end within its timeout."
        self.fault(strand, Problem(ProblemType.TIMEOUT, 408, "Timed out", detail, frame.plan.pointer))

    # --- the end

    def _end_run(self, strand: Strand, value: Any) -> None:
        """`then: end`: everything else stops; the value becomes the workflow's output."""
        root = self.strands[0]
        while len(strand.stack) > (1 if strand is root else 0):
            self.close(strand, StepState.SUCCEEDED, None)
        while len(root.stack) > 1:
            root.stack[-1].value = value
            state = StepState.SUCCEEDED
            self.close(root, state, None)
        frame = root.stack[0]
        frame.value = value
        frame.phase = frame.plan.after_body
        self.wake(root)

    def finish(self, end: End) -> None:
        """The run is over: nothing waits any more."""
        state = StepState.FAILED if isinstance(end, Failed) else StepState.CANCELLED
        problem = end.problem if isinstance(end, Failed) else None
        root = self.strands.get(0)
        if root is not None:
            while root.stack:
                self.close(root, state, problem)
        self.end = end
        self.strands = {}
        self.ready.clear()
        self.answers = {}
        if self.evaluating:
            self.retract(self.evaluating)
            self.evaluating = 0


TRYING: Final = 1
CAUGHT: Final = 10
SCOPE_LEFT: Final = 1 << 30
NO_RESULTS: Final[list[Any]] = []


def _at(problem: Problem, frame: Frame) -> Problem:
    if problem.instance:
        return problem
    return Problem(problem.type, problem.status, problem.title, problem.detail, frame.plan.pointer)


def _moment(at_ms: int) -> dict[str, Any]:
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=at_ms)
    iso = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"iso8601": iso, "epoch": {"seconds": at_ms // 1000, "milliseconds": at_ms}}


def _deferred_size(value: Any) -> Any:
    return {"source": value.source, "input": value.input, "variables": value.variables}


# --- stations that all tasks share


def _condition(kernel: Kernel, strand: Strand, frame: Frame) -> None:
    plan = frame.plan
    assert plan.condition is not None  # noqa: S101 - the entry was computed from it
    outcome = kernel.value(frame, plan.condition, frame.raw)
    if outcome is None or outcome is False:
        kernel.skip(strand, frame)
    else:
        frame.phase = plan.after_condition


def _input_schema(kernel: Kernel, strand: Strand, frame: Frame) -> None:
    plan = frame.plan
    if plan.input_schema is not None:
        kernel.validate(frame, plan.input_schema, frame.raw, "The input")
    frame.phase = Phase.INPUT


def _input(kernel: Kernel, strand: Strand, frame: Frame) -> None:
    plan = frame.plan
    if plan.input_from is not None:
        frame.input = kernel.checked(frame, kernel.value(frame, plan.input_from, frame.raw), "The input")
        frame.value = frame.input
    frame.phase = Phase.TIMEOUT


def _timeout(kernel: Kernel, strand: Strand, frame: Frame) -> None:
    plan = frame.plan
    if plan.timeout is not None:
        frame.deadline_until = kernel.until(frame, plan.timeout, frame.input)
        frame.deadline = kernel.emit_timer(strand, frame, frame.deadline_until, TimerKind.DEADLINE)
    frame.phase = Phase.BODY


def _body(kernel: Kernel, strand: Strand, frame: Frame) -> None:
    frame.plan.body(kernel, strand, frame)


def _output(kernel: Kernel, strand: Strand, frame: Frame) -> None:
    plan = frame.plan
    if plan.output_as is not None:
        value = kernel.value(frame, plan.output_as, frame.value, frame.value)
        frame.value = kernel.checked(frame, value, "The output")
    if plan.output_schema is not None:
        kernel.validate(frame, plan.output_schema, frame.value, "The output")
    frame.phase = Phase.EXPORT


def _export(kernel: Kernel, strand: Strand, frame: Frame) -> None:
    plan = frame.plan
    context = kernel.context
    if plan.export_as is not None:
        context = kernel.value(frame, plan.export_as, frame.value, frame.value)
        kernel.checked(frame, context, "The exported context")
    if plan.export_schema is not None:
        kernel.validate(frame, plan.export_schema, context, "The exported context")
    kernel.context = context
    frame.phase = Phase.LEAVE


def _leave(kernel: Kernel, strand: Strand, frame: Frame) -> None:
    kernel.leave(strand, frame)


_STATIONS: Final = (_condition, _input_schema, _input, _timeout, _body, _output, _export, _leave)
