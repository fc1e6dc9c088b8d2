"""The fleet's history: one row per worker incarnation. Written by the registries' leader.

Two leaders may overlap for a moment: every write may be repeated and comes to the same row, and an incarnation that has
ended never lives again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from flint_contracts.gen.flint.fleet.v1 import fleet_pb2
from flint_store.engine import fetch, write

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["WorkerRow", "end_worker", "list_ended", "live", "upsert_worker"]

_COLUMNS = "incarnation, worker_id, pool, region, card, state, registered_at, ended_at"

# Primary key. Nothing is changed when nothing differs, or when the incarnation has ended.
UPSERT_WORKER = text("""
INSERT INTO worker AS w (incarnation, worker_id, pool, region, card, state, registered_at)
VALUES (:incarnation, :worker_id, :pool, :region, :card, :state, :at)
ON CONFLICT (incarnation) DO UPDATE SET card = excluded.card, state = excluded.state
WHERE w.ended_at IS NULL AND (w.card, w.state) IS DISTINCT FROM (excluded.card, excluded.state)
RETURNING 1
""")

# Primary key. The first end that is written stays.
END_WORKER = text("""
UPDATE worker SET state = :state, ended_at = :at WHERE incarnation = :incarnation AND ended_at IS NULL
RETURNING 1
""")

# Backward range of worker_ended.
LIST_ENDED = text(f"SELECT {_COLUMNS} FROM worker WHERE ended_at >= :since ORDER BY ended_at DESC LIMIT :limit")

# worker_ended: NULLs are in the index.
LIVE = text(f"SELECT {_COLUMNS} FROM worker WHERE ended_at IS NULL ORDER BY pool, worker_id, incarnation LIMIT :limit")


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """One incarnation. `card`: a flint.registry.v1.WorkerCard."""

    incarnation: str
    worker_id: str
    pool: str
    region: str
    card: bytes
    state: fleet_pb2.Worker.State.ValueType
    registered_at: datetime
    ended_at: datetime | None


async def upsert_worker(
    engine: AsyncEngine,
    card: bytes,
    *,
    incarnation: str,
    worker_id: str,
    pool: str,
    region: str,
    state: fleet_pb2.Worker.State.ValueType,
    at: datetime,
) -> bool:
    """Store a live incarnation, or its new card and state; whether anything changed. `at`: when it registered.

    One that has ended stays as it is. Raises `StoreUnavailable`; safe to repeat.
    """
    parameters = {
        "incarnation": incarnation,
        "worker_id": worker_id,
        "pool": pool,
        "region": region,
        "card": card,
        "state": int(state),
        "at": at,
    }
    return bool(await write(engine, UPSERT_WORKER, parameters))


async def end_worker(
    engine: AsyncEngine, incarnation: str, state: fleet_pb2.Worker.State.ValueType, at: datetime
) -> bool:
    """Record an incarnation's end (STATE_ENDED or STATE_LOST); False when it is unknown or had ended before.

    Raises `StoreUnavailable`; safe to repeat.
    """
    return bool(await write(engine, END_WORKER, {"incarnation": incarnation, "state": int(state), "at": at}))


async def list_ended(engine: AsyncEngine, since: datetime, *, limit: int = 1_000) -> list[WorkerRow]:
    """Incarnations that ended at or after a moment, the latest end first."""
    return [_worker(row) for row in await fetch(engine, LIST_ENDED, {"since": since, "limit": limit})]


async def live(engine: AsyncEngine, *, limit: int = 10_000) -> list[WorkerRow]:
    """Incarnations whose end is not recorded, by pool and worker id. A new leader compares them with what lives."""
    return [_worker(row) for row in await fetch(engine, LIVE, {"limit": limit})]


def _worker(row: Sequence[Any]) -> WorkerRow:
    incarnation, worker_id, pool, region, card, state, registered_at, ended_at = row
    return WorkerRow(incarnation, worker_id, pool, region, bytes(card), state, registered_at, ended_at)
