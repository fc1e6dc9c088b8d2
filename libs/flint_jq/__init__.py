"""jq under guard: evaluators in subprocesses with limits on time, memory, output and reach.

Errors: EvaluationFailed (the expression's fault: syntax, runtime, timeout, memory, output) and EvaluatorsBusy (nobody
could evaluate it).

The pool is imported when it is first named: an evaluator process is of this package too, and asyncio would be a third
of its memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flint_jq.errors import EvaluationFailed, EvaluatorsBusy, FailureKind

if TYPE_CHECKING:
    from flint_jq.pool import EvaluatorPool

__all__ = ["EvaluationFailed", "EvaluatorPool", "EvaluatorsBusy", "FailureKind"]


def __getattr__(name: str) -> Any:
    if name != "EvaluatorPool":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from flint_jq.pool import EvaluatorPool  # noqa: PLC0415 - see the module

    globals()[name] = EvaluatorPool
    return EvaluatorPool
