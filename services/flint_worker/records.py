"""From the core's vocabulary to the journal's contract. Runs for every step: no reflection, no helper layers.

Records of steps are written as protobuf's bytes. A message written in pieces, one after another, is the message with
the fields of all of them: what a step's records have in common is written once, and so are moments that many share.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Final

import orjson
from google.protobuf.timestamp_pb2 import Timestamp

from flint_contracts.gen.flint.journal.v1 import journal_pb2
from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_contracts.journal import field, varint
from flint_core.effects import Await, AwaitKind
from flint_core.machine import End, Failed, StepTrace, Succeeded
from flint_core.problems import Problem

__all__ = ["add_awaits", "problem_proto", "run_end", "step_records", "timestamp"]

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


_STEP: Final = field(journal_pb2.JournalEntry.STEPS_FIELD_NUMBER)
_EVENTS: Final = field(journal_pb2.JournalEntry.EVENTS_FIELD_NUMBER)
_END: Final = field(journal_pb2.JournalEntry.END_FIELD_NUMBER)
_SUCCEEDED: Final = field(journal_pb2.LegEnd.SUCCEEDED_FIELD_NUMBER)
_OUTPUT: Final = field(journal_pb2.Succeeded.OUTPUT_FIELD_NUMBER)


def step_records(traces: Iterable[StepTrace], events: bytes = b"") -> bytes:
    """The machine's traces as recorded steps of an entry, in order, and its events: as much of a `JournalEntry`."""
    parts: list[bytes] = []
    for step, iteration, attempt, state, kind, function, started_ms, ended_ms, problem in traces:
        same, start = _same(step, attempt, state, kind, function), _start(started_ms)
        more = b"" if ended_ms is None else _end(ended_ms)
        if iteration:
            more += runs_pb2.StepRecord(iteration=iteration).SerializeToString()
        if problem is not None:
            error = problem_proto(problem, _STEP_DETAIL_LIMIT)
            more += runs_pb2.StepRecord(error=error).SerializeToString()
        parts += (_STEP, varint(len(same) + len(start) + len(more)), same, start, more)
    if events:
        parts += (_EVENTS, varint(len(events)), events)
    return b"".join(parts)


@lru_cache(maxsize=4_096)
def _same(step: str, attempt: int, state: str, kind: str, function: str) -> bytes:
    record = runs_pb2.StepRecord(step=step, attempt=attempt, state=_STATES[state], kind=kind, function=function)
    return record.SerializeToString()


@lru_cache(maxsize=256)
def _start(ms: int) -> bytes:
    return runs_pb2.StepRecord(start_time=timestamp(ms)).SerializeToString()


@lru_cache(maxsize=256)
def _end(ms: int) -> bytes:
    return runs_pb2.StepRecord(end_time=timestamp(ms)).SerializeToString()


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


def timestamp(ms: int) -> Timestamp:
    """Milliseconds since the Unix epoch as a Timestamp."""
    return Timestamp(seconds=ms // 1000, nanos=ms % 1000 * 1_000_000)


def run_end(end: End) -> bytes:
    """The run is over with this entry: as much of an encoded `JournalEntry`."""
    if isinstance(end, Succeeded):
        output = orjson.dumps(end.output)
        ended = b"".join((_OUTPUT, varint(len(output)), output))
        ended = b"".join((_SUCCEEDED, varint(len(ended)), ended))
        return b"".join((_END, varint(len(ended)), ended))
    entry = journal_pb2.JournalEntry()
    if isinstance(end, Failed):
        entry.end.failed.error.CopyFrom(problem_proto(end.problem))
    else:
        entry.end.cancelled.SetInParent()
    return entry.SerializeToString()
