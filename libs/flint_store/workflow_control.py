"""Workflows on hold, policies for failures, and the one small query by which a scheduler sees what there is to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

import orjson
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from flint_contracts.gen.flint.runs.v1 import control_pb2
from flint_store.timestamps import set_timestamp

__all__ = [
    "ControlSweep",
    "Escalation",
    "WorkflowControl",
    "control_sweep",
    "count_failure",
    "escalate",
    "forget_failures",
    "hold_workflow",
    "load_controls",
    "new_failures",
    "read_holds",
    "release_workflow",
    "settle_escalation",
    "sync_policy",
    "untold_escalations",
    "workflow_known",
]

_WORKFLOWS = 1_000
_FAILURES = 500


@dataclass(frozen=True, slots=True)
class WorkflowControl:
    """What is special about a workflow."""

    namespace: str
    workflow_id: str
    held: bool
    escalation: bytes | None


@dataclass(slots=True)
class ControlSweep:
    """What needs attention. `changed`: when a hold or a policy changed last; None: never."""

    changed: datetime | None = None
    signals: list[bytes] = field(default_factory=list)
    batches: list[bytes] = field(default_factory=list)
    failures: bool = False
    escalations: bool = False


@dataclass(frozen=True, slots=True)
class Escalation:
    """A workflow whose runs failed as often as its policy says."""

    namespace: str
    workflow_id: str
    escalated_at: datetime
    failures: int
    last_run_id: bytes
    policy: bytes


# Partial indexes run_signal_new, batch_job_active, workflow_failure_new, workflow_escalation_new; last entry of
# workflow_control_changed.
SWEEP = text("""
(SELECT 1 AS kind, NULL::uuid AS id, changed_at AS at FROM workflow_control ORDER BY changed_at DESC LIMIT 1)
UNION ALL (SELECT DISTINCT 2, run_id, NULL::timestamptz FROM run_signal
           WHERE group_id = ANY(CAST(:groups AS int[])) AND NOT looked LIMIT 1000)
UNION ALL (SELECT 3, batch_id, NULL FROM batch_job
           WHERE group_id = ANY(CAST(:groups AS int[])) AND state = 1 LIMIT 1000)
UNION ALL (SELECT 4, run_id, NULL FROM workflow_failure WHERE NOT counted LIMIT 1)
UNION ALL (SELECT 5, last_run_id, NULL FROM workflow_escalation WHERE NOT told LIMIT 1)
""")
LOAD = text("""
SELECT namespace_id, workflow_id, held_at IS NOT NULL AS held, escalation FROM workflow_control
WHERE held_at IS NOT NULL OR escalation IS NOT NULL
""")
KNOWN = text("""
SELECT EXISTS (SELECT 1 FROM workflow_version WHERE namespace_id = :namespace AND workflow_id = :workflow_id
               AND deleted_at IS NULL) AS known
""")
HOLD = text("""
INSERT INTO workflow_control AS w (namespace_id, workflow_id, held_at, reason, changed_at)
VALUES (:namespace, :workflow_id, clock_timestamp(), :reason, clock_timestamp())
ON CONFLICT (namespace_id, workflow_id) DO UPDATE
SET held_at = clock_timestamp(), reason = EXCLUDED.reason, changed_at = clock_timestamp() WHERE w.held_at IS NULL
RETURNING 1
""")
RELEASE = text("""
UPDATE workflow_control SET held_at = NULL, reason = '', changed_at = clock_timestamp()
WHERE namespace_id = :namespace AND workflow_id = :workflow_id AND held_at IS NOT NULL RETURNING 1
""")
HOLDS = text("""
SELECT workflow_id, reason, held_at FROM workflow_control
WHERE namespace_id = :namespace AND held_at IS NOT NULL AND (:workflow_id = '' OR workflow_id = :workflow_id)
ORDER BY workflow_id LIMIT :limit
""")
LATEST_PROGRAM = text("""
SELECT CASE WHEN mentions THEN program END AS program, mentions
FROM (SELECT program, position(CAST('"escalation":' AS bytea) IN program) > 0 AS mentions FROM workflow_version
      WHERE namespace_id = :namespace AND workflow_id = :workflow_id AND deleted_at IS NULL
      ORDER BY version_sort DESC, version DESC LIMIT 1) latest
""")
POLICY = text("""
INSERT INTO workflow_control AS w (namespace_id, workflow_id, escalation, changed_at)
SELECT :namespace, :workflow_id, CAST(:policy AS bytea), clock_timestamp()
WHERE CAST(:policy AS bytea) IS NOT NULL OR EXISTS (
    SELECT 1 FROM workflow_control WHERE namespace_id = :namespace AND workflow_id = :workflow_id)
ON CONFLICT (namespace_id, workflow_id) DO UPDATE SET escalation = EXCLUDED.escalation, changed_at = clock_timestamp()
WHERE w.escalation IS DISTINCT FROM EXCLUDED.escalation
""")

# One scheduler at a time counts the failures of one workflow: its row is held until the transaction ends.
NEW_FAILURES = text("""
SELECT namespace_id, workflow_id, run_id, change, failed_at FROM workflow_failure WHERE NOT counted
ORDER BY failed_at LIMIT :limit
""")
LOCK_POLICY = text("""
SELECT escalation FROM workflow_control WHERE namespace_id = :namespace AND workflow_id = :workflow_id FOR UPDATE
""")
MARK = text("""
UPDATE workflow_failure SET counted = true WHERE run_id = :run_id AND change = :change AND NOT counted RETURNING 1
""")
COUNT = text("""
SELECT count(*) AS failures FROM (
    SELECT 1 FROM workflow_failure f
    WHERE f.namespace_id = :namespace AND f.workflow_id = :workflow_id AND f.counted
      AND f.failed_at > CAST(:at AS timestamptz) - make_interval(secs => :within_s) AND f.failed_at <= :at
      AND f.failed_at > COALESCE((SELECT max(e.escalated_at) FROM workflow_escalation e
                                  WHERE e.namespace_id = :namespace AND e.workflow_id = :workflow_id), '-infinity')
    LIMIT :most) few
""")
ESCALATE = text("""
INSERT INTO workflow_escalation (namespace_id, workflow_id, escalated_at, failures, last_run_id, policy)
VALUES (:namespace, :workflow_id, :at, :failures, :run_id, :policy) ON CONFLICT DO NOTHING
""")
FORGET = text("DELETE FROM workflow_failure WHERE counted AND failed_at < clock_timestamp() - interval '31 days'")
UNTOLD = text("""
SELECT namespace_id, workflow_id, escalated_at, failures, last_run_id, policy FROM workflow_escalation
WHERE NOT told ORDER BY escalated_at LIMIT 100
""")
TOLD = text("""
UPDATE workflow_escalation SET told = true
WHERE namespace_id = :namespace AND workflow_id = :workflow_id AND escalated_at = :at
""")


async def control_sweep(connection: AsyncConnection, groups: Sequence[int]) -> ControlSweep:
    """What run control has to do for these groups."""
    found = ControlSweep()
    for row in await connection.execute(SWEEP, {"groups": list(groups)}):
        match row.kind:
            case 1:
                found.changed = row.at
            case 2:
                found.signals.append(row.id.bytes)
            case 3:
                found.batches.append(row.id.bytes)
            case 4:
                found.failures = True
            case _:
                found.escalations = True
    return found


async def load_controls(connection: AsyncConnection) -> list[WorkflowControl]:
    """All workflows that are on hold or have a policy."""
    rows = await connection.execute(LOAD)
    return [
        WorkflowControl(r.namespace_id, r.workflow_id, r.held, bytes(r.escalation) if r.escalation else None)
        for r in rows
    ]


async def workflow_known(connection: AsyncConnection, namespace: str, workflow_id: str) -> bool:
    """Whether there is such a workflow."""
    row = (await connection.execute(KNOWN, {"namespace": namespace, "workflow_id": workflow_id})).one()
    return bool(row.known)


async def hold_workflow(connection: AsyncConnection, namespace: str, workflow_id: str, reason: str) -> bool:
    """Put it on hold; False when it was."""
    row = await connection.execute(HOLD, {"namespace": namespace, "workflow_id": workflow_id, "reason": reason})
    return row.one_or_none() is not None


async def release_workflow(connection: AsyncConnection, namespace: str, workflow_id: str) -> bool:
    """Let its runs begin; False when it was not on hold."""
    row = await connection.execute(RELEASE, {"namespace": namespace, "workflow_id": workflow_id})
    return row.one_or_none() is not None


async def read_holds(
    connection: AsyncConnection, namespace: str, workflow_id: str = ""
) -> list[control_pb2.WorkflowHold]:
    """The workflows of a namespace that are on hold, or the one that is named."""
    rows = await connection.execute(HOLDS, {"namespace": namespace, "workflow_id": workflow_id, "limit": _WORKFLOWS})
    holds = []
    for row in rows:
        hold = control_pb2.WorkflowHold(
            workflow=f"namespaces/{namespace}/workflows/{row.workflow_id}", reason=row.reason
        )
        set_timestamp(hold.hold_time, row.held_at)
        holds.append(hold)
    return holds


async def sync_policy(connection: AsyncConnection, namespace: str, workflow_id: str) -> None:
    """What is to happen when its runs fail again and again is what the latest version says.

    Within the transaction that stores or deletes a version.
    """
    names = {"namespace": namespace, "workflow_id": workflow_id}
    row = (await connection.execute(LATEST_PROGRAM, names)).one_or_none()
    policy = None
    if row is not None and row.mentions:
        found = orjson.loads(bytes(row.program)).get("escalation")
        policy = orjson.dumps(found) if isinstance(found, dict) else None
    await connection.execute(POLICY, names | {"policy": policy})


async def new_failures(connection: AsyncConnection) -> list[tuple[str, str, bytes, int, datetime]]:
    """Failures that nobody has counted, oldest first: (namespace, workflow, run, change, when)."""
    rows = await connection.execute(NEW_FAILURES, {"limit": _FAILURES})
    return [(r.namespace_id, r.workflow_id, r.run_id.bytes, r.change, r.failed_at) for r in rows]


async def count_failure(
    connection: AsyncConnection, failure: tuple[str, str, bytes, int, datetime]
) -> tuple[bytes | None, bool]:
    """Mark a failure as counted, within a transaction that has the workflow to itself until it ends.

    Answers the workflow's policy, and whether this call was the one that counted it.
    """
    namespace, workflow_id, run_id, change, _ = failure
    names = {"namespace": namespace, "workflow_id": workflow_id}
    policy = (await connection.execute(LOCK_POLICY, names)).one_or_none()
    marked = await connection.execute(MARK, {"run_id": UUID(bytes=run_id), "change": change})
    counted = marked.one_or_none() is not None
    return (bytes(policy.escalation) if policy is not None and policy.escalation else None), counted


async def escalate(
    connection: AsyncConnection,
    failure: tuple[str, str, bytes, int, datetime],
    policy: bytes,
    failures: int,
    within_s: float,
) -> bool:
    """Whether this failure is the one that makes it too many within the time; noted if so.

    Failures before the last escalation count for that one.
    """
    namespace, workflow_id, run_id, _, at = failure
    names = {"namespace": namespace, "workflow_id": workflow_id}
    found = (await connection.execute(COUNT, names | {"at": at, "within_s": within_s, "most": failures})).one()
    if found.failures < failures:
        return False
    await connection.execute(
        ESCALATE, names | {"at": at, "failures": found.failures, "run_id": UUID(bytes=run_id), "policy": policy}
    )
    return True


async def forget_failures(connection: AsyncConnection) -> None:
    """Drop failures that no window reaches any more."""
    await connection.execute(FORGET)


async def untold_escalations(connection: AsyncConnection) -> list[Escalation]:
    """Escalations whose event is not published yet, oldest first."""
    return [
        Escalation(r.namespace_id, r.workflow_id, r.escalated_at, r.failures, r.last_run_id.bytes, bytes(r.policy))
        for r in await connection.execute(UNTOLD)
    ]


async def settle_escalation(connection: AsyncConnection, escalation: Escalation) -> None:
    """Its event is published."""
    await connection.execute(
        TOLD,
        {
            "namespace": escalation.namespace,
            "workflow_id": escalation.workflow_id,
            "at": escalation.escalated_at,
        },
    )
