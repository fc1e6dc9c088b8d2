"""The program: the intermediate form of a definition, which the machine executes.

A program is a flat list of tasks that name each other by index (task 0 is the workflow itself), so that neither
decoding nor executing it recurses. It is plain frozen data: it encodes to canonical JSON, and the hash of those bytes
is its identity. Values that a definition writes stay templates (JSON with `${ … }` strings); `plan` compiles them.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import MISSING, dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import orjson

from flint_core.schedule import Schedule

if TYPE_CHECKING:
    from flint_core.plan import Plan

__all__ = [
    "FORMAT",
    "Case",
    "Catch",
    "Flow",
    "FlowKind",
    "Listen",
    "Program",
    "ProgramError",
    "Retry",
    "Task",
]

FORMAT: Final = 1
"""Version of the intermediate form. A worker refuses a program of a format it does not know."""


class ProgramError(ValueError):
    """The bytes are not a program of this format."""


class FlowKind:
    """Where the flow goes after a task."""

    CONTINUE: Final = "continue"
    EXIT: Final = "exit"
    END: Final = "end"
    GOTO: Final = "goto"


@dataclass(frozen=True, slots=True)
class Flow:
    """A flow directive; `position` is the sibling's place in its scope when `kind` is goto."""

    kind: str = FlowKind.CONTINUE
    position: int = 0


@dataclass(frozen=True, slots=True)
class Case:
    """One case of a switch. `when` None: always matches."""

    name: str
    flow: Flow
    when: Any = None


@dataclass(frozen=True, slots=True)
class Retry:
    """When and how often a `try` is repeated. Durations are as written (object, ISO 8601 text or expression)."""

    when: Any = None
    except_when: Any = None
    delay: Any = None
    backoff: str = "constant"  # constant, linear, exponential
    factor: float = 2.0  # of exponential
    increment: Any = None  # of linear; None: the delay
    max_delay: Any = None
    limit_count: int | None = None
    limit_attempt: Any = None
    limit_duration: Any = None
    jitter_from: Any = None
    jitter_to: Any = None


@dataclass(frozen=True, slots=True)
class Catch:
    """What a `try` catches, and what it does then."""

    matches: dict[str, Any]  # members of the problem that must be equal
    name: str = "error"
    when: Any = None
    except_when: Any = None
    retry: Retry | None = None
    scope: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Listen:
    """What a `listen` waits for. A filter is `{"with": {…}, "correlate": {name: {"from", "expect"}}}`, as written."""

    mode: str = "one"  # one, any, all
    filters: list[dict[str, Any]] | None = None
    read: str = "data"  # data, envelope, raw
    until: Any = None  # expression over what was gathered
    until_mode: str = ""  # one, any, all; empty: no strategy
    until_filters: list[dict[str, Any]] | None = None
    iterates: bool = False  # the rest is of `foreach`; its tasks are the task's scope
    output_as: Any = None
    output_schema: Any = None
    export_as: Any = None
    export_schema: Any = None


@dataclass(frozen=True, slots=True)
class Task:
    """One task. The members up to `flow` are common to all kinds; the others belong to the kind named by `kind`."""

    pointer: str
    name: str
    kind: str  # workflow, do, set, switch, for, fork, try, raise, wait, call, emit, listen, run
    flow: Flow = Flow()
    condition: Any = None
    input_schema: Any = None
    input_from: Any = None
    output_as: Any = None
    output_schema: Any = None
    export_as: Any = None
    export_schema: Any = None
    timeout: Any = None
    steps: dict[str, int] | None = None  # what $steps offers here: name → task
    keep: bool = False  # some expression reads its output as $steps.<name>
    locals: tuple[str, ...] = ()  # variables of enclosing for and catch
    scope: tuple[int, ...] = ()  # do, for, try, workflow: tasks in order; fork: branches
    # set, raise, wait
    value: Any = None
    # switch
    cases: tuple[Case, ...] = ()
    # for
    each: str = "item"
    at: str = "index"
    items: Any = None
    condition_while: Any = None
    parallel: int = 0  # how many iterations at once, each from the for's input; 0: one after the other
    # listen
    listen: Listen | None = None
    # fork
    compete: bool = False
    # try
    catch: Catch | None = None
    # call
    function: str = ""
    arguments: dict[str, Any] | None = None
    parameters: dict[str, Any] | None = None  # what a call of a function of `use` passes to it
    idempotency_key: Any = None  # expression that replaces the key made of run, step and iteration
    cache_key: Any = None
    cache_ttl: Any = None
    # any: undone by this task when the run fails; 0: by none
    compensate: int = 0
    # around an extended task: its place among the tasks of the extension in `scope`; -1: no extension
    core: int = -1
    guard: Any = None  # whether the extension applies
    subject: int = 0  # the extended task, which $task describes in the tasks of an extension; 0: this one
    source: str | None = None  # pointer of its text, when that is not the task's own; "": not in the definition
    # run
    detached: bool = False  # nobody waits for its end; the task's input is its output
    discards: bool = False  # of a workflow: what it gives is left, the output is null
    place: tuple[str, str, str] | None = None  # pool, region and level of a call; "": the run's own


@dataclass(frozen=True)
class Program:
    """A compiled definition. Immutable, safe to share between threads and runs."""

    namespace: str
    workflow_id: str
    version: str
    title: str
    summary: str
    secrets: tuple[str, ...]
    tasks: tuple[Task, ...]
    document: Any = None  # the definition itself, kept only when an expression reads it
    timezone: str = ""  # IANA name that calendar units and the schedule follow; empty: UTC
    schedule: Schedule | None = None
    level: int | None = None  # of runs whose start names none
    queue: dict[str, Any] | None = None  # how its runs queue (flint_core.queue_hints)
    retention_s: int | None = None  # how long its ended runs are kept; 0: for ever; None: as the namespace says
    escalation: dict[str, Any] | None = None  # what is to happen when they fail again and again (definition.escalating)

    def encode(self) -> bytes:
        """Canonical JSON: the same program gives the same bytes, on every machine."""
        return self._encoded

    @property
    def hash(self) -> bytes:
        """SHA-256 of `encode()`, 32 bytes."""
        return self._hash

    @cached_property
    def _encoded(self) -> bytes:
        document = {
            "format": FORMAT,
            "tasks": [_plain(task) for task in self.tasks],
            **{name: getattr(self, name) for name in _PROGRAM_FIELDS},
        }
        if self.timezone:
            document["timezone"] = self.timezone
        if self.schedule is not None:
            document["schedule"] = self.schedule.to_json()
        if self.level is not None:
            document["level"] = self.level
        if self.queue is not None:
            document["queue"] = self.queue
        if self.escalation is not None:
            document["escalation"] = self.escalation
        if self.retention_s is not None:
            document["retention_s"] = self.retention_s
        return orjson.dumps(document, option=orjson.OPT_SORT_KEYS)

    @cached_property
    def _hash(self) -> bytes:
        return hashlib.sha256(self._encoded).digest()

    @cached_property
    def plan(self) -> Plan:
        """What the machine executes: every template, schema and duration compiled."""
        from flint_core.plan import build_plan  # noqa: PLC0415 - the plan knows the program, not the reverse

        return build_plan(self)

    @classmethod
    def decode(cls, data: bytes) -> Program:
        """The reverse of `encode`, with its plan built. Raises ProgramError."""
        try:
            document = orjson.loads(data)
            if document.pop("format") != FORMAT:
                raise ProgramError("the program has a format that this version of Flint does not execute")
            tasks = tuple(_task(entry) for entry in document.pop("tasks"))
            document["secrets"] = tuple(document["secrets"])
            if "schedule" in document:
                document["schedule"] = Schedule.from_json(document["schedule"])
            program = cls(tasks=tasks, **document)
        except (KeyError, TypeError, AttributeError, orjson.JSONDecodeError) as error:
            raise ProgramError(f"not a program: {error}") from None
        _ = program.plan
        return program

    def jq_sources(self) -> list[tuple[str, frozenset[str], str]]:
        """Expressions outside the fast path: (source, variables of its place, pointer), for a check by real jq."""
        return self.plan.jq_sources()


_PROGRAM_FIELDS: Final = ("namespace", "workflow_id", "version", "title", "summary", "secrets", "document")
_NESTED: Final = {"flow": Flow, "catch": Catch, "retry": Retry, "listen": Listen}


def _plain(node: Any) -> dict[str, Any]:
    """A node as JSON; members that hold their default are left out."""
    document: dict[str, Any] = {}
    for field in fields(node):
        value = getattr(node, field.name)
        if field.default is not MISSING and value == field.default and type(value) is type(field.default):
            continue
        if isinstance(value, Flow | Catch | Retry | Listen):
            value = _plain(value)
        elif field.name == "cases":
            value = [_plain(case) for case in value]
        document[field.name] = value
    return document


def _restore(kind: type[Any], document: dict[str, Any]) -> Any:
    members = {
        key: _restore(_NESTED[key], value) if key in _NESTED and isinstance(value, dict) else value
        for key, value in document.items()
    }
    if members.get("scope") is not None:
        members["scope"] = tuple(members["scope"])
    if members.get("place") is not None:
        members["place"] = tuple(members["place"])
    return kind(**members)


def _task(document: dict[str, Any]) -> Task:
    cases = tuple(_restore(Case, case) for case in document.pop("cases", ()))
    document["locals"] = tuple(document.get("locals", ()))
    task: Task = _restore(Task, {**document, "cases": cases})
    return task


READS_DEFINITION: Final = re.compile(r"\$(?:workflow|task)\b(?!\s*\.\s*(?!definition\b)[A-Za-z_])")
"""Matches an expression that may read `$workflow.definition` or `$task.definition`."""
