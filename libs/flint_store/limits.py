"""Named limits: what operators set and definitions refer to. Read by `take_permits` whenever a run asks."""

from __future__ import annotations

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_contracts.gen.flint.limits.v1 import limits_pb2
from flint_store.engine import fetch, write
from flint_store.errors import NamespaceNotFound
from flint_store.timestamps import set_timestamp

__all__ = ["drop_limit", "put_limit", "read_limits"]

# Keys of a limit: `limit/<name>` and `limit/<name>/<text>`; primary keys of permit and permit_wait.
_FIGURES = """
(SELECT count(*) FROM permit p WHERE p.namespace_id = l.namespace_id AND p.kind = 1
    AND (p.key = 'limit/' || l.name OR (p.key >= 'limit/' || l.name || '/' AND p.key < 'limit/' || l.name || '0')))
    AS holders,
(SELECT count(DISTINCT w.run_id) FROM permit_wait w WHERE w.namespace_id = l.namespace_id
    AND (w.key = 'limit/' || l.name OR (w.key >= 'limit/' || l.name || '/' AND w.key < 'limit/' || l.name || '0')))
    AS waiting
"""

PUT = text(f"""
WITH l AS (
    INSERT INTO permit_limit (namespace_id, name, concurrency, rate_count, rate_period_ms, rate_burst, updated_at)
    SELECT n.namespace_id, :name, :concurrency, :rate_count, :rate_period_ms, :rate_burst, clock_timestamp()
    FROM namespace n WHERE n.namespace_id = :namespace
    ON CONFLICT (namespace_id, name) DO UPDATE
    SET concurrency = excluded.concurrency, rate_count = excluded.rate_count,
        rate_period_ms = excluded.rate_period_ms, rate_burst = excluded.rate_burst, updated_at = excluded.updated_at
    RETURNING *)
SELECT l.*, {_FIGURES} FROM l
""")

READ = text(f"""
SELECT l.*, {_FIGURES} FROM permit_limit l
WHERE l.namespace_id = :namespace AND l.name > :after ORDER BY l.name LIMIT :limit
""")

DROP = text("DELETE FROM permit_limit WHERE namespace_id = :namespace AND name = :name RETURNING 1")


async def put_limit(engine: AsyncEngine, namespace: str, name: str, limit: limits_pb2.Limit) -> limits_pb2.Limit:
    """Set what the limit allows; answers it as it is now. Raises NamespaceNotFound, StoreUnavailable."""
    rate = limit.rate if limit.HasField("rate") else None
    rows = await write(
        engine,
        PUT,
        {
            "namespace": namespace,
            "name": name,
            "concurrency": limit.concurrency if limit.HasField("concurrency") else None,
            "rate_count": rate.count if rate is not None else None,
            "rate_period_ms": rate.period.ToMilliseconds() if rate is not None else None,
            "rate_burst": max(1, rate.burst) if rate is not None else None,
        },
    )
    if not rows:
        raise NamespaceNotFound(f"there is no namespace {namespace!r}")
    return _limit(rows[0])


async def read_limits(engine: AsyncEngine, namespace: str, after: str, limit: int) -> list[limits_pb2.Limit]:
    """A page by name, with how many runs hold each limit and how many were refused. Raises StoreUnavailable."""
    rows = await fetch(engine, READ, {"namespace": namespace, "after": after, "limit": limit})
    return [_limit(row) for row in rows]


async def drop_limit(engine: AsyncEngine, namespace: str, name: str) -> bool:
    """Forget a limit; False when there was none. Raises StoreUnavailable."""
    return bool(await write(engine, DROP, {"namespace": namespace, "name": name}))


def _limit(row: Row[tuple[object, ...]]) -> limits_pb2.Limit:
    limit = limits_pb2.Limit(
        name=f"namespaces/{row.namespace_id}/limits/{row.name}", holders=row.holders, waiting=row.waiting
    )
    if row.concurrency is not None:
        limit.concurrency = row.concurrency
    if row.rate_count is not None:
        limit.rate.count = row.rate_count
        limit.rate.burst = row.rate_burst
        limit.rate.period.FromMilliseconds(row.rate_period_ms)
    set_timestamp(limit.update_time, row.updated_at)
    return limit
