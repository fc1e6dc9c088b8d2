"""Arguments and results of custom functions against their schemas, as typed problems."""

from __future__ import annotations

from typing import Final

import orjson

from flint_contracts.gen.flint.dispatch.v1 import functions_pb2 as dispatch
from flint_contracts.gen.flint.functions.v1 import functions_pb2 as pb
from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_core.problems import ProblemType
from flint_gateway.functions_schemas import Declared, first_fault

__all__ = ["arguments_problem", "failed", "failure_outcome", "result_outcome", "too_large"]

_TYPE: Final = 1_024
_TITLE: Final = 1_024
_DETAIL: Final = 4_096
_RETRY_AFTER_MS: Final = 24 * 3_600_000


def arguments_problem(declared: Declared, task: pb.Task) -> runs_pb2.Problem | None:
    """Why the task's arguments do not fit the function's input schema; None when they do."""
    if declared.input is None:
        return None
    fault = first_fault(declared.input, orjson.loads(task.arguments))
    return _validation("Invalid arguments", task.function, fault) if fault else None


def result_outcome(declared: Declared | None, complete: pb.Complete, output_bytes: int) -> dispatch.FunctionOutcome:
    """A result, or the failure that it amounts to: not JSON, too large, or not what the output schema says."""
    if len(complete.output) > output_bytes:
        return too_large(len(complete.output), output_bytes)
    output = complete.output or b"null"
    name = declared.declaration.name if declared is not None else "the function"
    try:
        value = orjson.loads(output)
    except orjson.JSONDecodeError as error:
        return failed(_validation("Invalid result", name, f"it is not JSON: {error}"))
    fault = first_fault(declared.output, value) if declared is not None else ""
    if fault:
        return failed(_validation("Invalid result", name, fault))
    return dispatch.FunctionOutcome(complete=pb.Complete(output=output))


def failure_outcome(fail: pb.Fail) -> dispatch.FunctionOutcome:
    """A failure as the worker will see it: bounded, and complete."""
    problem = fail.problem
    kept = pb.Fail(
        problem=runs_pb2.Problem(
            type=problem.type[:_TYPE] or ProblemType.RUNTIME,
            status=problem.status if 100 <= problem.status <= 599 else (503 if fail.retryable else 422),
            title=problem.title[:_TITLE] or "The function failed",
            detail=problem.detail[:_DETAIL],
        ),
        retryable=fail.retryable,
    )
    if fail.HasField("retry_after"):
        kept.retry_after.FromMilliseconds(min(max(0, fail.retry_after.ToMilliseconds()), _RETRY_AFTER_MS))
    return dispatch.FunctionOutcome(fail=kept)


def failed(problem: runs_pb2.Problem) -> dispatch.FunctionOutcome:
    """A failure that Flint itself found."""
    return dispatch.FunctionOutcome(fail=pb.Fail(problem=problem))


def too_large(size: int, limit: int) -> dispatch.FunctionOutcome:
    """A result beyond the limit."""
    return failed(
        runs_pb2.Problem(
            type=ProblemType.PAYLOAD_TOO_LARGE,
            status=413,
            title="Payload too large",
            detail=f"the function's result is {size} bytes; the limit is {limit}",
        )
    )


def _validation(title: str, function: str, fault: str) -> runs_pb2.Problem:
    return runs_pb2.Problem(type=ProblemType.VALIDATION, status=400, title=title, detail=f"{function}: {fault}")
