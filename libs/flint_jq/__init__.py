"""jq under guard: evaluators in subprocesses with limits on time, memory, output and reach.

Errors: EvaluationFailed (the expression's fault: syntax, runtime, timeout, memory, output) and EvaluatorsBusy (nobody
could evaluate it).
"""

from __future__ import annotations

from flint_jq.errors import EvaluationFailed, EvaluatorsBusy, FailureKind
from flint_jq.pool import EvaluatorPool

__all__ = ["EvaluationFailed", "EvaluatorPool", "EvaluatorsBusy", "FailureKind"]
