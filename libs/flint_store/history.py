"""Reading a run's record: its entries, and the steps of a snapshot."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

import orjson
from sqlalchemy import text

from flint_contracts.gen.flint.journal.v1 import journal_pb2
from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_core.events import CallSucceeded, decode_events
from flint_store.engine import fetch
from flint_store.timestamps import set_timestamp

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["SNAPSHOT_STEPS", "History", "read_history", "read_steps"]

SNAPSHOT_STEPS = 10_000
"""A snapshot holds at most this many steps, the last ones."""

CHUNK_ENTRIES = 1_000
LEG_ENDS = ("", "succeeded", "failed", "cancelled", "blocked", "yielded")
"""HistoryEntry.leg_end by run_entry.end_kind."""

# Primary key of run.
READ_NAMESPACE = text("SELECT namespace_id FROM run WHERE run_id = :run_id")

# Range of the primary key of run_entry, in order; sizes are known without fetching the values.
READ_ENTRIES = text("""
SELECT index, leg, claimant, recorded_at, end_kind, CASE WHEN fits THEN steps END, CASE WHEN fits THEN events END, fits,
       superseded
FROM (
    SELECT *, sum(octet_length(steps) + octet_length(events)) OVER (ORDER BY index) <= :budget
              OR row_number() OVER (ORDER BY index) = 1 AS fits
    FROM (SELECT * FROM run_entry WHERE run_id = :run_id AND index > :after ORDER BY index LIMIT :limit) page) sized
ORDER BY index
""")

# Backward range of the primary key of run_entry.
READ_STEPS = text("""
SELECT index, steps FROM run_entry WHERE run_id = :run_id AND index < :below AND superseded IS NULL
ORDER BY index DESC LIMIT :limit
""")


@dataclass(frozen=True, slots=True)
class History:
    """A page of a run's record. `more`: entries of the asked range did not fit and follow the last one."""

    namespace: str
    entries: list[runs_pb2.HistoryEntry]
    more: bool


async def read_history(
    engine: AsyncEngine, run_id: bytes, *, after_index: int = 0, limit: int, budget_bytes: int
) -> History | None:
    """Entries after an index, in order, with the results of calls; None when there is no such run.

    At least one entry is answered when there is one, whatever its size. Raises `StoreUnavailable`.
    """
    identity = UUID(bytes=run_id)
    owner = await fetch(engine, READ_NAMESPACE, {"run_id": identity})
    if not owner:
        return None
    rows = await fetch(
        engine, READ_ENTRIES, {"run_id": identity, "after": after_index, "limit": limit, "budget": budget_bytes}
    )
    entries = []
    for index, leg, claimant, recorded_at, end_kind, steps, events, fits, superseded in rows:
        if not fits:
            break
        entry = runs_pb2.HistoryEntry(
            index=index, leg=leg, worker=claimant, leg_end=LEG_ENDS[end_kind], superseded_by=superseded
        )
        set_timestamp(entry.record_time, recorded_at)
        entry.steps.extend(journal_pb2.JournalEntry.FromString(steps).steps)
        attach_results(entry.steps, events)
        entries.append(entry)
    return History(owner[0][0], entries, more=len(entries) < len(rows))


async def read_steps(engine: AsyncEngine, run_id: bytes, *, up_to: int, budget_bytes: int) -> list[runs_pb2.StepRecord]:
    """The steps that the entries 1 to `up_to` record, in order: the last 10,000, fewer when they exceed the budget.

    Raises `StoreUnavailable`.
    """
    identity, below, size = UUID(bytes=run_id), up_to + 1, 0
    latest_first: list[runs_pb2.StepRecord] = []
    while True:
        rows = await fetch(engine, READ_STEPS, {"run_id": identity, "below": below, "limit": CHUNK_ENTRIES})
        for _, steps in rows:
            for step in reversed(journal_pb2.JournalEntry.FromString(steps).steps):
                size += step.ByteSize() + 4
                if len(latest_first) == SNAPSHOT_STEPS or size > budget_bytes:
                    return latest_first[::-1]
                latest_first.append(step)
        if len(rows) < CHUNK_ENTRIES:
            return latest_first[::-1]
        below = rows[-1][0]


def attach_results(steps: Iterable[runs_pb2.StepRecord], events: bytes) -> None:
    """Put the outputs of succeeded calls from an entry's events to its steps.

    Steps name no event. Traces come in the order of the events that ended them, and a step's times are its call's, so a
    call's event belongs to the first step not yet taken with its start and end; one that is absorbed in between (its
    step failed while transforming the output) belongs to none.
    """
    succeeded = [event for event in decode_events(events) if isinstance(event, CallSucceeded)]
    for step in steps:
        if step.kind != "call" or step.state != runs_pb2.StepRecord.STATE_SUCCEEDED:
            continue
        times = (step.start_time.ToMilliseconds(), step.end_time.ToMilliseconds())
        exact = (event for event in succeeded if (event.started_ms, event.at_ms) == times)
        ended = (event for event in succeeded if event.at_ms == times[1])
        match = next(exact, None) or next(ended, None)
        if match is not None:
            succeeded.remove(match)
            step.result = orjson.dumps(match.output)
