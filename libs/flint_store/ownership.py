"""Owner sessions, terms of shard groups, and the journal's generation (R1, R2, R11).

etcd permits an attempt; what counts is written here. A takeover, in one transaction: lock my own session, leave out the
groups that somebody took since I read their terms, end the sessions of the others' former owners (which waits for their
commits under way and fences all later ones), raise the terms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import uuid4

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from flint_store.engine import transaction
from flint_store.fence import FENCE, Fenced, OwnerSession

__all__ = [
    "GroupTerm",
    "begin_session",
    "end_session",
    "give_groups",
    "next_generation",
    "read_generation",
    "read_terms",
    "read_watermarks",
    "save_watermarks",
    "take_groups",
]


@dataclass(frozen=True, slots=True)
class GroupTerm:
    """One term of one group: what a takeover obtained."""

    group: int
    term: int
    watermark: int  # every journal entry of the group up to this stream sequence is folded
    watermark_generation: int


BEGIN_SESSION = text("""
INSERT INTO owner_session (session_id, nonce, scheduler_id, address, started_at)
VALUES (:session_id, :session_nonce, :scheduler_id, :address, clock_timestamp())
""")

# A scheduler id is one process at a time: sessions that its dead predecessor left open end with its successor's start.
END_FORMER = text("""
UPDATE owner_session SET ended_at = clock_timestamp()
WHERE scheduler_id = :scheduler_id AND ended_at IS NULL AND session_id <> :session_id
""")

END_SESSION = text("""
WITH ended AS (
    UPDATE owner_session SET ended_at = clock_timestamp()
    WHERE session_id = :session_id AND nonce = :session_nonce AND ended_at IS NULL RETURNING 1),
left_alone AS (UPDATE shard_group SET session_id = NULL FROM ended WHERE session_id = :session_id RETURNING 1)
SELECT (SELECT count(*) FROM ended) AS ended, (SELECT count(*) FROM left_alone) AS groups
""")

LOCK_SESSION = text(FENCE)

# Nobody else takes these groups until my commit: whom I end is whoever owns them then. In order, so that one of two
# takers waits for the other.
LOCK_GROUPS = text("""
SELECT group_id, term FROM shard_group WHERE group_id = ANY(CAST(:groups AS int[])) ORDER BY group_id FOR UPDATE
""")

READ_TERMS = text("SELECT group_id, term FROM shard_group WHERE group_id = ANY(CAST(:groups AS int[]))")

# Waits for every commit of the former owners that is under way: they hold the rows FOR SHARE.
END_OWNERS = text("""
UPDATE owner_session SET ended_at = clock_timestamp()
WHERE ended_at IS NULL AND session_id IN (
    SELECT session_id FROM shard_group
    WHERE group_id = ANY(CAST(:groups AS int[])) AND session_id IS NOT NULL AND session_id <> :session_id)
""")

RAISE_TERMS = text("""
UPDATE shard_group SET term = term + 1, nonce = :session_nonce, session_id = :session_id
WHERE group_id = ANY(CAST(:groups AS int[]))
RETURNING group_id, term, watermark, watermark_generation
""")

GIVE_GROUPS = text(f"""
WITH fence AS MATERIALIZED ({FENCE}), given AS (
    UPDATE shard_group g SET session_id = NULL, watermark = u.watermark, watermark_generation = :generation
    FROM fence, unnest(CAST(:groups AS int[]), CAST(:watermarks AS bigint[])) AS u(group_id, watermark)
    WHERE g.group_id = u.group_id AND g.session_id = :session_id RETURNING 1)
SELECT (SELECT count(*) FROM fence), (SELECT count(*) FROM given)
""")

SAVE_WATERMARKS = text(f"""
WITH fence AS MATERIALIZED ({FENCE}), saved AS (
    UPDATE shard_group g SET watermark = u.watermark, watermark_generation = :generation
    FROM fence, unnest(CAST(:groups AS int[]), CAST(:watermarks AS bigint[])) AS u(group_id, watermark)
    WHERE g.group_id = u.group_id AND g.session_id = :session_id RETURNING 1)
SELECT (SELECT count(*) FROM fence), (SELECT count(*) FROM saved)
""")

READ_WATERMARKS = text("SELECT group_id, watermark, watermark_generation FROM shard_group")

READ_GENERATION = text("SELECT journal_generation FROM cluster WHERE id = 1")

NEXT_GENERATION = text(f"""
WITH fence AS MATERIALIZED ({FENCE})
UPDATE cluster SET journal_generation = journal_generation + 1
FROM fence WHERE cluster.id = 1 AND journal_generation = :generation RETURNING journal_generation
""")


async def begin_session(engine: AsyncEngine, scheduler_id: str, address: str) -> OwnerSession:
    """Record a new session for this scheduler; sessions its predecessors left open are ended."""
    session = OwnerSession(uuid4(), uuid4())
    async with transaction(engine) as connection:
        await connection.execute(
            BEGIN_SESSION, session.parameters() | {"scheduler_id": scheduler_id, "address": address}
        )
        await connection.execute(END_FORMER, {"scheduler_id": scheduler_id, "session_id": session.session_id})
    return session


async def end_session(engine: AsyncEngine, session: OwnerSession) -> None:
    """End my own session and leave its groups without an owner, in one commit.

    Waits for commits of mine that are under way. Raises `Fenced` when another owner had ended the session before.
    """
    async with transaction(engine) as connection:
        if (await connection.execute(END_SESSION, session.parameters())).one().ended == 0:
            raise Fenced(session)


async def read_terms(connection: AsyncConnection, groups: Sequence[int]) -> dict[int, int]:
    """The present term of each group: to be read before etcd is asked for their keys; see `take_groups`."""
    rows = await connection.execute(READ_TERMS, {"groups": list(groups)})
    return {row.group_id: row.term for row in rows}


async def take_groups(
    engine: AsyncEngine, session: OwnerSession, groups: Sequence[int], since: Mapping[int, int] | None = None
) -> list[GroupTerm]:
    """Raise the terms of groups that etcd permitted me to own. Raises `Fenced` when my own session has ended.

    `since`: their terms as they were read before etcd was asked. A group that has another term now is left out: whoever
    took it may hold its key. The others' owners did not hold the keys that I won after that, so their leases are over,
    or they gave the groups away: nobody's session is ended whose lease stands. Without `since` all are taken.
    """
    async with transaction(engine) as connection:
        if (await connection.execute(LOCK_SESSION, session.parameters())).first() is None:
            raise Fenced(session)
        locked = (await connection.execute(LOCK_GROUPS, {"groups": list(groups)})).all()
        mine = [r.group_id for r in locked if since is None or since.get(r.group_id) == r.term]
        parameters = session.parameters() | {"groups": mine}
        await connection.execute(END_OWNERS, parameters)
        rows = (await connection.execute(RAISE_TERMS, parameters)).all()
    return [GroupTerm(r.group_id, r.term, r.watermark, r.watermark_generation) for r in rows]


async def give_groups(
    connection: AsyncConnection, session: OwnerSession, watermarks: dict[int, int], generation: int
) -> None:
    """Leave groups without an owner, by a commit of the giver: nothing of it is under way afterwards."""
    row = (
        await connection.execute(
            GIVE_GROUPS,
            session.parameters()
            | {"groups": list(watermarks), "watermarks": list(watermarks.values()), "generation": generation},
        )
    ).one()
    if row[0] == 0:
        raise Fenced(session)


async def save_watermarks(
    connection: AsyncConnection, session: OwnerSession, watermarks: dict[int, int], generation: int
) -> None:
    """Record up to where each group's journal is folded: a hint for the next owner's first read, and for the purge."""
    row = (
        await connection.execute(
            SAVE_WATERMARKS,
            session.parameters()
            | {"groups": list(watermarks), "watermarks": list(watermarks.values()), "generation": generation},
        )
    ).one()
    if row[0] == 0:
        raise Fenced(session)


async def read_watermarks(connection: AsyncConnection, generation: int) -> dict[int, int]:
    """Of every group: up to where its journal is folded, as its next owner would find it; 0: nothing of `generation`.

    Within a generation it only grows, so whoever reads it, and however late they use it, what it covers stays folded.
    """
    rows = await connection.execute(READ_WATERMARKS)
    return {r.group_id: r.watermark if r.watermark_generation == generation else 0 for r in rows}


async def read_generation(connection: AsyncConnection) -> int:
    """The journal's current generation; 0 before the first."""
    return int((await connection.execute(READ_GENERATION)).scalar_one())


async def next_generation(connection: AsyncConnection, session: OwnerSession, generation: int) -> int:
    """Open the generation after `generation`, unless another owner did so already; answers the current one (R11)."""
    row = (await connection.execute(NEXT_GENERATION, session.parameters() | {"generation": generation})).first()
    return int(row[0]) if row is not None else await read_generation(connection)
