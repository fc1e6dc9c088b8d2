"""Backfills: runs for the times of a past range, a few at a time.

The owner of the schedule's shard serves them. A time's start has the request id that the schedule itself would give it,
so a time that has a run gets no other, and whoever repeats a start that was cut short gets the same run. The row moves
on after the starts are stored; `step` makes a repeated change one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from flint_contracts.gen.flint.schedules.v1 import schedules_pb2 as pb
from flint_store.arrays import uuids
from flint_store.engine import fetch, transaction, write
from flint_store.errors import ScheduleConflict, ScheduleNotFound
from flint_store.schedules import moment_ms, moment_text
from flint_store.timestamps import set_timestamp

__all__ = [
    "BackfillRow",
    "Filled",
    "backfill_message",
    "cancel_backfill",
    "create_backfill",
    "list_backfills",
    "move_backfill",
    "open_backfills",
]

_KEPT = 100
"""Backfills of one schedule that are remembered, beside those under way."""

_AT_ONCE = 10
"""Backfills of one schedule that may be under way."""


@dataclass(frozen=True, slots=True)
class BackfillRow:
    """A backfill under way. `ended`: of the runs in `running`, with whether they ended well."""

    backfill_id: bytes
    schedule_id: bytes
    from_ms: int
    until_ms: int
    cursor_ms: int | None
    concurrency: int
    running: tuple[bytes, ...]
    ended: dict[bytes, bool]
    created_ms: int
    step: int


@dataclass(frozen=True, slots=True)
class Filled:
    """A step of a backfill. The numbers are those of this step."""

    was: BackfillRow
    cursor_ms: int | None
    running: tuple[bytes, ...]
    started: int
    present: int
    succeeded: int
    failed: int


_COLUMNS = """
SELECT b.backfill_id, b.schedule_id, b.namespace_id, b.from_at, b.until_at, b.cursor_at, b.concurrency, b.total,
       b.started, b.present, b.succeeded, b.failed, b.running, b.step, b.cancelled, b.created_at,
       b.created_by, b.ended_at
FROM schedule_backfill b
"""

# The unique index (schedule_id, request_id); schedule_backfill_latest; the primary key.
FIND = text(f"{_COLUMNS} WHERE b.schedule_id = CAST(:schedule_id AS uuid) AND b.request_id = :request_id")
LIST = text(
    f"{_COLUMNS} WHERE b.schedule_id = CAST(:schedule_id AS uuid)"
    " ORDER BY b.created_at DESC, b.backfill_id LIMIT :limit"
)
CANCEL = text("""
UPDATE schedule_backfill SET cancelled = ended_at IS NULL OR cancelled,
       ended_at = coalesce(ended_at, clock_timestamp()), cursor_at = NULL, running = '{}', step = step + 1
WHERE backfill_id = CAST(:backfill_id AS uuid) AND schedule_id = CAST(:schedule_id AS uuid)
RETURNING backfill_id
""")

# The row of the schedule is held: it cannot end meanwhile, and requests take turns.
HOLD = text("SELECT 1 FROM schedule WHERE schedule_id = CAST(:schedule_id AS uuid) FOR UPDATE")
COUNT = text("""
SELECT count(*) FROM schedule_backfill WHERE schedule_id = CAST(:schedule_id AS uuid) AND ended_at IS NULL
""")
CREATE = text("""
INSERT INTO schedule_backfill (backfill_id, schedule_id, namespace_id, group_id, request_id, from_at, until_at,
                               cursor_at, concurrency, total, created_at, created_by, ended_at)
VALUES (gen_random_uuid(), CAST(:schedule_id AS uuid), :namespace, :group, :request_id, CAST(:from AS timestamptz),
        CAST(:until AS timestamptz), CAST(:cursor AS timestamptz), :concurrency, :total, clock_timestamp(), :by,
        CASE WHEN :total = 0 THEN clock_timestamp() END)
""")
FORGET = text("""
DELETE FROM schedule_backfill b USING (
    SELECT o.backfill_id FROM schedule_backfill o
    WHERE o.schedule_id = CAST(:schedule_id AS uuid) AND o.ended_at IS NOT NULL
    ORDER BY o.created_at DESC OFFSET :kept) g
WHERE b.backfill_id = g.backfill_id
""")

# schedule_backfill_open is by group: the schedules here are few, and schedule_backfill_latest finds theirs.
OPEN = text("""
SELECT b.backfill_id, b.schedule_id, b.from_at, b.until_at, b.cursor_at, b.concurrency, b.running, b.step,
       b.created_at,
       ARRAY(SELECT r.run_id FROM unnest(b.running) u(run_id) JOIN run r ON r.run_id = u.run_id
             WHERE r.state = 4) AS succeeded,
       ARRAY(SELECT u.run_id FROM unnest(b.running) u(run_id) LEFT JOIN run r ON r.run_id = u.run_id
             WHERE r.run_id IS NULL OR r.state IN (5, 6)) AS failed
FROM schedule_backfill b
WHERE b.schedule_id = ANY(CAST(:schedule_ids AS uuid[])) AND b.ended_at IS NULL
ORDER BY b.created_at, b.backfill_id
""")
MOVE = text("""
UPDATE schedule_backfill SET cursor_at = CAST(:cursor AS timestamptz), running = CAST(:running AS uuid[]),
       started = started + :started, present = present + :present, succeeded = succeeded + :succeeded,
       failed = failed + :failed, step = step + 1,
       ended_at = CASE WHEN :done THEN clock_timestamp() END
WHERE backfill_id = CAST(:backfill_id AS uuid) AND step = :step AND ended_at IS NULL
RETURNING 1
""")


async def create_backfill(
    engine: AsyncEngine,
    schedule: Row[Any],
    request_id: str,
    moments: Sequence[int],
    from_ms: int,
    until_ms: int,
    concurrency: int,
    by: str,
) -> Row[Any]:
    """Store a backfill of these moments (in order; the owner finds them again). The same request again answers it.

    Raises `ScheduleNotFound`, `ScheduleConflict` (the request id was used otherwise, or too many are under way),
    `StoreUnavailable`.
    """
    key = {"schedule_id": schedule.schedule_id.hex, "request_id": request_id}
    parameters = {
        "namespace": schedule.namespace_id,
        "group": schedule.group_id,
        "from": moment_text(from_ms),
        "until": moment_text(until_ms),
        "cursor": moment_text(moments[0]) if moments else None,
        "concurrency": concurrency,
        "total": len(moments),
        "by": by,
    }
    async with transaction(engine) as connection:
        if (await connection.execute(HOLD, key)).one_or_none() is None:
            raise ScheduleNotFound("the schedule has ended")
        found = (await connection.execute(FIND, key)).one_or_none()
        if found is not None:
            if (moment_ms(found.from_at), moment_ms(found.until_at), found.concurrency) != (
                from_ms,
                until_ms,
                concurrency,
            ):
                raise ScheduleConflict("request_id was used before for another backfill of this schedule")
            return found
        if (await connection.execute(COUNT, key)).scalar_one() >= _AT_ONCE:
            raise ScheduleConflict(f"{_AT_ONCE} backfills of this schedule are under way; wait for one, or cancel it")
        await connection.execute(CREATE, key | parameters)
        await connection.execute(FORGET, key | {"kept": _KEPT})
        return (await connection.execute(FIND, key)).one()


async def cancel_backfill(engine: AsyncEngine, schedule_id: bytes, backfill_id: bytes) -> Row[Any]:
    """End it; runs that it started go on. Raises `ScheduleNotFound`, `StoreUnavailable`."""
    key = {"schedule_id": schedule_id.hex(), "backfill_id": backfill_id.hex()}
    if not await write(engine, CANCEL, key):
        raise ScheduleNotFound("there is no such backfill of this schedule")
    rows = await fetch(engine, text(f"{_COLUMNS} WHERE b.backfill_id = CAST(:backfill_id AS uuid)"), key)
    return rows[0]


async def list_backfills(engine: AsyncEngine, schedule_id: bytes, limit: int) -> Sequence[Row[Any]]:
    """Newest first. Raises `StoreUnavailable`."""
    return await fetch(engine, LIST, {"schedule_id": schedule_id.hex(), "limit": limit})


async def open_backfills(connection: AsyncConnection, schedule_ids: Iterable[bytes]) -> list[BackfillRow]:
    """The backfills under way of these schedules, oldest first."""
    rows = await connection.execute(OPEN, {"schedule_ids": uuids(schedule_ids)})
    return [
        BackfillRow(
            backfill_id=r.backfill_id.bytes,
            schedule_id=r.schedule_id.bytes,
            from_ms=moment_ms(r.from_at),
            until_ms=moment_ms(r.until_at),
            cursor_ms=_ms(r.cursor_at),
            concurrency=r.concurrency,
            running=tuple(u.bytes for u in r.running),
            ended={u.bytes: True for u in r.succeeded} | {u.bytes: False for u in r.failed},
            created_ms=moment_ms(r.created_at),
            step=r.step,
        )
        for r in rows
    ]


async def move_backfill(connection: AsyncConnection, filled: Filled) -> bool:
    """Record a step. False: it was moved or cancelled meanwhile."""
    rows = await connection.execute(
        MOVE,
        {
            "backfill_id": filled.was.backfill_id.hex(),
            "step": filled.was.step,
            "cursor": moment_text(filled.cursor_ms),
            "running": uuids(filled.running),
            "started": filled.started,
            "present": filled.present,
            "succeeded": filled.succeeded,
            "failed": filled.failed,
            "done": filled.cursor_ms is None and not filled.running,
        },
    )
    return rows.one_or_none() is not None


def backfill_message(row: Row[Any], schedule: str) -> pb.Backfill:
    """A row as clients see it; `schedule`: the schedule's resource name."""
    state = pb.Backfill.STATE_RUNNING
    if row.cancelled:
        state = pb.Backfill.STATE_CANCELLED
    elif row.ended_at is not None:
        state = pb.Backfill.STATE_DONE
    message = pb.Backfill(
        name=f"{schedule}/backfills/{row.backfill_id}",
        state=state,
        concurrency=row.concurrency,
        total=row.total,
        started=row.started,
        present=row.present,
        succeeded=row.succeeded,
        failed=row.failed,
        running=len(row.running),
        created_by=row.created_by,
    )
    set_timestamp(message.start_time, row.from_at)
    set_timestamp(message.end_time, row.until_at)
    set_timestamp(message.create_time, row.created_at)
    set_timestamp(message.done_time, row.ended_at)
    return message


def _ms(at: datetime | None) -> int | None:
    return moment_ms(at) if at is not None else None
