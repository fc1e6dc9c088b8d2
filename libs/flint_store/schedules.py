"""Schedules in the record: which are in force, when they are due, what they started.

A row of `schedule` is the schedule of the latest version of a workflow. It is made, replaced and removed in the
transaction that stores or deletes a version (`sync_schedule`), so it is never that of another one. A schedule has an
id of its own, new with each version, whose shard is made of the workflow's name: the owner of that shard starts its
runs. One of the kind `on` also has a row in `run_await` under that id: events come to its inbox as to that of a run
that listens.

What starts exactly once rests on the request id of the start, which is made of the schedule and the moment (or the
events), and which the row names until the start is known to be stored: `next_fire_at`, or `claimed`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from hashlib import blake2b

import orjson
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from flint_contracts.gen.flint.journal.v1 import journal_pb2
from flint_core.ids import SHARDS, group_of_run, group_of_shard, make_run_id
from flint_core.schedule import Schedule, next_fire
from flint_core.triggers import Trigger
from flint_core.zones import zone_named
from flint_store.arrays import texts, uuids

__all__ = [
    "AWAIT_KEY",
    "Advance",
    "Mail",
    "ScheduleRow",
    "advance",
    "claim",
    "consume",
    "delete_unowned",
    "drop_mail",
    "group_of_workflow",
    "read_claimed",
    "read_mail",
    "read_schedules",
    "spec_of",
    "sync_schedule",
]

AWAIT_KEY = "schedule"
"""Key of a schedule's row in `run_await`."""

_REMEMBERED = 200
"""Keys of consumed events that a schedule of `all` remembers: one of them again is the same event."""


@dataclass(frozen=True, slots=True)
class ScheduleRow:
    """A schedule in force, with what its starts need. `last_state`: of its last run; 0 when there is none."""

    schedule_id: bytes
    namespace: str
    workflow_id: str
    version: str
    definition_id: int
    definition_hash: bytes
    level: int | None
    group: int
    schedule: Schedule
    zone: tzinfo
    since_ms: int
    next_ms: int | None
    last_run_id: bytes | None
    last_state: int
    last_ended_ms: int | None
    claimed: tuple[str, ...]
    consumed: frozenset[str]


@dataclass(frozen=True, slots=True)
class Advance:
    """A step of a schedule, made only while it still stands where it was read (`was_ms`, `was_run_id`)."""

    schedule_id: bytes
    was_ms: int | None
    was_run_id: bytes | None
    next_ms: int | None
    fired_ms: int | None = None  # None: as it was
    run_id: bytes | None = None  # None: as it was


@dataclass(frozen=True, slots=True)
class Mail:
    """An event in the inbox of a schedule."""

    key: str
    content: bytes


# The latest version, and the schedule in force. Primary key of cluster; first entry of workflow_version_latest; unique
# index (namespace_id, workflow_id).
READ_LATEST = text("""
SELECT d.definition_id, d.schedule, s.schedule_id, s.definition_id AS active, c.shard_groups, clock_timestamp() AS at
FROM cluster c
LEFT JOIN LATERAL (
    SELECT v.definition_id, v.schedule FROM workflow_version v
    WHERE v.namespace_id = :namespace AND v.workflow_id = :workflow_id AND v.deleted_at IS NULL
    ORDER BY v.version_sort DESC, v.version DESC LIMIT 1) d ON true
LEFT JOIN schedule s ON s.namespace_id = :namespace AND s.workflow_id = :workflow_id
""")

# The await asks for its closing; its agent removes the subscriptions and the row.
END = text("""
WITH ended AS (DELETE FROM schedule WHERE schedule_id = CAST(:schedule_id AS uuid)),
emptied AS (DELETE FROM inbox WHERE run_id = CAST(:schedule_id AS uuid))
UPDATE run_await SET closed = true, served = false WHERE run_id = CAST(:schedule_id AS uuid) AND NOT closed
""")

BEGIN = text("""
INSERT INTO schedule (schedule_id, namespace_id, workflow_id, definition_id, group_id, kind, since, next_fire_at)
VALUES (CAST(:schedule_id AS uuid), :namespace, :workflow_id, :definition_id, :group, :kind, :at,
        CAST(:next AS timestamptz))
""")

LISTEN = text("""
INSERT INTO run_await (run_id, key, kind, group_id, namespace_id, step, iteration, request, opened_at)
VALUES (CAST(:schedule_id AS uuid), :key, :kind, :group, :namespace, '', '', :request, :at)
""")

# Primary keys.
READ = text("""
SELECT s.schedule_id, s.namespace_id, s.workflow_id, d.version, s.definition_id, d.definition_hash, d.level, s.group_id,
       d.schedule, s.since, s.next_fire_at, s.last_run_id, r.state, r.ended_at, s.claimed, s.consumed
FROM schedule s JOIN workflow_version d ON d.definition_id = s.definition_id
LEFT JOIN run r ON r.run_id = s.last_run_id
WHERE s.schedule_id = ANY(CAST(:schedule_ids AS uuid[]))
""")

# A step that another owner has made already changes nothing.
ADVANCE = text("""
UPDATE schedule s SET next_fire_at = u.next_at, last_fire_at = COALESCE(u.fired_at, s.last_fire_at),
       last_run_id = COALESCE(u.run_id, s.last_run_id)
FROM unnest(CAST(:schedule_ids AS uuid[]), CAST(:was AS timestamptz[]), CAST(:was_runs AS uuid[]),
            CAST(:next AS timestamptz[]), CAST(:fired AS timestamptz[]), CAST(:runs AS uuid[]))
     AS u(schedule_id, was_at, was_run, next_at, fired_at, run_id)
WHERE s.schedule_id = u.schedule_id AND s.next_fire_at IS NOT DISTINCT FROM u.was_at
  AND s.last_run_id IS NOT DISTINCT FROM u.was_run
""")
CONSUME = text(f"""
WITH emptied AS (
    DELETE FROM inbox WHERE run_id = CAST(:schedule_id AS uuid) AND key = ANY(CAST(:keys AS text[])))
UPDATE schedule s SET claimed = NULL, last_fire_at = clock_timestamp(), last_run_id = CAST(:run_id AS uuid),
       consumed = CASE WHEN s.claimed IS NULL THEN s.consumed
                       ELSE (CAST(:keys AS text[]) || s.consumed)[1:{_REMEMBERED}] END
WHERE s.schedule_id = CAST(:schedule_id AS uuid) AND (s.claimed IS NULL OR s.claimed = CAST(:keys AS text[]))
""")

CLAIM = text("""
UPDATE schedule SET claimed = CAST(:keys AS text[]) WHERE schedule_id = CAST(:schedule_id AS uuid) AND claimed IS NULL
RETURNING 1
""")

READ_MAIL = text("""
SELECT i.key, i.payload FROM inbox i WHERE i.run_id = CAST(:schedule_id AS uuid) AND i.await_key IS NOT NULL
ORDER BY i.seq LIMIT :limit
""")

READ_CLAIMED = text("""
SELECT i.key, i.payload FROM inbox i
WHERE i.run_id = CAST(:schedule_id AS uuid) AND i.key = ANY(CAST(:keys AS text[]))
""")

DROP_MAIL = text("DELETE FROM inbox WHERE run_id = CAST(:schedule_id AS uuid) AND key = ANY(CAST(:keys AS text[]))")

# What came for a schedule after its end.
DELETE_UNOWNED = text("""
DELETE FROM inbox i WHERE i.run_id = ANY(CAST(:ids AS uuid[]))
  AND NOT EXISTS (SELECT 1 FROM schedule s WHERE s.schedule_id = i.run_id)
  AND NOT EXISTS (SELECT 1 FROM run r WHERE r.run_id = i.run_id)
""")


def spec_of(program: bytes) -> tuple[bytes | None, int | None]:
    """Schedule (to be stored with the version) and level of an encoded program; None where it names none."""
    try:
        document = orjson.loads(program)
    except orjson.JSONDecodeError:
        return None, None
    if not isinstance(document, dict):
        return None, None
    schedule, level = document.get("schedule"), document.get("level")
    spec = {**schedule, "timezone": document.get("timezone", "")} if isinstance(schedule, dict) else None
    return (orjson.dumps(spec) if spec is not None else None), (level if isinstance(level, int) else None)


def group_of_workflow(namespace: str, workflow_id: str, groups: int) -> int:
    """The shard group whose owner starts the runs of a workflow's schedule."""
    return group_of_shard(_shard(namespace, workflow_id), groups)


async def sync_schedule(connection: AsyncConnection, namespace: str, workflow_id: str) -> None:
    """Make the schedule in force that of the latest version. In the transaction that changed the versions.

    That transaction holds the namespace's row, so it is the only one that does this in the namespace.
    """
    row = (await connection.execute(READ_LATEST, {"namespace": namespace, "workflow_id": workflow_id})).one()
    if row.active is not None and row.active == row.definition_id:
        return
    if row.schedule_id is not None:
        await connection.execute(END, {"schedule_id": row.schedule_id.hex})
    if row.schedule is None:
        return
    schedule, zone = _decode(bytes(row.schedule))
    at_ms = _ms(row.at)
    schedule_id = make_run_id(_shard(namespace, workflow_id), at_ms, os.urandom(9))
    (kind,) = schedule.to_json().keys() & {"every", "cron", "after", "on"}
    group = group_of_run(schedule_id, row.shard_groups)
    common = {"schedule_id": schedule_id.hex(), "namespace": namespace, "group": group, "at": row.at}
    moment = _text(next_fire(schedule, at_ms, zone, at_ms))
    about = {"workflow_id": workflow_id, "definition_id": row.definition_id, "kind": kind, "next": moment}
    await connection.execute(BEGIN, common | about)
    if kind == "on":
        request = orjson.dumps(Trigger(schedule.on).request())
        about = {"key": AWAIT_KEY, "kind": journal_pb2.AwaitOpened.KIND_EVENTS, "request": request}
        await connection.execute(LISTEN, common | about)


async def read_schedules(connection: AsyncConnection, schedule_ids: Iterable[bytes]) -> list[ScheduleRow]:
    """These schedules, as far as they are in force."""
    rows = await connection.execute(READ, {"schedule_ids": uuids(schedule_ids)})
    found = []
    for r in rows:
        schedule, zone = _decode(bytes(r.schedule))
        found.append(
            ScheduleRow(
                schedule_id=r.schedule_id.bytes,
                namespace=r.namespace_id,
                workflow_id=r.workflow_id,
                version=r.version,
                definition_id=r.definition_id,
                definition_hash=bytes(r.definition_hash),
                level=r.level,
                group=r.group_id,
                schedule=schedule,
                zone=zone,
                since_ms=_ms(r.since),
                next_ms=_ms(r.next_fire_at) if r.next_fire_at is not None else None,
                last_run_id=r.last_run_id.bytes if r.last_run_id is not None else None,
                last_state=r.state or 0,
                last_ended_ms=_ms(r.ended_at) if r.ended_at is not None else None,
                claimed=tuple(r.claimed or ()),
                consumed=frozenset(r.consumed),
            )
        )
    return found


async def advance(connection: AsyncConnection, steps: Sequence[Advance]) -> None:
    """Record what schedules have done, by time. Steps that were made before are passed over."""
    await connection.execute(
        ADVANCE,
        {
            "schedule_ids": uuids([s.schedule_id for s in steps]),
            "was": texts([_text(s.was_ms) for s in steps]),
            "was_runs": uuids([s.was_run_id for s in steps]),
            "next": texts([_text(s.next_ms) for s in steps]),
            "fired": texts([_text(s.fired_ms) for s in steps]),
            "runs": uuids([s.run_id for s in steps]),
        },
    )


async def claim(connection: AsyncConnection, schedule_id: bytes, keys: Iterable[str]) -> bool:
    """Note which events the next run has, before it is started. False: others are claimed already."""
    row = await connection.execute(CLAIM, {"schedule_id": schedule_id.hex(), "keys": texts(keys)})
    return row.one_or_none() is not None


async def consume(connection: AsyncConnection, schedule_id: bytes, keys: Iterable[str], run_id: bytes) -> None:
    """The runs that have these events are stored (`run_id` is the last): they are done with, and no longer claimed."""
    await connection.execute(CONSUME, {"schedule_id": schedule_id.hex(), "keys": texts(keys), "run_id": run_id.hex()})


async def read_mail(connection: AsyncConnection, schedule_id: bytes, limit: int) -> list[Mail]:
    """Events that came for a schedule, oldest first."""
    rows = await connection.execute(READ_MAIL, {"schedule_id": schedule_id.hex(), "limit": limit})
    return [Mail(r.key, bytes(r.payload)) for r in rows]


async def read_claimed(connection: AsyncConnection, schedule_id: bytes, keys: Iterable[str]) -> list[Mail]:
    """The events with these keys, in any order."""
    rows = await connection.execute(READ_CLAIMED, {"schedule_id": schedule_id.hex(), "keys": texts(keys)})
    return [Mail(r.key, bytes(r.payload)) for r in rows]


async def drop_mail(connection: AsyncConnection, schedule_id: bytes, keys: Iterable[str]) -> None:
    """Forget events that start nothing."""
    await connection.execute(DROP_MAIL, {"schedule_id": schedule_id.hex(), "keys": texts(keys)})


async def delete_unowned(connection: AsyncConnection, ids: Iterable[bytes]) -> None:
    """Empty inboxes whose schedule has ended; those of runs are left alone."""
    await connection.execute(DELETE_UNOWNED, {"ids": uuids(ids)})


def _shard(namespace: str, workflow_id: str) -> int:
    return int.from_bytes(blake2b(f"{namespace}/{workflow_id}".encode(), digest_size=4).digest()) % SHARDS


def _decode(spec: bytes) -> tuple[Schedule, tzinfo]:
    document = orjson.loads(spec)
    name = document.pop("timezone")
    return Schedule.from_json(document), (zone_named(name) if name else UTC)


def _ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)


def _text(at_ms: int | None) -> str | None:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat() if at_ms is not None else None
