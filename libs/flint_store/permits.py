"""Taking permits: places under concurrency keys and tokens of rates, in the commit that opens the run's leg.

PostgreSQL counts the holders of a key while it holds the key's lock, with a view taken after the lock (the function
`take_permits`); so no two schedulers ever count the same place. Runs that get no permit are left as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from flint_store.arrays import integers, texts, uuids
from flint_store.awaits import Target
from flint_store.fence import FENCE, Fenced, OwnerSession
from flint_store.legs import LegOpening

__all__ = [
    "MOST_REQUESTS",
    "PLACE",
    "TOKEN",
    "AfterPermit",
    "PermitAnswer",
    "PermitDemand",
    "PermitRequest",
    "drop_idle_buckets",
    "free_after",
    "load_after",
    "open_permitted",
]

PLACE: Final = 1
TOKEN: Final = 2

MOST_REQUESTS: Final = 64
"""Runs in one commit: with eight keys each, what they lock stays far below what PostgreSQL has room for."""


@dataclass(frozen=True, slots=True)
class PermitDemand:
    """One permit that a run needs: `limit` places, or `limit` tokens in `period_ms`; or whatever `named` says now."""

    kind: int
    key: str
    limit: int
    period_ms: int = 0
    burst: int = 1
    overflow: str = "queue"
    named: str = ""


@dataclass(frozen=True, slots=True)
class PermitRequest:
    """A leg to open if its run gets all the permits that it needs, or holds them already."""

    opening: LegOpening
    namespace: str
    group: int
    level: int
    since_ms: int  # how long it has waited for its turn: of one level, the earliest goes first
    demands: tuple[PermitDemand, ...]


@dataclass(frozen=True, slots=True)
class PermitAnswer:
    """What became of one request. Not granted: `kind` and `key` tell what it lacks."""

    granted: bool
    at_ms: int  # when it was decided
    kind: int = 0
    key: str = ""
    overflow: str = ""
    due_in_ms: int | None = None  # when the next token is there for it, as far as is known now
    replaced: Target | None = None  # a holder that was told to go for it


@dataclass(frozen=True, slots=True)
class AfterPermit:
    """Permits of a run that has ended while its leg may still be executed."""

    run_id: bytes
    claimant: str
    leg_nonce: bytes
    keys: tuple[tuple[str, int, str], ...]  # namespace, kind, key


# The function is called once, for the fence's row; without one it is not called. The update is as in `open_legs`, but a
# leg is opened where all permits were granted, and begins at the moment they were.
OPEN_PERMITTED = text(f"""
WITH fence AS MATERIALIZED ({FENCE}),
asked AS MATERIALIZED (
    SELECT t.* FROM fence, LATERAL take_permits(
        fence.held, CAST(:run_ids AS uuid[]), CAST(:namespaces AS text[]), CAST(:groups AS int[]),
        CAST(:levels AS int[]), CAST(:since AS bigint[]), CAST(:demand_of AS int[]), CAST(:kinds AS smallint[]),
        CAST(:keys AS text[]), CAST(:names AS text[]), CAST(:mosts AS bigint[]), CAST(:periods AS bigint[]),
        CAST(:bursts AS bigint[]), CAST(:overflows AS text[]), :patience_ms) t),
opened AS (
    UPDATE run r SET change = u.change, state = 2, leg = u.leg, leg_nonce = u.leg_nonce, claimant = u.claimant,
           leg_generation = u.leg_generation, wake_at = NULL, adopt = false,
           started_at = COALESCE(r.started_at, a.taken_at)
    FROM asked a, unnest(CAST(:run_ids AS uuid[]), CAST(:changes AS bigint[]), CAST(:legs AS int[]),
                         CAST(:nonces AS uuid[]), CAST(:claimants AS text[]), CAST(:generations AS bigint[]))
         AS u(run_id, change, leg, leg_nonce, claimant, leg_generation)
    WHERE a.granted AND u.run_id = a.run_id AND r.run_id = u.run_id AND r.change = u.change - 1
    RETURNING 1)
SELECT a.*, clock_timestamp() AS at,
       CASE WHEN (SELECT count(*) FROM opened) <> (SELECT count(*) FROM asked x WHERE x.granted)
            THEN 1 / (SELECT count(*) * 0 FROM opened) ELSE 0 END AS unchanged
FROM asked a
""")

# Partial index permit_after (group_id); primary key of permit.
LOAD_AFTER = text("""
SELECT p.run_id, p.claimant, p.leg_nonce, p.namespace_id, p.kind, p.key FROM permit p
WHERE p.group_id = ANY(CAST(:groups AS int[])) AND p.claimant IS NOT NULL ORDER BY p.run_id LIMIT :limit
""")

FREE_AFTER = text(f"""
WITH fence AS MATERIALIZED ({FENCE}),
freed AS (
    DELETE FROM permit p USING fence, unnest(CAST(:run_ids AS uuid[]), CAST(:nonces AS uuid[])) AS u(run_id, leg_nonce)
    WHERE p.run_id = u.run_id AND p.leg_nonce = u.leg_nonce RETURNING 1)
SELECT (SELECT count(*) FROM fence) AS held, (SELECT count(*) FROM freed) AS freed
""")

DROP_IDLE_BUCKETS = text("""
DELETE FROM permit_bucket b WHERE (b.namespace_id, b.key) IN (
    SELECT i.namespace_id, i.key FROM permit_bucket i WHERE i.full_at < clock_timestamp() - interval '1 minute'
    LIMIT :limit) AND b.full_at < clock_timestamp() - interval '1 minute'
""")


async def open_permitted(
    connection: AsyncConnection, session: OwnerSession, requests: Sequence[PermitRequest], patience_ms: int
) -> list[PermitAnswer]:
    """Open, in one commit, the legs of those runs that get their permits; answers in the order of the requests.

    At most `MOST_REQUESTS`. Runs are let in by level, then since when they wait; a run is refused while an older one,
    of this scheduler or another, was refused for the same key in the last `patience_ms`. Raises `Fenced`, or a
    DataError when a row had changed: nothing was written then.
    """
    ordered = sorted(requests, key=lambda r: (r.level, r.since_ms, r.opening.run_id))
    openings = [r.opening for r in ordered]
    demands = [
        (place, demand)
        for place, request in enumerate(ordered, 1)
        for demand in sorted(request.demands, key=lambda d: d.kind)
    ]
    rows = (
        await connection.execute(
            OPEN_PERMITTED,
            session.parameters()
            | {
                "run_ids": uuids([o.run_id for o in openings]),
                "changes": integers([o.change for o in openings]),
                "legs": integers([o.leg for o in openings]),
                "nonces": uuids([o.nonce for o in openings]),
                "claimants": texts([o.claimant for o in openings]),
                "generations": integers([o.generation for o in openings]),
                "namespaces": texts([r.namespace for r in ordered]),
                "groups": integers([r.group for r in ordered]),
                "levels": integers([r.level for r in ordered]),
                "since": integers([r.since_ms for r in ordered]),
                "demand_of": integers([place for place, _ in demands]),
                "kinds": integers([d.kind for _, d in demands]),
                "keys": texts([d.key for _, d in demands]),
                "names": texts([d.named for _, d in demands]),
                "mosts": integers([d.limit for _, d in demands]),
                "periods": integers([d.period_ms for _, d in demands]),
                "bursts": integers([max(1, d.burst) for _, d in demands]),
                "overflows": texts([d.overflow for _, d in demands]),
                "patience_ms": patience_ms,
            },
        )
    ).all()
    if not rows:
        raise Fenced(session)
    answers: dict[bytes, PermitAnswer] = {}
    for row in rows:
        at = row.taken_at or row.at
        answers[row.run_id.bytes] = PermitAnswer(
            granted=row.granted,
            at_ms=int(at.timestamp() * 1000),
            kind=row.kind or 0,
            key=row.key or "",
            overflow=row.overflow or "",
            due_in_ms=max(0, int((row.due_at - row.at).total_seconds() * 1000) + 1) if row.due_at else None,
            replaced=Target(row.replaced.bytes, row.replaced_group) if row.replaced else None,
        )
    return [answers[r.opening.run_id] for r in requests]


async def load_after(connection: AsyncConnection, groups: Sequence[int], limit: int) -> list[AfterPermit]:
    """Permits in these groups whose runs have ended while their legs may still be executed; at most `limit` rows."""
    found: dict[tuple[bytes, str, bytes], list[tuple[str, int, str]]] = {}
    for row in await connection.execute(LOAD_AFTER, {"groups": list(groups), "limit": limit}):
        of_leg = (row.run_id.bytes, row.claimant, row.leg_nonce.bytes)
        found.setdefault(of_leg, []).append((row.namespace_id, row.kind, row.key))
    return [AfterPermit(*leg, keys=tuple(keys)) for leg, keys in found.items()]


async def free_after(connection: AsyncConnection, session: OwnerSession, permits: Sequence[AfterPermit]) -> None:
    """Free permits whose legs are surely over. Raises `Fenced`."""
    row = (
        await connection.execute(
            FREE_AFTER,
            session.parameters()
            | {"run_ids": uuids([p.run_id for p in permits]), "nonces": uuids([p.leg_nonce for p in permits])},
        )
    ).one()
    if row.held == 0:
        raise Fenced(session)


async def drop_idle_buckets(connection: AsyncConnection, limit: int = 1000) -> int:
    """Forget buckets that have been full for a while: no row means a full one. Any scheduler may; at most `limit`."""
    return (await connection.execute(DROP_IDLE_BUCKETS, {"limit": limit})).rowcount
