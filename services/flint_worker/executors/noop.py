"""`noop`: does nothing, or fails or waits on demand. For examples, drills and measurements.

Arguments, all optional: `output` (returned as it is; default null), `delay_ms` (how long to wait first, at most an
hour), `fail` (an object with `type`, `status`, `title`, `detail`: the problem to raise).
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from flint_core.problems import Problem, ProblemType
from flint_worker.executors import ExecutionFailed, ResolvedCall

__all__ = ["NoopExecutor"]

_LONGEST_DELAY_MS: Final = 3_600_000


class NoopExecutor:
    """The function `noop`."""

    unfinished = 0  # nothing outlives its call

    async def execute(self, call: ResolvedCall) -> Any:
        """Waits `delay_ms`, then raises `fail` or returns `output`."""
        arguments = call.arguments
        if not arguments:
            return None
        delay_ms = arguments.get("delay_ms", 0)
        if delay_ms:
            if (
                not isinstance(delay_ms, int | float)
                or isinstance(delay_ms, bool)
                or not 0 <= delay_ms <= _LONGEST_DELAY_MS
            ):
                raise ExecutionFailed(
                    Problem(
                        ProblemType.VALIDATION,
                        400,
                        "Invalid argument",
                        f"delay_ms must be a number from 0 to {_LONGEST_DELAY_MS}",
                        call.step,
                    )
                )
            await asyncio.sleep(delay_ms / 1000)
        failure = arguments.get("fail")
        if failure:
            raise ExecutionFailed(_problem(failure, call.step))
        return arguments.get("output")

    async def close(self) -> None:
        """Nothing to give back."""


def _problem(failure: Any, step: str) -> Problem:
    if not isinstance(failure, dict):
        return Problem(ProblemType.RUNTIME, 500, "Failed on demand", str(failure), step)
    status = failure.get("status", 500)
    return Problem(
        type=str(failure.get("type", ProblemType.RUNTIME)),
        status=status if isinstance(status, int) else 500,
        title=str(failure.get("title", "Failed on demand")),
        detail=str(failure.get("detail", "")),
        instance=step,
    )
