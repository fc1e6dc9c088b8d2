"""What a `for` with `metadata.flint.parallel` does: iterations that do not know of each other, some at a time.

Each iteration is a strand, as a branch of a fork is one, with a frame of its own that runs the loop's tasks. They begin
in the order of the collection; the outputs stand in that order too, whichever ends first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from flint_core.engine.bodies import collection_of, run_scope, take_items
from flint_core.engine.branching import end_branch_run, go_on, spread_items
from flint_core.engine.frames import Frame, Strand
from flint_core.engine.kernel import Succeeded

if TYPE_CHECKING:
    from flint_core.engine.kernel import Kernel

__all__ = ["iteration", "iteration_variables", "parallel_for"]

_RUNNING: Final = 1


def parallel_for(kernel: Kernel, strand: Strand, frame: Frame) -> None:
    """Begin as many iterations as may run at once; entered again when one has ended."""
    plan = frame.plan
    if go_on(kernel, strand, frame):
        return
    if frame.station == 0:
        if frame is not kernel.entry:
            items = collection_of(kernel, frame)
            if spread_items(kernel, strand, frame, items):
                return
            take_items(kernel, frame, items)
        frame.gathered = [None] * len(frame.items)
        frame.index = 0
        frame.branches = []
        frame.station = _RUNNING
    if frame.branches is None:
        frame.branches = []
    first, most = 0, min(plan.parallel, kernel.limits.parallel)
    if frame is kernel.entry and frame.notes is not None:
        first, most = frame.notes["first"], min(most, frame.notes["at_once"])
    assert plan.iteration is not None  # noqa: S101 - the plan of a parallel loop has it
    while frame.index < len(frame.items) and len(frame.branches) < most:
        position = frame.index
        frame.index += 1
        child = kernel.open_strand(strand.id, position)
        place = first + position
        label = f"{frame.iteration}.{place}" if frame.iteration else str(place)
        variables = iteration_variables(frame, position)
        inner = Frame(plan.iteration, frame.input, kernel.now, frame.attempt, label, variables)
        inner.raw_size = inner.input_size = inner.size = frame.input_size
        child.stack.append(inner)
        frame.branches.append(child.id)
        kernel.wake(child)
    if frame.branches:
        kernel.sleep(strand)
        return
    frame.branches = None
    if frame is kernel.entry:
        kernel.finish(Succeeded(end_branch_run(kernel, frame, frame.gathered)))
        return
    frame.value, frame.size = frame.gathered, -1
    frame.gathered = None
    frame.items = None
    kernel.hold(frame, 0)
    frame.phase = plan.after_body


def iteration(kernel: Kernel, strand: Strand, frame: Frame) -> None:
    """The tasks of one iteration."""
    if not run_scope(kernel, strand, frame, frame.plan.scope, frame.iteration):
        frame.phase = frame.plan.after_body


def iteration_variables(frame: Frame, position: int) -> dict[str, Any]:
    """What the iteration at this position of the loop sees."""
    place = position + (frame.notes["first"] if frame.notes else 0)
    return {**frame.variables, frame.plan.each: frame.items[position], frame.plan.at: place}
