"""Records of steps as bytes: what protobuf reads from them is what was traced."""

from __future__ import annotations

import orjson
from hypothesis import given
from hypothesis import strategies as st

from flint_contracts.gen.flint.journal.v1 import journal_pb2
from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_core.machine import Cancelled, Failed, StepState, StepTrace, Succeeded
from flint_core.problems import Problem
from flint_worker.records import problem_proto, run_end, step_records, timestamp

# Lengths on both sides of where the length of a record takes another byte.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ["x" * 90, "ü" * 300, "x" * 9_000]
)
MOMENTS = st.integers(0, 4_102_444_800_000)
PROBLEMS = st.none() | st.builds(Problem, TEXTS, st.integers(0, 599), TEXTS, TEXTS, TEXTS)
TRACES = st.builds(
    StepTrace,
    step=TEXTS,
    iteration=TEXTS,
    attempt=st.integers(0, 100_000),
    state=st.sampled_from(StepState),
    kind=TEXTS,
    function=TEXTS,
    started_ms=MOMENTS,
    ended_ms=st.none() | MOMENTS,
    problem=PROBLEMS,
)


def written_plainly(traces: list[StepTrace]) -> journal_pb2.JournalEntry:
    entry = journal_pb2.JournalEntry()
    for trace in traces:
        record = entry.steps.add(
            step=trace.step,
            iteration=trace.iteration,
            attempt=trace.attempt,
            state=runs_pb2.StepRecord.State.Value(f"STATE_{trace.state.name}"),
            kind=trace.kind,
            function=trace.function,
        )
        record.start_time.CopyFrom(timestamp(trace.started_ms))
        if trace.ended_ms is not None:
            record.end_time.CopyFrom(timestamp(trace.ended_ms))
        if trace.problem is not None:
            record.error.CopyFrom(problem_proto(trace.problem, 512))
    return entry


@given(st.lists(TRACES, max_size=5))
def test_what_is_read_is_what_was_traced(traces: list[StepTrace]) -> None:
    assert journal_pb2.JournalEntry.FromString(step_records(traces)) == written_plainly(traces)


def test_records_of_one_step_differ_in_what_differs() -> None:
    first = StepTrace("/do/0/a", "", 1, StepState.SUCCEEDED, "call", "http", 1_000, 2_000, None)
    traces = [
        first,
        first._replace(iteration="3.0"),
        first._replace(attempt=2),
        first._replace(state=StepState.FAILED, problem=Problem("t", 500, "x")),
        first._replace(started_ms=1_001),
        first._replace(ended_ms=None, state=StepState.WAITING),
        first,
    ]
    assert journal_pb2.JournalEntry.FromString(step_records(traces)) == written_plainly(traces)


@given(st.lists(TRACES, max_size=3), st.binary(max_size=3_000), st.none() | st.text(max_size=600) | PROBLEMS)
def test_an_entry_in_pieces_is_the_entry(traces: list[StepTrace], events: bytes, ends: str | Problem | None) -> None:
    end = Failed(ends) if isinstance(ends, Problem) else Cancelled() if ends is None else Succeeded({"a": ends})
    written = written_plainly(traces)
    written.events = events
    if isinstance(end, Succeeded):
        written.end.succeeded.output = orjson.dumps(end.output)
    elif isinstance(end, Failed):
        written.end.failed.error.CopyFrom(problem_proto(end.problem))
    else:
        written.end.cancelled.SetInParent()
    pieces = step_records(traces, events) + run_end(end)
    assert journal_pb2.JournalEntry.FromString(pieces) == written
    assert len(pieces) == written.ByteSize()
