"""Tasks that wait for one answer from somebody else: another run's end, a person's decision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from flint_core.durations import DurationError, parse_duration
from flint_core.effects import REFUSED_PREFIX, TimerKind
from flint_core.engine.dataflow import Fault
from flint_core.engine.frames import Frame, Strand
from flint_core.problems import Problem, ProblemType

if TYPE_CHECKING:
    from flint_core.engine.kernel import Kernel

__all__ = ["approval", "child_run", "fail_if_refused", "problem_of_answer"]

_WAITING: Final = 1


def child_run(kernel: Kernel, strand: Strand, frame: Frame) -> None:
    """`run: workflow`: starts a run of another workflow, and takes its output unless it is detached."""
    plan = frame.plan
    if frame.station == 0:
        assert plan.arguments is not None  # noqa: S101 - the compiler gave it arguments
        arguments = kernel.value(frame, plan.arguments, frame.input)
        kernel.measure(frame, arguments, "The request")
        request = {
            "namespace": _text(kernel, frame, arguments, "namespace", kernel.facts.namespace),
            "workflow": _text(kernel, frame, arguments, "name", ""),
            "version": _text(kernel, frame, arguments, "version", ""),
            "input": arguments.get("input", {}),
            "detached": plan.detached,
            "key": _run_key(kernel, frame),
        }
        if request["version"] == "latest":
            request["version"] = ""
        if request["namespace"] != kernel.facts.namespace:
            detail = f"A run may start runs in its own namespace alone, not in '{request['namespace'][:80]}'."
            raise Fault(Problem(ProblemType.AUTHORIZATION, 403, "Not allowed", detail, plan.pointer))
        if not request["workflow"]:
            kernel.expression_fault(frame, "'name' of the workflow to run is empty.")
        kernel.emit_await(strand, frame, request)
        frame.station = _WAITING
        kernel.sleep(strand)
        return
    answer = _answer(frame)
    kernel.end_await(frame)
    state = answer.get("state")
    if state == "started" or (state == "succeeded" and plan.detached):
        frame.phase = plan.after_body
    elif state == "succeeded":
        frame.value, frame.size = (None if plan.discards else answer.get("output")), -1
        frame.phase = plan.after_body
    else:
        raise Fault(problem_of_answer(frame, state, answer))


def _run_key(kernel: Kernel, frame: Frame) -> str:
    # Of the attempt too: a repeat after the child failed has to be another run, not the failed one again. An attempt
    # waits for its child until it has ended, so that a lost worker never makes two of one attempt.
    key = kernel.step_key(frame)
    return key if frame.attempt == 1 else f"{key}#{frame.attempt}"


def problem_of_answer(frame: Frame, state: Any, answer: dict[str, Any]) -> Problem:
    """The problem of a task whose await was answered with this, which is no success."""
    run = str(answer.get("run", ""))[:300]
    child = f"The run {run}" if run else "The run"
    error = answer.get("error")
    pointer = frame.plan.pointer
    if state == "cancelled":
        detail = f"{child} was cancelled."
        if isinstance(error, dict) and error.get("detail"):
            detail = f"{child} was cancelled: {error['detail']}"
        return Problem(ProblemType.CANCELLED, 499, "Cancelled", detail, pointer)
    if state in ("failed", "refused") and isinstance(error, dict):
        problem = Problem.from_json(error)
        return Problem(problem.type, problem.status, problem.title, problem.detail, pointer)
    detail = f"{child} ended in a way that is not known: {str(state)[:80]}."
    return Problem(ProblemType.RUNTIME, 500, "Run failed", detail, pointer)


def approval(kernel: Kernel, strand: Strand, frame: Frame) -> None:
    """`call: approval`: a person decides, or the deadline passes."""
    plan = frame.plan
    if frame.station == 0:
        arguments = _approval_arguments(kernel, frame)
        request: dict[str, Any] = {
            "title": arguments.get("title", ""),
            "description": arguments.get("description", ""),
            "assignees": arguments.get("assignees", []),
            "form": arguments.get("form"),
            "deadline_ms": None,
            "escalation": None,
        }
        if "deadline" in arguments:
            request["deadline_ms"] = _moment(kernel, frame, arguments["deadline"], "deadline")
        if "escalation" in arguments:
            escalation = arguments["escalation"]
            request["escalation"] = {
                "at_ms": _moment(kernel, frame, escalation.get("after"), "escalation.after"),
                "assignees": escalation.get("assignees", []),
            }
        kernel.measure(frame, request, "The request")
        kernel.emit_await(strand, frame, request)
        if request["deadline_ms"] is not None:
            frame.timer_until = request["deadline_ms"]
            frame.timer = kernel.emit_timer(strand, frame, frame.timer_until, TimerKind.DEADLINE)
        frame.station = _WAITING
        kernel.sleep(strand)
        return
    if not frame.mail:  # only the timer wakes it without
        kernel.end_await(frame)
        detail = f"Nobody decided on '{plan.name}' before its deadline."
        raise Fault(Problem(ProblemType.TIMEOUT, 408, "Timed out", detail, plan.pointer))
    answer = _answer(frame)
    fail_if_refused(kernel, frame)
    kernel.end_await(frame)
    frame.value, frame.size = answer, -1
    frame.phase = plan.after_body


def fail_if_refused(kernel: Kernel, frame: Frame) -> None:
    """Whether nothing will come for the await of this frame. Raises Fault with the problem that was given."""
    if frame.mail and frame.mail[0][0].startswith(REFUSED_PREFIX):
        answer = _answer(frame)
        kernel.end_await(frame)
        raise Fault(problem_of_answer(frame, "refused", answer))


def _approval_arguments(kernel: Kernel, frame: Frame) -> dict[str, Any]:
    plan = frame.plan
    data = frame.input
    if plan.parameters is not None:
        if frame.items is None:
            frame.items = [kernel.value(frame, plan.parameters, data)]
        data = frame.items[0]
    assert plan.arguments is not None  # noqa: S101 - a call has arguments, perhaps {}
    arguments: dict[str, Any] = kernel.value(frame, plan.arguments, data, None, data)
    frame.items = None
    if plan.resolved is not None:
        kernel.validate(frame, plan.resolved, arguments, "The arguments of 'approval'")
    return arguments


def _moment(kernel: Kernel, frame: Frame, duration: Any, what: str) -> int:
    try:
        return parse_duration(duration).after(kernel.now)
    except DurationError as error:
        kernel.expression_fault(frame, f"'{what}': {error}")


def _answer(frame: Frame) -> dict[str, Any]:
    content = frame.mail[0][1] if frame.mail else None
    return content if isinstance(content, dict) else {}


def _text(kernel: Kernel, frame: Frame, arguments: dict[str, Any], name: str, default: str) -> str:
    value = arguments.get(name, default)
    if value is None:
        return default
    if not isinstance(value, str):
        kernel.expression_fault(frame, f"'{name}' of the workflow to run must be text.")
    return value
