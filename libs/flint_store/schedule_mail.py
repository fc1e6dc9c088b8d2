"""Events that came for schedules of the kind `on`: which are claimed, which have started a run.

A schedule by events has a row in `run_await` under its id: events come to its inbox as to that of a run that listens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from flint_store.arrays import texts, uuids

__all__ = ["Mail", "claim", "consume", "delete_unowned", "drop_mail", "miss", "read_claimed", "read_mail"]

_REMEMBERED = 200
"""Keys of consumed events that a schedule of `all` remembers: one of them again is the same event."""


@dataclass(frozen=True, slots=True)
class Mail:
    """An event in the inbox of a schedule."""

    key: str
    content: bytes
    missed: bool = False
    """It was stored while the schedule was paused."""


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

# One snapshot of the pause and of what came: nothing that was stored after a pause is seen without it. Keys hold the
# number of the event.
READ_MAIL = text("""
SELECT i.key, i.payload, coalesce(
           (s.paused_at IS NOT NULL OR n.seq <= s.resumed_seq) AND (s.paused_seq IS NULL OR n.seq > s.paused_seq),
           false) AS missed
FROM schedule s JOIN inbox i ON i.run_id = s.schedule_id
CROSS JOIN LATERAL (SELECT CAST(split_part(i.key, '/', 2) AS bigint) AS seq) n
WHERE s.schedule_id = CAST(:schedule_id AS uuid) AND i.await_key IS NOT NULL
ORDER BY i.seq LIMIT :limit
""")

READ_CLAIMED = text("""
SELECT i.key, i.payload FROM inbox i
WHERE i.run_id = CAST(:schedule_id AS uuid) AND i.key = ANY(CAST(:keys AS text[]))
""")

DROP_MAIL = text("DELETE FROM inbox WHERE run_id = CAST(:schedule_id AS uuid) AND key = ANY(CAST(:keys AS text[]))")

MISS = text("""
WITH gone AS (
    DELETE FROM inbox WHERE run_id = CAST(:schedule_id AS uuid) AND key = ANY(CAST(:keys AS text[])) RETURNING 1)
UPDATE schedule SET missed = missed + (SELECT count(*) FROM gone) WHERE schedule_id = CAST(:schedule_id AS uuid)
""")

# What came for a schedule after its end.
DELETE_UNOWNED = text("""
DELETE FROM inbox i WHERE i.run_id = ANY(CAST(:ids AS uuid[]))
  AND NOT EXISTS (SELECT 1 FROM schedule s WHERE s.schedule_id = i.run_id)
  AND NOT EXISTS (SELECT 1 FROM run r WHERE r.run_id = i.run_id)
""")


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
    return [Mail(r.key, bytes(r.payload), bool(r.missed)) for r in rows]


async def miss(connection: AsyncConnection, schedule_id: bytes, keys: Iterable[str]) -> None:
    """Forget events that came while the schedule was paused, and count them."""
    await connection.execute(MISS, {"schedule_id": schedule_id.hex(), "keys": texts(keys)})


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
