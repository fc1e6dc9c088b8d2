"""Which requests have changed a run already: the memory that makes a repeated command one command.

A row is claimed by the transaction that stores the command, before it judges anything. So of several calls with one id
the later wait for the first, and then find what it did, or nothing when it was refused or lost. Rows go with their run,
and by age (`delete_old_requests`): a repeat that comes later than that is judged anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from flint_store.arrays import integers, uuids
from flint_store.engine import transaction
from flint_store.fence import FENCE, Fenced, OwnerSession

__all__ = ["DoneBefore", "claim_requests", "delete_old_requests", "drop_requests", "note_kept"]


@dataclass(frozen=True, slots=True)
class DoneBefore:
    """A request that a run has taken before. `same`: with the same content. `kept`: what its reset answered."""

    same: bool
    kept: int


# Whoever inserted the same key and has not committed yet is waited for.
CLAIM = text("""
INSERT INTO command_request (run_id, request_id, digest)
SELECT u.run_id, :request_id, :digest FROM unnest(CAST(:run_ids AS uuid[])) AS u(run_id) ORDER BY u.run_id
ON CONFLICT (run_id, request_id) DO NOTHING RETURNING run_id
""")
KNOWN = text("""
SELECT run_id, digest = :digest AS same, kept FROM command_request
WHERE run_id = ANY(CAST(:run_ids AS uuid[])) AND request_id = :request_id
""")
NOTE = text("""
UPDATE command_request q SET kept = u.kept
FROM unnest(CAST(:run_ids AS uuid[]), CAST(:kept AS bigint[])) AS u(run_id, kept)
WHERE q.run_id = u.run_id AND q.request_id = :request_id
""")
DROP = text("""
DELETE FROM command_request WHERE run_id = ANY(CAST(:run_ids AS uuid[])) AND request_id = :request_id
""")
DELETE_OLD = text(f"""
WITH fence AS MATERIALIZED ({FENCE}),
old AS MATERIALIZED (
    SELECT q.run_id, q.request_id FROM command_request q, fence
    WHERE q.created_at < clock_timestamp() - make_interval(secs => :keep_s)
    ORDER BY q.created_at LIMIT :limit),
gone AS (
    DELETE FROM command_request q USING old o WHERE q.run_id = o.run_id AND q.request_id = o.request_id RETURNING 1)
SELECT (SELECT count(*) FROM fence) AS held, (SELECT count(*) FROM gone) AS rows
""")


async def claim_requests(
    connection: AsyncConnection, run_ids: Sequence[bytes], request_id: str, digest: bytes
) -> dict[bytes, DoneBefore]:
    """Claim the id for these runs; answers those that took it before. Within the transaction that holds the runs."""
    wanted = sorted(run_ids)
    parameters = {"run_ids": uuids(wanted), "request_id": request_id, "digest": digest}
    claimed = {row.run_id.bytes for row in await connection.execute(CLAIM, parameters)}
    before = [run_id for run_id in wanted if run_id not in claimed]
    if not before:
        return {}
    # A statement of its own: it sees what those have committed who were waited for.
    rows = await connection.execute(KNOWN, parameters | {"run_ids": uuids(before)})
    return {row.run_id.bytes: DoneBefore(bool(row.same), row.kept) for row in rows}


async def note_kept(connection: AsyncConnection, request_id: str, kept: Mapping[bytes, int]) -> None:
    """What the resets of this request answered."""
    parameters = {"run_ids": uuids(list(kept)), "kept": integers(list(kept.values())), "request_id": request_id}
    await connection.execute(NOTE, parameters)


async def drop_requests(connection: AsyncConnection, run_ids: Sequence[bytes], request_id: str) -> None:
    """These runs refused it: nothing was done, and a repeat is judged anew."""
    await connection.execute(DROP, {"run_ids": uuids(run_ids), "request_id": request_id})


async def delete_old_requests(engine: AsyncEngine, session: OwnerSession, keep_s: float, limit: int) -> int:
    """Delete at most `limit` requests older than this; answers how many. Raises `Fenced`, `StoreUnavailable`."""
    async with transaction(engine) as connection:
        row = (await connection.execute(DELETE_OLD, session.parameters() | {"keep_s": keep_s, "limit": limit})).one()
        if row.held == 0:
            raise Fenced(session)
        return int(row.rows)
