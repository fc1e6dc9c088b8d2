"""What goes wrong outside, before anybody knows for which step: it becomes that step's problem in the executor."""

from __future__ import annotations

from flint_core.problems import ProblemType
from flint_worker.executors import ExecutionFailed, ResolvedCall
from flint_worker.executors.arguments import failure

__all__ = ["Fault", "invalid"]


class Fault(Exception):
    """A failure with the members of a problem, all but the step. None of them may hold a secret."""

    def __init__(
        self, type_: str, status: int, title: str, detail: str = "", retry_after_ms: int | None = None
    ) -> None:
        super().__init__(title)
        self.type = type_
        self.status = status
        self.title = title
        self.detail = detail
        self.retry_after_ms = retry_after_ms

    def of(self, call: ResolvedCall) -> ExecutionFailed:
        """The same as a failure of this call's step."""
        return failure(call, self.type, self.status, self.title, self.detail, self.retry_after_ms)


def invalid(detail: str, title: str = "Invalid arguments") -> Fault:
    """Arguments that no request can be made of."""
    return Fault(ProblemType.VALIDATION, 400, title, detail)
