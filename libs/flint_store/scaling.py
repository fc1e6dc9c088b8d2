"""Scaling in the record: settings of pools, decisions, what is known to come. Written by the registries' leader.

Two leaders may overlap for a moment: settings are written by callers of the API alone, decisions are only added, and
what was learned is replaced as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import orjson
from sqlalchemy import text

from flint_contracts.gen.flint.fleet.v1 import fleet_pb2
from flint_store.engine import fetch, write

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = [
    "ComingRow",
    "DecisionRow",
    "PoolRow",
    "add_decision",
    "coming",
    "judge_decision",
    "keep_learned",
    "list_decisions",
    "pools",
    "prune_decisions",
    "set_pool",
]

Action = fleet_pb2.ScalingDecision.Action
Verdict = fleet_pb2.ScalingDecision.Verdict

POOLS = text("SELECT region, pool, settings, learned, updated_at FROM pool ORDER BY region, pool LIMIT :limit")

# Primary key. `unset` names members to remove, so that two callers that change different ones do not undo each other.
SET_POOL = text("""
INSERT INTO pool AS p (region, pool, settings)
VALUES (:region, :pool, convert_to(CAST(CAST(:set AS jsonb) - CAST(:unset AS text[]) AS text), 'UTF8'))
ON CONFLICT (region, pool) DO UPDATE SET updated_at = now(), settings = convert_to(CAST(
    (CAST(convert_from(p.settings, 'UTF8') AS jsonb) || CAST(:set AS jsonb)) - CAST(:unset AS text[]) AS text), 'UTF8')
RETURNING region, pool, settings, learned, updated_at
""")

KEEP_LEARNED = text("""
INSERT INTO pool (region, pool, learned) VALUES (:region, :pool, :learned)
ON CONFLICT (region, pool) DO UPDATE SET learned = excluded.learned
RETURNING 1
""")

ADD_DECISION = text("""
INSERT INTO scaling_decision (region, pool, decided_at, action, workers, wanted, shadow, reason, inputs, failure)
VALUES (:region, :pool, :at, :action, :workers, :wanted, :shadow, :reason, :inputs, :failure)
RETURNING decision_id
""")

# Primary key. The first verdict stays.
JUDGE_DECISION = text("""
UPDATE scaling_decision SET verdict = :verdict, evaluation = :evaluation
WHERE decision_id = :id AND verdict = 0
RETURNING 1
""")

_DECISION = """decision_id, region, pool, decided_at, action, workers, wanted, shadow, reason, inputs, failure, verdict,
    evaluation"""

# Backward range of scaling_decision_pool.
LIST_OF_POOL = text(f"""
SELECT {_DECISION} FROM scaling_decision
WHERE region = :region AND pool = :pool AND decision_id < :before AND action > :above
ORDER BY decision_id DESC LIMIT :limit
""")

# Backward range of the primary key.
LIST_ALL = text(f"""
SELECT {_DECISION} FROM scaling_decision WHERE decision_id < :before AND action > :above
ORDER BY decision_id DESC LIMIT :limit
""")

# The oldest by the primary key; ids grow with time.
PRUNE_DECISIONS = text("""
DELETE FROM scaling_decision WHERE decision_id IN (
    SELECT decision_id FROM scaling_decision ORDER BY decision_id LIMIT :limit
) AND decided_at < :before
RETURNING 1
""")

# A range of run_wake and of schedule_due in each group. A schedule's pool is that of the run that it started last.
COMING = text("""
WITH due AS (
    SELECT r.wake_at AS at, coalesce(r.placement, r.hints) AS hints
    FROM shard_group g CROSS JOIN LATERAL (
        SELECT wake_at, placement, hints FROM run
        WHERE run.group_id = g.group_id AND wake_at > now() AND wake_at < now() + make_interval(secs => :horizon_s)
        ORDER BY wake_at LIMIT :limit
    ) r
    UNION ALL
    SELECT s.next_fire_at, s.hints
    FROM shard_group g CROSS JOIN LATERAL (
        SELECT next_fire_at, coalesce(last.placement, last.hints) AS hints
        FROM schedule LEFT JOIN run last ON last.run_id = schedule.last_run_id
        WHERE schedule.group_id = g.group_id
          AND next_fire_at > now() AND next_fire_at < now() + make_interval(secs => :horizon_s)
        ORDER BY next_fire_at LIMIT :limit
    ) s
)
SELECT coalesce(hint ->> 'pool', ''), coalesce(hint ->> 'region', ''),
       CAST(ceil(extract(epoch FROM at) / :bucket_s) * :bucket_s AS double precision) AS moment, count(*)
FROM due CROSS JOIN LATERAL (SELECT CAST(convert_from(coalesce(hints, '{}'), 'UTF8') AS json) AS hint) h
GROUP BY 1, 2, 3 ORDER BY 3 LIMIT :rows
""")


@dataclass(frozen=True, slots=True)
class PoolRow:
    """A pool with settings of its own, or with something learned. `settings`: members that are set."""

    region: str
    pool: str
    settings: Mapping[str, Any]
    learned: Mapping[str, Any] | None
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class DecisionRow:
    """One line of the ledger. `inputs`, `evaluation`: JSON."""

    decision_id: int
    region: str
    pool: str
    decided_at: datetime
    action: Action.ValueType
    workers: int
    wanted: int
    shadow: bool
    reason: str
    inputs: bytes
    failure: str
    verdict: Verdict.ValueType
    evaluation: bytes


@dataclass(frozen=True, slots=True)
class ComingRow:
    """Runs of a pool that timers and schedules make ready until a moment (epoch seconds). Empty names: the default."""

    pool: str
    region: str
    at: float
    legs: int


async def pools(engine: AsyncEngine, *, limit: int = 1_000) -> list[PoolRow]:
    """Pools with settings or learned figures, by region and name."""
    return [_pool(row) for row in await fetch(engine, POOLS, {"limit": limit})]


async def set_pool(
    engine: AsyncEngine, region: str, pool: str, values: Mapping[str, Any], unset: Sequence[str] = ()
) -> PoolRow:
    """Change some settings of a pool, which is made if need be. Raises `StoreUnavailable`; safe to repeat."""
    parameters = {"region": region, "pool": pool, "set": orjson.dumps(dict(values)).decode(), "unset": list(unset)}
    return _pool((await write(engine, SET_POOL, parameters))[0])


async def keep_learned(engine: AsyncEngine, region: str, pool: str, learned: Mapping[str, Any]) -> None:
    """Replace what was learned of a pool."""
    await write(engine, KEEP_LEARNED, {"region": region, "pool": pool, "learned": orjson.dumps(dict(learned))})


async def add_decision(
    engine: AsyncEngine,
    region: str,
    pool: str,
    at: datetime,
    *,
    action: Action.ValueType,
    workers: int,
    wanted: int,
    shadow: bool,
    reason: str,
    inputs: bytes,
    failure: str = "",
) -> int:
    """Write a decision down; its id. Raises `StoreUnavailable`, after which it may stand there."""
    parameters = {
        "region": region,
        "pool": pool,
        "at": at,
        "action": int(action),
        "workers": workers,
        "wanted": wanted,
        "shadow": shadow,
        "reason": reason[:1000],
        "inputs": inputs,
        "failure": failure[:1000],
    }
    return int((await write(engine, ADD_DECISION, parameters))[0][0])


async def judge_decision(engine: AsyncEngine, decision_id: int, verdict: Verdict.ValueType, evaluation: bytes) -> None:
    """Write down how right a decision was. Safe to repeat."""
    await write(engine, JUDGE_DECISION, {"id": decision_id, "verdict": int(verdict), "evaluation": evaluation})


async def list_decisions(
    engine: AsyncEngine, *, region: str = "", pool: str = "", before: int = 0, changes_only: bool = False, limit: int
) -> list[DecisionRow]:
    """Decisions with smaller ids than `before` (0: all), the latest first; of one pool, or of all without names."""
    above = int(Action.ACTION_HOLD) if changes_only else 0
    parameters = {"before": before or 2**62, "above": above, "limit": limit}
    statement = LIST_ALL
    if pool:
        statement, parameters = LIST_OF_POOL, {**parameters, "region": region, "pool": pool}  # type: ignore[dict-item]
    return [_decision(row) for row in await fetch(engine, statement, parameters)]


async def prune_decisions(engine: AsyncEngine, before: datetime, *, limit: int = 1_000) -> int:
    """Delete up to `limit` of the oldest decisions, those made before a moment; how many."""
    return len(await write(engine, PRUNE_DECISIONS, {"before": before, "limit": limit}))


async def coming(
    engine: AsyncEngine, horizon_s: float, *, bucket_s: float = 5.0, limit: int = 2_000, rows: int = 5_000
) -> list[ComingRow]:
    """What timers and schedules make ready within the horizon, in order of time. `limit`: per group, of each kind."""
    parameters = {"horizon_s": horizon_s, "bucket_s": bucket_s, "limit": limit, "rows": rows}
    return [ComingRow(str(p), str(r), float(at), int(n)) for p, r, at, n in await fetch(engine, COMING, parameters)]


def _pool(row: Sequence[Any]) -> PoolRow:
    region, pool, settings, learned, updated_at = row
    return PoolRow(region, pool, orjson.loads(settings), None if learned is None else orjson.loads(learned), updated_at)


def _decision(row: Sequence[Any]) -> DecisionRow:
    number, region, pool, at, action, workers, wanted, shadow, reason, inputs, failure, verdict, evaluation = row
    return DecisionRow(
        number,
        region,
        pool,
        at,
        action,
        workers,
        wanted,
        shadow,
        reason,
        bytes(inputs),
        failure,
        verdict,
        bytes(evaluation or b""),
    )
