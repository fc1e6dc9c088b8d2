"""What an evaluation may end with other than a value."""

from __future__ import annotations

from typing import Literal

__all__ = ["EvaluationFailed", "EvaluatorsBusy", "FailureKind"]

FailureKind = Literal["syntax", "runtime", "timeout", "memory", "output"]


class EvaluationFailed(Exception):
    """The expression itself is at fault. `kind`: its text, its data, or the limit it went beyond."""

    def __init__(self, kind: FailureKind, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind: FailureKind = kind
        self.detail = detail


class EvaluatorsBusy(Exception):
    """Nothing is known about the expression: too many wait already, the pool is closed, or no evaluator would start."""
