"""What each kind of task does between its input and its output.

A body is entered again and again until it moves the frame's phase on; `station` says how far it is. Between two
evaluations it must move the station, since a guarded expression suspends it and it is entered anew with the result.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

import orjson

from flint_core.durations import DurationError, parse_duration
from flint_core.effects import TimerKind
from flint_core.engine.branching import JOINED, end_branch_run, go_on, spread_branches
from flint_core.engine.compensating import COMPENSATING, compensate
from flint_core.engine.dataflow import Fault
from flint_core.engine.frames import Frame, Strand
from flint_core.engine.kernel import Kernel, Succeeded
from flint_core.engine.room import NOTEWORTHY
from flint_core.payloads import is_reference
from flint_core.problems import Problem, ProblemType

if TYPE_CHECKING:
    from flint_core.plan import Body

__all__ = ["BODIES", "collection_of", "run_scope", "take_items"]


def run_scope(kernel: Kernel, strand: Strand, frame: Frame, scope: tuple[Any, ...], base: str) -> bool:
    """Begin the scope's next task, if there is one. False when the scope is done; `frame.value` is then its output."""
    cursor = frame.cursor
    if cursor >= len(scope):
        return False
    iteration = f"{base}~{frame.round}" if frame.round else base
    kernel.push(strand, scope[cursor], frame.value, frame.size, frame.attempt, iteration, frame.child_variables)
    return True


def _do(kernel: Kernel, strand: Strand, frame: Frame) -> None:
    if not run_scope(kernel, strand, frame, frame.plan.scope, frame.iteration):
        frame.phase = frame.plan.after_body


def _set(kernel: Kernel, strand: Strand, frame: Frame) -> None:
    plan = frame.plan
    assert plan.value is not None  # noqa: S101 - a set has a value
    value = kernel.value(frame, plan.value, frame.input)
    if plan.value.constant and plan.value.size <= kernel.limits.payload_bytes:
        frame.value, frame.size = value, plan.value.size
    else:
        frame.value, frame.size = kernel.fit(frame, value, "The value")
    frame.phase = plan.after_body


def _switch(kernel: Kernel, strand: Strand, frame: Frame) -> None:
    plan = frame.plan
    for position in range(frame.station, len(plan.cases)):
        when, flow = plan.cases[position]
        frame.station = position
        if when is not None:
            outcome = kernel.value(frame, when, frame.input)
            if outcome is None or outcome is False:
                continue
        frame.flow = flow
        break
    frame.phase = plan.after_body


def _raise(kernel: Kernel, strand: Strand, frame: Frame) -> None:
    plan = frame.plan
    assert plan.value is not None  # noqa: S101 - a raise has an error
    error = kernel.value(frame, plan.value, frame.input)
    status = error.get("status", 500)
    if isinstance(status, bool) or not isinstance(status, int) or not 100 <= status <= 599:
        detail = f"The status of the error to raise is {str(status)[:60]}, not a number from 100 to 599."
        raise Fault(Problem(ProblemType.EXPRESSION, 400, "Expression failed", detail, plan.pointer))
    members = {key: _as_text(error.get(key)) for key in ("type", "title", "detail", "instance")}
    raise Fault(
        Problem(
            members["type"] or "about:blank",
            status,
            members["title"] or "Raised",
            members["detail"],
            members["instance"] or plan.pointer,
        )
    )


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _wait(kernel: Kernel, strand: Strand, frame: Frame) -> None:
    plan = frame.plan
    assert plan.moment is not None  # noqa: S101 - a wait has a duration
    frame.effect_until = kernel.until(frame, plan.moment, frame.input)
    if frame.effect_until <= kernel.now:
        frame.phase = plan.after_body
        return
    frame.effect = kernel.emit_timer(strand, frame, frame.effect_until, TimerKind.WAIT)
    kernel.note_waiting(frame)
    kernel.sleep(strand)


def _call(kernel: Kernel, strand: Strand, frame: Frame) -> None:
    plan = frame.plan
    data = frame.input
    if plan.hints is not None and frame.keys is None:
        frame.keys = call_keys(kernel, frame, plan.hints)
    if plan.parameters is not None:
        if frame.station == 0:
            frame.items = [kernel.value(frame, plan.parameters, data)]
            frame.station = 1
        data = frame.items[0]
    assert plan.arguments is not None  # noqa: S101 - a call has arguments, perhaps {}
    arguments = kernel.value(frame, plan.arguments, data, None, data)
    if plan.arguments.constant:
        frame.args, frame.args_size = arguments, plan.arguments.size
    elif plan.arguments.deferred:
        frame.args, frame.args_size = arguments, kernel.measure(frame, arguments, "The arguments")
    else:
        frame.args, frame.args_size = kernel.fit(frame, arguments, "The arguments")
    frame.items = None
    if frame.args_size > NOTEWORTHY:
        kernel.check_flow(frame)
    kernel.emit_call(strand, frame)
    kernel.sleep(strand)


_KEY_CHARACTERS: Final = 255
_LONGEST_TTL_MS: Final = 366 * 86_400_000


def call_keys(kernel: Kernel, frame: Frame, hints: Any) -> list[Any]:
    """Idempotency key, cache key and its time to live, as the definition's hints give them; empty where they do not."""
    given = kernel.value(frame, hints, frame.input)
    keys: list[Any] = ["", "", 0]
    if "idempotencyKey" in given:
        text = _key_text(kernel, frame, "idempotencyKey", given["idempotencyKey"])
        plain = len(text) <= _KEY_CHARACTERS and text.isascii() and text.isprintable()
        keys[0] = text if plain else hashlib.sha256(text.encode()).hexdigest()
    if "cacheKey" in given:
        text = _key_text(kernel, frame, "cache.key", given["cacheKey"])
        facts = kernel.facts
        scope = orjson.dumps([facts.namespace, facts.workflow_id, frame.plan.function, text])
        keys[1] = hashlib.sha256(scope).hexdigest()
        try:
            keys[2] = parse_duration(given["cacheTtl"]).length_ms(kernel.now, kernel.plan.zone)
        except DurationError as error:
            kernel.expression_fault(frame, f"'cache.ttl': {error}")
        if keys[2] > _LONGEST_TTL_MS:
            kernel.expression_fault(frame, "'cache.ttl' is more than 366 days.")
    return keys


def _key_text(kernel: Kernel, frame: Frame, what: str, value: Any) -> str:
    if value is None or value == "":
        kernel.expression_fault(frame, f"'{what}' gives nothing: a key must not be null or empty.")
    return _as_text(value)


_ITERATE: Final = 1
_INSIDE: Final = 2


def _for(kernel: Kernel, strand: Strand, frame: Frame) -> None:
    plan = frame.plan
    if frame.station == 0:
        take_items(kernel, frame, collection_of(kernel, frame))
        frame.index = -1
        _next_iteration(kernel, frame)
    elif frame.station == _ITERATE:
        _begin_iteration(kernel, frame)
    else:
        base = f"{frame.iteration}.{frame.index}" if frame.iteration else str(frame.index)
        if not run_scope(kernel, strand, frame, plan.scope, base):
            _next_iteration(kernel, frame)


def collection_of(kernel: Kernel, frame: Frame) -> Any:
    """What `for.in` gives. Raises Suspended or Fault."""
    plan = frame.plan
    assert plan.collection is not None  # noqa: S101 - a for has a collection
    return kernel.value(frame, plan.collection, frame.input)


def take_items(kernel: Kernel, frame: Frame, items: Any) -> list[Any]:
    """The collection of a `for`, which the frame holds from now on. Raises Fault."""
    plan = frame.plan
    if kernel.large and is_reference(items):
        detail = (
            f"The collection of 'for.in' is beyond {kernel.limits.payload_bytes} bytes of JSON and held by "
            "reference: iterate over a part of it."
        )
        raise Fault(Problem(ProblemType.PAYLOAD_TOO_LARGE, 413, "Payload too large", detail, plan.pointer))
    if not isinstance(items, list):
        kind = "null" if items is None else type(items).__name__
        detail = f"'for.in' must give an array; it gave {_JSON_KIND.get(kind, kind)}."
        raise Fault(Problem(ProblemType.EXPRESSION, 400, "Expression failed", detail, plan.pointer))
    kernel.take_collection(frame, items)
    return items


def _next_iteration(kernel: Kernel, frame: Frame) -> None:
    frame.index += 1
    if frame.index >= len(frame.items):
        _end_loop(kernel, frame)
        return
    frame.child_variables = loop_variables(frame)
    frame.station = _ITERATE


def _begin_iteration(kernel: Kernel, frame: Frame) -> None:
    plan = frame.plan
    if plan.loop_while is not None:
        outer = frame.variables
        frame.variables = frame.child_variables
        try:
            outcome = kernel.value(frame, plan.loop_while, frame.value)
        finally:
            frame.variables = outer
        if outcome is None or outcome is False:
            _end_loop(kernel, frame)
            return
    frame.cursor = 0
    frame.round = 0
    frame.station = _INSIDE


def _end_loop(kernel: Kernel, frame: Frame) -> None:
    frame.items = None
    kernel.hold(frame, 0)
    frame.child_variables = frame.variables
    frame.phase = frame.plan.after_body


def loop_variables(frame: Frame) -> dict[str, Any]:
    """The variables of the iteration that a `for` is in."""
    return {**frame.variables, frame.plan.each: frame.items[frame.index], frame.plan.at: frame.index}


_JSON_KIND: Final = {
    "dict": "an object",
    "str": "a string",
    "bool": "a boolean",
    "int": "a number",
    "float": "a number",
}


def _fork(kernel: Kernel, strand: Strand, frame: Frame) -> None:
    plan = frame.plan
    if frame.station == JOINED:
        kernel.finish(Succeeded(end_branch_run(kernel, frame, frame.value)))
        return
    if go_on(kernel, strand, frame) or spread_branches(kernel, strand, frame):
        return
    first, branches = 0, plan.scope
    if frame is kernel.entry and frame.notes is not None:
        first = frame.notes["first"]
        branches = branches[first : first + frame.notes["count"]]
    frame.items = [None] * len(branches)
    frame.branches = []
    kernel.sleep(strand)
    for position, branch in enumerate(branches):
        child = kernel.open_strand(strand.id, position)
        frame.branches.append(child.id)
        place = first + position
        iteration = f"{frame.iteration}.{place}" if frame.iteration else str(place)
        kernel.push(child, branch, frame.input, frame.input_size, frame.attempt, iteration, frame.variables)
        if not strand.stack or strand.stack[-1] is not frame:
            return  # the run is over
        kernel.wake(child)


def _workflow(kernel: Kernel, strand: Strand, frame: Frame) -> None:
    if frame.station == COMPENSATING:
        compensate(kernel, strand, frame)
    elif not run_scope(kernel, strand, frame, frame.plan.scope, ""):
        frame.phase = frame.plan.after_body


BODIES: Final[dict[str, Body]] = {
    "workflow": _workflow,
    "do": _do,
    "set": _set,
    "switch": _switch,
    "raise": _raise,
    "wait": _wait,
    "call": _call,
    "emit": _call,
    "run": _call,
    "for": _for,
    "fork": _fork,
}
