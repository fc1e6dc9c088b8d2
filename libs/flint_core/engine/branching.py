"""Wide forks: a fork or parallel loop whose branches are executed in runs of their own, in chunks.

Both sides are here. The run that comes to the fork asks for its branches (one await) and takes the joined answer. The
run of a chunk begins at the fork's frame, above which there is nothing but the workflow's own frame with what
expressions may read of it; when its range of branches is done, so is the run.

A fork stays in its leg where a branch does what concerns the whole run (see `spread_of`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import orjson

from flint_core.branches import END, OUTPUTS, WON, BranchesRequest, chunk_size, divide, layout, payload_of, request_of
from flint_core.effects import AwaitKind
from flint_core.engine.dataflow import UNSEEN, Fault, RunFacts
from flint_core.engine.frames import NO_VARIABLES, Frame, Phase, Strand
from flint_core.engine.waiting import problem_of_answer
from flint_core.payloads import is_reference, spill
from flint_core.problems import Problem, ProblemType
from flint_core.sizes import json_size

if TYPE_CHECKING:
    from flint_core.engine.kernel import Kernel
    from flint_core.plan import TaskPlan

__all__ = [
    "JOINED",
    "SPREAD",
    "BranchScope",
    "SpreadPlan",
    "ask_again",
    "begin_branch_run",
    "end_branch_run",
    "ended_by_branch",
    "go_on",
    "scope_of",
    "spread_branches",
    "spread_items",
    "spread_of",
]

SPREAD: Final = 30
"""The branches are out: the frame waits for their answer."""
_DIVIDING: Final = 31
_JOINING: Final = 32
JOINED: Final = 33
"""Of a branch run: its branches are done."""
_ENTRY_BYTES: Final = 4_096
"""What branches begin from goes to the payload store above this size."""


class SpreadPlan:
    """What the branches of a fork read: variables, and tasks outside of them whose outputs they name."""

    __slots__ = ("names", "steps")

    def __init__(self, names: frozenset[str], steps: tuple[int, ...]) -> None:
        self.names = names
        self.steps = steps


class BranchScope:
    """What `$steps` means in the branches of a fork: each sees the outputs that it gave itself, and those from outside.

    `inside`: the tasks of all branches. `shared`: those of them that a task outside names.
    """

    __slots__ = ("inside", "shared")

    def __init__(self, inside: frozenset[int], shared: frozenset[int]) -> None:
        self.inside = inside
        self.shared = shared


def scope_of(fork: TaskPlan, tasks: tuple[TaskPlan, ...]) -> BranchScope:
    """The scope of the branches of this fork or parallel loop."""
    inside = _inside(fork)
    named = {task for plan in tasks if plan.index not in inside for task in plan.steps.values()}
    return BranchScope(frozenset(inside), frozenset(task for task in named if task in inside and tasks[task].keep))


def spread_of(fork: TaskPlan, tasks: tuple[TaskPlan, ...], scope: BranchScope) -> SpreadPlan | None:
    """Whether the branches may be executed in runs of their own; None: they stay in the leg.

    They stay where one of them exports into the context, is to be undone when the run fails, listens or asks a person
    (both are addressed to the run), or gives an output that a task outside reads.
    """
    if scope.shared:
        return None
    names: set[str] = set()
    steps: set[int] = set()
    for plan in map(tasks.__getitem__, scope.inside):
        if plan.after_body == Phase.EXPORT or plan.export_as is not None or plan.export_schema is not None:
            return None
        if plan.compensation is not None or plan.awaits in (AwaitKind.EVENTS, AwaitKind.APPROVAL):
            return None
        for binding, _ in plan.bindings():
            names |= binding.names
        steps.update(plan.steps.values())
    return SpreadPlan(frozenset(names), tuple(sorted(steps - scope.inside)))


def _inside(fork: TaskPlan) -> set[int]:
    inside: set[int] = set()
    pending = list(fork.scope)
    while pending:
        plan = pending.pop()
        if plan.index in inside:
            continue
        inside.add(plan.index)
        pending.extend(plan.scope)
        if plan.catch is not None and plan.catch.scope is not None:
            pending.extend(plan.catch.scope)
    return inside


# --- the run that comes to the fork


def _may_spread(kernel: Kernel, frame: Frame) -> bool:
    return (
        kernel.limits.spread.above > 0
        and frame is not kernel.entry
        and kernel.ending is None
        and kernel.plan.spread(frame.plan) is not None
    )


def spread_items(kernel: Kernel, strand: Strand, frame: Frame, items: Any) -> bool:
    """Whether the loop over these items is spread; it has been asked for then, or is about to be."""
    spread = kernel.limits.spread
    by_reference = kernel.large and is_reference(items)
    if not by_reference and (not isinstance(items, list) or len(items) <= spread.above):
        return False
    if not _may_spread(kernel, frame):
        return False
    if by_reference:
        frame.args, frame.args_size = [items], -1
        frame.station = _DIVIDING
        return True
    division, payloads = divide(items, spread, kernel.limits.payload_bytes)
    kernel.payloads += payloads
    _ask(kernel, strand, frame, division)
    return True


def spread_branches(kernel: Kernel, strand: Strand, frame: Frame) -> bool:
    """Whether the fork is spread; it has been asked for then."""
    count = len(frame.plan.scope)
    spread = kernel.limits.spread
    if count <= spread.above or not _may_spread(kernel, frame):
        return False
    _ask(kernel, strand, frame, {"count": count, "size": chunk_size(count, spread), "segments": None})
    return True


def go_on(kernel: Kernel, strand: Strand, frame: Frame) -> bool:
    """The body of a fork that is spread. False when it is not."""
    if frame.station == SPREAD:
        _take_answer(kernel, strand, frame)
    elif frame.station == _DIVIDING:
        spread = list(kernel.limits.spread)
        division = kernel.operate(frame, "divide", frame.args[0], {"spread": spread})
        frame.args = None
        if division["count"] < 0:
            kernel.expression_fault(frame, "'for.in' must give an array.")
        _ask(kernel, strand, frame, division)
    elif frame.station == _JOINING:
        value = kernel.operate(frame, "concat", frame.args[0], NO_VARIABLES)
        frame.args = None
        _take(frame, value)
    else:
        return False
    return True


def _ask(kernel: Kernel, strand: Strand, frame: Frame, division: dict[str, Any]) -> None:
    plan, spread = frame.plan, kernel.limits.spread
    count, size = division["count"], division["size"]
    most = min(plan.parallel, kernel.limits.parallel) if plan.parallel else count
    window, at_once = layout(count, size, most, spread)
    entry = _kept_entry(kernel, strand, frame)
    request = BranchesRequest(count, size, window, at_once, plan.compete, entry, division["segments"])
    kernel.emit_await(strand, frame, request.to_json())
    frame.station = SPREAD
    kernel.sleep(strand)


def ask_again(kernel: Kernel, strand: Strand, frame: Frame) -> None:
    """A reset generation begins while branches are out: others are asked for, whose calls have keys of their own."""
    request = replace(request_of(frame.args), entry=_kept_entry(kernel, strand, frame))
    frame.args, frame.args_size = request.to_json(), -1


def _kept_entry(kernel: Kernel, strand: Strand, frame: Frame) -> dict[str, Any]:
    """What the branches begin from, or a reference to it."""
    entry = _entry_of(kernel, strand, frame)
    encoded = orjson.dumps(entry)
    if len(encoded) <= _ENTRY_BYTES:
        return entry
    payload = payload_of(encoded)
    kernel.payloads.append(payload)
    return payload.reference.to_json()


def _entry_of(kernel: Kernel, strand: Strand, frame: Frame) -> dict[str, Any]:
    """What the branches begin from: as much of the state as they can see."""
    spread = kernel.plan.spread(frame.plan)
    assert spread is not None  # noqa: S101 - it is what brought the fork here
    names = spread.names
    root = kernel.strands[0].stack[0]
    facts = kernel.facts
    entry: dict[str, Any] = {
        "task": frame.plan.index,
        "facts": [facts.run_id, facts.created_ms, facts.level, kernel.reset, facts.seed],
        "started": kernel.started,
        "iteration": frame.iteration,
        "attempt": frame.attempt,
        "input": frame.input,
    }
    variables = {name: value for name, value in frame.variables.items() if name in names}
    if variables:
        entry["variables"] = variables
    if "context" in names:
        entry["context"] = kernel.current_context()
    if "workflow" in names:
        entry["raw"] = root.raw
    if "steps" in names:
        seen = ((task, kernel.output_seen(strand, task)) for task in spread.steps)
        entry["outputs"] = [[task, value] for task, value in seen if value is not UNSEEN]
    deadline = kernel.deadline_of(strand)
    if deadline is not None:
        entry["deadline"] = deadline
    return entry


def _take_answer(kernel: Kernel, strand: Strand, frame: Frame) -> None:
    answer = frame.mail[0][1] if frame.mail else {}
    kernel.end_await(frame)
    state = answer.get("state")
    if state == "succeeded":
        parts = answer["parts"]
        if any(is_reference(part) for part in parts):
            frame.args, frame.args_size = [parts], -1
            frame.station = _JOINING
        else:
            _take(frame, [value for part in parts for value in part])
    elif state == "won":
        _take(frame, answer["output"])
    elif state == "ended":
        kernel.end_run(strand, answer["output"])
    elif state == "failed":
        raise Fault(Problem.from_json(answer["error"]))
    else:
        raise Fault(problem_of_answer(frame, state, answer))


def _take(frame: Frame, value: Any) -> None:
    frame.value, frame.size = value, -1
    frame.station = 0
    frame.phase = frame.plan.after_body


# --- the run of a chunk


def begin_branch_run(kernel: Kernel, document: dict[str, Any]) -> None:
    """Set up the state of a branch run: `document` is `branches.branch_input` with contents for its references."""
    entry = document["entry"]
    run_id, created_ms, level, reset, seed = entry["facts"]
    facts = kernel.facts
    plan = kernel.plan.tasks[entry["task"]]
    kernel.branch = {
        "facts": entry["facts"],
        "inline": document["inline"],
        "deadline": entry.get("deadline"),
    }
    if "variables" in entry:
        kernel.branch["variables"] = entry["variables"]
    kernel.facts = RunFacts(
        run_id, facts.namespace, facts.workflow_id, facts.version, created_ms, level, reset=reset, seed=seed
    )
    kernel.reset = reset
    kernel.started = entry["started"]
    if "context" in entry:
        kernel.context, kernel.exported = entry["context"], True
    kernel.outputs = dict(entry.get("outputs", ()))
    strand = kernel.open_strand(-1, 0)
    root = Frame(kernel.plan.tasks[0], entry.get("raw"), kernel.started, 1, "", NO_VARIABLES)
    root.phase = Phase.BODY
    frame = Frame(
        plan, entry["input"], kernel.now, entry["attempt"], entry["iteration"], entry.get("variables", NO_VARIABLES)
    )
    frame.phase = Phase.BODY
    frame.notes = {"first": document["first"], "count": document["count"], "at_once": document["at_once"]}
    strand.stack += [root, frame]
    kernel.entry = frame
    kernel.recount()
    kernel.wake(strand)
    if plan.kind == "for":
        try:
            kernel.take_collection(frame, document["items"])
        except Fault as fault:
            kernel.fault(strand, fault.problem)


def end_branch_run(kernel: Kernel, frame: Frame, value: Any) -> dict[str, Any]:
    """The output of a branch run whose branches gave this. Raises Fault when it is too large."""
    assert kernel.branch is not None  # noqa: S101 - only branch runs have such a frame
    size = json_size(value)
    if size > kernel.limits.value_bytes:
        detail = f"The output is {size} bytes of JSON; the limit is {kernel.limits.value_bytes}."
        raise Fault(Problem(ProblemType.PAYLOAD_TOO_LARGE, 413, "Payload too large", detail, frame.plan.pointer))
    if frame.plan.compete:
        return {WON: value}
    if size > kernel.branch["inline"]:
        value, payloads = spill(value, kernel.branch["inline"])
        kernel.payloads += payloads
    return {OUTPUTS: value}


def ended_by_branch(value: Any) -> dict[str, Any]:
    """The output of a branch run in which a branch ended the whole run."""
    return {END: value}
