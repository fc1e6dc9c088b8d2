"""Taking runs back: the commit that begins a new reset generation, and reading what a state is rebuilt from.

Nothing of the record is lost: entries that are cut off stay, marked with the reset that did it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from flint_store.fence import FENCE, Fenced, OwnerSession

__all__ = ["EntryFacts", "RecordPage", "read_back", "read_record", "reset_run"]

_PAGE_BYTES = 512 * 1024
_PAGE_ENTRIES = 2_000
_BACK = 200

# Primary keys of run, run_entry, run_await, inbox, run_signal. The CASE makes the statement fail as a whole when the
# row is not as its owner remembers it.
RESET = text(f"""
WITH fence AS MATERIALIZED ({FENCE}),
taken AS (
    UPDATE run r SET change = :change, state = 1, snapshot = NULL, snapshot_position = r.position, output = NULL,
           error = NULL, wake_at = NULL, ended_at = NULL, cancel_requested = false, compensates = false, losses = 0,
           reset = :reset, reset_position = r.position, reset_at = clock_timestamp(), adopt = false
    FROM fence WHERE r.run_id = :run_id AND r.change = :change - 1 AND r.leg_nonce IS NULL RETURNING r.run_id),
cut AS (
    UPDATE run_entry e SET superseded = :reset FROM taken t
    WHERE e.run_id = t.run_id AND e.index > :kept AND e.superseded IS NULL RETURNING 1),
closed AS (
    UPDATE run_await a SET closed = true, served = false FROM taken t
    WHERE a.run_id = t.run_id AND NOT a.closed RETURNING 1),
returned AS (
    UPDATE run_signal s SET await_key = NULL, looked = false FROM taken t
    WHERE s.run_id = t.run_id AND s.taken_at IS NULL RETURNING 1),
emptied AS (DELETE FROM inbox i USING taken t WHERE i.run_id = t.run_id RETURNING 1)
SELECT (SELECT count(*) FROM fence) AS held, clock_timestamp() AS at,
       CASE WHEN (SELECT count(*) FROM fence) = 1 AND (SELECT count(*) FROM taken) <> 1
            THEN 1 / (SELECT count(*) * 0 FROM taken) ELSE 0 END AS unchanged
""")

# A range of the primary key; sizes are known without reading the values.
READ_RECORD = text("""
SELECT index AS place, CASE WHEN fits THEN events END AS events, fits FROM (
    SELECT index, events, sum(octet_length(events)) OVER (ORDER BY index) <= :bytes
                          OR row_number() OVER (ORDER BY index) = 1 AS fits
    FROM (SELECT index, events FROM run_entry
          WHERE run_id = :run_id AND index > :after AND superseded IS NULL AND NOT (end_kind = 5 AND events = '')
          ORDER BY index LIMIT :limit) page) sized
ORDER BY place
""")

READ_INPUT = text("SELECT input FROM run WHERE run_id = :run_id")

READ_BACK = text("""
SELECT index AS place, end_kind, steps, events FROM run_entry
WHERE run_id = :run_id AND index < :below AND superseded IS NULL ORDER BY index DESC LIMIT :limit
""")


@dataclass(frozen=True, slots=True)
class RecordPage:
    """Events of entries that count, in order. `more`: others follow `last_index`."""

    input: bytes
    events: list[bytes]
    last_index: int
    more: bool


@dataclass(frozen=True, slots=True)
class EntryFacts:
    """An entry that counts, as a search for a point to reset to sees it."""

    index: int
    end_kind: int
    steps: bytes
    events: bytes


async def reset_run(
    connection: AsyncConnection, session: OwnerSession, run_id: bytes, change: int, reset: int, kept: int
) -> datetime:
    """Take a run without a leg back behind entry `kept`, as generation `reset`; it is queued then.

    `change`: its change number after the commit. What it waited for is closed, its inbox emptied, signals that it did
    not take are offered again. Raises `Fenced`, or a DataError when the row is another.
    """
    row = (
        await connection.execute(
            RESET,
            session.parameters() | {"run_id": UUID(bytes=run_id), "change": change, "reset": reset, "kept": kept},
        )
    ).one()
    if row.held == 0:
        raise Fenced(session)
    at: datetime = row.at
    return at


async def read_record(connection: AsyncConnection, run_id: bytes, after: int) -> RecordPage:
    """A part of what a run's state is rebuilt from; the input comes with the first one."""
    identity = UUID(bytes=run_id)
    given = b""
    if not after:
        found = (await connection.execute(READ_INPUT, {"run_id": identity})).one_or_none()
        given = bytes(found.input or b"") if found is not None else b""
    rows = (
        await connection.execute(
            READ_RECORD, {"run_id": identity, "after": after, "bytes": _PAGE_BYTES, "limit": _PAGE_ENTRIES}
        )
    ).all()
    fitting = [row for row in rows if row.fits]
    more = len(fitting) < len(rows) or len(rows) == _PAGE_ENTRIES
    return RecordPage(given, [bytes(row.events) for row in fitting], fitting[-1].place if fitting else after, more)


async def read_back(connection: AsyncConnection, run_id: bytes) -> AsyncIterator[EntryFacts]:
    """The entries that count, from the last to the first."""
    below = 2**62
    while True:
        rows = (
            await connection.execute(READ_BACK, {"run_id": UUID(bytes=run_id), "below": below, "limit": _BACK})
        ).all()
        for row in rows:
            yield EntryFacts(row.place, row.end_kind, bytes(row.steps), bytes(row.events))
        if len(rows) < _BACK:
            return
        below = rows[-1].place
