"""Deleting what was kept long enough: ended runs with all that is theirs, and rows that belong to no run.

A batch of runs is one transaction under the session's fence: the runs are locked first, and only then, with a fresh
view, it is asked who needs them; so whoever gives a command to such a run either comes first, and it stays, or finds
none. What belongs to a run is deleted with it or not at all. Payloads are not: their uses go, and what nobody uses any
more is dropped when nobody has named it for `payloads.unused_s` (`payloads.drop_unused`), as if it had been stored now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from flint_store.arrays import uuids
from flint_store.engine import fetch, transaction
from flint_store.fence import FENCE, Fenced, OwnerSession
from flint_store.schedule_names import SCHEDULE_REQUEST_PREFIX

__all__ = [
    "Deleted",
    "Kept",
    "OldRun",
    "RunSource",
    "Summary",
    "delete_runs",
    "delete_unowned",
    "note_pass",
    "old_runs",
    "read_sources",
    "read_summary",
    "sources_with_old_runs",
]

ENDED: Final = "(4, 5, 6)"  # flint.runs.v1.Run.State

READ_SOURCES = text("""
SELECT definition_id, namespace_id, retention_s FROM workflow_version
WHERE definition_id > :after ORDER BY definition_id LIMIT :limit
""")

# One probe of run_definition for each.
SOURCES_WITH_OLD = text("""
SELECT u.definition_id FROM unnest(CAST(:definitions AS bigint[]), CAST(:below AS uuid[])) AS u(definition_id, below)
WHERE EXISTS (SELECT FROM run r WHERE r.definition_id = u.definition_id AND r.run_id < u.below)
""")

# A range of run_definition, from behind the run that was seen last.
OLD_RUNS = text(f"""
SELECT r.run_id, r.position,
       r.group_id = ANY(CAST(:groups AS int[])) AND r.state IN {ENDED}
           AND r.ended_at < clock_timestamp() - make_interval(secs => :keep_s) AS old
FROM run r WHERE r.definition_id = :definition_id AND r.run_id > :after AND r.run_id < :below
ORDER BY r.run_id LIMIT :limit
""")

LOCK_SESSION = text(FENCE)

# Who holds one of them, to change it or to ask something of it, is passed over until the next time.
LOCK_RUNS = text(f"""
SELECT r.run_id FROM run r WHERE r.run_id = ANY(CAST(:run_ids AS uuid[])) AND r.state IN {ENDED}
  AND r.ended_at < clock_timestamp() - make_interval(secs => :keep_s)
ORDER BY r.run_id FOR UPDATE SKIP LOCKED
""")

# A tree stays while one of its runs has not ended, and while its root is younger or is asked for something. Indexes:
# primary keys of run, inbox, run_await; run_tree, run_children, permit_run, schedule_last_run, schedule_backfill_open.
NOT_NEEDED = text(f"""
WITH candidate AS MATERIALIZED (
    SELECT r.run_id, r.request_id, COALESCE(r.root_run_id, r.run_id) AS root_id
    FROM run r WHERE r.run_id = ANY(CAST(:run_ids AS uuid[])) AND NOT r.adopt),
tree AS MATERIALIZED (SELECT DISTINCT root_id FROM candidate),
busy AS MATERIALIZED (
    SELECT t.root_id FROM tree t
    WHERE EXISTS (SELECT FROM run m WHERE m.root_run_id = t.root_id AND m.state NOT IN {ENDED})
       OR EXISTS (SELECT FROM run m WHERE m.run_id = t.root_id AND (
              m.state NOT IN {ENDED} OR m.ended_at >= clock_timestamp() - make_interval(secs => :keep_s)))
       OR EXISTS (SELECT FROM inbox i WHERE i.run_id = t.root_id)),
filling AS MATERIALIZED (SELECT b.schedule_id, b.running FROM schedule_backfill b WHERE b.ended_at IS NULL)
SELECT c.run_id FROM candidate c
WHERE NOT EXISTS (SELECT FROM busy b WHERE b.root_id = c.root_id)
  AND NOT EXISTS (SELECT FROM run m WHERE m.parent_run_id = c.run_id AND m.state NOT IN {ENDED})
  AND NOT EXISTS (SELECT FROM inbox i WHERE i.run_id = c.run_id)
  AND NOT EXISTS (SELECT FROM run_await a WHERE a.run_id = c.run_id)
  AND NOT EXISTS (SELECT FROM permit p WHERE p.run_id = c.run_id)
  AND NOT EXISTS (SELECT FROM schedule s WHERE s.last_run_id = c.run_id)
  AND NOT EXISTS (SELECT FROM workflow_failure f WHERE f.run_id = c.run_id AND NOT f.counted)
  AND NOT EXISTS (SELECT FROM filling f WHERE c.run_id = ANY(f.running)
                  OR starts_with(c.request_id, '{SCHEDULE_REQUEST_PREFIX}')
                     AND split_part(c.request_id, '/', 3) = f.schedule_id::text)
""")

# Payloads are touched in one order, and those that somebody else is touching are left to him.
DELETE_RUNS = text("""
WITH gone AS MATERIALIZED (SELECT unnest(CAST(:run_ids AS uuid[])) AS run_id),
entries AS (DELETE FROM run_entry e USING gone g WHERE e.run_id = g.run_id RETURNING 1),
signals AS (DELETE FROM run_signal s USING gone g WHERE s.run_id = g.run_id RETURNING 1),
requests AS (DELETE FROM command_request q USING gone g WHERE q.run_id = g.run_id RETURNING 1),
subscriptions AS (DELETE FROM event_subscription s USING gone g WHERE s.run_id = g.run_id RETURNING 1),
approvals AS (DELETE FROM approval a USING gone g WHERE a.run_id = g.run_id RETURNING 1),
waits AS (DELETE FROM permit_wait w USING gone g WHERE w.run_id = g.run_id RETURNING 1),
uses AS (DELETE FROM payload_use u USING gone g WHERE u.run_id = g.run_id RETURNING u.namespace_id, u.sha256),
touched AS MATERIALIZED (
    SELECT p.namespace_id, p.sha256 FROM payload p
    WHERE (p.namespace_id, p.sha256) IN (SELECT u.namespace_id, u.sha256 FROM uses u)
    ORDER BY p.namespace_id, p.sha256 FOR NO KEY UPDATE SKIP LOCKED),
renewed AS (
    UPDATE payload p SET touched_at = clock_timestamp() FROM touched t
    WHERE p.namespace_id = t.namespace_id AND p.sha256 = t.sha256 RETURNING 1),
runs AS (DELETE FROM run r USING gone g WHERE r.run_id = g.run_id RETURNING r.namespace_id),
records AS (
    SELECT (SELECT count(*) FROM entries) + (SELECT count(*) FROM signals) + (SELECT count(*) FROM requests)
         + (SELECT count(*) FROM subscriptions) + (SELECT count(*) FROM approvals) + (SELECT count(*) FROM waits)
         + (SELECT count(*) FROM uses) + (SELECT count(*) FROM runs) AS number)
INSERT INTO retention_tally AS t (namespace_id, runs, records, deleted_at)
SELECT r.namespace_id, count(*), (SELECT number FROM records), clock_timestamp() FROM runs r GROUP BY r.namespace_id
ON CONFLICT (namespace_id) DO UPDATE
SET runs = t.runs + excluded.runs, records = t.records + excluded.records, deleted_at = excluded.deleted_at
RETURNING (SELECT count(*) FROM runs) AS runs, (SELECT number FROM records) AS records
""")

# What belongs to a group and to no run that is there. An inbox without a run or a schedule: what was meant for a run
# that was deleted meanwhile.
DELETE_OF_GROUPS = text(f"""
WITH fence AS MATERIALIZED ({FENCE}),
old_jobs AS MATERIALIZED (
    SELECT j.batch_id FROM batch_job j, fence
    WHERE j.group_id = ANY(CAST(:groups AS int[])) AND j.state <> 1
      AND j.ended_at < clock_timestamp() - make_interval(secs => :keep_s) LIMIT :limit),
jobs AS (DELETE FROM batch_job j USING old_jobs o WHERE j.batch_id = o.batch_id RETURNING 1),
old_backfills AS MATERIALIZED (
    SELECT b.backfill_id FROM schedule_backfill b, fence
    WHERE b.group_id = ANY(CAST(:groups AS int[]))
      AND b.ended_at < clock_timestamp() - make_interval(secs => :keep_s) LIMIT :limit),
backfills AS (DELETE FROM schedule_backfill b USING old_backfills o WHERE b.backfill_id = o.backfill_id RETURNING 1),
strays AS MATERIALIZED (
    SELECT i.run_id, i.key FROM inbox i, fence
    WHERE i.group_id = ANY(CAST(:groups AS int[])) AND i.created_at < clock_timestamp() - interval '1 hour'
      AND NOT EXISTS (SELECT FROM run r WHERE r.run_id = i.run_id)
      AND NOT EXISTS (SELECT FROM schedule s WHERE s.schedule_id = i.run_id) LIMIT :limit),
mail AS (DELETE FROM inbox i USING strays s WHERE i.run_id = s.run_id AND i.key = s.key RETURNING 1)
SELECT (SELECT count(*) FROM fence) AS held, (SELECT count(*) FROM jobs) AS jobs,
       (SELECT count(*) FROM backfills) AS backfills, (SELECT count(*) FROM mail) AS mail
""")

# What belongs to the cluster: seen to by the owner of group 0. worker_ended, and rows that are few.
DELETE_OF_CLUSTER = text(f"""
WITH fence AS MATERIALIZED ({FENCE}),
old_workers AS MATERIALIZED (
    SELECT w.incarnation FROM worker w, fence
    WHERE w.ended_at < clock_timestamp() - make_interval(secs => :keep_s) ORDER BY w.ended_at LIMIT :limit),
workers AS (DELETE FROM worker w USING old_workers o WHERE w.incarnation = o.incarnation RETURNING 1),
old_sessions AS MATERIALIZED (
    SELECT s.session_id FROM owner_session s, fence
    WHERE s.ended_at < clock_timestamp() - make_interval(secs => :keep_s)
      AND NOT EXISTS (SELECT FROM shard_group g WHERE g.session_id = s.session_id) LIMIT :limit),
sessions AS (DELETE FROM owner_session s USING old_sessions o WHERE s.session_id = o.session_id RETURNING 1)
SELECT (SELECT count(*) FROM fence) AS held, (SELECT count(*) FROM workers) AS workers,
       (SELECT count(*) FROM sessions) AS sessions
""")

ADD_RECORDS = text("""
INSERT INTO retention_tally AS t (namespace_id, records, deleted_at) VALUES ('', :records, clock_timestamp())
ON CONFLICT (namespace_id) DO UPDATE SET records = t.records + excluded.records, deleted_at = excluded.deleted_at
""")

NOTE_PASS = text(f"""
WITH fence AS MATERIALIZED ({FENCE})
INSERT INTO retention_pass AS p (group_id, ended_at)
SELECT g.group_id, clock_timestamp() FROM fence, shard_group g
WHERE g.group_id = ANY(CAST(:groups AS int[])) AND g.session_id = :session_id ORDER BY g.group_id
ON CONFLICT (group_id) DO UPDATE SET ended_at = excluded.ended_at
RETURNING (SELECT count(*) FROM fence) AS held
""")

# The first of run_namespace; the versions that say something; a row for each group.
SUMMARY = text("""
SELECT coalesce(t.runs, 0) AS runs, coalesce(t.records, 0) AS records, t.deleted_at,
       (SELECT r.created_at FROM run r WHERE r.namespace_id = n.namespace_id ORDER BY r.run_id LIMIT 1) AS oldest_at,
       (SELECT min(p.ended_at) FROM retention_pass p) AS passed_at,
       (SELECT count(*) FROM shard_group g WHERE NOT EXISTS (
            SELECT FROM retention_pass p WHERE p.group_id = g.group_id)) AS never
FROM namespace n LEFT JOIN retention_tally t ON t.namespace_id = n.namespace_id WHERE n.namespace_id = :namespace
""")

WORKFLOWS = text("""
SELECT DISTINCT ON (v.workflow_id) v.workflow_id, v.retention_s FROM workflow_version v
WHERE v.namespace_id = :namespace AND v.deleted_at IS NULL
ORDER BY v.workflow_id, v.version_sort DESC, v.version DESC
""")


@dataclass(frozen=True, slots=True)
class RunSource:
    """One version of a workflow. `retention_s`: what its definition says; None: nothing, 0: for ever."""

    definition_id: int
    namespace: str
    retention_s: int | None


@dataclass(frozen=True, slots=True)
class OldRun:
    """A run that was created long ago. `old`: mine, ended, and kept long enough; whether it is needed is not known."""

    run_id: bytes
    entries: int
    old: bool


@dataclass(frozen=True, slots=True)
class Deleted:
    """What a commit deleted: `runs`, and `records`, all rows together. `by_kind`: rows that are of no run."""

    runs: int = 0
    records: int = 0
    by_kind: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Kept:
    """A workflow whose latest version says how long its runs are kept; 0: for ever."""

    workflow_id: str
    retention_s: int


@dataclass(frozen=True, slots=True)
class Summary:
    """What was deleted of a namespace, and how far the owners are. `passed_at`: the group looked at longest ago."""

    runs: int
    records: int
    deleted_at: datetime | None
    oldest_at: datetime | None
    passed_at: datetime | None
    workflows: list[Kept]


async def read_sources(connection: AsyncConnection, after: int, limit: int) -> list[RunSource]:
    """Versions in the order of their ids, deleted ones too: their runs are still there."""
    rows = await connection.execute(READ_SOURCES, {"after": after, "limit": limit})
    return [RunSource(r.definition_id, r.namespace_id, r.retention_s) for r in rows]


async def sources_with_old_runs(connection: AsyncConnection, below: Mapping[int, bytes]) -> list[int]:
    """Those versions, of `below`, that have a run with a lower id than is given for them."""
    rows = await connection.execute(
        SOURCES_WITH_OLD, {"definitions": list(below), "below": uuids(list(below.values()))}
    )
    return [r.definition_id for r in rows]


async def old_runs(
    connection: AsyncConnection,
    definition_id: int,
    groups: Sequence[int],
    keep_s: float,
    *,
    after: bytes,
    below: bytes,
    limit: int,
) -> list[OldRun]:
    """A page of a version's runs with ids between `after` and `below`."""
    rows = await connection.execute(
        OLD_RUNS,
        {
            "definition_id": definition_id,
            "groups": list(groups),
            "keep_s": keep_s,
            "after": UUID(bytes=after),
            "below": UUID(bytes=below),
            "limit": limit,
        },
    )
    return [OldRun(r.run_id.bytes, r.position, r.old) for r in rows]


async def delete_runs(engine: AsyncEngine, session: OwnerSession, run_ids: Sequence[bytes], keep_s: float) -> Deleted:
    """Delete those of these runs that ended longer than `keep_s` ago and that nothing needs, with all that is theirs.

    In one commit; what is held by others is left for another time. Raises `Fenced`, `StoreUnavailable`.
    """
    async with transaction(engine) as connection:
        if (await connection.execute(LOCK_SESSION, session.parameters())).first() is None:
            raise Fenced(session)
        locked = [
            r.run_id.bytes
            for r in await connection.execute(LOCK_RUNS, {"run_ids": uuids(sorted(run_ids)), "keep_s": keep_s})
        ]
        if not locked:
            return Deleted()
        # A statement of its own: it sees what those have committed who held the rows before.
        unneeded = [
            r.run_id.bytes for r in await connection.execute(NOT_NEEDED, {"run_ids": uuids(locked), "keep_s": keep_s})
        ]
        if not unneeded:
            return Deleted()
        row = (await connection.execute(DELETE_RUNS, {"run_ids": uuids(unneeded)})).first()
        return Deleted(row.runs, row.records) if row is not None else Deleted()


async def delete_unowned(
    engine: AsyncEngine, session: OwnerSession, groups: Sequence[int], keep_s: float, limit: int
) -> Deleted:
    """Delete ended jobs and backfills of my groups; for whoever has group 0, workers and sessions that are gone.

    At most `limit` rows of each kind. Raises `Fenced`, `StoreUnavailable`.
    """
    parameters = session.parameters() | {"keep_s": keep_s, "limit": limit}
    by_kind: dict[str, int] = {}
    async with transaction(engine) as connection:
        row = (await connection.execute(DELETE_OF_GROUPS, parameters | {"groups": list(groups)})).one()
        if row.held == 0:
            raise Fenced(session)
        by_kind |= {"batch_job": row.jobs, "schedule_backfill": row.backfills, "inbox": row.mail}
        if 0 in groups:
            row = (await connection.execute(DELETE_OF_CLUSTER, parameters)).one()
            by_kind |= {"worker": row.workers, "owner_session": row.sessions}
        records = sum(by_kind.values())
        if records:
            await connection.execute(ADD_RECORDS, {"records": records})
    return Deleted(0, records, by_kind)


async def note_pass(connection: AsyncConnection, session: OwnerSession, groups: Sequence[int]) -> None:
    """Note that all old runs of these groups were looked at. Raises `Fenced` when none of them is mine any more."""
    row = (await connection.execute(NOTE_PASS, session.parameters() | {"groups": list(groups)})).first()
    if row is None:
        raise Fenced(session)


async def read_summary(engine: AsyncEngine, namespace: str, limit: int) -> Summary | None:
    """What is known of a namespace; None when there is none. At most `limit` workflows. Raises `StoreUnavailable`."""
    rows = await fetch(engine, SUMMARY, {"namespace": namespace})
    if not rows:
        return None
    versions = await fetch(engine, WORKFLOWS, {"namespace": namespace})
    workflows = [Kept(v.workflow_id, v.retention_s) for v in versions if v.retention_s is not None]
    row = rows[0]
    passed_at = None if row.never else row.passed_at
    return Summary(row.runs, row.records, row.deleted_at, row.oldest_at, passed_at, workflows[:limit])
