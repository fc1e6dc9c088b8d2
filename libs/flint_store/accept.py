"""Accepting runs: one statement for all the starts of a moment (R0, R2).

A start is answered after this statement has committed. Starts that the owner of their shard accepts are fenced by its
session and may open their first leg in the same commit; starts accepted by any other replica carry the `adopt` flag and
are found by the owner's sweep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from flint_core.ids import created_ms
from flint_store.arrays import byteas, integers, texts, uuids
from flint_store.fence import FENCE, OwnerSession

__all__ = ["Accepted", "NewRun", "accept_runs"]

_QUEUED, _RUNNING = 1, 2  # flint.runs.v1.Run.State


@dataclass(slots=True)
class NewRun:
    """One start, ready to be stored."""

    run_id: bytes
    namespace: str
    definition_id: int
    group: int
    level: int
    request_id: str
    request_hash: bytes
    trace_id: bytes
    input: bytes
    leg_nonce: bytes | None = None  # set when its first leg opens with the start
    claimant: str | None = None
    generation: int = 0


@dataclass(slots=True, frozen=True)
class Accepted:
    """What one start became. `same_request` is False when the request id was used for other content."""

    run_id: bytes
    created: bool
    same_request: bool
    created_at: datetime
    state: int


_COLUMNS = """
    SELECT u.run_id, u.namespace_id, u.definition_id, u.group_id,
           CASE WHEN u.leg_nonce IS NULL THEN 1 ELSE 2 END, u.level, u.request_id, u.request_hash, u.trace_id, u.input,
           1, 0, 0, CASE WHEN u.leg_nonce IS NULL THEN 0 ELSE 1 END, u.leg_nonce, u.claimant, u.leg_generation,
           0, false, {adopt}, to_timestamp(u.created_ms / 1000.0),
           CASE WHEN u.leg_nonce IS NULL THEN NULL ELSE moment.at END
    FROM {source} unnest(
        CAST(:run_ids AS uuid[]), CAST(:namespaces AS text[]), CAST(:definitions AS bigint[]), CAST(:groups AS int[]),
        CAST(:levels AS int[]), CAST(:request_ids AS text[]), CAST(:request_hashes AS bytea[]),
        CAST(:trace_ids AS bytea[]), CAST(:inputs AS bytea[]), CAST(:nonces AS uuid[]), CAST(:claimants AS text[]),
        CAST(:generations AS bigint[]), CAST(:created AS bigint[])
    ) AS u(run_id, namespace_id, definition_id, group_id, level, request_id, request_hash, trace_id, input, leg_nonce,
           claimant, leg_generation, created_ms)
"""

_INSERT = """
    INSERT INTO run (run_id, namespace_id, definition_id, group_id, state, level, request_id, request_hash, trace_id,
                     input, change, position, snapshot_position, leg, leg_nonce, claimant, leg_generation, losses,
                     cancel_requested, adopt, created_at, started_at)
    {select}
    ON CONFLICT (namespace_id, request_id) WHERE request_id IS NOT NULL DO NOTHING
    RETURNING 1
"""

_ACCEPT = """
WITH {fence} moment AS MATERIALIZED (SELECT clock_timestamp() AS at),
inserted AS ({insert})
SELECT {held} AS held, (SELECT count(*) FROM inserted) AS inserted, (SELECT at FROM moment) AS at
"""

# Insert fenced by the owner's session: no row at all when the session has ended.
ACCEPT_OWNED = text(
    _ACCEPT.format(
        fence=f"fence AS MATERIALIZED ({FENCE}),",
        insert=_INSERT.format(select=_COLUMNS.format(adopt="false", source="fence, moment,")),
        held="(SELECT count(*) FROM fence)",
    )
)

# Insert by a replica that does not own the shards: needs no fence, the run waits for its owner.
ACCEPT_FOREIGN = text(
    _ACCEPT.format(fence="", insert=_INSERT.format(select=_COLUMNS.format(adopt="true", source="moment,")), held="1")
)

# What earlier starts with the same request ids became; unique index (namespace_id, request_id).
FIND_REQUESTS = text("""
SELECT r.namespace_id, r.request_id, r.run_id, r.request_hash, r.created_at, r.state
FROM unnest(CAST(:namespaces AS text[]), CAST(:request_ids AS text[])) AS u(namespace_id, request_id)
JOIN run r ON r.namespace_id = u.namespace_id AND r.request_id = u.request_id
""")


def _parameters(runs: Sequence[NewRun]) -> dict[str, object]:
    return {
        "run_ids": uuids([r.run_id for r in runs]),
        "namespaces": texts([r.namespace for r in runs]),
        "definitions": integers([r.definition_id for r in runs]),
        "groups": integers([r.group for r in runs]),
        "levels": integers([r.level for r in runs]),
        "request_ids": texts([r.request_id or None for r in runs]),
        "request_hashes": byteas([r.request_hash for r in runs]),
        "trace_ids": byteas([r.trace_id for r in runs]),
        "inputs": byteas([r.input for r in runs]),
        "nonces": uuids([r.leg_nonce for r in runs]),
        "claimants": texts([r.claimant for r in runs]),
        "generations": integers([r.generation for r in runs]),
        "created": integers([created_ms(r.run_id) for r in runs]),
    }


async def accept_runs(
    connection: AsyncConnection, runs: Sequence[NewRun], session: OwnerSession | None
) -> list[Accepted] | None:
    """Store the runs in one commit and tell what each became, in order.

    With a session the insert is fenced; None is answered when the session has ended (nothing was stored then). Without
    one, the runs are stored for adoption and must not open legs. A run whose request id is in use is not stored again:
    the earlier one is answered. Safe to repeat with the same runs after a lost answer.
    """
    parameters = _parameters(runs)
    if session is not None:
        row = (await connection.execute(ACCEPT_OWNED, parameters | session.parameters())).one()
        if row.held == 0:
            return None
    else:
        row = (await connection.execute(ACCEPT_FOREIGN, parameters)).one()
    fresh = [
        Accepted(
            r.run_id,
            True,
            True,
            datetime.fromtimestamp(created_ms(r.run_id) / 1000, UTC),
            _QUEUED if r.leg_nonce is None else _RUNNING,
        )
        for r in runs
    ]
    if row.inserted == len(runs):
        return fresh
    # Some request ids were in use: find out which, and what became of the starts that used them first.
    found = await connection.execute(
        FIND_REQUESTS,
        {
            "namespaces": texts([r.namespace for r in runs if r.request_id]),
            "request_ids": texts([r.request_id for r in runs if r.request_id]),
        },
    )
    stored = {(f.namespace_id, f.request_id): f for f in found}
    answers = []
    for run, mine in zip(runs, fresh, strict=True):
        first = stored.get((run.namespace, run.request_id)) if run.request_id else None
        if first is None or first.run_id.bytes == run.run_id:
            answers.append(mine)
        else:
            same = bytes(first.request_hash) == run.request_hash
            answers.append(Accepted(first.run_id.bytes, False, same, first.created_at, first.state))
    return answers
