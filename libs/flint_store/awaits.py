"""Awaits: rows of what runs wait for, and the messages that answer them.

A row of `run_await` is written by the fold in the commit that records the await, and marked closed by the one that
records its end (or the run's). Agents find rows that are not served, do what the kind asks for, and settle them: an
open row becomes served, a closed one goes.

Whoever brings something for an await inserts a message (`put_messages`) and nudges the run's owner. Whoever writes rows
of its own that must not outlive the await joins `OPEN_AWAITS` in the same statement: the row is locked, so the closing
waits for that commit, and its agent then finds what was written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from flint_store.arrays import byteas, texts, uuids
from flint_store.payloads import use_in_messages

__all__ = [
    "OPEN_AWAITS",
    "AwaitRow",
    "NewMessage",
    "Target",
    "put_messages",
    "read_unserved",
    "settle_closed",
    "settle_opened",
]


@dataclass(frozen=True, slots=True)
class AwaitRow:
    """One await. `kind`: flint.journal.v1.AwaitOpened.Kind; `request`: JSON by kind (flint_core.effects.Await)."""

    run_id: bytes
    key: str
    kind: int
    group: int
    namespace: str
    step: str
    iteration: str
    request: bytes
    opened_at: datetime
    closed: bool


@dataclass(frozen=True, slots=True)
class NewMessage:
    """Something that came for an await. `key` is unique in the run's inbox: the same key again is the same thing."""

    run_id: bytes
    key: str
    await_key: str
    payload: bytes  # JSON, by the kind of the await


@dataclass(frozen=True, slots=True)
class Target:
    """A run whose inbox took messages: nudge the owner of its group."""

    run_id: bytes
    group: int


OPEN_AWAITS = """
SELECT a.run_id, a.key, a.group_id, a.namespace_id, a.opened_at
FROM unnest(CAST(:await_run_ids AS uuid[]), CAST(:await_keys AS text[])) AS o(run_id, key)
JOIN run_await a ON a.run_id = o.run_id AND a.key = o.key AND NOT a.closed
FOR SHARE OF a
"""
"""To be used as a MATERIALIZED CTE that writes join: awaits that are open, and stay so until the commit."""

# Partial index run_await_unserved, or the primary key: both begin with few rows.
READ_UNSERVED = text("""
SELECT a.run_id, a.key, a.kind, a.group_id, a.namespace_id, a.step, a.iteration, a.request, a.opened_at, a.closed
FROM run_await a WHERE a.run_id = ANY(CAST(:run_ids AS uuid[])) AND NOT a.served
  AND (CAST(:after_key AS text) IS NULL
       OR (NOT a.closed, a.opened_at, a.run_id, a.key)
        > (CAST(:after_open AS boolean), CAST(:after_at AS timestamptz), CAST(:after_run AS uuid),
           CAST(:after_key AS text)))
ORDER BY NOT a.closed, a.opened_at, a.run_id, a.key LIMIT :limit
""")

# An await that was closed meanwhile keeps asking for its closing.
SETTLE_OPENED = text("""
UPDATE run_await a SET served = true
FROM unnest(CAST(:run_ids AS uuid[]), CAST(:keys AS text[])) AS s(run_id, key)
WHERE a.run_id = s.run_id AND a.key = s.key AND NOT a.closed
""")

SETTLE_CLOSED = text("""
DELETE FROM run_await a USING unnest(CAST(:run_ids AS uuid[]), CAST(:keys AS text[])) AS s(run_id, key)
WHERE a.run_id = s.run_id AND a.key = s.key AND a.closed
""")

# Only for awaits that are open; a message that was there before stays as it was. Answers every target, so that a
# repeat after a lost answer nudges too.
PUT_MESSAGES = text("""
WITH target AS MATERIALIZED (
    SELECT m.run_id, m.key, m.await_key, m.payload, m.place, a.group_id
    FROM unnest(CAST(:run_ids AS uuid[]), CAST(:keys AS text[]), CAST(:await_keys AS text[]),
                CAST(:payloads AS bytea[])) WITH ORDINALITY AS m(run_id, key, await_key, payload, place)
    JOIN run_await a ON a.run_id = m.run_id AND a.key = m.await_key AND NOT a.closed),
put AS (
    INSERT INTO inbox (run_id, key, group_id, kind, payload, await_key, created_at)
    SELECT t.run_id, t.key, t.group_id, 'message', t.payload, t.await_key, clock_timestamp()
    FROM target t ORDER BY t.place
    ON CONFLICT (run_id, key) DO NOTHING RETURNING 1)
SELECT DISTINCT run_id, group_id FROM target
""")


async def read_unserved(
    connection: AsyncConnection, run_ids: Iterable[bytes], limit: int, after: AwaitRow | None = None
) -> list[AwaitRow]:
    """Rows of these runs that an agent has to serve: closed ones first, then the oldest; at most `limit`.

    `after`: only what comes behind this row.
    """
    rows = await connection.execute(
        READ_UNSERVED,
        {
            "run_ids": uuids(run_ids),
            "limit": limit,
            "after_open": None if after is None else not after.closed,
            "after_at": None if after is None else after.opened_at,
            "after_run": None if after is None else UUID(bytes=after.run_id),
            "after_key": None if after is None else after.key,
        },
    )
    return [
        AwaitRow(
            run_id=r.run_id.bytes,
            key=r.key,
            kind=r.kind,
            group=r.group_id,
            namespace=r.namespace_id,
            step=r.step,
            iteration=r.iteration,
            request=bytes(r.request),
            opened_at=r.opened_at,
            closed=r.closed,
        )
        for r in rows
    ]


async def settle_opened(connection: AsyncConnection, rows: Sequence[AwaitRow]) -> None:
    """What opening these awaits asks for is done. Without effect on those that were closed meanwhile."""
    await connection.execute(SETTLE_OPENED, _names(rows))


async def settle_closed(connection: AsyncConnection, rows: Sequence[AwaitRow]) -> None:
    """What closing these awaits asks for is done: they are forgotten."""
    await connection.execute(SETTLE_CLOSED, _names(rows))


def _names(rows: Sequence[AwaitRow]) -> dict[str, object]:
    return {"run_ids": uuids([r.run_id for r in rows]), "keys": texts([r.key for r in rows])}


async def put_messages(connection: AsyncConnection, messages: Sequence[NewMessage]) -> list[Target]:
    """Put messages into the inboxes of runs whose await is open, in this order; answers the runs to nudge about.

    Use it within the transaction that stores what the messages are made of. Messages for awaits that are closed, or
    were never recorded, are dropped.
    """
    await use_in_messages(connection, [(m.run_id, m.payload) for m in messages])
    rows = await connection.execute(
        PUT_MESSAGES,
        {
            "run_ids": uuids([m.run_id for m in messages]),
            "keys": texts([m.key for m in messages]),
            "await_keys": texts([m.await_key for m in messages]),
            "payloads": byteas([m.payload for m in messages]),
        },
    )
    return [Target(r.run_id.bytes, r.group_id) for r in rows]
