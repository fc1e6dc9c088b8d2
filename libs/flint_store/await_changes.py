"""What a fold changes beside the runs' rows: awaits, inboxes, and the word to a parent that its child has ended.

These parts are a second form of the fold's statement, used only for a commit that has any of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flint_store.arrays import byteas, integers, texts, uuids
from flint_store.awaits import Target

if TYPE_CHECKING:
    from flint_store.control_changes import FailedRun

__all__ = ["AWAIT_PARTS", "AwaitChanges", "AwaitOpening", "ParentMessage", "await_parameters"]


@dataclass(frozen=True, slots=True)
class AwaitOpening:
    """An await to be recorded; one that is recorded already stays as it is."""

    key: str
    kind: int
    step: str
    iteration: str
    request: bytes
    opened_ms: int


@dataclass(frozen=True, slots=True)
class ParentMessage:
    """What a child's end tells its parent, if that still waits for it."""

    run_id: bytes
    await_key: str
    group: int
    payload: bytes


@dataclass(slots=True)
class AwaitChanges:
    """Changes that belong to the fold of one run."""

    run_id: bytes
    group: int
    namespace: str
    opened: list[AwaitOpening] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    consumed: list[str] = field(default_factory=list)  # keys of inbox rows
    cancel_served: bool = False  # the cancel's inbox row is done with
    ended: bool = False  # closes all awaits, empties the inbox
    parent: ParentMessage | None = None
    taken: list[str] = field(default_factory=list)  # keys of messages with signals that the run took
    failed: FailedRun | None = None  # it failed, and its workflow's policy counts that
    branch_of: Target | None = None  # of a branch run that ended: whoever joins its fork is told


# Nested loops over primary keys. What a part deletes or updates was there before the statement: a fold that opens and
# closes the same await must leave the opening out. A message for a parent that ends in the same commit stays behind
# and is found by the sweep.
AWAIT_PARTS = """,
opened AS (
    INSERT INTO run_await (run_id, key, kind, group_id, namespace_id, step, iteration, request, opened_at)
    SELECT o.run_id, o.key, o.kind, o.group_id, o.namespace_id, o.step, o.iteration, o.request,
           LEAST(to_timestamp(o.opened_ms / 1000.0), clock_timestamp())
    FROM fence, unnest(
        CAST(:open_run_ids AS uuid[]), CAST(:open_keys AS text[]), CAST(:open_kinds AS int[]),
        CAST(:open_groups AS int[]), CAST(:open_namespaces AS text[]), CAST(:open_steps AS text[]),
        CAST(:open_iterations AS text[]), CAST(:open_requests AS bytea[]), CAST(:open_ms AS bigint[])
    ) AS o(run_id, key, kind, group_id, namespace_id, step, iteration, request, opened_ms)
    ON CONFLICT (run_id, key) DO NOTHING RETURNING 1),
closed AS (
    UPDATE run_await a SET closed = true, served = false
    FROM fence, unnest(CAST(:closed_run_ids AS uuid[]), CAST(:closed_keys AS text[])) AS c(run_id, key)
    WHERE a.run_id = c.run_id AND a.key = c.key AND NOT a.closed RETURNING 1),
ended AS (
    UPDATE run_await a SET closed = true, served = false
    FROM fence, unnest(CAST(:ended_run_ids AS uuid[])) AS e(run_id)
    WHERE a.run_id = e.run_id AND NOT a.closed RETURNING 1),
emptied AS (
    DELETE FROM inbox i USING fence, unnest(CAST(:ended_run_ids AS uuid[])) AS e(run_id)
    WHERE i.run_id = e.run_id AND i.kind <> 'reset' RETURNING 1),
consumed AS (
    DELETE FROM inbox i
    USING fence, unnest(CAST(:consumed_run_ids AS uuid[]), CAST(:consumed_keys AS text[])) AS c(run_id, key)
    WHERE i.run_id = c.run_id AND i.key = c.key RETURNING 1),
answered AS (
    INSERT INTO inbox (run_id, key, group_id, kind, payload, await_key, created_at)
    SELECT p.run_id, 'run/' || p.await_key, p.group_id, 'message', p.payload, p.await_key, clock_timestamp()
    FROM fence, unnest(
        CAST(:parent_run_ids AS uuid[]), CAST(:parent_keys AS text[]), CAST(:parent_groups AS int[]),
        CAST(:parent_payloads AS bytea[])
    ) AS p(run_id, await_key, group_id, payload)
    JOIN run_await a ON a.run_id = p.run_id AND a.key = p.await_key AND NOT a.closed
    ON CONFLICT (run_id, key) DO NOTHING RETURNING 1)"""
"""More members of the fold's WITH list; each depends on `fence`."""

CANCEL_KEY = "cancel"
"""Key of the inbox row by which a cancel is asked for."""


def await_parameters(changes: Sequence[AwaitChanges]) -> dict[str, object]:
    """The bind values of `AWAIT_PARTS`."""
    opened = [(c, o) for c in changes for o in c.opened]
    closed = [(c.run_id, key) for c in changes for key in c.closed]
    consumed = [(c.run_id, key) for c in changes for key in c.consumed]
    consumed += [(c.run_id, CANCEL_KEY) for c in changes if c.cancel_served]
    parents = [c.parent for c in changes if c.parent is not None]
    return {
        "open_run_ids": uuids([c.run_id for c, _ in opened]),
        "open_keys": texts([o.key for _, o in opened]),
        "open_kinds": integers([o.kind for _, o in opened]),
        "open_groups": integers([c.group for c, _ in opened]),
        "open_namespaces": texts([c.namespace for c, _ in opened]),
        "open_steps": texts([o.step for _, o in opened]),
        "open_iterations": texts([o.iteration for _, o in opened]),
        "open_requests": byteas([o.request for _, o in opened]),
        "open_ms": integers([o.opened_ms for _, o in opened]),
        "closed_run_ids": uuids([run_id for run_id, _ in closed]),
        "closed_keys": texts([key for _, key in closed]),
        "ended_run_ids": uuids([c.run_id for c in changes if c.ended]),
        "consumed_run_ids": uuids([run_id for run_id, _ in consumed]),
        "consumed_keys": texts([key for _, key in consumed]),
        "parent_run_ids": uuids([p.run_id for p in parents]),
        "parent_keys": texts([p.await_key for p in parents]),
        "parent_groups": integers([p.group for p in parents]),
        "parent_payloads": byteas([p.payload for p in parents]),
    }
