"""Tasks made of other tasks by the compiler: calls of functions of `use` and of catalogs, and tasks with extensions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flint_core.engine.bodies import run_scope
from flint_core.engine.frames import Frame, Strand
from flint_core.engine.kernel import SCOPE_LEFT
from flint_core.program import Flow, FlowKind

if TYPE_CHECKING:
    from flint_core.engine.kernel import Kernel

__all__ = ["before", "extended", "invoke"]

_ENTERED = 1
_AFTERWARDS = 2
_EXIT = Flow(FlowKind.EXIT)


def invoke(kernel: Kernel, strand: Strand, frame: Frame) -> None:
    """A call of a function that is a task: `with` becomes the task's input, its output the call's."""
    plan = frame.plan
    if frame.station == 0:
        if plan.parameters is not None:
            value = kernel.value(frame, plan.parameters, frame.input)
            frame.value, frame.size = kernel.fit(frame, value, "The arguments")
        frame.station = _ENTERED
    if not run_scope(kernel, strand, frame, plan.scope, frame.iteration):
        frame.phase = plan.after_body


def extended(kernel: Kernel, strand: Strand, frame: Frame) -> None:
    """A task with an extension: `scope` is the tasks before it, the task, the tasks after it; the outer ones may miss.

    The tasks of the extension see the task's input or output, and what they give is dropped; but when those before it
    leave by `exit`, the task is not run and what they gave is its output.
    """
    plan = frame.plan
    if frame.station == 0 and frame.cursor == 0 and plan.guard is not None:
        outcome = kernel.value(frame, plan.guard, frame.input)
        frame.index = 1 if outcome is None or outcome is False else 2  # 1: the extension does not apply
        if frame.index == 1:
            frame.cursor = plan.core
    if frame.cursor < SCOPE_LEFT:
        if frame.station == _ENTERED:
            frame.input, frame.input_size = frame.value, frame.size  # what the tasks after it see, and what remains
            frame.station = _AFTERWARDS
            if frame.index == 1:
                frame.cursor = len(plan.scope)
        elif frame.cursor == plan.core:
            frame.station = _ENTERED
        frame.value, frame.size = frame.input, frame.input_size
    if not run_scope(kernel, strand, frame, plan.scope, frame.iteration):
        frame.phase = plan.after_body


def before(kernel: Kernel, strand: Strand, frame: Frame) -> None:
    """The tasks before an extended one: `exit` leaves that too."""
    if not run_scope(kernel, strand, frame, frame.plan.scope, frame.iteration):
        if frame.cursor >= SCOPE_LEFT:
            frame.flow = _EXIT
        frame.phase = frame.plan.after_body
