"""State: strands of frames, as plain data.

A strand is one line of execution: the run's own, or a branch of a fork. Its stack holds a frame for every task in
progress, outermost first. Values in frames are JSON, never changed in place but replaced; so frames may share them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from flint_core.effects import Deferred
from flint_core.problems import Problem

if TYPE_CHECKING:
    from flint_core.plan import Plan, TaskPlan

__all__ = ["NO_VARIABLES", "Frame", "Phase", "Strand", "decode_strand", "encode_strand"]

NO_VARIABLES: Final[dict[str, Any]] = {}


class Phase:
    """Stations of a task, in order. A frame enters at the first one that its task needs."""

    CONDITION: Final = 0
    INPUT_SCHEMA: Final = 1
    INPUT: Final = 2
    TIMEOUT: Final = 3
    BODY: Final = 4
    OUTPUT: Final = 5
    EXPORT: Final = 6
    LEAVE: Final = 7


class Frame:
    """One task in progress."""

    __slots__ = (
        "args",
        "args_size",
        "attempt",
        "branches",
        "child_variables",
        "cursor",
        "deadline",
        "deadline_until",
        "effect",
        "effect_until",
        "flow",
        "gathered",
        "held",
        "index",
        "input",
        "input_size",
        "items",
        "iteration",
        "keys",
        "mail",
        "moving",
        "notes",
        "phase",
        "plan",
        "problem",
        "raw",
        "raw_size",
        "results",
        "retry_after",
        "round",
        "since",
        "size",
        "started",
        "station",
        "timer",
        "timer_until",
        "tries",
        "used",
        "value",
        "variables",
    )

    def __init__(
        self, plan: TaskPlan, raw: Any, started: int, attempt: int, iteration: str, variables: dict[str, Any]
    ) -> None:
        self.plan = plan
        self.phase = plan.entry
        self.station = 0  # progress within the body, by kind
        self.raw = raw
        self.input = raw
        self.value: Any = raw  # what flows: the body's data, then the output
        # Sizes of values, -1 for not measured: a new value needs a new size (room.py).
        self.raw_size = self.input_size = self.size = self.args_size = -1
        self.held = 0
        self.started = started
        self.attempt = attempt
        self.used = attempt  # highest attempt of anything below
        self.iteration = iteration
        self.variables = variables  # locals of enclosing scopes
        self.child_variables = variables
        self.cursor = 0  # place in the scope
        self.round = 0  # how often `then` went back in this scope
        self.index = 0  # for: iteration
        self.items: Any = None  # for: the collection; call: the parameters
        self.args: Any = None  # call: the evaluated arguments
        self.effect = 0  # call or timer that the body waits for; try: timer of the attempt
        self.effect_until = 0
        self.moving = False  # call: the effect is the way to where it is executed
        self.deadline = 0  # timer of the task's timeout
        self.deadline_until = 0
        self.timer = 0  # timer of the body beside its effect: an approval's deadline
        self.timer_until = 0
        self.results: list[Any] | None = None  # results of guarded expressions so far; fork: outputs
        self.branches: list[int] | None = None  # fork: strands still running
        self.problem: Problem | None = None  # try: what was caught
        self.retry_after: int | None = None
        self.tries = 0  # try: attempts begun
        self.since = 0  # try: when the first attempt began
        self.flow: Any = None  # switch: where to go
        self.keys: list[Any] | None = None  # call: idempotency key, cache key and its time to live, where it has them
        # The next three are the frame's own and changed in place, until they are handed on.
        self.mail: list[Any] | None = None  # await: what has come and is not looked at yet, as [key, content]
        self.gathered: list[Any] | None = None  # listen: what was consumed; parallel for: outputs by position
        self.notes: dict[str, Any] | None = None  # listen: what it knows of the events so far


class Strand:
    """One line of execution."""

    __slots__ = ("branch", "dead", "id", "output_sizes", "outputs", "parent", "queued", "stack")

    def __init__(self, strand_id: int, parent: int, branch: int) -> None:
        self.id = strand_id
        self.parent = parent  # strand whose top frame is the fork; -1 for the run's own
        self.branch = branch
        self.stack: list[Frame] = []
        self.outputs: dict[int, Any] = {}  # of the tasks that ended in this branch; the run's own are the kernel's
        self.output_sizes: dict[int, int] = {}
        self.queued = False  # in the ready queue
        self.dead = False


_DEFAULTS: Final[dict[str, Any]] = {
    "station": 0,
    "cursor": 0,
    "round": 0,
    "index": 0,
    "items": None,
    "effect": 0,
    "effect_until": 0,
    "deadline": 0,
    "deadline_until": 0,
    "timer": 0,
    "timer_until": 0,
    "results": None,
    "branches": None,
    "retry_after": None,
    "tries": 0,
    "since": 0,
    "mail": None,
    "moving": False,
    "gathered": None,
    "notes": None,
    "keys": None,
}


def encode_strand(strand: Strand, around: Any) -> dict[str, Any]:
    """The strand as JSON. What can be derived again (variables, a value that is still the input) is left out.

    `around` is the value that its first task was given; each further task was given the value of the one below it.
    """
    stack = []
    for frame in strand.stack:
        stack.append(_encode_frame(frame, around))
        around = frame.value
    document = {"id": strand.id, "parent": strand.parent, "branch": strand.branch, "stack": stack}
    if strand.outputs:
        document["outputs"] = [[task, value] for task, value in strand.outputs.items()]
    return document


def _encode_frame(frame: Frame, around: Any) -> dict[str, Any]:
    document: dict[str, Any] = {
        "task": frame.plan.index,
        "phase": frame.phase,
        "started": frame.started,
        "attempt": frame.attempt,
        "iteration": frame.iteration,
    }
    for name, default in _DEFAULTS.items():
        value = getattr(frame, name)
        if value != default or type(value) is not type(default):
            document[name] = value
    if frame.used != frame.attempt:
        document["used"] = frame.used
    if frame.raw is not around:
        document["raw"] = frame.raw
    if frame.input is not frame.raw:
        document["input"] = frame.input
    if frame.value is not frame.raw:
        document["value"] = frame.value
    if frame.args is not None:
        deferred: list[Any] = []
        document["args"] = _without_deferred(frame.args, (), deferred)
        if deferred:
            document["deferred"] = deferred
    if frame.problem is not None:
        document["problem"] = frame.problem.to_json()
    if frame.flow is not None:
        document["flow"] = [frame.flow.kind, frame.flow.position]
    return document


def _without_deferred(node: Any, path: tuple[Any, ...], found: list[Any]) -> Any:
    # Depth is bounded by the definition's: a Deferred stands where the definition's template has a string.
    if isinstance(node, Deferred):
        found.append([list(path), node.source, node.template, node.input, node.variables, list(node.secrets)])
        return None
    if isinstance(node, dict) and any(isinstance(value, dict | list | Deferred) for value in node.values()):
        return {key: _without_deferred(value, (*path, key), found) for key, value in node.items()}
    if isinstance(node, list) and any(isinstance(value, dict | list | Deferred) for value in node):
        return [_without_deferred(value, (*path, index), found) for index, value in enumerate(node)]
    return node


def decode_strand(document: dict[str, Any], plan: Plan, around: Any) -> Strand:
    """The reverse of `encode_strand`, but for variables, which the kernel derives from the frames above."""
    strand = Strand(document["id"], document["parent"], document["branch"])
    strand.outputs = dict(document.get("outputs", ()))
    for entry in document["stack"]:
        frame = _decode_frame(entry, plan, around)
        strand.stack.append(frame)
        around = frame.value
    return strand


def _decode_frame(document: dict[str, Any], plan: Plan, around: Any) -> Frame:
    frame = Frame(
        plan.tasks[document["task"]],
        document.get("raw", around),
        document["started"],
        document["attempt"],
        document["iteration"],
        NO_VARIABLES,
    )
    frame.phase = document["phase"]
    for name in _DEFAULTS:
        if name in document:
            setattr(frame, name, document[name])
    frame.used = document.get("used", frame.attempt)
    if "input" in document:
        frame.input = document["input"]
    if "value" in document:
        frame.value = document["value"]
    if "args" in document:
        frame.args = document["args"]
        for path, source, template, data, variables, secrets in document.get("deferred", ()):
            holder = frame.args
            for key in path[:-1]:
                holder = holder[key]
            holder[path[-1]] = Deferred(source, template, data, variables, tuple(secrets))
    if "problem" in document:
        frame.problem = Problem.from_json(document["problem"])
    if "flow" in document:
        frame.flow = plan.flow(*document["flow"])
    return frame
