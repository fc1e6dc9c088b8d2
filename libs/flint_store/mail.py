"""Mail: the messages in a run's inbox, in order of arrival, as many as one leg takes at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from flint_store.arrays import uuids

__all__ = ["Letter", "Mail", "load_mail"]

MOST_LETTERS: Final = 200
MOST_BYTES: Final = 2**20
"""Of one run at a time; the first letter goes always."""


@dataclass(frozen=True, slots=True)
class Letter:
    """One message. `key` is its name in the inbox, `content` JSON by the kind of the await."""

    key: str
    await_key: str
    content: bytes


@dataclass(slots=True)
class Mail:
    """The first letters of one run; `more` when the inbox holds further ones."""

    letters: list[Letter] = field(default_factory=list)
    more: bool = False


# Partial index inbox_mail (run_id, seq): a range scan per run. The sizes of values are known without reading them.
LOAD_MAIL = text("""
SELECT u.run_id, m.key, m.await_key, CASE WHEN m.fits THEN m.payload END AS payload
FROM unnest(CAST(:run_ids AS uuid[])) AS u(run_id)
CROSS JOIN LATERAL (
    SELECT f.seq, f.key, f.await_key, f.payload,
           row_number() OVER w <= :letters
           AND (row_number() OVER w = 1 OR sum(length(f.payload)) OVER w <= :bytes) AS fits
    FROM (SELECT i.seq, i.key, i.await_key, i.payload FROM inbox i
          WHERE i.run_id = u.run_id AND i.await_key IS NOT NULL ORDER BY i.seq LIMIT :letters + 1) f
    WINDOW w AS (ORDER BY f.seq)) m
ORDER BY u.run_id, m.seq
""")


async def load_mail(connection: AsyncConnection, run_ids: Sequence[bytes]) -> dict[bytes, Mail]:
    """The mail of those of these runs that have any: at most 200 letters and 1 MiB each."""
    found: dict[bytes, Mail] = {}
    rows = await connection.execute(
        LOAD_MAIL, {"run_ids": uuids(run_ids), "letters": MOST_LETTERS, "bytes": MOST_BYTES}
    )
    for row in rows:
        mail = found.setdefault(row.run_id.bytes, Mail())
        if row.payload is None:
            mail.more = True
        elif not mail.more:
            mail.letters.append(Letter(row.key, row.await_key, bytes(row.payload)))
    return found
