"""The plan: a program with everything compiled that can be compiled before a run.

Built once per program and process, then shared by all its runs: bindings for every place that takes a value, validators
for schemas, parsed durations, and direct references between tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, tzinfo
from typing import TYPE_CHECKING, Any, Final

from flint_core.bindings import Binding
from flint_core.durations import Duration, parse_duration
from flint_core.effects import AwaitKind
from flint_core.engine.bodies import BODIES
from flint_core.engine.branching import BranchScope, SpreadPlan, scope_of, spread_of
from flint_core.engine.catching import try_body
from flint_core.engine.composing import before, extended, invoke
from flint_core.engine.frames import Phase
from flint_core.engine.listening import listen
from flint_core.engine.parallel import iteration, parallel_for
from flint_core.engine.waiting import approval, child_run
from flint_core.filters import FilterPlan
from flint_core.functions import FUNCTIONS
from flint_core.program import Catch, Flow, Listen, Program, Retry, Task
from flint_core.schemas import Schema
from flint_core.zones import zone_named

if TYPE_CHECKING:
    from flint_core.engine.frames import Frame, Strand
    from flint_core.engine.kernel import Kernel

__all__ = [
    "Body",
    "CatchPlan",
    "Moment",
    "Places",
    "Plan",
    "RetryPlan",
    "Schema",
    "TaskPlan",
    "build_plan",
    "places_of",
]

Body = Callable[["Kernel", "Strand", "Frame"], None]

_BODIES: Final[dict[str, Body]] = {
    **BODIES,
    "try": try_body,
    "listen": listen,
    "iteration": iteration,
    "extended": extended,
    "before": before,
}
_WAITING: Final[dict[str, Body]] = {AwaitKind.RUN: child_run, AwaitKind.APPROVAL: approval}


class Moment:
    """A duration's place: a fixed duration, or a binding whose value is parsed when it is needed."""

    __slots__ = ("binding", "duration")

    def __init__(self, template: Any, variables: frozenset[str]) -> None:
        self.binding = Binding(template, variables)
        self.duration: Duration | None = parse_duration(template) if self.binding.constant else None


class Places:
    """The variables that expressions see, by the place of the expression."""

    __slots__ = ("arguments", "body", "condition", "export", "output")

    def __init__(self, kind: str, local: tuple[str, ...]) -> None:
        if kind == "workflow":
            base = frozenset({"workflow", "runtime"})
            self.condition = base
            self.body = base | {"input"}
            self.arguments = self.body
            self.output = base | {"input", "output", "context", "steps"}
            self.export = self.output
            return
        base = frozenset({"context", "task", "workflow", "runtime", "steps", *local})
        self.condition = base
        self.body = base | {"input"}
        self.arguments = self.body | {"secrets"}
        self.output = self.body | {"output"}
        self.export = self.output


def places_of(task: Task) -> Places:
    """The variables of a task's places."""
    return Places(task.kind, task.locals)


def retry_template(retry: Retry) -> dict[str, Any]:
    """All values of a retry as one template, evaluated together when something was caught."""
    members = {
        "when": retry.when,
        "exceptWhen": retry.except_when,
        "delay": retry.delay,
        "increment": retry.increment,
        "maxDelay": retry.max_delay,
        "limitDuration": retry.limit_duration,
        "jitterFrom": retry.jitter_from,
        "jitterTo": retry.jitter_to,
    }
    return {name: value for name, value in members.items() if value is not None}


def hints_template(task: Task) -> dict[str, Any]:
    """The keys that a call's hints give, as one template."""
    members = {
        "idempotencyKey": task.idempotency_key,
        "cacheKey": task.cache_key,
        "cacheTtl": task.cache_ttl,
    }
    return {name: value for name, value in members.items() if value is not None}


class RetryPlan:
    """A retry policy, compiled."""

    __slots__ = ("backoff", "factor", "limit_attempt", "limit_count", "policy")

    def __init__(self, retry: Retry, variables: frozenset[str], error: str) -> None:
        self.policy = Binding(retry_template(retry), variables | {error})
        self.backoff = retry.backoff
        self.factor = retry.factor
        self.limit_count = retry.limit_count
        self.limit_attempt = None if retry.limit_attempt is None else Moment(retry.limit_attempt, variables)


class CatchPlan:
    """The catch of a try, compiled."""

    __slots__ = ("guard", "matches", "name", "retry", "scope")

    def __init__(self, catch: Catch, variables: frozenset[str]) -> None:
        self.matches = catch.matches
        self.name = catch.name
        guard = {
            name: value
            for name, value in (("when", catch.when), ("exceptWhen", catch.except_when))
            if value is not None
        }
        self.guard = Binding(guard, variables | {catch.name}) if guard else None
        self.retry = None if catch.retry is None else RetryPlan(catch.retry, variables, catch.name)
        self.scope: tuple[TaskPlan, ...] | None = None


class ListenPlan:
    """A `listen`, compiled. `filters` holds those of `until` behind the first `count`."""

    __slots__ = (
        "count",
        "expect",
        "export_as",
        "export_schema",
        "filters",
        "iterates",
        "mode",
        "output_as",
        "output_schema",
        "read",
        "until",
        "until_mode",
    )

    def __init__(self, listen: Listen, places: Places, each: str, at: str) -> None:
        self.mode = listen.mode
        self.read = listen.read
        self.until_mode = listen.until_mode
        self.iterates = listen.iterates
        documents = [*(listen.filters or ()), *(listen.until_filters or ())]
        self.count = len(listen.filters or ())
        self.filters = tuple(FilterPlan(document, places.body) for document in documents)
        expect = {str(place): found.expect for place, found in enumerate(self.filters) if found.expect}
        self.expect = Binding(expect, places.body)
        inner = frozenset({each, at}) if listen.iterates else frozenset[str]()
        self.until = _binding(listen.until, places.body | inner)
        self.output_as = _binding(listen.output_as, places.output | inner)
        self.output_schema = _schema(listen.output_schema)
        self.export_as = _binding(listen.export_as, places.export | inner)
        self.export_schema = _schema(listen.export_schema)

    def may_fit(self, content: Any) -> bool:
        """Whether an event may match, as far as it can be told without an expression."""
        if not isinstance(content, dict):
            return False
        return (self.mode == "any" and not self.count) or any(found.fits(content) for found in self.filters)

    def bindings(self, places: Places, each: str, at: str) -> Iterator[tuple[Binding, frozenset[str]]]:
        """Every binding with the variables of its place."""
        inner = frozenset({each, at}) if self.iterates else frozenset[str]()
        yield self.expect, places.body
        for found in self.filters:
            yield from ((binding, places.body) for binding in found.bindings())
        yield from _present((self.until, places.body | inner))
        yield from _present((self.output_as, places.output | inner), (self.export_as, places.export | inner))


class TaskPlan:
    """One task, compiled. Never changed after `build_plan`."""

    __slots__ = (
        "after_body",
        "after_condition",
        "arguments",
        "at",
        "awaits",
        "body",
        "cases",
        "catch",
        "collection",
        "compensation",
        "compete",
        "condition",
        "core",
        "definition",
        "detached",
        "discards",
        "each",
        "entry",
        "export_as",
        "export_schema",
        "flow",
        "function",
        "guard",
        "hints",
        "index",
        "input_from",
        "input_schema",
        "iteration",
        "keep",
        "kind",
        "listen",
        "loop_while",
        "moment",
        "name",
        "output_as",
        "output_schema",
        "parallel",
        "parameters",
        "place",
        "places",
        "pointer",
        "resolved",
        "scope",
        "steps",
        "subject",
        "timeout",
        "value",
    )

    def __init__(self, task: Task, index: int, definition: Any) -> None:
        places = places_of(task)
        self.places = places
        self.index = index
        self.pointer = task.pointer
        self.name = task.name
        self.kind = task.kind
        self.flow = task.flow
        self.definition = definition
        self.steps = task.steps or {}
        self.keep = task.keep
        self.awaits = _awaits(task)
        self.body = _WAITING[self.awaits] if self.awaits in _WAITING else _BODIES[task.kind]
        if task.parallel:
            self.body = parallel_for
        if task.kind == "call" and task.scope:
            self.body = invoke
        self.scope: tuple[TaskPlan, ...] = ()
        self.core = task.core
        self.compensation: TaskPlan | None = None
        self.subject: TaskPlan | None = None
        self.guard = _binding(task.guard, places.condition)
        self.hints = _binding(hints_template(task) or None, places.body)
        self.condition = _binding(task.condition, places.condition)
        self.input_schema = _schema(task.input_schema)
        self.input_from = _binding(task.input_from, places.condition)
        self.timeout = _moment(task.timeout, places.body)
        self.output_as = _binding(task.output_as, places.output)
        self.output_schema = _schema(task.output_schema)
        self.export_as = _binding(task.export_as, places.export)
        self.export_schema = _schema(task.export_schema)
        self.value = None if task.kind == "wait" else _binding(task.value, places.body)
        self.moment = _moment(task.value, places.body) if task.kind == "wait" else None
        self.cases = tuple((_binding(case.when, places.body), case.flow) for case in task.cases)
        self.each = task.each
        self.at = task.at
        self.collection = _binding(task.items, places.body)
        self.loop_while = _binding(task.condition_while, places.body | {task.each, task.at})
        self.parallel = task.parallel
        self.iteration: TaskPlan | None = None  # of a parallel for: what each of its strands begins with
        self.listen = None if task.listen is None else ListenPlan(task.listen, places, task.each, task.at)
        self.compete = task.compete
        self.catch = None if task.catch is None else CatchPlan(task.catch, places.body)
        self.function = task.function
        self.detached = task.detached
        self.discards = task.discards
        self.place = task.place
        inner = places.arguments if task.parameters is None else places.arguments - set(task.locals)
        self.arguments = _binding(task.arguments, inner)
        self.parameters = _binding(task.parameters, places.body)
        self.resolved = Schema(FUNCTIONS[task.function].resolved) if self.awaits == AwaitKind.APPROVAL else None
        if self.export_as is not None or self.export_schema is not None:
            self.after_body = Phase.EXPORT
        else:
            self.after_body = Phase.LEAVE
        if self.output_as is not None or self.output_schema is not None:
            self.after_body = Phase.OUTPUT
        prepared = self.input_schema is None and self.input_from is None and self.timeout is None
        self.after_condition = Phase.BODY if prepared else Phase.INPUT_SCHEMA
        self.entry = self.after_condition if self.condition is None else Phase.CONDITION

    def bindings(self) -> Iterator[tuple[Binding, frozenset[str]]]:
        """Every binding with the variables of its place."""
        places = self.places
        inner = places.body | {self.each, self.at}
        yield from _present((self.condition, places.condition), (self.input_from, places.condition))
        yield from _present((self.guard, places.condition), (self.hints, places.body))
        yield from _present((self.output_as, places.output), (self.export_as, places.export))
        yield from _present((self.value, places.body), (self.collection, places.body), (self.loop_while, inner))
        yield from _present((self.arguments, places.arguments), (self.parameters, places.body))
        yield from _present(*((when, places.body) for when, _ in self.cases))
        if self.listen is not None:
            yield from self.listen.bindings(places, self.each, self.at)
        for moment in (self.timeout, self.moment):
            yield from _present((moment.binding if moment else None, places.body))
        if self.catch is not None:
            caught = places.body | {self.catch.name}
            yield from _present((self.catch.guard, caught))
            if self.catch.retry is not None:
                yield from _present((self.catch.retry.policy, caught))
                attempt = self.catch.retry.limit_attempt
                yield from _present((attempt.binding if attempt else None, places.body))


def _awaits(task: Task) -> str:
    """What the task waits for (AwaitKind), or the empty text."""
    if task.kind == "listen":
        return AwaitKind.EVENTS
    if task.kind == "run" and task.function == "workflow":
        return AwaitKind.RUN
    return AwaitKind.APPROVAL if task.kind == "call" and task.function == "approval" else ""


def _present(*pairs: tuple[Binding | None, frozenset[str]]) -> Iterator[tuple[Binding, frozenset[str]]]:
    return ((binding, variables) for binding, variables in pairs if binding is not None)


def _binding(template: Any, variables: frozenset[str]) -> Binding | None:
    return None if template is None else Binding(template, variables)


def _schema(schema: Any) -> Schema | None:
    return None if schema is None else Schema(schema)


def _moment(template: Any, variables: frozenset[str]) -> Moment | None:
    return None if template is None else Moment(template, variables)


class Plan:
    """A whole program, compiled. `tasks[0]` is the workflow."""

    __slots__ = ("_scopes", "_spreads", "program", "tasks", "zone")

    def __init__(self, program: Program) -> None:
        self.program = program
        self._scopes: dict[int, BranchScope] = {}
        self._spreads: dict[int, SpreadPlan | None] = {}
        self.zone: tzinfo = zone_named(program.timezone) if program.timezone else UTC
        tasks = [
            TaskPlan(task, index, _definition_at(program.document, task)) for index, task in enumerate(program.tasks)
        ]
        for task in program.tasks:
            if task.parallel:
                tasks.append(_iteration(task, len(tasks)))
        self.tasks: tuple[TaskPlan, ...] = tuple(tasks)
        rounds = iter(self.tasks[len(program.tasks) :])
        for task, plan in zip(program.tasks, self.tasks, strict=False):
            plan.scope = tuple(self.tasks[child] for child in task.scope)
            if task.parallel:
                plan.iteration = next(rounds)
                plan.iteration.scope = plan.scope
            plan.compensation = self.tasks[task.compensate] if task.compensate else None
            plan.subject = self.tasks[task.subject] if task.subject else None
            if task.catch is not None and plan.catch is not None and task.catch.scope is not None:
                plan.catch.scope = tuple(self.tasks[child] for child in task.catch.scope)
        for plan in reversed(self.tasks):  # what is shown of an extended task is of its kind; inner ones come later
            if plan.core >= 0:
                plan.kind = plan.scope[plan.core].kind

    def spread(self, fork: TaskPlan) -> SpreadPlan | None:
        """What is known of a fork, or parallel `for`, whose branches may leave the leg; None when they may not."""
        if fork.index not in self._spreads:
            self._spreads[fork.index] = spread_of(fork, self.tasks, self.branch_scope(fork))
        return self._spreads[fork.index]

    def branch_scope(self, fork: TaskPlan) -> BranchScope:
        """Which outputs the branches of a fork, or the iterations of a parallel `for`, have for themselves."""
        if fork.index not in self._scopes:
            self._scopes[fork.index] = scope_of(fork, self.tasks)
        return self._scopes[fork.index]

    @staticmethod
    def flow(kind: str, position: int) -> Flow:
        """A flow directive from its encoding."""
        return Flow(kind, position)

    def jq_sources(self) -> list[tuple[str, frozenset[str], str]]:
        """Expressions outside the fast path: (source, variables of its place, pointer of its task)."""
        return [
            (source, variables, plan.pointer or "/")
            for plan in self.tasks
            for binding, variables in plan.bindings()
            for source in binding.guarded
        ]


def _iteration(task: Task, index: int) -> TaskPlan:
    """What each strand of a parallel `for` begins with. It is no task of the program's, and is not shown."""
    return TaskPlan(Task(f"{task.pointer}/do", task.name, "iteration", locals=task.locals), index, None)


def build_plan(program: Program) -> Plan:
    """Compile a program that the definition compiler made; what it refuses is not expected here."""
    return Plan(program)


def _definition_at(document: Any, task: Task) -> Any:
    pointer = task.pointer if task.source is None else task.source
    if document is None or (task.source is not None and not pointer):
        return None
    node = document
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        node = node[int(key)] if isinstance(node, list) else node[key]
    return node
