"""Large values and cached results in PostgreSQL.

A payload is immutable and named by its content, in chunks that are written in any order and by anybody; it exists for
readers once its last commit (`finish`) has found all chunks. `payload_use` says which runs name it, `payload_part`
which payloads its JSON names; what neither a run nor a payload has named within a day is dropped (`drop_unused`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy import text

from flint_core.payloads import references_in_json
from flint_store.arrays import byteas, uuids
from flint_store.engine import fetch, transaction, write

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

__all__ = [
    "PayloadIncomplete",
    "PayloadRow",
    "cache_get",
    "cache_put",
    "drop_expired_results",
    "drop_unused",
    "find",
    "finish",
    "get_chunk",
    "put_chunk",
    "renew",
    "unless_stored",
    "use_in_messages",
]

# Primary keys throughout.
FIND = text("SELECT bytes, chunks, location FROM payload WHERE namespace_id = :namespace AND sha256 = :sha256")

# Not at each look: a value that many runs share would be written all the time.
RENEW = text("""
UPDATE payload SET touched_at = now()
WHERE namespace_id = :namespace AND sha256 = :sha256 AND touched_at < now() - interval '20 seconds'
RETURNING 1
""")

# Held to the end of a transaction by whoever completes or deletes a payload whose chunks PostgreSQL does not hold.
LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 7105))")

PATIENCE = text("SET LOCAL idle_in_transaction_session_timeout = '30s'")

PUT_CHUNK = text("""
INSERT INTO payload_chunk (namespace_id, sha256, index, data) VALUES (:namespace, :sha256, :index, :data)
ON CONFLICT (namespace_id, sha256, index) DO NOTHING RETURNING 1
""")

GET_CHUNK = text("""
SELECT data FROM payload_chunk WHERE namespace_id = :namespace AND sha256 = :sha256 AND index = :index
""")

# Only a complete payload gets its row; `location` says where the chunks are.
FINISH = text("""
WITH there AS (
    SELECT count(*) AS chunks, coalesce(sum(length(data)), 0) AS bytes
    FROM payload_chunk WHERE namespace_id = :namespace AND sha256 = :sha256 AND :location = 'postgres'),
stored AS (
    INSERT INTO payload (namespace_id, sha256, bytes, chunks, location)
    SELECT :namespace, :sha256, :bytes, :chunks, :location FROM there
    WHERE :location <> 'postgres' OR (there.chunks = :chunks AND there.bytes = :bytes)
    ON CONFLICT (namespace_id, sha256) DO UPDATE SET touched_at = now()
    RETURNING 1)
SELECT count(*) AS stored FROM stored
""")

USE = text("""
INSERT INTO payload_use (run_id, namespace_id, sha256) VALUES (:run_id, :namespace, :sha256)
ON CONFLICT DO NOTHING RETURNING 1
""")

PARTS = text("""
INSERT INTO payload_part (namespace_id, sha256, part)
SELECT :namespace, :sha256, p.part FROM unnest(CAST(:parts AS bytea[])) AS p(part)
ON CONFLICT DO NOTHING
""")

# For runs that are there; others have no use for anything.
USE_IN_MESSAGES = text("""
INSERT INTO payload_use (run_id, namespace_id, sha256)
SELECT r.run_id, r.namespace_id, u.sha256
FROM unnest(CAST(:run_ids AS uuid[]), CAST(:named AS bytea[])) AS u(run_id, sha256)
JOIN run r ON r.run_id = u.run_id
ON CONFLICT DO NOTHING
""")

# Those that no run names and nobody has stored again for a while, oldest first; chunks of uploads that never ended.
DROP_UNUSED = text("""
WITH unused AS (
    DELETE FROM payload p WHERE p.touched_at < now() - make_interval(secs => :age_s)
      AND (p.namespace_id, p.sha256) IN (
        SELECT q.namespace_id, q.sha256 FROM payload q
        WHERE q.touched_at < now() - make_interval(secs => :age_s)
          AND NOT EXISTS (SELECT 1 FROM payload_use u WHERE u.namespace_id = q.namespace_id AND u.sha256 = q.sha256)
          AND NOT EXISTS (SELECT 1 FROM payload_part w WHERE w.namespace_id = q.namespace_id AND w.part = q.sha256)
        ORDER BY q.touched_at LIMIT :limit)
    RETURNING p.namespace_id, p.sha256, p.chunks, p.location),
chunks AS (
    DELETE FROM payload_chunk c USING unused u
    WHERE c.namespace_id = u.namespace_id AND c.sha256 = u.sha256 RETURNING 1),
parts AS (
    DELETE FROM payload_part w USING unused u
    WHERE w.namespace_id = u.namespace_id AND w.sha256 = u.sha256 RETURNING 1),
torsos AS (
    DELETE FROM payload_chunk c WHERE (c.namespace_id, c.sha256, c.index) IN (
        SELECT d.namespace_id, d.sha256, d.index FROM payload_chunk d
        WHERE d.created_at < now() - make_interval(secs => :age_s)
          AND NOT EXISTS (SELECT 1 FROM payload p WHERE p.namespace_id = d.namespace_id AND p.sha256 = d.sha256)
        LIMIT :limit)
    RETURNING 1)
SELECT namespace_id, sha256, chunks, location FROM unused
""")

CACHE_GET = text("""
SELECT output FROM result_cache
WHERE namespace_id = :namespace AND cache_key = :key AND expires_at > now()
""")

CACHE_PUT = text("""
INSERT INTO result_cache (namespace_id, cache_key, output, expires_at)
VALUES (:namespace, :key, :output, now() + make_interval(secs => :ttl_s))
ON CONFLICT (namespace_id, cache_key) DO UPDATE SET output = excluded.output, expires_at = excluded.expires_at
RETURNING 1
""")

DROP_EXPIRED = text("""
DELETE FROM result_cache WHERE (namespace_id, cache_key) IN (
    SELECT namespace_id, cache_key FROM result_cache WHERE expires_at <= now() ORDER BY expires_at LIMIT :limit)
RETURNING 1
""")


class PayloadIncomplete(Exception):
    """Chunks are missing: they have to be sent again before the payload exists."""


@dataclass(frozen=True, slots=True)
class PayloadRow:
    """A stored payload. `location`: postgres, or s3."""

    size: int
    chunks: int
    location: str


async def find(engine: AsyncEngine, namespace: str, sha256: bytes) -> PayloadRow | None:
    """The payload, if it is complete."""
    rows = await fetch(engine, FIND, {"namespace": namespace, "sha256": sha256})
    return PayloadRow(rows[0].bytes, rows[0].chunks, rows[0].location) if rows else None


async def renew(engine: AsyncEngine, namespace: str, sha256: bytes) -> PayloadRow | None:
    """Like `find`, for whoever will name the payload: from now on nobody drops it for a while."""
    parameters = {"namespace": namespace, "sha256": sha256}
    await write(engine, RENEW, parameters)
    # A drop under way has either committed by now, and nothing is found, or sees that the row is fresh.
    return await find(engine, namespace, sha256)


async def put_chunk(engine: AsyncEngine, namespace: str, sha256: bytes, index: int, data: bytes) -> None:
    """Store one chunk; the same again changes nothing."""
    await write(engine, PUT_CHUNK, {"namespace": namespace, "sha256": sha256, "index": index, "data": data})


async def get_chunk(engine: AsyncEngine, namespace: str, sha256: bytes, index: int) -> bytes | None:
    """One chunk."""
    rows = await fetch(engine, GET_CHUNK, {"namespace": namespace, "sha256": sha256, "index": index})
    return bytes(rows[0].data) if rows else None


async def finish(
    engine: AsyncEngine,
    namespace: str,
    sha256: bytes,
    *,
    size: int,
    chunks: int,
    location: str,
    run_id: bytes | None,
    parts: Sequence[bytes] = (),
    elsewhere: Callable[[], Awaitable[tuple[int, int]]] | None = None,
) -> None:
    """The payload is complete from now on, used by the run, and keeps the `parts` that it names.

    `elsewhere`: tells how many chunks, and bytes, are stored where `location` says when that is not PostgreSQL.
    Raises PayloadIncomplete.
    """
    parameters = {"namespace": namespace, "sha256": sha256, "bytes": size, "chunks": chunks, "location": location}
    async with transaction(engine) as connection:
        if elsewhere is not None:
            await connection.execute(PATIENCE)
            await connection.execute(LOCK, {"name": f"{namespace}/{sha256.hex()}"})
            if await elsewhere() != (chunks, size):
                raise PayloadIncomplete(sha256.hex())
        if not (await connection.execute(FINISH, parameters)).one().stored:
            raise PayloadIncomplete(sha256.hex())
        if parts:
            await connection.execute(PARTS, {"namespace": namespace, "sha256": sha256, "parts": byteas(parts)})
        if run_id is not None:
            await connection.execute(USE, {"run_id": UUID(bytes=run_id), "namespace": namespace, "sha256": sha256})


async def use(engine: AsyncEngine, namespace: str, sha256: bytes, run_id: bytes) -> None:
    """Note that a run names the payload."""
    await write(engine, USE, {"run_id": UUID(bytes=run_id), "namespace": namespace, "sha256": sha256})


async def use_in_messages(connection: AsyncConnection, messages: Iterable[tuple[bytes, bytes]]) -> None:
    """Note what messages (run id, JSON) name as used by their runs. Costs no round trip when they name nothing.

    Call it before the messages are stored: noted too early is harmless, for the runs are there already.
    """
    pairs = [
        (run_id, bytes.fromhex(reference.sha256)) for run_id, data in messages for reference in references_in_json(data)
    ]
    if pairs:
        parameters = {"run_ids": uuids([run_id for run_id, _ in pairs]), "named": byteas([named for _, named in pairs])}
        await connection.execute(USE_IN_MESSAGES, parameters)


@asynccontextmanager
async def unless_stored(engine: AsyncEngine, namespace: str, sha256: bytes) -> AsyncIterator[bool]:
    """Whether the payload has no row; while the block lasts nobody else who asks the same goes on."""
    async with transaction(engine) as connection:
        await connection.execute(PATIENCE)
        await connection.execute(LOCK, {"name": f"{namespace}/{sha256.hex()}"})
        rows = await connection.execute(FIND, {"namespace": namespace, "sha256": sha256})
        yield rows.first() is None


async def drop_unused(engine: AsyncEngine, age_s: float, limit: int) -> list[tuple[str, bytes, int, str]]:
    """Drop payloads that no run names and nobody stored for `age_s`: (namespace, sha256, chunks, location) of each."""
    rows = await write(engine, DROP_UNUSED, {"age_s": age_s, "limit": limit})
    return [(r.namespace_id, bytes(r.sha256), r.chunks, r.location) for r in rows]


async def cache_get(engine: AsyncEngine, namespace: str, key: bytes) -> bytes | None:
    """The cached result, JSON, if there is one that has not expired."""
    rows = await fetch(engine, CACHE_GET, {"namespace": namespace, "key": key})
    return bytes(rows[0].output) if rows else None


async def cache_put(engine: AsyncEngine, namespace: str, key: bytes, output: bytes, ttl_s: float) -> None:
    """Keep a result for `ttl_s`."""
    await write(engine, CACHE_PUT, {"namespace": namespace, "key": key, "output": output, "ttl_s": ttl_s})


async def drop_expired_results(engine: AsyncEngine, limit: int) -> int:
    """Drop results whose time is over; how many."""
    return len(await write(engine, DROP_EXPIRED, {"limit": limit}))
