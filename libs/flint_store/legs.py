"""Opening legs, and reading what a leg begins from (R3).

The commit that opens a leg names its number, a nonce never used before, and the one worker incarnation that may write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from flint_core.queueing import Placement, QueueHints
from flint_store.columns import bigints, integers, texts, uuids
from flint_store.fence import FENCE, Fenced, OwnerSession
from flint_store.hot import execute_hot
from flint_store.mail import Mail, load_mail

__all__ = ["LegOpening", "LegStart", "RunRow", "load_leg_starts", "load_runs", "load_unfinished", "open_legs"]


@dataclass(slots=True)
class LegOpening:
    """One leg to open. `change` is the run's change number after the commit."""

    run_id: bytes
    change: int
    leg: int
    nonce: bytes
    claimant: str
    generation: int


@dataclass(slots=True)
class LegStart:
    """What a leg begins from: a snapshot and the events recorded after it, or the input."""

    input: bytes
    snapshot: bytes
    events: list[bytes] = field(default_factory=list)
    awaits: list[str] = field(default_factory=list)  # keys of those recorded as open
    mail: Mail = field(default_factory=Mail)
    reset: int = 0  # set when its state is to be rebuilt first, after this reset
    reset_ms: int = 0  # when that was asked for


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run as its owner keeps it in memory."""

    run_id: bytes
    namespace: str
    workflow_id: str
    version: str
    definition_hash: bytes
    group: int
    state: int
    level: int
    change: int
    position: int
    leg: int
    leg_nonce: bytes | None
    claimant: str | None
    leg_generation: int
    losses: int
    cancel_requested: bool
    trace_id: bytes
    request_id: str
    created_at: datetime
    started_at: datetime | None
    wake_at: datetime | None
    parent_run_id: bytes | None = None
    parent_key: str | None = None  # the parent's await that this run's end answers
    has_awaits: bool = False
    compensates: bool = False  # it has something to undo before it ends as failed or cancelled
    cancel_error: bytes = b""  # the problem that tells why a cancel was asked for
    hints: QueueHints | None = None  # None: all defaults
    placement: Placement | None = None  # where a run that moved goes on; None: where its hints say


# Nested loop over the primary key of run: one index probe per leg. The CASE makes the statement fail as a whole when
# a row is not as its owner remembers it, so that nothing is half done.
OPEN_LEGS = text(f"""
WITH fence AS MATERIALIZED ({FENCE}),
opened AS (
    UPDATE run r SET change = u.change, state = 2, leg = u.leg, leg_nonce = u.leg_nonce, claimant = u.claimant,
           leg_generation = u.leg_generation, wake_at = NULL, adopt = false,
           started_at = COALESCE(r.started_at, clock_timestamp())
    FROM fence, unnest(CAST(:run_ids AS uuid[]), CAST(:changes AS bigint[]), CAST(:legs AS int[]),
                       CAST(:nonces AS uuid[]), CAST(:claimants AS text[]), CAST(:generations AS bigint[]))
         AS u(run_id, change, leg, leg_nonce, claimant, leg_generation)
    WHERE r.run_id = u.run_id AND r.change = u.change - 1
    RETURNING 1)
SELECT (SELECT count(*) FROM fence) AS held, clock_timestamp() AS at,
       CASE WHEN (SELECT count(*) FROM fence) = 1 AND (SELECT count(*) FROM opened) <> :expected
            THEN 1 / (SELECT count(*) * 0 FROM opened) ELSE 0 END AS unchanged
""")

LOAD_STARTS = text("""
SELECT r.run_id, r.input, r.snapshot, r.snapshot_position, r.reset, r.reset_at,
       EXISTS (SELECT 1 FROM run_await a WHERE a.run_id = r.run_id AND NOT a.closed) AS awaits,
       EXISTS (SELECT 1 FROM inbox i WHERE i.run_id = r.run_id AND i.await_key IS NOT NULL) AS mail
FROM run r WHERE r.run_id = ANY(CAST(:run_ids AS uuid[]))
""")

# Primary key (run_id, index): a range scan per run. A leg that was given back before anything was fed (end_kind 5)
# told nothing: what the next one finds there is new.
LOAD_EVENTS = text("""
SELECT e.run_id, e.events
FROM unnest(CAST(:run_ids AS uuid[]), CAST(:positions AS bigint[])) AS u(run_id, position)
JOIN run_entry e ON e.run_id = u.run_id AND e.index > u.position AND NOT (e.end_kind = 5 AND e.events = '')
ORDER BY e.run_id, e.index
""")

# Primary key.
LOAD_AWAITS = text("""
SELECT a.run_id, a.key FROM run_await a WHERE a.run_id = ANY(CAST(:run_ids AS uuid[])) AND NOT a.closed
""")

_ROW = """
SELECT r.run_id, r.namespace_id, d.workflow_id, d.version, d.definition_hash, r.group_id, r.state, r.level, r.change,
       r.position, r.leg, r.leg_nonce, r.claimant, r.leg_generation, r.losses, r.cancel_requested, r.trace_id,
       r.request_id, r.created_at, r.started_at, r.wake_at, r.parent_run_id, r.parent_key, r.compensates,
       r.hints, r.placement,
       CASE WHEN r.cancel_requested THEN r.error END AS cancel_error,
       EXISTS (SELECT 1 FROM run_await a WHERE a.run_id = r.run_id) AS has_awaits
FROM run r JOIN workflow_version d USING (definition_id)
"""

# Partial index on group_id of runs in state queued or running.
LOAD_UNFINISHED = text(f"{_ROW} WHERE r.group_id = ANY(CAST(:groups AS int[])) AND r.state IN (1, 2) ORDER BY r.run_id")

LOAD_RUNS = text(f"{_ROW} WHERE r.run_id = ANY(CAST(:run_ids AS uuid[])) ORDER BY r.run_id")


async def open_legs(connection: AsyncConnection, session: OwnerSession, openings: Sequence[LegOpening]) -> datetime:
    """Open the legs in one commit; answers the time. Raises `Fenced`, or a DataError when a row had changed."""
    parameters = session.parameters() | {
        "run_ids": uuids([o.run_id for o in openings]),
        "changes": bigints([o.change for o in openings]),
        "legs": integers([o.leg for o in openings]),
        "nonces": uuids([o.nonce for o in openings]),
        "claimants": texts([o.claimant for o in openings]),
        "generations": bigints([o.generation for o in openings]),
        "expected": len(openings),
    }
    row = await execute_hot(connection, OPEN_LEGS, parameters)
    if row.held == 0:
        raise Fenced(session)
    at: datetime = row.at
    return at


async def load_leg_starts(connection: AsyncConnection, run_ids: Sequence[bytes]) -> dict[bytes, LegStart]:
    """What the next legs of these runs begin from. Read by the owner while nothing of theirs is being folded."""
    ids = [UUID(bytes=r) for r in run_ids]
    rows = (await connection.execute(LOAD_STARTS, {"run_ids": ids})).all()
    starts = {
        r.run_id.bytes: LegStart(b"" if r.snapshot else bytes(r.input or b""), bytes(r.snapshot or b"")) for r in rows
    }
    for r in rows:
        if r.reset and not r.snapshot:  # it was taken back, and no leg has recorded a state since
            start = starts[r.run_id.bytes]
            start.input, start.reset, start.reset_ms = b"", r.reset, int(r.reset_at.timestamp() * 1000)
    events = await connection.execute(
        LOAD_EVENTS, {"run_ids": [r.run_id for r in rows], "positions": [r.snapshot_position for r in rows]}
    )
    for event in events:
        starts[event.run_id.bytes].events.append(bytes(event.events or b""))
    awaiting = [r.run_id for r in rows if r.awaits]
    if awaiting:
        for row in await connection.execute(LOAD_AWAITS, {"run_ids": awaiting}):
            starts[row.run_id.bytes].awaits.append(row.key)
    addressed = [r.run_id.bytes for r in rows if r.mail]
    if addressed:
        for run_id, mail in (await load_mail(connection, addressed)).items():
            starts[run_id].mail = mail
    return starts


def _row(r: Row[tuple[object, ...]]) -> RunRow:
    return RunRow(
        run_id=r.run_id.bytes,
        namespace=r.namespace_id,
        workflow_id=r.workflow_id,
        version=r.version,
        definition_hash=bytes(r.definition_hash),
        group=r.group_id,
        state=r.state,
        level=r.level,
        change=r.change,
        position=r.position,
        leg=r.leg,
        leg_nonce=r.leg_nonce.bytes if r.leg_nonce else None,
        claimant=r.claimant,
        leg_generation=r.leg_generation or 0,
        losses=r.losses,
        cancel_requested=r.cancel_requested,
        trace_id=bytes(r.trace_id or b""),
        request_id=r.request_id or "",
        created_at=r.created_at,
        started_at=r.started_at,
        wake_at=r.wake_at,
        parent_run_id=r.parent_run_id.bytes if r.parent_run_id else None,
        parent_key=r.parent_key,
        has_awaits=r.has_awaits,
        compensates=r.compensates,
        cancel_error=bytes(r.cancel_error or b""),
        hints=QueueHints.from_json(bytes(r.hints)) if r.hints is not None else None,
        placement=Placement.from_json(bytes(r.placement)) if r.placement is not None else None,
    )


async def load_unfinished(connection: AsyncConnection, groups: Sequence[int]) -> list[RunRow]:
    """The queued and running runs of these groups, oldest first; waiting ones stay in PostgreSQL until they are due."""
    rows = await connection.execute(LOAD_UNFINISHED, {"groups": list(groups)})
    return [_row(r) for r in rows]


async def load_runs(connection: AsyncConnection, run_ids: Sequence[bytes]) -> list[RunRow]:
    """These runs, whatever their state; missing ones are left out."""
    rows = await connection.execute(LOAD_RUNS, {"run_ids": [UUID(bytes=r) for r in run_ids]})
    return [_row(r) for r in rows]
