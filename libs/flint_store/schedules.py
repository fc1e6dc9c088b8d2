"""Schedules in the record: which are in force, when they are due, what they started.

A row of `schedule` is the schedule of the latest version of a workflow, or an object of its own
(`flint_store.schedule_objects`). The former is made, replaced and removed in the transaction that stores or deletes a
version (`sync_schedule`), so it is never that of another one. A schedule has an id of its own, that of a definition a
new one with each version, whose shard is made of its name: the owner of that shard starts its runs. One of the kind
`on` also has a row in `run_await` under that id (`flint_store.schedule_mail`).

What starts exactly once rests on the request id of the start, which is made of the schedule and the moment (or the
events), and which the row names until the start is known to be stored: `next_fire_at`, or `claimed`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from hashlib import blake2b
from typing import Any

import orjson
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from flint_contracts.gen.flint.journal.v1 import journal_pb2
from flint_core.ids import SHARDS, group_of_run, group_of_shard, make_run_id
from flint_core.schedule import Schedule, jittered, next_fire
from flint_core.triggers import Trigger
from flint_core.zones import zone_named
from flint_store.arrays import integers, texts, uuids
from flint_store.errors import CalendarNotFound

__all__ = [
    "AWAIT_KEY",
    "Advance",
    "ScheduleRow",
    "advance",
    "check_calendars",
    "decode_spec",
    "first_look",
    "group_of_workflow",
    "moment_ms",
    "moment_text",
    "new_schedule_id",
    "read_schedules",
    "spec_of",
    "sync_schedule",
]

AWAIT_KEY = "schedule"
"""Key of a schedule's row in `run_await`."""


@dataclass(frozen=True, slots=True)
class ScheduleRow:
    """A schedule in force, with what its starts need.

    `handle`: its name in the namespace (the workflow's, or '@' and its own). `queue`: what the definition
    says of how its runs queue. `definition_id`: 0 when there is no such
    version of the workflow. `next_ms`: when it is to be looked at, for the time `nominal_ms`. `held_ms`: a time that
    waits for the end of the last run. `last_state`: of its last run; 0 when there is none. `filling`: it has backfills.
    """

    schedule_id: bytes
    namespace: str
    handle: str
    workflow_id: str
    version: str
    definition_id: int
    definition_hash: bytes
    level: int | None
    queue: dict[str, Any] | None
    group: int
    schedule: Schedule
    zone: tzinfo
    since_ms: int
    next_ms: int | None
    nominal_ms: int | None
    held_ms: int | None
    paused: bool
    revision: int
    started: int
    input: bytes
    calendars: tuple[str, ...]
    filling: bool
    last_run_id: bytes | None
    last_state: int
    last_ended_ms: int | None
    claimed: tuple[str, ...]
    consumed: frozenset[str]


@dataclass(frozen=True, slots=True)
class Advance:
    """A step of a schedule, made only while it still stands where it was read (the members of `was`).

    What people changed meanwhile stays: then the step notes only the run that it has started. The numbers are of times.
    """

    was: ScheduleRow
    next_ms: int | None
    nominal_ms: int | None = None  # None: `next_ms`
    held_ms: int | None = None
    fired_ms: int | None = None  # None: as it was
    run_id: bytes | None = None  # None: as it was
    started: int = 0
    skipped: int = 0
    missed: int = 0
    excluded: int = 0
    refused: int = 0
    error: str | None = None  # None: as it was


# The latest version, and the schedule in force. Primary key of cluster; first entry of workflow_version_latest; unique
# index (namespace_id, workflow_id).
READ_LATEST = text("""
SELECT d.definition_id, d.schedule, s.schedule_id, s.definition_id AS active, c.shard_groups, clock_timestamp() AS at,
       s.paused_at, s.pause_note, s.paused_by, s.resumed_seq
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
emptied AS (DELETE FROM inbox WHERE run_id = CAST(:schedule_id AS uuid)),
unfilled AS (DELETE FROM schedule_backfill WHERE schedule_id = CAST(:schedule_id AS uuid))
UPDATE run_await SET closed = true, served = false WHERE run_id = CAST(:schedule_id AS uuid) AND NOT closed
""")

BEGIN = text("""
INSERT INTO schedule (schedule_id, namespace_id, workflow_id, definition_id, group_id, kind, since, next_fire_at,
                      nominal_at, calendars, paused_at, pause_note, paused_by, resumed_seq)
VALUES (CAST(:schedule_id AS uuid), :namespace, :workflow_id, :definition_id, :group, :kind, :at,
        CAST(:next AS timestamptz), CAST(:nominal AS timestamptz), CAST(:calendars AS text[]), :paused_at, :pause_note,
        :paused_by, :resumed_seq)
""")

# Primary key of schedule_calendar. Whoever deletes one holds the namespace's row, too.
MISSING_CALENDARS = text("""
SELECT u.name FROM unnest(CAST(:calendars AS text[])) AS u(name)
WHERE NOT EXISTS (SELECT FROM schedule_calendar c WHERE c.namespace_id = :namespace AND c.calendar_id = u.name)
""")

LISTEN = text("""
INSERT INTO run_await (run_id, key, kind, group_id, namespace_id, step, iteration, request, opened_at)
VALUES (CAST(:schedule_id AS uuid), :key, :kind, :group, :namespace, '', '', :request, :at)
""")

# Primary keys; first entry of workflow_version_latest (or workflow_version_name) for an object of its own;
# schedule_backfill_latest.
READ = text("""
SELECT s.schedule_id, s.namespace_id, s.workflow_id AS handle, coalesce(s.target, s.workflow_id) AS workflow_id,
       d.version, d.definition_id, d.definition_hash, coalesce(s.level, d.level) AS level, d.queue, s.group_id,
       coalesce(s.spec, d.schedule) AS schedule, s.since, s.next_fire_at, s.nominal_at, s.held_at,
       s.paused_at IS NOT NULL AS paused, s.revision, s.started, s.input, s.calendars, s.last_run_id, r.state,
       r.ended_at, s.claimed, s.consumed,
       EXISTS (SELECT FROM schedule_backfill b WHERE b.schedule_id = s.schedule_id AND b.ended_at IS NULL) AS filling
FROM schedule s
LEFT JOIN LATERAL (
    (SELECT v.definition_id, v.version, v.definition_hash, v.level, v.queue, v.schedule FROM workflow_version v
     WHERE s.target IS NULL AND v.definition_id = s.definition_id)
    UNION ALL
    (SELECT v.definition_id, v.version, v.definition_hash, v.level, v.queue, NULL FROM workflow_version v
     WHERE s.target IS NOT NULL AND v.namespace_id = s.namespace_id AND v.workflow_id = s.target
       AND v.deleted_at IS NULL AND (s.target_version = '' OR v.version = s.target_version)
     ORDER BY v.version_sort DESC, v.version DESC LIMIT 1)) d ON true
LEFT JOIN run r ON r.run_id = s.last_run_id
WHERE s.schedule_id = ANY(CAST(:schedule_ids AS uuid[]))
""")

# A step that another owner has made already changes nothing: it has moved the row on, or named the run.
ADVANCE = text("""
UPDATE schedule s SET
    next_fire_at = CASE WHEN m.moves THEN u.next_at ELSE s.next_fire_at END,
    nominal_at = CASE WHEN m.moves THEN u.nominal_at ELSE s.nominal_at END,
    held_at = CASE WHEN s.held_at IS NOT DISTINCT FROM u.was_held THEN u.held_at ELSE s.held_at END,
    last_fire_at = COALESCE(u.fired_at, s.last_fire_at), last_run_id = COALESCE(u.run_id, s.last_run_id),
    started = s.started + u.started, skipped = s.skipped + u.skipped, missed = s.missed + u.missed,
    excluded = s.excluded + u.excluded, refused = s.refused + u.refused, last_error = COALESCE(u.error, s.last_error)
FROM unnest(CAST(:schedule_ids AS uuid[]), CAST(:was AS timestamptz[]), CAST(:was_held AS timestamptz[]),
            CAST(:was_runs AS uuid[]), CAST(:revisions AS bigint[]), CAST(:next AS timestamptz[]),
            CAST(:nominal AS timestamptz[]), CAST(:held AS timestamptz[]), CAST(:fired AS timestamptz[]),
            CAST(:runs AS uuid[]), CAST(:started AS bigint[]), CAST(:skipped AS bigint[]), CAST(:missed AS bigint[]),
            CAST(:excluded AS bigint[]), CAST(:refused AS bigint[]), CAST(:errors AS text[]))
     AS u(schedule_id, was_at, was_held, was_run, revision, next_at, nominal_at, held_at, fired_at, run_id, started,
          skipped, missed, excluded, refused, error)
JOIN schedule o ON o.schedule_id = u.schedule_id
CROSS JOIN LATERAL (SELECT o.next_fire_at IS NOT DISTINCT FROM u.was_at AND o.revision = u.revision AS moves) m
WHERE s.schedule_id = u.schedule_id AND s.last_run_id IS NOT DISTINCT FROM u.was_run
  AND s.next_fire_at IS NOT DISTINCT FROM o.next_fire_at AND s.revision = o.revision
  AND (m.moves OR (u.run_id IS NOT NULL AND u.run_id IS DISTINCT FROM u.was_run))
RETURNING s.schedule_id, m.moves
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

    That transaction holds the namespace's row, so it is the only one that does this in the namespace. A pause outlives
    the version. Raises `CalendarNotFound`.
    """
    row = (await connection.execute(READ_LATEST, {"namespace": namespace, "workflow_id": workflow_id})).one()
    if row.active is not None and row.active == row.definition_id:
        return
    if row.schedule_id is not None:
        await connection.execute(END, {"schedule_id": row.schedule_id.hex})
    if row.schedule is None:
        return
    schedule, zone = decode_spec(bytes(row.schedule))
    await check_calendars(connection, namespace, schedule)
    at_ms = moment_ms(row.at)
    schedule_id, group = new_schedule_id(namespace, workflow_id, at_ms, row.shard_groups)
    common = {"schedule_id": schedule_id.hex(), "namespace": namespace, "group": group, "at": row.at}
    following = first_look(schedule, zone, f"{namespace}/{workflow_id}", at_ms, at_ms) if not row.paused_at else None
    about = {
        "workflow_id": workflow_id,
        "definition_id": row.definition_id,
        "kind": schedule.kind,
        "next": moment_text(following[0]) if following else None,
        "nominal": moment_text(following[1]) if following else None,
        "calendars": texts(schedule.calendars or ()),
        "paused_at": row.paused_at,
        "pause_note": row.pause_note,
        "paused_by": row.paused_by,
        # What came before the pause was for the version before: a subscription begins a little earlier than its own.
        "resumed_seq": row.resumed_seq,
    }
    await connection.execute(BEGIN, common | about)
    if schedule.kind == "on":
        request = orjson.dumps(Trigger(schedule.on).request())
        listen = {"key": AWAIT_KEY, "kind": journal_pb2.AwaitOpened.KIND_EVENTS, "request": request}
        await connection.execute(LISTEN, common | listen)


async def check_calendars(connection: AsyncConnection, namespace: str, schedule: Schedule) -> None:
    """Raises `CalendarNotFound` when the schedule names one that is not there. Within a transaction that holds the
    namespace's row.
    """
    if schedule.calendars:
        asked = {"namespace": namespace, "calendars": texts(schedule.calendars)}
        missing = (await connection.execute(MISSING_CALENDARS, asked)).scalars().all()
        if missing:
            raise CalendarNotFound(f"there is no calendar {missing[0]!r}, which the schedule excludes")


async def read_schedules(connection: AsyncConnection, schedule_ids: Iterable[bytes]) -> list[ScheduleRow]:
    """These schedules, as far as they are in force."""
    rows = await connection.execute(READ, {"schedule_ids": uuids(schedule_ids)})
    found = []
    for r in rows:
        if r.schedule is None:
            continue
        schedule, zone = decode_spec(bytes(r.schedule))
        next_ms = moment_ms(r.next_fire_at) if r.next_fire_at is not None else None
        found.append(
            ScheduleRow(
                schedule_id=r.schedule_id.bytes,
                namespace=r.namespace_id,
                handle=r.handle,
                workflow_id=r.workflow_id,
                version=r.version or "",
                definition_id=r.definition_id or 0,
                definition_hash=bytes(r.definition_hash or b""),
                level=r.level,
                queue=orjson.loads(bytes(r.queue)) if r.queue is not None else None,
                group=r.group_id,
                schedule=schedule,
                zone=zone,
                since_ms=moment_ms(r.since),
                next_ms=next_ms,
                nominal_ms=moment_ms(r.nominal_at) if r.nominal_at is not None else next_ms,
                held_ms=moment_ms(r.held_at) if r.held_at is not None else None,
                paused=r.paused,
                revision=r.revision,
                started=r.started,
                input=bytes(r.input or b"{}"),
                calendars=tuple(r.calendars),
                filling=r.filling,
                last_run_id=r.last_run_id.bytes if r.last_run_id is not None else None,
                last_state=r.state or 0,
                last_ended_ms=moment_ms(r.ended_at) if r.ended_at is not None else None,
                claimed=tuple(r.claimed or ()),
                consumed=frozenset(r.consumed),
            )
        )
    return found


async def advance(connection: AsyncConnection, steps: Sequence[Advance]) -> set[bytes]:
    """Record what schedules have done, by time; at most one step of each. Answers those that stand where their step
    says; others were moved or changed by somebody else meanwhile.
    """
    rows = await connection.execute(
        ADVANCE,
        {
            "schedule_ids": uuids([s.was.schedule_id for s in steps]),
            "was": texts([moment_text(s.was.next_ms) for s in steps]),
            "was_held": texts([moment_text(s.was.held_ms) for s in steps]),
            "was_runs": uuids([s.was.last_run_id for s in steps]),
            "revisions": integers([s.was.revision for s in steps]),
            "next": texts([moment_text(s.next_ms) for s in steps]),
            "nominal": texts([moment_text(s.nominal_ms) for s in steps]),
            "held": texts([moment_text(s.held_ms) for s in steps]),
            "fired": texts([moment_text(s.fired_ms) for s in steps]),
            "runs": uuids([s.run_id for s in steps]),
            "started": integers([s.started for s in steps]),
            "skipped": integers([s.skipped for s in steps]),
            "missed": integers([s.missed for s in steps]),
            "excluded": integers([s.excluded for s in steps]),
            "refused": integers([s.refused for s in steps]),
            "errors": texts([s.error for s in steps]),
        },
    )
    return {r.schedule_id.bytes for r in rows if r.moves}


def first_look(schedule: Schedule, zone: tzinfo, key: str, after_ms: int, since_ms: int) -> tuple[int, int] | None:
    """When the schedule is to be looked at for its next time after a moment, and that time; None: it has none."""
    nominal = next_fire(schedule, after_ms, zone, since_ms)
    if nominal is None:
        return None
    following = None
    if schedule.jitter_ms and schedule.after is None:
        following = next_fire(schedule, nominal, zone, since_ms)
    return jittered(schedule, key, nominal, following), nominal


def new_schedule_id(namespace: str, handle: str, at_ms: int, groups: int) -> tuple[bytes, int]:
    """A new id for the schedule with this name, and its shard group."""
    schedule_id = make_run_id(_shard(namespace, handle), at_ms, os.urandom(9))
    return schedule_id, group_of_run(schedule_id, groups)


def decode_spec(spec: bytes) -> tuple[Schedule, tzinfo]:
    """A stored schedule, and its zone."""
    document = orjson.loads(spec)
    name = document.pop("timezone")
    return Schedule.from_json(document), (zone_named(name) if name else UTC)


def moment_ms(at: datetime) -> int:
    """Unix epoch, ms."""
    return round(at.timestamp() * 1000)


def moment_text(at_ms: int | None) -> str | None:
    """As PostgreSQL reads it."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat() if at_ms is not None else None


def _shard(namespace: str, handle: str) -> int:
    return int.from_bytes(blake2b(f"{namespace}/{handle}".encode(), digest_size=4).digest()) % SHARDS
