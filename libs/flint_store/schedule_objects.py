"""Schedules as people see and steer them: those that are objects of their own, and those of definitions.

An object is a row of `schedule` whose `workflow_id` is '@' and its name: no workflow has such an id. Every change holds
the namespace's row and raises `revision`, so that a step which the owner is making at that moment does not undo it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_contracts.gen.flint.schedules.v1 import schedules_pb2 as pb
from flint_contracts.schedules import spec_message
from flint_core.schedule import Schedule
from flint_store.arrays import texts
from flint_store.engine import fetch, transaction
from flint_store.errors import ScheduleConflict, ScheduleNotFound, WorkflowNotFound
from flint_store.schedule_calendars import HOLD_NAMESPACE
from flint_store.schedule_names import requests_by_time, scheduled_at
from flint_store.schedules import (
    check_calendars,
    decode_spec,
    first_look,
    moment_ms,
    moment_text,
    new_schedule_id,
)
from flint_store.timestamps import set_timestamp

__all__ = [
    "NewSchedule",
    "create_schedule",
    "delete_schedule",
    "handle_of",
    "last_runs",
    "list_schedules",
    "message_of",
    "pause_schedule",
    "read_schedule",
    "resume_schedule",
    "runs_kind",
    "update_schedule",
]

_OF_DEFINITION = "workflow."
_RUNS = 10


@dataclass(frozen=True, slots=True)
class NewSchedule:
    """What a schedule of its own says. `spec`: flint_core's Schedule as JSON with `timezone`."""

    namespace: str
    name: str
    workflow_id: str
    version: str
    spec: bytes
    input: bytes
    level: int | None
    description: str


_COLUMNS = """
SELECT s.schedule_id, s.namespace_id, s.workflow_id, s.target, s.target_version, s.definition_id, s.group_id, s.kind,
       coalesce(s.spec, d.schedule) AS schedule, s.input, s.level, coalesce(s.description, '') AS description, s.since,
       s.next_fire_at, s.nominal_at, s.last_fire_at, s.held_at, s.paused_at, coalesce(s.pause_note, '') AS pause_note,
       coalesce(s.paused_by, '') AS paused_by, s.revision, s.started, s.skipped, s.missed, s.excluded, s.refused,
       coalesce(s.last_error, '') AS last_error, s.last_run_id
FROM schedule s LEFT JOIN workflow_version d ON s.target IS NULL AND d.definition_id = s.definition_id
"""

# The unique index (namespace_id, workflow_id).
READ = text(f"{_COLUMNS} WHERE s.namespace_id = :namespace AND s.workflow_id = :handle")
LOCK = text("SELECT 1 FROM schedule WHERE namespace_id = :namespace AND workflow_id = :handle FOR UPDATE")

# The same index; a namespace has as many rows as schedules. The order is that of the ids that people see.
LIST = text(f"""
SELECT * FROM ({_COLUMNS}
    WHERE s.namespace_id = :namespace
      AND (CAST(:workflow AS text) = '' OR coalesce(s.target, s.workflow_id) = :workflow)) l
WHERE (CASE WHEN l.target IS NULL THEN 'workflow.' || l.workflow_id ELSE substr(l.workflow_id, 2) END)
      COLLATE "C" > :after
ORDER BY (CASE WHEN l.target IS NULL THEN 'workflow.' || l.workflow_id ELSE substr(l.workflow_id, 2) END) COLLATE "C"
LIMIT :limit
""")

WORKFLOW_EXISTS = text("""
SELECT c.shard_groups, clock_timestamp() AS at, EXISTS (
    SELECT FROM workflow_version v WHERE v.namespace_id = :namespace AND v.workflow_id = :workflow
      AND v.deleted_at IS NULL AND (:version = '' OR v.version = :version)) AS known
FROM cluster c
""")

CREATE = text("""
INSERT INTO schedule (schedule_id, namespace_id, workflow_id, definition_id, group_id, kind, since, next_fire_at,
                      nominal_at, target, target_version, spec, input, level, description, calendars, paused_at,
                      paused_by)
VALUES (CAST(:schedule_id AS uuid), :namespace, :handle, 0, :group, :kind, :at, CAST(:next AS timestamptz),
        CAST(:nominal AS timestamptz), :target, :version, :spec, :input, CAST(:level AS smallint), :description,
        CAST(:calendars AS text[]), CASE WHEN :paused THEN CAST(:at AS timestamptz) END, CAST(:by AS text))
""")

UPDATE = text("""
UPDATE schedule SET kind = :kind, next_fire_at = CAST(:next AS timestamptz), nominal_at = CAST(:nominal AS timestamptz),
       held_at = NULL, target = :target, target_version = :version, spec = :spec, input = :input,
       level = CAST(:level AS smallint), description = :description, calendars = CAST(:calendars AS text[]),
       revision = revision + 1, last_error = NULL
WHERE namespace_id = :namespace AND workflow_id = :handle
""")

# Numbers of events are given by one sequence: whatever is stored from now on has a higher one than it tells.
_LAST_EVENT = "(SELECT CASE WHEN q.is_called THEN q.last_value ELSE 0 END FROM event_seq_seq q)"
PAUSE = text(f"""
UPDATE schedule SET paused_at = coalesce(paused_at, clock_timestamp()), pause_note = :note, paused_by = :by,
       paused_seq = CASE WHEN kind <> 'on' THEN NULL WHEN paused_at IS NULL THEN {_LAST_EVENT} ELSE paused_seq END,
       resumed_seq = CASE WHEN paused_at IS NULL THEN NULL ELSE resumed_seq END,
       next_fire_at = NULL, nominal_at = NULL, revision = revision + 1
WHERE namespace_id = :namespace AND workflow_id = :handle
""")
RESUME = text(f"""
UPDATE schedule SET paused_at = NULL, pause_note = NULL, paused_by = NULL, next_fire_at = CAST(:next AS timestamptz),
       resumed_seq = CASE WHEN kind = 'on' THEN {_LAST_EVENT} END, nominal_at = CAST(:nominal AS timestamptz),
       revision = revision + 1
WHERE namespace_id = :namespace AND workflow_id = :handle AND paused_at IS NOT NULL
""")

DELETE = text("""
WITH gone AS (
    DELETE FROM schedule WHERE namespace_id = :namespace AND workflow_id = :handle RETURNING schedule_id)
DELETE FROM schedule_backfill b USING gone g WHERE b.schedule_id = g.schedule_id
""")

# A range of run_request, backwards: request ids of one schedule are in the order of their times.
LAST_RUNS = text("""
SELECT r.run_id, r.request_id, r.state FROM run r
WHERE r.namespace_id = :namespace AND r.request_id >= :first AND r.request_id < :behind
ORDER BY r.request_id DESC LIMIT :limit
""")

NOW = text("SELECT clock_timestamp()")


def handle_of(schedule: str) -> str:
    """The name in the record of a schedule's id."""
    return schedule.removeprefix(_OF_DEFINITION) if schedule.startswith(_OF_DEFINITION) else f"@{schedule}"


def runs_kind(target: str | None, kind: str) -> str:
    """The kind in the request ids of a schedule's starts: that of an object does not change with what it says."""
    return kind if target is None else "at"


async def create_schedule(engine: AsyncEngine, new: NewSchedule, *, paused: bool, by: str) -> tuple[Row[Any], bool]:
    """Answers the row, and whether it is new. Raises `WorkflowNotFound`, `CalendarNotFound`, `ScheduleConflict` when
    the name has other content, `StoreUnavailable`.
    """
    schedule, zone = decode_spec(new.spec)
    async with transaction(engine) as connection:
        key = await _hold(connection, new.namespace, new.name)
        found = (await connection.execute(READ, key)).one_or_none()
        if found is not None:
            if not _same(found, new):
                raise ScheduleConflict(f"there is a schedule {new.name} with other content")
            return found, False
        groups, at = await _workflow(connection, new)
        await check_calendars(connection, new.namespace, schedule)
        at_ms = moment_ms(at)
        schedule_id, group = new_schedule_id(new.namespace, key["handle"], at_ms, groups)
        following = None if paused else first_look(schedule, zone, f"{new.namespace}/{key['handle']}", at_ms, at_ms)
        parameters = {"schedule_id": schedule_id.hex(), "group": group, "at": at, "paused": paused}
        by_whom = {"by": by if paused else None}
        await connection.execute(CREATE, key | _content(new, schedule, following) | parameters | by_whom)
        return (await connection.execute(READ, key)).one(), True


async def update_schedule(engine: AsyncEngine, new: NewSchedule, revision: int) -> Row[Any]:
    """Replace what an object says; it goes on from now. Raises `ScheduleNotFound`, `ScheduleConflict` when it has
    another revision (0 is any), and as `create_schedule`.
    """
    schedule, zone = decode_spec(new.spec)
    async with transaction(engine) as connection:
        key = await _hold(connection, new.namespace, new.name)
        found = await _locked(connection, key)
        if revision and revision != found.revision:
            raise ScheduleConflict(f"schedule {new.name} has revision {found.revision}, not {revision}")
        _, at = await _workflow(connection, new)
        await check_calendars(connection, new.namespace, schedule)
        following = _following(found, schedule, zone, moment_ms(at)) if found.paused_at is None else None
        await connection.execute(UPDATE, key | _content(new, schedule, following))
        return (await connection.execute(READ, key)).one()


async def delete_schedule(engine: AsyncEngine, namespace: str, name: str) -> None:
    """End an object and its backfills. Raises `ScheduleNotFound`, `StoreUnavailable`."""
    async with transaction(engine) as connection:
        key = await _hold(connection, namespace, name)
        await _locked(connection, key)
        await connection.execute(DELETE, key)


async def pause_schedule(engine: AsyncEngine, namespace: str, name: str, note: str, by: str) -> Row[Any]:
    """Stop it until it is resumed: no time that comes from now on, and no event stored from now on, starts a run.

    Raises `ScheduleNotFound`.
    """
    async with transaction(engine) as connection:
        key = await _hold(connection, namespace, name)
        await _locked(connection, key)
        await connection.execute(PAUSE, key | {"note": note, "by": by})
        return (await connection.execute(READ, key)).one()


async def resume_schedule(engine: AsyncEngine, namespace: str, name: str) -> Row[Any]:
    """Let it go on from now, with what is stored from now on where it waits for events. Raises `ScheduleNotFound`."""
    async with transaction(engine) as connection:
        key = await _hold(connection, namespace, name)
        found = await _locked(connection, key)
        if found.paused_at is not None:
            schedule, zone = decode_spec(bytes(found.schedule))
            at_ms = moment_ms((await connection.execute(NOW)).scalar_one())
            following = _following(found, schedule, zone, at_ms)
            await connection.execute(RESUME, key | _look(following))
        return (await connection.execute(READ, key)).one()


def _following(found: Row[Any], schedule: Schedule, zone: Any, at_ms: int) -> tuple[int, int] | None:
    if schedule.max_runs is not None and found.started >= schedule.max_runs:
        return None
    if schedule.after is not None and found.last_run_id is not None:
        return None  # the end of that run tells; the owner's sweep finds it, if it was before
    return first_look(schedule, zone, f"{found.namespace_id}/{found.workflow_id}", at_ms, moment_ms(found.since))


async def read_schedule(engine: AsyncEngine, namespace: str, name: str) -> Row[Any]:
    """The row of a schedule; `message_of` shows it. Raises `ScheduleNotFound`, `StoreUnavailable`."""
    rows = await fetch(engine, READ, {"namespace": namespace, "handle": handle_of(name)})
    if not rows:
        raise ScheduleNotFound(f"there is no schedule {name}")
    return rows[0]


async def list_schedules(
    engine: AsyncEngine, namespace: str, *, workflow: str, after: str, limit: int
) -> Sequence[Row[Any]]:
    """By id. Raises `StoreUnavailable`."""
    return await fetch(engine, LIST, {"namespace": namespace, "workflow": workflow, "after": after, "limit": limit})


async def last_runs(engine: AsyncEngine, row: Row[Any]) -> list[pb.ScheduledRun]:
    """The runs that time or a backfill started, newest time first."""
    first = requests_by_time(runs_kind(row.target, row.kind), row.schedule_id.bytes)
    asked = {"namespace": row.namespace_id, "first": first, "behind": first[:-1] + "0", "limit": _RUNS}
    found = []
    for run in await fetch(engine, LAST_RUNS, asked):
        state = runs_pb2.Run.State.Name(run.state).removeprefix("STATE_")
        message = pb.ScheduledRun(run=f"namespaces/{row.namespace_id}/runs/{run.run_id}", state=state)
        set_timestamp(message.schedule_time, scheduled_at(run.request_id))
        found.append(message)
    return found


def message_of(row: Row[Any], *, with_input: bool = True) -> pb.Schedule:
    """A row as clients see it, without runs and backfills."""
    of_definition = row.target is None
    name = f"{_OF_DEFINITION}{row.workflow_id}" if of_definition else row.workflow_id[1:]
    state = pb.Schedule.STATE_ACTIVE
    if row.paused_at is not None:
        state = pb.Schedule.STATE_PAUSED
    elif row.next_fire_at is None and row.held_at is None and row.kind in ("every", "cron"):
        state = pb.Schedule.STATE_ENDED
    message = pb.Schedule(
        name=f"namespaces/{row.namespace_id}/schedules/{name}",
        workflow_id=row.workflow_id if of_definition else row.target,
        version="" if of_definition else row.target_version,
        input=bytes(row.input or b"") if with_input else b"",
        level=row.level,
        description=row.description,
        state=state,
        from_definition=of_definition,
        pause_note=row.pause_note,
        paused_by=row.paused_by,
        counters=pb.ScheduleCounters(
            started=row.started,
            skipped=row.skipped,
            missed=row.missed,
            excluded=row.excluded,
            refused=row.refused,
        ),
        revision=row.revision,
        last_error=row.last_error,
    )
    schedule, zone = decode_spec(bytes(row.schedule))
    if schedule.on is None:
        message.spec.CopyFrom(spec_message(schedule, str(zone)))
    set_timestamp(message.pause_time, row.paused_at)
    set_timestamp(message.next_time, row.nominal_at or row.next_fire_at)
    set_timestamp(message.last_time, row.last_fire_at)
    set_timestamp(message.buffered_time, row.held_at)
    set_timestamp(message.create_time, row.since)
    return message


async def _hold(connection: AsyncConnection, namespace: str, name: str) -> dict[str, Any]:
    await connection.execute(HOLD_NAMESPACE, {"namespace": namespace})
    return {"namespace": namespace, "handle": handle_of(name)}


async def _locked(connection: AsyncConnection, key: dict[str, Any]) -> Row[Any]:
    """The row, which nobody else changes until the commit."""
    if (await connection.execute(LOCK, key)).one_or_none() is None:
        handle: str = key["handle"]
        name = handle.removeprefix("@") if handle.startswith("@") else f"{_OF_DEFINITION}{handle}"
        raise ScheduleNotFound(f"there is no schedule {name}")
    return (await connection.execute(READ, key)).one()


async def _workflow(connection: AsyncConnection, new: NewSchedule) -> tuple[int, Any]:
    asked = {"namespace": new.namespace, "workflow": new.workflow_id, "version": new.version}
    row = (await connection.execute(WORKFLOW_EXISTS, asked)).one()
    if not row.known:
        what = f"version {new.version} of workflow" if new.version else "workflow"
        raise WorkflowNotFound(f"there is no {what} {new.workflow_id}")
    return row.shard_groups, row.at


def _content(new: NewSchedule, schedule: Schedule, following: tuple[int, int] | None) -> dict[str, Any]:
    return {
        "kind": schedule.kind,
        "target": new.workflow_id,
        "version": new.version,
        "spec": new.spec,
        "input": new.input,
        "level": new.level,
        "description": new.description,
        "calendars": texts(schedule.calendars or ()),
        **_look(following),
    }


def _look(following: tuple[int, int] | None) -> dict[str, Any]:
    next_ms, nominal_ms = following or (None, None)
    return {"next": moment_text(next_ms), "nominal": moment_text(nominal_ms)}


def _same(row: Row[Any], new: NewSchedule) -> bool:
    return (row.target, row.target_version, bytes(row.schedule), bytes(row.input), row.level, row.description) == (
        new.workflow_id,
        new.version,
        new.spec,
        new.input,
        new.level,
        new.description,
    )
