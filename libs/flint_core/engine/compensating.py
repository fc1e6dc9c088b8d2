"""Compensation: what a failing or cancelled run undoes before it ends.

A completed task that names a compensation leaves a note: where it stood, its input and its output. When the run fails
or is cancelled, all its lines of execution end, and the root's frame runs the noted compensations one after another,
the task that completed last first. A task that completed again (a retried `try`) has one note, the latest: its
compensation, like its effect, is one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from flint_core.engine.frames import Frame, Strand
from flint_core.problems import Problem
from flint_core.sizes import weigh

if TYPE_CHECKING:
    from flint_core.engine.kernel import Kernel

__all__ = ["COMPENSATING", "Note", "compensate", "with_failure"]

COMPENSATING: Final = 9
_DETAIL: Final = 4_000

Note = tuple[int, str, Any, Any, int]
"""Task that completed, its iteration, its input and output, and their weight."""


def compensate(kernel: Kernel, strand: Strand, frame: Frame) -> None:
    """The root's body from the moment the run began to end: the next compensation, or the end."""
    if not kernel.notes:
        ending = kernel.ending
        assert ending is not None  # noqa: S101 - it is what brought the root here
        kernel.finish(ending)
        return
    key = next(reversed(kernel.notes))
    task, iteration, given, output, size = kernel.notes.pop(key)
    kernel.kept -= size
    plan = kernel.plan.tasks[task].compensation
    assert plan is not None  # noqa: S101 - only tasks with one leave notes
    frame.value, frame.size = {"input": given, "output": output}, -1
    kernel.push(strand, plan, frame.value, -1, 1, iteration, {})


def with_failure(problem: Problem, failure: Problem) -> Problem:
    """The problem that ends the run, telling that a compensation failed too."""
    what = f"The compensation {failure.instance} failed: {failure.title}"
    if failure.detail:
        what = f"{what} ({failure.detail})"
    detail = f"{problem.detail}\n{what}" if problem.detail else what
    return Problem(problem.type, problem.status, problem.title, detail[:_DETAIL], problem.instance)


def note_of(task: int, iteration: str, given: Any, output: Any) -> Note:
    """The note that a completed task leaves."""
    return task, iteration, given, output, weigh(given) + weigh(output)
