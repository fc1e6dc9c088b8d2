"""Advice about the order of tasks: loops without an end, and what could run side by side."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from flint_core.definition.findings import Rule
from flint_core.definition.reading import Reads, reads_of
from flint_core.program import Flow, FlowKind, Task

__all__ = ["endless_loops", "lists_of", "parallel_advice"]

_READING_HTTP: Final = frozenset({"get", "head", "options"})
_READING_NAME: Final = re.compile(r"(?:get|list|find|search|read|query|fetch|lookup|count)(?![a-z])", re.IGNORECASE)
_READING_MCP: Final = frozenset({"tools/list", "prompts/list", "prompts/get", "resources/list", "resources/read"})
_PAUSES: Final = frozenset({"wait", "listen"})

Tasks = tuple[Task, ...]


def lists_of(tasks: Tasks) -> Iterator[tuple[int, ...]]:
    """The lists in which one task follows the other."""
    for task in tasks:
        if task.scope and task.kind not in ("fork", "call", "extended"):
            yield task.scope
        if task.catch is not None and task.catch.scope:
            yield task.catch.scope


def _inner(tasks: Tasks, index: int) -> Iterator[Task]:
    """A task and all within it."""
    open_tasks = [index]
    while open_tasks:
        task = tasks[open_tasks.pop()]
        yield task
        open_tasks.extend(task.scope)
        if task.catch is not None and task.catch.scope:
            open_tasks.extend(task.catch.scope)


# --- endless loops


def endless_loops(tasks: Tasks) -> Iterator[tuple[Task, str]]:
    """Tasks that send the flow back into a loop that nothing leaves and in which nothing waits."""
    for scope in lists_of(tasks):
        edges = [_edges(tasks, scope, position) for position in range(len(scope))]
        reached = _reached({0}, edges)
        before: dict[int, list[int]] = {}
        for position in reached:
            for following in edges[position]:
                if following is not None:
                    before.setdefault(following, []).append(position)
        leaving, open_positions = set[int](), [position for position in reached if None in edges[position]]
        while open_positions:
            position = open_positions.pop()
            if position not in leaving:
                leaving.add(position)
                open_positions.extend(before.get(position, ()))
        trapped = reached - leaving
        if not trapped or any(_pauses(tasks, scope[position]) for position in trapped):
            continue
        last = max(trapped)
        yield (
            tasks[scope[last]],
            "this goes round for ever: no task in the loop leaves it or waits, until the limit on steps ends the run. "
            "Leave it with a `switch`, `then: exit` or `then: end`",
        )


def _edges(tasks: Tasks, scope: tuple[int, ...], position: int) -> set[int | None]:
    """Positions that may follow; None: out of the list."""
    task = tasks[scope[position]]
    if task.core >= 0:
        core = tasks[task.scope[task.core]]
        flows = [case.flow for case in core.cases]
        kind, cases = core.kind, core.cases
    else:
        flows, kind, cases = [case.flow for case in task.cases], task.kind, task.cases
    if kind != "raise" and all(case.when is not None for case in cases):
        flows.append(task.flow)
    if task.condition is not None:
        flows.append(Flow())
    found: set[int | None] = set()
    for flow in flows:
        if flow.kind == FlowKind.GOTO:
            found.add(flow.position)
        elif flow.kind == FlowKind.CONTINUE:
            found.add(position + 1 if position + 1 < len(scope) else None)
        else:
            found.add(None)
    if any(_ends(inner) for inner in _inner(tasks, scope[position])):
        found.add(None)
    return found


def _ends(task: Task) -> bool:
    ends = task.kind == "raise" or task.flow.kind == FlowKind.END
    return ends or any(case.flow.kind == FlowKind.END for case in task.cases)


def _reached(start: set[int], edges: list[set[int | None]]) -> set[int]:
    reached, open_positions = set[int](), list(start)
    while open_positions:
        position = open_positions.pop()
        if position not in reached and position < len(edges):
            reached.add(position)
            open_positions.extend(each for each in edges[position] if each is not None)
    return reached


def _pauses(tasks: Tasks, index: int) -> bool:
    return any(
        inner.kind in _PAUSES or (inner.kind == "run" and inner.function == "workflow") or inner.function == "approval"
        for inner in _inner(tasks, index)
    )


# --- side by side


def parallel_advice(tasks: Tasks) -> Iterator[tuple[str, Task, str]]:
    """Rule, task and message for calls that wait for each other and need not."""
    for scope in lists_of(tasks):
        targets = {flow.position for index in scope for flow in _flows(tasks[index]) if flow.kind == FlowKind.GOTO}
        group: list[int] = []
        for position, index in enumerate(scope):
            if group and position not in targets and _joins(tasks, group, index):
                group.append(index)
                continue
            yield from _could_fork(tasks, group)
            group = [index] if _reads_only(tasks[index]) and tasks[index].flow == Flow() else []
        yield from _could_fork(tasks, group)
    for task in tasks:
        if task.kind == "for" and not task.parallel and task.condition_while is None and _independent(tasks, task):
            message = (
                "the iterations of this loop need nothing of each other: `metadata.flint.parallel` runs so many of "
                "them at once; the output is then the array of theirs"
            )
            yield Rule.COULD_BE_PARALLEL, task, message


def _could_fork(tasks: Tasks, group: list[int]) -> Iterator[tuple[str, Task, str]]:
    if len(group) < 2:
        return
    names = [f"'{tasks[index].name}'" for index in group]
    message = (
        f"{', '.join(names[:-1])} and {names[-1]} only read, and need nothing of each other: as branches of a `fork` "
        "they run at once; its output is the array of theirs"
    )
    yield Rule.COULD_FORK, tasks[group[1]], message


def _flows(task: Task) -> list[Flow]:
    return [task.flow, *(case.flow for case in task.cases)]


def _joins(tasks: Tasks, group: list[int], index: int) -> bool:
    """Whether a task could run beside those of the group, which come before it."""
    task = tasks[index]
    if not _reads_only(task) or task.flow != Flow() or task.condition is not None or _needs_input(task):
        return False
    if any(read in group for read in (task.steps or {}).values()):
        return False
    exported = any(tasks[other].export_as is not None for other in group)
    return not (exported and "context" in _body(task).variables)


def _reads_only(task: Task) -> bool:
    """Whether a call changes nothing, as far as its name tells."""
    if task.kind != "call" or task.scope or not isinstance(task.arguments, dict) or task.compensate:
        return False
    arguments = task.arguments
    match task.function:
        case "http":
            return str(arguments.get("method", "")).lower() in _READING_HTTP
        case "sql":
            return "query" in arguments
        case "openapi":
            return _READING_NAME.match(str(arguments.get("operationId", ""))) is not None
        case "grpc":
            return _READING_NAME.match(str(arguments.get("method", ""))) is not None
        case "mcp":
            return arguments.get("method") in _READING_MCP
    return False


def _needs_input(task: Task) -> bool:
    """Whether it reads the output of the task before it."""
    if task.input_schema is not None:
        return True
    body = _body(task)
    names = body.variables | reads_of(task.output_as, task.export_as).variables
    if task.input_from is not None:
        return reads_of(task.input_from).input or "task" in names
    return body.input or bool(names & {"input", "task"})


def _body(task: Task) -> Reads:
    return reads_of(task.arguments, task.parameters, task.timeout, task.idempotency_key, task.cache_key, task.cache_ttl)


def _independent(tasks: Tasks, loop: Task) -> bool:
    """Whether the iterations of a loop are calls that need nothing of each other."""
    if not loop.scope or any(tasks[index].kind != "call" or tasks[index].scope for index in loop.scope):
        return False
    own = set(loop.scope)
    for position, index in enumerate(loop.scope):
        task = tasks[index]
        if task.function in ("noop", "approval") or task.flow != Flow() or task.export_as is not None:
            return False
        if not _repeatable_aside(task):
            return False
        names: set[str] = set(_body(task).variables)
        if "context" in names or task.condition is not None:
            return False
        if position == 0 and _needs_input(task):
            return False
        later: set[Any] = set(loop.scope[position:])
        if any(read in own and read in later for read in (task.steps or {}).values()):
            return False  # of an iteration before
    return True


def _repeatable_aside(task: Task) -> bool:
    return task.function != "sql" or (isinstance(task.arguments, dict) and "query" in task.arguments)
