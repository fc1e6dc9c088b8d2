"""Stations: what every task goes through around its body, in the order of the data flow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flint_core.effects import TimerKind
from flint_core.engine.frames import Frame, Phase, Strand

if TYPE_CHECKING:
    from flint_core.engine.kernel import Kernel

__all__ = ["STATIONS"]


_TRANSFORMED: Final = 1 << 20
_EXPORTED: Final = 2 << 20


def _condition(kernel: Kernel, strand: Strand, frame: Frame) -> None:
    plan = frame.plan
    assert plan.condition is not None  # noqa: S101 - the entry was computed from it
    outcome = kernel.value(frame, plan.condition, frame.raw)
    if outcome is None or outcome is False:
        kernel.skip(strand, frame)
    else:
        frame.phase = plan.after_condition


def _input_schema(kernel: Kernel, strand: Strand, frame: Frame) -> None:
    plan = frame.plan
    if plan.input_schema is not None:
        kernel.validate(frame, plan.input_schema, frame.raw, "The input")
    frame.phase = Phase.INPUT


def _input(kernel: Kernel, strand: Strand, frame: Frame) -> None:
    plan = frame.plan
    if plan.input_from is not None:
        value, size = kernel.fit(frame, kernel.value(frame, plan.input_from, frame.raw), "The input")
        frame.input_size = frame.size = size
        frame.input = frame.value = value
    frame.phase = Phase.TIMEOUT


def _timeout(kernel: Kernel, strand: Strand, frame: Frame) -> None:
    plan = frame.plan
    if plan.timeout is not None:
        frame.deadline_until = kernel.until(frame, plan.timeout, frame.input)
        frame.deadline = kernel.emit_timer(strand, frame, frame.deadline_until, TimerKind.DEADLINE)
    frame.phase = Phase.BODY


def _body(kernel: Kernel, strand: Strand, frame: Frame) -> None:
    frame.plan.body(kernel, strand, frame)


def _output(kernel: Kernel, strand: Strand, frame: Frame) -> None:
    plan = frame.plan
    if plan.output_as is not None and frame.station != _TRANSFORMED:
        value = kernel.value(frame, plan.output_as, frame.value, frame.value)
        frame.value, frame.size = kernel.fit(frame, value, "The output")
        frame.station = _TRANSFORMED  # checking it may have to wait, and comes back here
    if plan.output_schema is not None:
        kernel.validate(frame, plan.output_schema, frame.value, "The output")
    frame.phase = Phase.EXPORT


def _export(kernel: Kernel, strand: Strand, frame: Frame) -> None:
    plan = frame.plan
    if plan.export_as is not None:
        if frame.station != _EXPORTED:
            frame.args = [kernel.value(frame, plan.export_as, frame.value, frame.value)]
            frame.station = _EXPORTED  # checking it may have to wait, and comes back here
        context = frame.args[0]
    else:
        context = kernel.current_context()
    if plan.export_schema is not None:
        kernel.validate(frame, plan.export_schema, context, "The exported context")
    if plan.export_as is not None:
        frame.args = None
        kernel.take_context(frame, context)
    frame.phase = Phase.LEAVE


def _leave(kernel: Kernel, strand: Strand, frame: Frame) -> None:
    if frame.size:  # a trifle needs no room
        kernel.take(strand, frame)
    kernel.leave(strand, frame)


STATIONS: Final = (_condition, _input_schema, _input, _timeout, _body, _output, _export, _leave)
