"""Runs that runs start: what is known of the parents, and which child an await has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from flint_store.arrays import texts, uuids

__all__ = ["Child", "ParentFacts", "find_children", "read_parents"]


@dataclass(frozen=True, slots=True)
class ParentFacts:
    """What its children take over from a run, and how many it has started."""

    level: int
    trace_id: bytes
    depth: int
    children: int
    root: bytes  # the run at the top of the tree


@dataclass(frozen=True, slots=True)
class Child:
    """A run that was started for an await."""

    run_id: bytes
    state: int  # flint.runs.v1.Run.State


# Primary key; for each, a range of the partial index run_children, at most `most` of it.
READ_PARENTS = text("""
SELECT r.run_id, r.level, r.trace_id, r.depth, COALESCE(r.root_run_id, r.run_id) AS root,
       (SELECT count(*) FROM (SELECT 1 FROM run c WHERE c.parent_run_id = r.run_id
        AND NOT starts_with(c.request_id, '~branch/') LIMIT :most) few) AS children
FROM run r WHERE r.run_id = ANY(CAST(:run_ids AS uuid[]))
""")

# Unique index (namespace_id, request_id).
FIND_CHILDREN = text("""
SELECT r.namespace_id, r.request_id, r.run_id, r.state
FROM unnest(CAST(:namespaces AS text[]), CAST(:request_ids AS text[])) AS u(namespace_id, request_id)
JOIN run r ON r.namespace_id = u.namespace_id AND r.request_id = u.request_id
""")


async def read_parents(connection: AsyncConnection, run_ids: Sequence[bytes], most: int) -> dict[bytes, ParentFacts]:
    """Facts of these runs; children are counted up to `most`."""
    rows = await connection.execute(READ_PARENTS, {"run_ids": uuids(run_ids), "most": most})
    return {
        r.run_id.bytes: ParentFacts(r.level, bytes(r.trace_id or b""), r.depth, r.children, r.root.bytes) for r in rows
    }


async def find_children(connection: AsyncConnection, names: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Child]:
    """The runs with these (namespace, request id); missing ones are left out."""
    rows = await connection.execute(
        FIND_CHILDREN, {"namespaces": texts([n for n, _ in names]), "request_ids": texts([r for _, r in names])}
    )
    return {(r.namespace_id, r.request_id): Child(r.run_id.bytes, r.state) for r in rows}
