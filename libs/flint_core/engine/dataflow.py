"""Data flow: values of a task's places, the variables they see, and the checks on what comes out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from flint_core.bindings import Binding
from flint_core.branches import NO_SPREAD, Spread
from flint_core.durations import DurationError, parse_duration
from flint_core.effects import CancelEffect, Effect, Evaluate
from flint_core.engine.frames import NO_VARIABLES, Frame, Strand
from flint_core.events import Evaluated, EvaluateFailed
from flint_core.expressions import Expression, ExpressionFault
from flint_core.expressions.reads import Read, needed
from flint_core.payloads import Payload, holds_reference, is_reference
from flint_core.problems import Problem, ProblemType
from flint_core.traces import StepTrace

if TYPE_CHECKING:
    from flint_core.engine.compensating import Note
    from flint_core.plan import Moment, Plan, Schema

__all__ = ["UNSEEN", "DataFlow", "Fault", "MachineLimits", "RunFacts", "Suspended", "located"]

RUNTIME: Final = {"name": "Flint", "version": "0.1.0", "metadata": {}}
NO_RESULTS: Final[list[Any]] = []
UNSEEN: Final = object()
"""In place of an output that a strand does not see."""


class RunFacts(NamedTuple):
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
    """Sizes in bytes of encoded JSON; `steps_per_run` counts tasks begun, also those that need no call;
    `parallel` bounds iterations of one loop at once; `run_ms` is how long a run may take from its start (0: no end);
    `spread` tells which forks leave their leg, by default none.

    A value beyond `payload_bytes` leaves the state for the payload store; beyond `value_bytes` its step fails.
    """

    payload_bytes: int = 262_144
    state_bytes: int = 262_144
    steps_per_run: int = 100_000
    parallel: int = 1_000
    value_bytes: int = 64 * 2**20
    run_ms: int = 0
    spread: Spread = NO_SPREAD


class Fault(Exception):
    """The task on top of the strand fails with this problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.title)
        self.problem = problem


class Suspended(Exception):
    """The handler cannot go on before an expression is evaluated; it is entered again with the result."""


class DataFlow:
    """The state of one run, and how values are read from it."""

    __slots__ = (
        "answers",
        "cancelled",
        "context",
        "context_size",
        "evaluating",
        "exported",
        "facts",
        "kept",
        "large",
        "limits",
        "next_effect",
        "next_strand",
        "notes",
        "now",
        "outbox",
        "output_sizes",
        "outputs",
        "owners",
        "payloads",
        "plan",
        "question",
        "ready",
        "records",
        "started",
        "steps_begun",
        "strands",
    )

    def __init__(self, plan: Plan, facts: RunFacts, limits: MachineLimits) -> None:
        self.plan = plan
        self.facts = facts
        self.limits = limits
        self.now = 0
        self.started = 0
        self.steps_begun = 0
        self.next_effect = 1
        self.next_strand = 0
        self.context: Any = None  # what was exported last
        self.exported = False
        self.outputs: dict[int, Any] = {}
        self.output_sizes: dict[int, int] = {}
        self.context_size = 0
        self.notes: dict[tuple[int, str], Note] = {}  # what is to be undone if it fails, in order of completion
        self.kept = 0  # size of outputs, context, and what frames hold
        self.strands: dict[int, Strand] = {}
        self.ready: deque[Strand] = deque()
        self.evaluating = 0
        self.question: Evaluate | None = None
        self.answers: dict[int, Evaluated | EvaluateFailed] = {}
        self.owners: dict[int, tuple[Strand, Frame]] = {}
        self.outbox: dict[int, Effect] = {}
        self.cancelled: list[CancelEffect] = []
        self.records: list[StepTrace] = []
        self.large = False  # whether some value of the run is, or holds, a reference to a large one
        self.payloads: list[Payload] = []  # large values made here, to be stored before anything is recorded

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
        if self.large:
            return self._value_by_part(frame, binding, data, variables)
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

    def _value_by_part(self, frame: Frame, binding: Binding, data: Any, variables: dict[str, Any]) -> Any:
        """The same where values may be references: an expression that looks into one is the driver's to evaluate."""
        template = binding.by_part
        results = frame.results or NO_RESULTS
        while len(results) < len(template.parts):
            part, in_text = template.parts[len(results)], template.in_text[len(results)]
            seen = {name: variables[name] for name in part.names if name in variables}
            try:
                if part.fast and not _looks_into_reference(part, data, seen):
                    result = part.evaluate(data, seen, self.now)
                    if in_text and holds_reference(result):
                        result = self._evaluate(frame, part.source, *_needed(part, data, seen))
                else:
                    result = self._evaluate(frame, part.source, *_needed(part, data, seen))
            except ExpressionFault as error:
                raise Fault(self._expression_problem(frame, error.detail)) from None
            if in_text and holds_reference(result):
                detail = (
                    f"The value of an expression within a text is beyond {self.limits.payload_bytes} bytes of JSON."
                )
                raise Fault(
                    Problem(ProblemType.PAYLOAD_TOO_LARGE, 413, "Payload too large", detail, frame.plan.pointer)
                )
            results = [*results, result]
            frame.results = results
        frame.results = None
        try:
            return template.evaluate(data, variables, self.now, results)
        except ExpressionFault as error:
            raise Fault(self._expression_problem(frame, error.detail)) from None

    def operate(self, frame: Frame, operation: str, data: Any, variables: dict[str, Any]) -> Any:
        """What the driver makes of large values (`Evaluate.operation`). Raises Suspended or Fault."""
        return self._evaluate(frame, "", data, variables, operation=operation)

    def _evaluate(
        self,
        frame: Frame,
        source: str,
        data: Any,
        variables: dict[str, Any],
        schema: Any = None,
        operation: str = "",
    ) -> Any:
        effect_id = self.evaluating or self.next_effect
        if not self.evaluating:
            self.next_effect += 1
            self.evaluating = effect_id
        answer = self.answers.pop(effect_id, None)
        if answer is None:
            question = Evaluate(effect_id, source, data, variables, self.now, schema, operation)
            self.question = self.outbox[effect_id] = question
            raise Suspended  # each time another: one that is raised again keeps every frame that it ever passed
        self.evaluating = 0
        self.question = None
        self.outbox.pop(effect_id, None)
        if isinstance(answer, Evaluated):
            return answer.value
        self.now = max(self.now, answer.at_ms)
        frame.results = None
        raise Fault(located(answer.problem, frame))

    def _variables(self, frame: Frame, names: Iterable[str], scope_input: Any, output: Any) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name in names:
            if name in frame.variables:
                values[name] = frame.variables[name]
            elif name == "input":
                values[name] = scope_input
            elif name == "context":
                values[name] = self.current_context()
            elif name == "steps":
                values[name] = self._steps_variable(frame)
            elif name == "output":
                values[name] = output
            elif name == "task":
                values[name] = self._task_variable(frame, output)
            elif name == "workflow":
                values[name] = self._workflow_variable()
            elif name == "runtime":
                values[name] = RUNTIME
        return values

    def _steps_variable(self, frame: Frame) -> dict[str, Any]:
        strand = self.ready[0]  # only the strand that runs evaluates
        if strand.parent < 0:
            outputs = self.outputs
            return {key: outputs[task] for key, task in frame.plan.steps.items() if task in outputs}
        seen = ((key, self.output_seen(strand, task)) for key, task in frame.plan.steps.items())
        return {key: value for key, value in seen if value is not UNSEEN}

    def output_seen(self, strand: Strand, task: int) -> Any:
        """The last output of a task as the strand sees it, or UNSEEN.

        A branch sees what it gave itself, since it began, of the tasks inside its fork: nothing of the branches beside
        it, nor of an earlier round. So it is the same wherever, and in whatever order, branches are executed.
        """
        while strand.parent >= 0:
            if task in strand.outputs:
                return strand.outputs[task]
            strand = self.strands[strand.parent]
            if task in self.plan.branch_scope(strand.stack[-1].plan).inside:
                return UNSEEN
        return self.outputs.get(task, UNSEEN)

    def current_context(self) -> Any:
        """`$context`: what was exported last, and before that the workflow's input, which is not kept a second time."""
        return self.context if self.exported else self.strands[0].stack[0].input

    def _task_variable(self, frame: Frame, output: Any) -> dict[str, Any]:
        subject = frame.plan.subject
        plan = subject or frame.plan
        variable = {
            "name": plan.name,
            "reference": plan.pointer,
            "definition": plan.definition,
            "input": frame.raw,
            "output": output,
            "startedAt": _moment(frame.started),
        }
        if subject is not None and isinstance(subject.definition, dict):
            return {**subject.definition, **variable}  # an extension looks at what it extends: $task.call, $task.with
        return variable

    def _workflow_variable(self) -> dict[str, Any]:
        root = self.strands[0].stack[0]
        return {
            "id": self.facts.run_id,
            "definition": self.plan.program.document,
            "input": root.raw,
            "startedAt": _moment(self.started),
        }

    def until(self, frame: Frame, moment: Moment, data: Any) -> int:
        """When the duration of a place ends that begins now. Raises Suspended or Fault."""
        if moment.duration is not None:
            return moment.duration.after(self.now, self.plan.zone)
        try:
            return parse_duration(self.value(frame, moment.binding, data)).after(self.now, self.plan.zone)
        except DurationError as error:
            raise Fault(self._expression_problem(frame, str(error))) from None

    @staticmethod
    def _expression_problem(frame: Frame, detail: str) -> Problem:
        return Problem(ProblemType.EXPRESSION, 400, "Expression failed", detail, frame.plan.pointer)

    def expression_fault(self, frame: Frame, detail: str) -> NoReturn:
        """Fail the task because an expression's value is not what its place needs."""
        raise Fault(self._expression_problem(frame, detail))

    def validate(self, frame: Frame, schema: Schema, value: Any, what: str) -> None:
        """Check a value against a schema. Raises Fault; Suspended when the value holds references."""
        if self.large and holds_reference(value):
            message = self._evaluate(frame, "", value, NO_VARIABLES, schema.document)
        else:
            message = schema.first_error(value)
        if message is not None:
            detail = f"{what} does not match its schema: {message}"
            raise Fault(Problem(ProblemType.VALIDATION, 400, "Validation failed", detail, frame.plan.pointer))


def _looks_into_reference(part: Expression, data: Any, variables: dict[str, Any]) -> bool:
    """Whether the expression needs the content of a reference. One that walks past it, or hands it on, does not."""
    return part.reads is None or any(
        _meets_reference(data if read.root is None else variables.get(read.root), read) for read in part.reads
    )


def _meets_reference(value: Any, read: Read) -> bool:
    for key in read.keys:
        if is_reference(value):
            return True
        if type(value) is dict and type(key) is str:
            value = value.get(key)
        elif type(value) is list and type(key) is int and -len(value) <= key < len(value):
            value = value[key]
        else:
            return False
    return read.whole and holds_reference(value)


def _needed(part: Expression, data: Any, variables: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Input and variables without what the expression surely does not read: so that it is not fetched."""
    if part.reads is None:
        return data, variables
    if all(read.root is not None for read in part.reads):
        data = None
    elif part.fast:
        data = needed(data, None, part.reads)
    if part.fast:
        variables = {name: needed(value, name, part.reads) for name, value in variables.items()}
    return data, variables


def located(problem: Problem, frame: Frame) -> Problem:
    """The problem with its step as instance, unless it has one."""
    if problem.instance:
        return problem
    return Problem(problem.type, problem.status, problem.title, problem.detail, frame.plan.pointer)


def _moment(at_ms: int) -> dict[str, Any]:
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=at_ms)
    iso = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"iso8601": iso, "epoch": {"seconds": at_ms // 1000, "milliseconds": at_ms}}
