"""The owner's sweep and the inbox (R0, R7): the one small query that an idle scheduler makes.

It is fenced, so an idle owner learns from it that another replica took over; and it finds what a lost nudge left
behind: runs that another replica accepted, rows in inboxes, waits and schedules that will be due soon. Due times are
PostgreSQL's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from flint_store.fence import FENCE, Fenced, OwnerSession

__all__ = ["Sweep", "put_inbox", "read_inbox", "sweep"]


@dataclass(frozen=True, slots=True)
class Sweep:
    """What needs the owner's attention; at most `limit` of each kind, the rest comes with the next sweep."""

    at: datetime
    accepted: list[bytes]
    inbox: list[bytes]
    due: list[tuple[bytes, int]]  # run, due time in milliseconds since the Unix epoch
    awaits: list[bytes]  # runs with awaits that are not served
    schedules: list[tuple[bytes, int]] = field(default_factory=list)  # schedule, when to look at it (as `due`)
    after: list[bytes] = field(default_factory=list)  # ended runs whose permits stay until their legs are over
    backfills: list[bytes] = field(default_factory=list)  # schedules with backfills under way


# Partial indexes run(group_id) WHERE adopt, run(group_id, wake_at) WHERE wake_at IS NOT NULL, run_await(group_id,
# run_id) WHERE NOT served, inbox(group_id, run_id), schedule_due, schedule_after and schedule_held with the run's
# primary key, schedule_backfill_open, and permit_after.
SWEEP = text(f"""
WITH fence AS MATERIALIZED ({FENCE})
SELECT 0 AS kind, NULL::uuid AS run_id, clock_timestamp() AS at FROM fence
UNION ALL (SELECT 1, r.run_id, NULL FROM fence, run r
           WHERE r.group_id = ANY(CAST(:groups AS int[])) AND r.adopt LIMIT :limit)
UNION ALL (SELECT DISTINCT 2, i.run_id, NULL::timestamptz FROM fence, inbox i
           WHERE i.group_id = ANY(CAST(:groups AS int[])) LIMIT :limit)
UNION ALL (SELECT 3, r.run_id, r.wake_at FROM fence, run r
           WHERE r.group_id = ANY(CAST(:groups AS int[])) AND r.wake_at IS NOT NULL
             AND r.wake_at <= clock_timestamp() + make_interval(secs => :horizon_s)
           ORDER BY r.wake_at LIMIT :limit)
UNION ALL (SELECT DISTINCT 4, a.run_id, NULL::timestamptz FROM fence, run_await a
           WHERE a.group_id = ANY(CAST(:groups AS int[])) AND NOT a.served LIMIT :limit)
UNION ALL (SELECT 5, s.schedule_id, s.next_fire_at FROM fence, schedule s
           WHERE s.group_id = ANY(CAST(:groups AS int[])) AND s.next_fire_at IS NOT NULL
             AND s.next_fire_at <= clock_timestamp() + make_interval(secs => :horizon_s)
           ORDER BY s.next_fire_at LIMIT :limit)
UNION ALL (SELECT 5, s.schedule_id, r.ended_at FROM fence, schedule s JOIN run r ON r.run_id = s.last_run_id
           WHERE s.group_id = ANY(CAST(:groups AS int[])) AND s.kind = 'after' AND s.next_fire_at IS NULL
             AND s.paused_at IS NULL AND r.ended_at IS NOT NULL LIMIT :limit)
UNION ALL (SELECT 5, s.schedule_id, coalesce(r.ended_at, s.held_at)
           FROM fence, schedule s LEFT JOIN run r ON r.run_id = s.last_run_id
           WHERE s.group_id = ANY(CAST(:groups AS int[])) AND s.held_at IS NOT NULL AND s.paused_at IS NULL
             AND (s.last_run_id IS NULL OR r.ended_at IS NOT NULL) LIMIT :limit)
UNION ALL (SELECT DISTINCT 7, b.schedule_id, NULL::timestamptz FROM fence, schedule_backfill b
           WHERE b.group_id = ANY(CAST(:groups AS int[])) AND b.ended_at IS NULL LIMIT :limit)
UNION ALL (SELECT DISTINCT 6, p.run_id, NULL::timestamptz FROM fence, permit p
           WHERE p.group_id = ANY(CAST(:groups AS int[])) AND p.claimant IS NOT NULL LIMIT :limit)
""")

# The unique key makes a repeated request one row. Runs that have ended get none. Row order: as asked.
PUT_INBOX = text("""
WITH target AS (
    SELECT r.run_id, r.group_id, r.state FROM run r
    WHERE r.run_id = ANY(CAST(:run_ids AS uuid[])) AND r.namespace_id = :namespace),
put AS (
    INSERT INTO inbox (run_id, key, group_id, kind, payload, created_at)
    SELECT t.run_id, :key, t.group_id, :kind, :payload, clock_timestamp() FROM target t WHERE t.state NOT IN (4, 5, 6)
    ON CONFLICT (run_id, key) DO NOTHING RETURNING run_id)
SELECT t.run_id, t.group_id, t.state FROM target t
""")

# What is asked of a run, and whether messages wait for it; those are read by `mail`, as far as a leg takes them.
READ_INBOX = text("""
SELECT i.run_id, i.kind, i.payload FROM inbox i
WHERE i.run_id = ANY(CAST(:run_ids AS uuid[])) AND i.await_key IS NULL
UNION ALL
SELECT u.run_id, 'message', ''::bytea FROM unnest(CAST(:run_ids AS uuid[])) AS u(run_id)
WHERE EXISTS (SELECT 1 FROM inbox i WHERE i.run_id = u.run_id AND i.await_key IS NOT NULL)
""")

DELETE_INBOX = text("DELETE FROM inbox WHERE run_id = ANY(CAST(:run_ids AS uuid[]))")


async def sweep(
    connection: AsyncConnection, session: OwnerSession, groups: Sequence[int], horizon_s: float, limit: int
) -> Sweep:
    """Find what needs attention in my groups. Raises `Fenced` when my session has ended."""
    rows = (
        await connection.execute(
            SWEEP, session.parameters() | {"groups": list(groups), "horizon_s": horizon_s, "limit": limit}
        )
    ).all()
    if not rows:
        raise Fenced(session)
    accepted: list[bytes] = []
    inbox: list[bytes] = []
    due: list[tuple[bytes, int]] = []
    awaits: list[bytes] = []
    schedules: list[tuple[bytes, int]] = []
    after: list[bytes] = []
    backfills: list[bytes] = []
    at: datetime | None = None
    for row in rows:
        match row.kind:
            case 0:
                at = row.at
            case 1:
                accepted.append(row.run_id.bytes)
            case 2:
                inbox.append(row.run_id.bytes)
            case 3:
                due.append((row.run_id.bytes, int(row.at.timestamp() * 1000)))
            case 4:
                awaits.append(row.run_id.bytes)
            case 6:
                after.append(row.run_id.bytes)
            case 5:
                schedules.append((row.run_id.bytes, int(row.at.timestamp() * 1000)))
            case _:
                backfills.append(row.run_id.bytes)
    if at is None:
        raise Fenced(session)
    return Sweep(at, accepted, inbox, due, awaits, schedules, after, backfills)


async def put_inbox(
    connection: AsyncConnection, namespace: str, run_ids: Sequence[bytes], kind: str, key: str, payload: bytes
) -> dict[bytes, tuple[int, int]]:
    """Put one row into the inbox of each run that has not ended; answers (group, state before) of those that exist."""
    rows = await connection.execute(
        PUT_INBOX,
        {
            "namespace": namespace,
            "run_ids": [UUID(bytes=r) for r in run_ids],
            "kind": kind,
            "key": key,
            "payload": payload,
        },
    )
    return {r.run_id.bytes: (r.group_id, r.state) for r in rows}


async def read_inbox(connection: AsyncConnection, run_ids: Sequence[bytes]) -> dict[bytes, list[tuple[str, bytes]]]:
    """(kind, payload) of what is asked of these runs, and ("message", empty) for those that have messages."""
    rows = await connection.execute(READ_INBOX, {"run_ids": [UUID(bytes=r) for r in run_ids]})
    found: dict[bytes, list[tuple[str, bytes]]] = {}
    for row in rows:
        found.setdefault(row.run_id.bytes, []).append((row.kind, bytes(row.payload or b"")))
    return found


async def delete_inbox(connection: AsyncConnection, run_ids: Sequence[bytes]) -> None:
    """Drop the rows of runs that have ended."""
    await connection.execute(DELETE_INBOX, {"run_ids": [UUID(bytes=r) for r in run_ids]})
