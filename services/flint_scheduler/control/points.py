"""Where a run can be taken back to: which entries of its record stay valid. Pure.

The unit is the entry. What was recorded together with the outcome of the step is executed again, whatever was recorded
before stays; so a run that goes on repeats nothing that was recorded before the entry in which the step ended.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc

from flint_contracts.gen.flint.journal.v1 import journal_pb2
from flint_contracts.gen.flint.runs.v1 import control_pb2
from flint_core.events import CancelRequested, decode_events
from flint_rpc.errors import ErrorReason, Refused
from flint_store.resets import EntryFacts

__all__ = ["kept_entries"]

_SUCCEEDED, _FAILED, _CANCELLED = 1, 2, 3  # run_entry.end_kind
_COMPENSATION = "/metadata/flint/compensate"


async def kept_entries(
    entries: AsyncIterator[EntryFacts], point: control_pb2.ResetPoint, *, ended: bool, position: int
) -> int:
    """How many entries stay valid when the run is taken back. `entries`: those that count, from the last to the first.

    Raises `Refused`: RESET_POINT_NOT_FOUND, RUN_UNDONE.
    """
    match point.WhichOneof("point"):
        case "start":
            return 0
        case "step":
            return await _before_step(entries, point.step.step, point.step.iteration)
        case _:
            return await _before_failure(entries, ended=ended, position=position)


async def _before_step(entries: AsyncIterator[EntryFacts], step: str, iteration: str) -> int:
    found = 0
    async for entry in entries:
        for record in journal_pb2.JournalEntry.FromString(entry.steps).steps:
            _refuse_undone(record.step)
            if _within(record.step, step) and _of_iteration(record.iteration, iteration):
                found = entry.index
    if not found:
        place = f"{step} [{iteration}]" if iteration else step
        raise _not_found(f"nothing is recorded of the step {place}")
    return found - 1


async def _before_failure(entries: AsyncIterator[EntryFacts], *, ended: bool, position: int) -> int:
    if not ended:
        raise _not_found("the run has not ended: only a step or the beginning can be named")
    kept: int | None = None
    async for entry in entries:
        for record in journal_pb2.JournalEntry.FromString(entry.steps).steps:
            _refuse_undone(record.step)
        if kept is None:
            if entry.end_kind == _SUCCEEDED:
                raise _not_found("the run did not fail")
            # One that was ended from outside, without a leg, stood behind its last entry.
            kept = entry.index - 1 if entry.end_kind in (_FAILED, _CANCELLED) else position
        if any(isinstance(event, CancelRequested) for event in decode_events(entry.events)):
            kept = min(kept, entry.index - 1)
    return position if kept is None else kept


def _within(step: str, wanted: str) -> bool:
    return step == wanted or step.startswith(f"{wanted}/")


def _of_iteration(iteration: str, wanted: str) -> bool:
    """What is within the step has its iteration, or one within it."""
    return iteration == wanted or not wanted or iteration.startswith((f"{wanted}.", f"{wanted}~"))


def _refuse_undone(step: str) -> None:
    if _COMPENSATION in step:
        raise Refused(
            grpc.StatusCode.FAILED_PRECONDITION,
            ErrorReason.ERROR_REASON_RUN_UNDONE,
            "what the run did was undone when it ended: it can only be reset to its beginning",
        )


def _not_found(why: str) -> Refused:
    return Refused(grpc.StatusCode.FAILED_PRECONDITION, ErrorReason.ERROR_REASON_RESET_POINT_NOT_FOUND, why)
