"""From the core's vocabulary to the journal's contract. Runs for every step: no reflection, no helper layers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import orjson
from google.protobuf.timestamp_pb2 import Timestamp

from flint_contracts.gen.flint.journal.v1 import journal_pb2
from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_core.effects import Await, AwaitKind
from flint_core.machine import End, Failed, StepTrace, Succeeded
from flint_core.problems import Problem

__all__ = ["add_awaits", "add_steps", "problem_proto", "set_end", "timestamp"]

_STATES: Final = {
    "running": runs_pb2.StepRecord.STATE_RUNNING,
    "succeeded": runs_pb2.StepRecord.STATE_SUCCEEDED,
    "failed": runs_pb2.StepRecord.STATE_FAILED,
    "skipped": runs_pb2.StepRecord.STATE_SKIPPED,
    "cancelled": runs_pb2.StepRecord.STATE_CANCELLED,
    "waiting": runs_pb2.StepRecord.STATE_WAITING,
}
_AWAIT_KINDS: Final = {
    AwaitKind.EVENTS: journal_pb2.AwaitOpened.KIND_EVENTS,
    AwaitKind.APPROVAL: journal_pb2.AwaitOpened.KIND_APPROVAL,
    AwaitKind.RUN: journal_pb2.AwaitOpened.KIND_RUN,
    AwaitKind.BRANCHES: journal_pb2.AwaitOpened.KIND_BRANCHES,
}
_DETAIL_LIMIT: Final = 4_096
_STEP_DETAIL_LIMIT: Final = 512
"""There may be hundreds of steps in an entry, which must fit into one message."""


def problem_proto(problem: Problem, detail_limit: int = _DETAIL_LIMIT) -> runs_pb2.Problem:
    """A problem as recorded; a very long detail is cut."""
    return runs_pb2.Problem(
        type=problem.type[:1_024],
        status=problem.status,
        title=problem.title[:1_024],
        detail=problem.detail[:detail_limit],
        instance=problem.instance,
    )


def add_steps(entry: journal_pb2.JournalEntry, traces: Iterable[StepTrace]) -> None:
    """The machine's traces as recorded steps of the entry, in order."""
    add = entry.steps.add
    for trace in traces:
        record = add(
            step=trace.step,
            iteration=trace.iteration,
            attempt=trace.attempt,
            state=_STATES[trace.state],
            kind=trace.kind,
            function=trace.function,
        )
        _set_time(record.start_time, trace.started_ms)
        if trace.ended_ms is not None:
            _set_time(record.end_time, trace.ended_ms)
        if trace.problem is not None:
            record.error.CopyFrom(problem_proto(trace.problem, _STEP_DETAIL_LIMIT))


def add_awaits(entry: journal_pb2.JournalEntry, opened: Iterable[tuple[Await, bytes]], at_ms: int) -> None:
    """Awaits that were opened, each with its request as JSON."""
    for effect, request in opened:
        entry.awaits_opened.add(
            key=str(effect.effect_id),
            kind=_AWAIT_KINDS[effect.kind],
            step=effect.step,
            iteration=effect.iteration,
            request=request,
            open_time_ms=at_ms,
        )


def _set_time(field: Timestamp, ms: int) -> None:
    field.seconds = ms // 1000
    field.nanos = ms % 1000 * 1_000_000


def timestamp(ms: int) -> Timestamp:
    """Milliseconds since the Unix epoch as a Timestamp."""
    return Timestamp(seconds=ms // 1000, nanos=ms % 1000 * 1_000_000)


def set_end(entry: journal_pb2.JournalEntry, end: End) -> None:
    """The run is over with this entry."""
    if isinstance(end, Succeeded):
        entry.end.succeeded.output = orjson.dumps(end.output)
    elif isinstance(end, Failed):
        entry.end.failed.error.CopyFrom(problem_proto(end.problem))
    else:
        entry.end.cancelled.SetInParent()
