"""From the core's vocabulary to the journal's contract. Runs for every step: no reflection, no helper layers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import orjson
from google.protobuf.timestamp_pb2 import Timestamp

from flint_contracts.gen.flint.journal.v1 import journal_pb2
from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_core.machine import Cancelled, End, Failed, StepTrace, Succeeded
from flint_core.problems import Problem

__all__ = ["end_of_run", "problem_proto", "step_records", "timestamp"]

_STATES: Final = {
    "running": runs_pb2.StepRecord.STATE_RUNNING,
    "succeeded": runs_pb2.StepRecord.STATE_SUCCEEDED,
    "failed": runs_pb2.StepRecord.STATE_FAILED,
    "skipped": runs_pb2.StepRecord.STATE_SKIPPED,
    "cancelled": runs_pb2.StepRecord.STATE_CANCELLED,
    "waiting": runs_pb2.StepRecord.STATE_WAITING,
}
_DETAIL_LIMIT: Final = 4_096
_STEP_DETAIL_LIMIT: Final = 512
"""There may be hundreds of steps in an entry, which must fit into one message."""


def timestamp(ms: int) -> Timestamp:
    """Milliseconds since the Unix epoch as a Timestamp."""
    return Timestamp(seconds=ms // 1000, nanos=ms % 1000 * 1_000_000)


def problem_proto(problem: Problem, detail_limit: int = _DETAIL_LIMIT) -> runs_pb2.Problem:
    """A problem as recorded; a very long detail is cut."""
    return runs_pb2.Problem(
        type=problem.type[:1_024],
        status=problem.status,
        title=problem.title[:1_024],
        detail=problem.detail[:detail_limit],
        instance=problem.instance,
    )


def step_records(traces: Iterable[StepTrace]) -> list[runs_pb2.StepRecord]:
    """The machine's traces as recorded steps, in order."""
    records = []
    for trace in traces:
        record = runs_pb2.StepRecord(
            step=trace.step,
            iteration=trace.iteration,
            attempt=trace.attempt,
            state=_STATES[trace.state],
            kind=trace.kind,
            function=trace.function,
            start_time=timestamp(trace.started_ms),
        )
        if trace.ended_ms is not None:
            record.end_time.seconds = trace.ended_ms // 1000
            record.end_time.nanos = trace.ended_ms % 1000 * 1_000_000
        if trace.problem is not None:
            record.error.CopyFrom(problem_proto(trace.problem, _STEP_DETAIL_LIMIT))
        records.append(record)
    return records


def end_of_run(end: End) -> journal_pb2.LegEnd:
    """The leg end of a run that is over."""
    match end:
        case Succeeded(output):
            return journal_pb2.LegEnd(succeeded=journal_pb2.Succeeded(output=orjson.dumps(output)))
        case Failed(problem):
            return journal_pb2.LegEnd(failed=journal_pb2.Failed(error=problem_proto(problem)))
        case Cancelled():
            return journal_pb2.LegEnd(cancelled=journal_pb2.Cancelled())
