"""Folding the journal into the record: one fenced statement for hundreds of entries (R2, R5).

The owner has judged the entries already (leg number, nonce, claimant, index); the statement checks once more that every
run's row is the one the judgement was made on (its `change` number) and fails as a whole when one is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from flint_store.await_changes import AWAIT_PARTS, AwaitChanges, await_parameters
from flint_store.columns import bigints, booleans, byteas, instants, integers, texts, uuids
from flint_store.control_changes import CONTROL_PARTS, control_parameters, has_control
from flint_store.fence import FENCE, Fenced, OwnerSession
from flint_store.hot import execute_hot
from flint_store.payloads import use_in_messages
from flint_store.permit_changes import PERMIT_PARTS, PermitChange, permit_parameters

__all__ = ["ROW_DIFFERS", "EntryRow", "RunFold", "fold_runs"]

ROW_DIFFERS = "22012"
"""SQLSTATE (division by zero) of a statement that found a row other than its caller remembered it."""


# Rows are tuples: a batch of them becomes columns in one call.
class EntryRow(NamedTuple):
    """One accepted journal entry. `steps` is a JournalEntry that holds steps and end only."""

    run_id: bytes
    place: int  # index in the journal of its run
    leg: int
    claimant: str
    steps: bytes
    events: bytes
    end_kind: int


class RunFold(NamedTuple):
    """What one commit changes of one run. `change` is its change number after the commit."""

    run_id: bytes
    change: int
    position: int
    state: int
    leg_closed: bool
    losses: int
    cancel_requested: bool = False
    snapshot: bytes | None = None  # None keeps the one before
    snapshot_position: int = 0
    output: bytes | None = None
    error: bytes | None = None
    wake_at_ms: int | None = None
    ended: bool = False
    compensates: bool = False  # has something to undo; false keeps what was known
    placement: bytes | None = None  # where the next leg goes; empty: where the run belongs; None: as before
    awaits: AwaitChanges | None = None  # what changes beside the row, for the few runs that have any of it
    permits: PermitChange | None = None  # of a run with permits that has ended


# Nested loops over primary keys (the lane's connection forbids other plans); watched by a test. Entries are inserted
# whether or not a run's row matched: the CASE at the end then fails the statement as a whole.
FOLD = text(f"""
WITH fence AS MATERIALIZED ({FENCE}),
folded AS (
    UPDATE run r SET change = u.change, position = u.position, state = u.state, losses = u.losses,
           cancel_requested = r.cancel_requested OR u.cancel_requested,
           compensates = r.compensates OR u.compensates,
           leg_nonce = CASE WHEN u.leg_closed THEN NULL ELSE r.leg_nonce END,
           claimant = CASE WHEN u.leg_closed THEN NULL ELSE r.claimant END,
           snapshot = CASE WHEN u.ended THEN NULL WHEN u.snapshot IS NULL THEN r.snapshot ELSE u.snapshot END,
           snapshot_position = CASE WHEN u.snapshot IS NULL THEN r.snapshot_position ELSE u.snapshot_position END,
           output = u.output, wake_at = u.wake_at,
           error = CASE WHEN u.state = 4 THEN NULL ELSE COALESCE(u.error, r.error) END, adopt = false,
           ended_at = CASE WHEN u.ended THEN clock_timestamp() ELSE NULL END
    FROM fence, unnest(
        CAST(:run_ids AS uuid[]), CAST(:changes AS bigint[]), CAST(:positions AS bigint[]), CAST(:states AS int[]),
        CAST(:losses AS int[]), CAST(:cancels AS boolean[]), CAST(:closed AS boolean[]), CAST(:snapshots AS bytea[]),
        CAST(:snapshot_positions AS bigint[]), CAST(:outputs AS bytea[]), CAST(:errors AS bytea[]),
        CAST(:wakes AS timestamptz[]), CAST(:ended AS boolean[]), CAST(:compensating AS boolean[])
    ) AS u(run_id, change, position, state, losses, cancel_requested, leg_closed, snapshot, snapshot_position, output,
           error, wake_at, ended, compensates)
    WHERE r.run_id = u.run_id AND r.change = u.change - 1
    RETURNING 1),
entries AS (
    INSERT INTO run_entry (run_id, index, leg, claimant, steps, events, end_kind, recorded_at)
    SELECT e.run_id, e.index, e.leg, e.claimant, e.steps, e.events, e.end_kind, clock_timestamp()
    FROM fence, unnest(
        CAST(:entry_run_ids AS uuid[]), CAST(:entry_indexes AS bigint[]), CAST(:entry_legs AS int[]),
        CAST(:entry_claimants AS text[]), CAST(:entry_steps AS bytea[]), CAST(:entry_events AS bytea[]),
        CAST(:entry_ends AS int[])
    ) AS e(run_id, index, leg, claimant, steps, events, end_kind))
SELECT (SELECT count(*) FROM fence) AS held, clock_timestamp() AS at,
       CASE WHEN (SELECT count(*) FROM fence) = 1 AND (SELECT count(*) FROM folded) <> :expected
            THEN 1 / (SELECT count(*) * 0 FROM folded) ELSE 0 END AS unchanged
""")


def _with_parts(parts: str) -> TextClause:
    end = "\nSELECT (SELECT count(*) FROM fence) AS held"
    return text(FOLD.text.replace(end, f"{parts}{end}"))


# The same, also changing awaits and inboxes, or permits, or all of it.
FOLD_AND_AWAITS = _with_parts(AWAIT_PARTS)
_FOLDS = {
    (awaits, permits, control): _with_parts(
        (AWAIT_PARTS if awaits else "") + (PERMIT_PARTS if permits else "") + (CONTROL_PARTS if control else "")
    )
    for awaits in (False, True)
    for permits in (False, True)
    for control in (False, True)
} | {(False, False, False): FOLD, (True, False, False): FOLD_AND_AWAITS}


@cache
def _placed(statement: str) -> TextClause:
    """The same, also noting where runs that move go on."""
    return text(
        statement.replace(
            "SET change = u.change,",
            "SET placement = CASE WHEN u.placement IS NULL THEN r.placement WHEN u.placement = '' THEN NULL"
            " ELSE u.placement END, change = u.change,",
        )
        .replace("CAST(:compensating AS boolean[])", "CAST(:compensating AS boolean[]), CAST(:placements AS bytea[])")
        .replace("error, wake_at, ended, compensates)", "error, wake_at, ended, compensates, placement)")
    )


async def fold_runs(
    connection: AsyncConnection, session: OwnerSession, folds: Sequence[RunFold], entries: Sequence[EntryRow]
) -> datetime:
    """Commit the changes and the entries in one statement; answers PostgreSQL's time.

    Raises `Fenced` when the session has ended (nothing was written), and a DataError of SQLAlchemy (nothing was
    written) when a row had changed or a value cannot be stored: the caller bisects.
    """
    changes = [f.awaits for f in folds if f.awaits is not None]
    of_run, of_entry = _columns(RunFold._fields, folds), _columns(EntryRow._fields, entries)
    parameters: dict[str, object] = {
        "run_ids": uuids(of_run["run_id"]),
        "changes": bigints(of_run["change"]),
        "positions": bigints(of_run["position"]),
        "states": integers(of_run["state"]),
        "losses": integers(of_run["losses"]),
        "cancels": booleans(of_run["cancel_requested"]),
        "closed": booleans(of_run["leg_closed"]),
        "snapshots": byteas(of_run["snapshot"]),
        "snapshot_positions": bigints(of_run["snapshot_position"]),
        "outputs": byteas(of_run["output"]),
        "errors": byteas(of_run["error"]),
        "wakes": instants(of_run["wake_at_ms"]),
        "ended": booleans(of_run["ended"]),
        "compensating": booleans(of_run["compensates"]),
        "expected": len(folds),
        "entry_run_ids": uuids(of_entry["run_id"]),
        "entry_indexes": bigints(of_entry["place"]),
        "entry_legs": integers(of_entry["leg"]),
        "entry_claimants": texts(of_entry["claimant"]),
        "entry_steps": byteas(of_entry["steps"]),
        "entry_events": byteas(of_entry["events"]),
        "entry_ends": integers(of_entry["end_kind"]),
    }
    if changes:
        parameters |= await_parameters(changes)
        parents = [c.parent for c in changes if c.parent is not None]
        await use_in_messages(connection, [(p.run_id, p.payload) for p in parents])
    permits = [f.permits for f in folds if f.permits is not None]
    if permits:
        parameters |= permit_parameters(permits)
    control = bool(changes) and has_control(changes)
    if control:
        parameters |= control_parameters(changes)
    statement = _FOLDS[bool(changes), bool(permits), control]
    if any(p is not None for p in of_run["placement"]):
        parameters["placements"] = byteas(of_run["placement"])
        statement = _placed(statement.text)
    row = await execute_hot(connection, statement, parameters | session.parameters())
    if row.held == 0:
        raise Fenced(session)
    at: datetime = row.at
    return at


def _columns(names: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
    return dict(zip(names, zip(*rows, strict=True) if rows else [()] * len(names), strict=True))
