"""Large values and cached results in PostgreSQL.

A payload is immutable and named by its content, in chunks that are written in any order and by anybody; it exists for
readers once its last commit (`finish`) has found all chunks. `payload_use` says which runs name it; what no run has
named within a day is dropped (`drop_unused`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy import text

from flint_store.engine import fetch, write

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

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
]

# Primary keys throughout.
FIND = text("SELECT bytes, chunks, location FROM payload WHERE namespace_id = :namespace AND sha256 = :sha256")

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

# Those that no run names and nobody has stored again for a while, oldest first; chunks of uploads that never ended.
DROP_UNUSED = text("""
WITH unused AS (
    DELETE FROM payload p WHERE (p.namespace_id, p.sha256) IN (
        SELECT q.namespace_id, q.sha256 FROM payload q
        WHERE q.touched_at < now() - make_interval(secs => :age_s)
          AND NOT EXISTS (SELECT 1 FROM payload_use u WHERE u.namespace_id = q.namespace_id AND u.sha256 = q.sha256)
        ORDER BY q.touched_at LIMIT :limit)
    RETURNING p.namespace_id, p.sha256, p.chunks, p.location),
chunks AS (
    DELETE FROM payload_chunk c USING unused u
    WHERE c.namespace_id = u.namespace_id AND c.sha256 = u.sha256 RETURNING 1),
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


async def put_chunk(engine: AsyncEngine, namespace: str, sha256: bytes, index: int, data: bytes) -> None:
    """Store one chunk; the same again changes nothing."""
    await write(engine, PUT_CHUNK, {"namespace": namespace, "sha256": sha256, "index": index, "data": data})


async def get_chunk(engine: AsyncEngine, namespace: str, sha256: bytes, index: int) -> bytes | None:
    """One chunk."""
    rows = await fetch(engine, GET_CHUNK, {"namespace": namespace, "sha256": sha256, "index": index})
    return bytes(rows[0].data) if rows else None


async def finish(
    engine: AsyncEngine, namespace: str, sha256: bytes, *, size: int, chunks: int, location: str, run_id: bytes | None
) -> None:
    """The payload is complete from now on, and used by the run. Raises PayloadIncomplete."""
    parameters = {"namespace": namespace, "sha256": sha256, "bytes": size, "chunks": chunks, "location": location}
    rows = await write(engine, FINISH, parameters)
    if not rows[0].stored:
        raise PayloadIncomplete(sha256.hex())
    if run_id is not None:
        await use(engine, namespace, sha256, run_id)


async def use(engine: AsyncEngine, namespace: str, sha256: bytes, run_id: bytes) -> None:
    """Note that a run names the payload."""
    await write(engine, USE, {"run_id": UUID(bytes=run_id), "namespace": namespace, "sha256": sha256})


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
