"""Everything that a judgement looks at, gathered once after the faults: what was recorded, the runs as they are read
now, what the outside saw, and for how long workers were held.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from flint_contracts.gen.flint.journal.v1 import journal_pb2
from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_sdk import AsyncFlint, FlintError
from support.record_reader import Record
from support.soak.history import History, Seen
from support.soak.traffic import SCHEDULE
from support.soak.world import World

__all__ = ["ENDED", "Entry", "Evidence", "Row", "Stall", "gather"]

ENDED = {4: "SUCCEEDED", 5: "FAILED", 6: "CANCELLED"}
"""`run.state` of runs that have ended."""

_AT_A_TIME = 50
_TIDY_WITHIN_S = 60.0


@dataclass(frozen=True)
class Row:
    """A run in the record. Times: Unix epoch, s. `belongs_to`: the run whose calls it makes, another one for a chunk of
    a wide fork."""

    run: str
    belongs_to: str
    request_id: str
    state: int
    position: int
    leg_open: bool
    began_at: float
    ended_at: float


@dataclass(frozen=True)
class Entry:
    """A recorded entry. `succeeded`: step and iteration of the calls that it records as ended well."""

    run: str
    index: int
    leg: int
    claimant: str
    recorded_at: float
    succeeded: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Stall:
    """A worker was held, from one moment to another (Unix epoch, s)."""

    worker: str
    began_at: float
    ended_at: float


@dataclass
class Evidence:
    """See the module."""

    history: History
    world: World
    stalls: Sequence[Stall]
    rows: dict[str, Row] = field(default_factory=dict)
    entries: dict[str, list[Entry]] = field(default_factory=dict)
    """By run, in order."""
    ends: dict[str, Seen] = field(default_factory=dict)
    """Runs as somebody was told who waited for their end."""
    read: dict[str, Seen] = field(default_factory=dict)
    """Runs as they are read at the end."""
    missing: list[str] = field(default_factory=list)
    """What a wait or a read of a run came to when it was not the run."""
    left_over: dict[str, int] = field(default_factory=dict)
    """Rows of runs that have ended, where there should be none, by table."""
    fired: list[datetime] = field(default_factory=list)
    """Nominal times of the schedule's runs."""


async def gather(evidence: Evidence, flint: AsyncFlint, record: Record) -> None:
    """Fills in what is recorded and read now."""
    await _wait_and_read(evidence, flint)
    for run, parent, request, state, position, leg_open, began, ended in await record.rows(_RUNS):
        chunk = str(request or "").startswith("~branch/")
        evidence.rows[str(run)] = Row(
            str(run),
            str(parent) if chunk else str(run),
            str(request or ""),
            int(str(state)),
            int(str(position)),
            bool(leg_open),
            float(str(began or 0)),
            float(str(ended or 0)),
        )
    entries: dict[str, list[Entry]] = defaultdict(list)
    for run, index, leg, claimant, at, steps in await record.rows(_ENTRIES):
        message = journal_pb2.JournalEntry.FromString(bytes(steps))
        well = [(s.step, s.iteration) for s in message.steps if s.kind == "call" and s.state == _STATE_SUCCEEDED]
        entries[str(run)].append(
            Entry(str(run), int(str(index)), int(str(leg)), str(claimant), float(str(at)), tuple(well))
        )
    evidence.entries = dict(entries)
    evidence.left_over = await _left_over(record)
    runs = [run async for run in flint.list_runs(workflow=SCHEDULE, page_size=500)]
    evidence.fired = [run.schedule_time for run in runs if run.schedule_time is not None]


async def _wait_and_read(evidence: Evidence, flint: AsyncFlint) -> None:
    room = asyncio.Semaphore(_AT_A_TIME)

    async def one(run: str) -> None:
        async with room:
            try:
                evidence.ends[run] = Seen.of(await flint.wait(run, 30.0))
                found = Seen.of(await flint.get_run(run))
                whole = await flint.resolve(found.output)
                evidence.read[run] = Seen(found.change, found.state, whole, found.error)
            except FlintError as error:
                evidence.missing.append(f"{run}: {type(error).__name__}: {error}")

    await asyncio.gather(*(one(run) for run in evidence.history.by_run()))


async def _left_over(record: Record) -> dict[str, int]:
    """Permits of runs that were ended over their leg leave when the leg is surely over: that takes a moment."""
    until = asyncio.get_running_loop().time() + _TIDY_WITHIN_S
    while True:
        found = {
            table: await record.number(
                f"SELECT count(*) FROM {table} t JOIN run r USING (run_id) WHERE r.state IN (4, 5, 6)"
            )
            for table in ("run_await", "inbox", "permit", "permit_wait")
        }
        if not any(found.values()) or asyncio.get_running_loop().time() > until:
            return found
        await asyncio.sleep(0.2)


_STATE_SUCCEEDED = runs_pb2.StepRecord.STATE_SUCCEEDED
_RUNS = """
SELECT run_id::text, parent_run_id::text, request_id, state, position, leg_nonce IS NOT NULL,
       extract(epoch FROM started_at)::float8, extract(epoch FROM ended_at)::float8
FROM run
"""
_ENTRIES = """
SELECT run_id::text, index, leg, claimant, extract(epoch FROM recorded_at)::float8, steps
FROM run_entry ORDER BY run_id, index
"""
