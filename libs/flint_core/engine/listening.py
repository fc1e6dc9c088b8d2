"""What a `listen` does: it looks at each event, in the order of arrival, and takes what its filters let pass.

One event is looked at after the other, and each step of that is a station of its own, since any of its expressions may
be a guarded one. An expression that fails on an event does not fail the task: the event does not match.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from flint_core.engine.bodies import run_scope
from flint_core.engine.dataflow import Fault
from flint_core.engine.frames import Frame, Strand
from flint_core.engine.waiting import fail_if_refused
from flint_core.engine.weights import ENTRY, key_weight, mail_weight
from flint_core.filters import PARTS, read_event
from flint_core.patterns import equal
from flint_core.sizes import weigh

if TYPE_CHECKING:
    from flint_core.engine.kernel import Kernel
    from flint_core.plan import ListenPlan

__all__ = ["KEYS", "is_iterating", "listen", "listen_variables"]

KEYS: Final = 1_000
"""Keys of events looked at last that are remembered: one of them again is the same event."""

_OPEN, _LISTEN, _CHECK, _CONSUME, _TASKS, _OUTPUT, _OUTPUT_SCHEMA, _EXPORT, _EXPORT_SCHEMA, _GATHER, _DECIDE = range(11)


def listen(kernel: Kernel, strand: Strand, frame: Frame) -> None:
    """Subscribe, then look at what comes, by station."""
    _STATIONS[frame.station](kernel, strand, frame, _plan(frame))


def _plan(frame: Frame) -> ListenPlan:
    plan = frame.plan.listen
    assert plan is not None  # noqa: S101 - only a listen has this body
    return plan


def _open(kernel: Kernel, strand: Strand, frame: Frame, plan: ListenPlan) -> None:
    expected = kernel.value(frame, plan.expect, frame.input)
    frame.gathered = []
    frame.notes = {"keys": [], "known": {}, "expected": expected}
    if plan.mode == "all":
        frame.notes["open"] = list(range(plan.count))
    if plan.until_mode == "all":
        frame.notes["ends"] = list(range(plan.count, len(plan.filters)))
    request = {
        "filters": [filter_plan.request(expected.get(str(place), {})) for place, filter_plan in enumerate(plan.filters)]
    }
    if plan.mode == "any" and not plan.count:
        request["filters"].insert(0, {"with": {}, "correlate": {}})
    kernel.measure(frame, request, "What is listened to")
    kernel.emit_await(strand, frame, request)
    frame.station = _LISTEN
    kernel.sleep(strand)


def _listen(kernel: Kernel, strand: Strand, frame: Frame, plan: ListenPlan) -> None:
    if not frame.mail:
        kernel.sleep(strand)
        return
    fail_if_refused(kernel, frame)
    assert frame.notes is not None  # noqa: S101 - made when it was opened
    if frame.mail[0][0] in frame.notes["keys"]:
        _pass_over(kernel, frame, known=True)
        return
    frame.tries = 0
    frame.station = _CHECK
    if plan.mode == "any" and not plan.count:
        frame.station = _CONSUME


def _check(kernel: Kernel, strand: Strand, frame: Frame, plan: ListenPlan) -> None:
    """Goes through the filters, part by part; `frame.tries` counts parts."""
    event = _event(frame)
    while frame.tries < PARTS * len(plan.filters):
        place, part = divmod(frame.tries, PARTS)
        try:
            correlated = _passes(kernel, frame, plan, place, part, event)
        except Fault:
            frame.results = None
            correlated = None
        if correlated is None:
            frame.tries = (place + 1) * PARTS
        elif part == PARTS - 1:
            _matched(kernel, frame, plan, place, correlated)
            return
        else:
            frame.tries += 1
    _pass_over(kernel, frame)


def _passes(
    kernel: Kernel, frame: Frame, plan: ListenPlan, place: int, part: int, event: dict[str, Any]
) -> dict[str, Any] | None:
    """None when the part says no; else what is known of correlations by it."""
    notes = frame.notes
    assert notes is not None  # noqa: S101 - made when it was opened
    found = plan.filters[place]
    if part == 0:
        wanted = notes.get("open" if place < plan.count else "ends")
        return {} if (wanted is None or place in wanted) and found.fits(event) else None
    expressions = found.data if part == 1 else found.event
    if expressions is None:
        return {}
    results = kernel.value(frame, expressions.binding, event.get("data") if part == 1 else event)
    if not found.verdict(part, event, results):
        return None
    correlated: dict[str, Any] = {}
    if part == PARTS - 1:
        expected = notes["expected"].get(str(place), {})
        for name in found.correlate:
            value = results[f"={name}"]
            if name in expected or name in notes["known"]:
                if not equal(value, expected[name] if name in expected else notes["known"][name]):
                    return None
            elif value is None:
                return None
            else:
                correlated[name] = value
    return correlated


def _matched(kernel: Kernel, frame: Frame, plan: ListenPlan, place: int, correlated: dict[str, Any]) -> None:
    notes = frame.notes
    assert notes is not None  # noqa: S101 - made when it was opened
    if correlated:
        weight = weigh(correlated)
        kernel.keep_more(frame, weight)
        notes["weight"] = notes.get("weight", 0) + weight
        notes["known"] = {**notes["known"], **correlated}
    if place < plan.count:
        if "open" in notes:
            notes["open"].remove(place)
        frame.station = _CONSUME
        return
    assert frame.mail is not None  # noqa: S101 - it is being looked at
    kernel.take_signal(frame.mail[0][0])
    if "ends" in notes:
        notes["ends"].remove(place)
        if notes["ends"]:
            _pass_over(kernel, frame)
            return
    _finish(kernel, frame)


def _consume(kernel: Kernel, strand: Strand, frame: Frame, plan: ListenPlan) -> None:
    assert frame.mail is not None  # noqa: S101 - it is being looked at
    kernel.take_signal(frame.mail[0][0])
    frame.value, frame.size = read_event(_event(frame), plan.read), -1
    if not plan.iterates:
        frame.station = _GATHER
        return
    frame.child_variables = listen_variables(frame)
    frame.cursor = 0
    frame.round = 0
    frame.station = _TASKS


def _tasks(kernel: Kernel, strand: Strand, frame: Frame, plan: ListenPlan) -> None:
    base = f"{frame.iteration}.{frame.index}" if frame.iteration else str(frame.index)
    if not run_scope(kernel, strand, frame, frame.plan.scope, base):
        frame.station = _OUTPUT


def _output(kernel: Kernel, strand: Strand, frame: Frame, plan: ListenPlan) -> None:
    if plan.output_as is not None:
        value = _within(kernel, frame, plan.output_as, frame.value, frame.value)
        frame.value, frame.size = kernel.fit(frame, value, "The output of the iteration")
    frame.station = _OUTPUT_SCHEMA


def _output_schema(kernel: Kernel, strand: Strand, frame: Frame, plan: ListenPlan) -> None:
    if plan.output_schema is not None:
        kernel.validate(frame, plan.output_schema, frame.value, "The output of the iteration")
    frame.station = _EXPORT


def _export(kernel: Kernel, strand: Strand, frame: Frame, plan: ListenPlan) -> None:
    if plan.export_as is not None:
        frame.items = [_within(kernel, frame, plan.export_as, frame.value, frame.value)]
    frame.station = _EXPORT_SCHEMA


def _export_schema(kernel: Kernel, strand: Strand, frame: Frame, plan: ListenPlan) -> None:
    context = kernel.current_context() if frame.items is None else frame.items[0]
    if plan.export_schema is not None:
        kernel.validate(frame, plan.export_schema, context, "The exported context")
    if frame.items is not None:
        kernel.take_context(frame, context)
        frame.items = None
    frame.station = _GATHER


def _gather(kernel: Kernel, strand: Strand, frame: Frame, plan: ListenPlan) -> None:
    value, size = kernel.fit(frame, frame.value, "What the event gives")
    kernel.keep_more(frame, size + ENTRY)
    assert frame.gathered is not None  # noqa: S101 - made when it was opened
    frame.gathered.append(value)
    frame.value, frame.size = frame.input, frame.input_size
    frame.station = _DECIDE


def _decide(kernel: Kernel, strand: Strand, frame: Frame, plan: ListenPlan) -> None:
    notes = frame.notes
    assert notes is not None  # noqa: S101 - made when it was opened
    if plan.until is not None:
        outcome = _within(kernel, frame, plan.until, frame.gathered)
        enough = outcome is not None and outcome is not False
    elif plan.until_mode:
        frame.index += 1
        frame.tries = PARTS * plan.count  # the same event may be what ends it
        frame.station = _CHECK
        return
    else:
        enough = plan.mode != "all" or not notes["open"]
    frame.index += 1
    if enough:
        _finish(kernel, frame)
    else:
        _pass_over(kernel, frame)


def _pass_over(kernel: Kernel, frame: Frame, known: bool = False) -> None:
    """The event was looked at; the next one may be."""
    assert frame.mail is not None and frame.notes is not None  # noqa: S101 - it is being looked at
    key, _ = frame.mail.pop(0)
    held = frame.held - (mail_weight(*frame.mail[0]) if frame.mail else 0)
    if not known:
        keys = frame.notes["keys"]
        keys.append(key)
        held += key_weight(key)
        if len(keys) > KEYS:
            held -= key_weight(keys.pop(0))
    kernel.hold(frame, held)
    frame.child_variables = frame.variables
    frame.station = _LISTEN


def _finish(kernel: Kernel, frame: Frame) -> None:
    kernel.end_await(frame)
    frame.value, frame.size = frame.gathered, -1
    frame.gathered = None
    frame.notes = None
    kernel.hold(frame, 0)
    frame.child_variables = frame.variables
    frame.phase = frame.plan.after_body


def _within(kernel: Kernel, frame: Frame, binding: Any, data: Any, output: Any = None) -> Any:
    """A value that sees the variables of the iteration."""
    outer = frame.variables
    frame.variables = frame.child_variables
    try:
        return kernel.value(frame, binding, data, output)
    finally:
        frame.variables = outer


def _event(frame: Frame) -> dict[str, Any]:
    event = frame.mail[0][1] if frame.mail else None
    return event if isinstance(event, dict) else {}


# --- what is derived again after a restore


def is_iterating(frame: Frame) -> bool:
    """Whether the variables of an iteration are in sight."""
    return frame.plan.listen is not None and frame.plan.listen.iterates and _TASKS <= frame.station <= _DECIDE


def listen_variables(frame: Frame) -> dict[str, Any]:
    """The variables of the event that is being worked on."""
    event = read_event(_event(frame), _plan(frame).read)
    return {**frame.variables, frame.plan.each: event, frame.plan.at: frame.index}


_Station = Callable[["Kernel", Strand, Frame, "ListenPlan"], None]
_STATIONS: Final[tuple[_Station, ...]] = (
    _open,
    _listen,
    _check,
    _consume,
    _tasks,
    _output,
    _output_schema,
    _export,
    _export_schema,
    _gather,
    _decide,
)
