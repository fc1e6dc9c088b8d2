"""Approvals: what runs ask people, and what they said. Rows are history: they stay when the run has ended.

A decision is one statement: the approval's row, and the message in the run's inbox, or neither. It locks the await, so
that a decision is never stored for a run whose record says that it waits no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from flint_contracts.gen.flint.approvals.v1 import approvals_pb2
from flint_store.arrays import byteas, integers, texts, uuids
from flint_store.awaits import OPEN_AWAITS, AwaitRow, Target
from flint_store.engine import fetch
from flint_store.events import EventRow
from flint_store.payloads import use_in_messages
from flint_store.timestamps import set_timestamp

__all__ = [
    "Decided",
    "NewApproval",
    "NewDecision",
    "close_approvals",
    "decide",
    "escalate",
    "list_approvals",
    "open_approvals",
    "read_approval",
]


@dataclass(frozen=True, slots=True)
class NewApproval:
    """What an await of kind APPROVAL asks."""

    row: AwaitRow
    title: str
    description: str
    assignees: Sequence[str]
    form: bytes | None
    deadline: datetime | None
    escalate_at: datetime | None
    escalate_to: Sequence[str]


@dataclass(frozen=True, slots=True)
class NewDecision:
    """What a person decided. `payload`: the message for the run, JSON."""

    namespace: str
    run_id: bytes
    key: str
    approved: bool
    decided_by: str
    decided_key: str
    comment: str
    fields: bytes
    payload: bytes


@dataclass(frozen=True, slots=True)
class Decided:
    """What became of a decision. `stored`: it was this one; `open`: the run waits for one."""

    stored: bool
    open: bool
    target: Target | None


OPEN = text(f"""
WITH open AS MATERIALIZED ({OPEN_AWAITS})
INSERT INTO approval (run_id, key, namespace_id, workflow_id, version, step, iteration, title, description, assignees,
                      form, deadline_at, escalate_at, escalate_to)
SELECT o.run_id, o.key, o.namespace_id, d.workflow_id, d.version, n.step, n.iteration, n.title, n.description,
       ARRAY(SELECT jsonb_array_elements_text(CAST(n.assignees AS jsonb))), n.form, n.deadline_at, n.escalate_at,
       ARRAY(SELECT jsonb_array_elements_text(CAST(n.escalate_to AS jsonb)))
FROM open o
JOIN unnest(CAST(:run_ids AS uuid[]), CAST(:keys AS text[]), CAST(:steps AS text[]), CAST(:iterations AS text[]),
            CAST(:titles AS text[]), CAST(:descriptions AS text[]), CAST(:assignees AS text[]),
            CAST(:forms AS bytea[]), CAST(:deadlines AS timestamptz[]), CAST(:escalations AS timestamptz[]),
            CAST(:escalate_to AS text[]))
    AS n(run_id, key, step, iteration, title, description, assignees, form, deadline_at, escalate_at, escalate_to)
    ON n.run_id = o.run_id AND n.key = o.key
JOIN run r ON r.run_id = o.run_id
JOIN workflow_version d ON d.definition_id = r.definition_id
ON CONFLICT (run_id, key) DO NOTHING
""")

CLOSE = text("""
UPDATE approval a SET state = 4, ended_at = clock_timestamp()
FROM unnest(CAST(:run_ids AS uuid[]), CAST(:keys AS text[])) AS c(run_id, key)
WHERE a.run_id = c.run_id AND a.key = c.key AND a.state = 1
""")

# The row is locked first: of two decisions at the same moment the second sees the first.
DECIDE = text("""
WITH asked AS MATERIALIZED (
    SELECT a.number, a.run_id, a.key, a.state FROM approval a
    WHERE a.run_id = :run_id AND a.key = :key AND a.namespace_id = :namespace FOR UPDATE),
open AS MATERIALIZED (
    SELECT w.run_id, w.key, w.group_id FROM run_await w JOIN asked q ON q.run_id = w.run_id AND q.key = w.key
    WHERE NOT w.closed FOR SHARE OF w),
decided AS (
    UPDATE approval a SET state = :state, ended_at = clock_timestamp(), decided_by = :decided_by,
           decided_key = :decided_key, comment = :comment, fields = :fields
    FROM asked q JOIN open o ON o.run_id = q.run_id AND o.key = q.key
    WHERE a.number = q.number AND q.state = 1 RETURNING a.number),
put AS (
    INSERT INTO inbox (run_id, key, group_id, kind, payload, await_key, created_at)
    SELECT o.run_id, :message_key, o.group_id, 'message', :payload, o.key, clock_timestamp() FROM open o, decided
    ON CONFLICT (run_id, key) DO NOTHING)
SELECT (SELECT count(*) FROM decided) AS decided, (SELECT group_id FROM open) AS group_id
""")

# Partial index approval_escalation. Schedulers share the work. The event that tells of it is stored by the same commit.
ESCALATE = text("""
WITH due AS MATERIALIZED (
    SELECT a.number FROM approval a
    WHERE a.state = 1 AND a.escalated_at IS NULL AND a.escalate_at <= clock_timestamp()
    ORDER BY a.escalate_at LIMIT :limit FOR UPDATE SKIP LOCKED),
escalated AS (
    UPDATE approval a SET escalated_at = clock_timestamp(),
           assignees = a.assignees || ARRAY(SELECT x FROM unnest(a.escalate_to) x WHERE x <> ALL (a.assignees))
    FROM due WHERE a.number = due.number
    RETURNING a.namespace_id, a.run_id, a.key, a.workflow_id, a.step, a.title, a.assignees, a.escalate_to,
              to_char(a.escalated_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS at)
INSERT INTO event (namespace_id, identity, type, content)
SELECT e.namespace_id, decode(md5('approval escalated ' || e.run_id || e.key), 'hex'), :type,
       convert_to(jsonb_build_object(
           'specversion', '1.0', 'type', CAST(:type AS text), 'id', e.run_id || '/approvals/' || e.key || '/escalated',
           'source', '/namespaces/' || e.namespace_id || '/workflows/' || e.workflow_id, 'subject', e.run_id,
           'time', e.at, 'datacontenttype', 'application/json',
           'data', jsonb_build_object(
               'approval', 'namespaces/' || e.namespace_id || '/runs/' || e.run_id || '/approvals/' || e.key,
               'step', e.step, 'title', e.title, 'assignees', to_jsonb(e.assignees),
               'escalatedTo', to_jsonb(e.escalate_to)))::text, 'UTF8')
FROM escalated e
ON CONFLICT (namespace_id, identity) DO NOTHING
RETURNING seq, namespace_id, type, content, received_at
""")

_COLUMNS = """
a.number, a.run_id, a.key, a.namespace_id, a.workflow_id, a.version, a.step, a.iteration, a.state, a.title,
a.description, a.assignees, {payloads}, a.created_at, a.deadline_at, a.escalate_at, a.escalated_at, a.ended_at,
a.decided_by, a.decided_key, a.comment
"""

READ = text(f"""
SELECT {_COLUMNS.format(payloads="a.form, a.fields")} FROM approval a
WHERE a.run_id = :run_id AND a.key = :key AND a.namespace_id = :namespace
""")


async def open_approvals(connection: AsyncConnection, approvals: Sequence[NewApproval]) -> None:
    """Show approvals whose awaits are still open; again without effect."""
    rows = [a.row for a in approvals]
    await connection.execute(
        OPEN,
        {
            "await_run_ids": uuids([r.run_id for r in rows]),
            "await_keys": texts([r.key for r in rows]),
            "run_ids": uuids([r.run_id for r in rows]),
            "keys": texts([r.key for r in rows]),
            "steps": texts([r.step for r in rows]),
            "iterations": texts([r.iteration for r in rows]),
            "titles": texts([a.title for a in approvals]),
            "descriptions": texts([a.description for a in approvals]),
            "assignees": texts([orjson.dumps(list(a.assignees)).decode() for a in approvals]),
            "forms": byteas([a.form for a in approvals]),
            "deadlines": texts([a.deadline.isoformat() if a.deadline else None for a in approvals]),
            "escalations": texts([a.escalate_at.isoformat() if a.escalate_at else None for a in approvals]),
            "escalate_to": texts([orjson.dumps(list(a.escalate_to)).decode() for a in approvals]),
        },
    )


async def close_approvals(connection: AsyncConnection, rows: Sequence[AwaitRow]) -> None:
    """The runs wait no more for those of these that nobody decided."""
    await connection.execute(CLOSE, {"run_ids": uuids([r.run_id for r in rows]), "keys": texts([r.key for r in rows])})


async def decide(connection: AsyncConnection, decision: NewDecision) -> Decided:
    """Store a decision with the message for the run, if the approval is open and its run waits for it."""
    await use_in_messages(connection, [(decision.run_id, decision.payload)])
    row = (
        await connection.execute(
            DECIDE,
            {
                "run_id": decision.run_id.hex(),
                "key": decision.key,
                "namespace": decision.namespace,
                "state": approvals_pb2.Approval.STATE_APPROVED
                if decision.approved
                else approvals_pb2.Approval.STATE_REJECTED,
                "decided_by": decision.decided_by,
                "decided_key": decision.decided_key,
                "comment": decision.comment,
                "fields": decision.fields or None,
                "payload": decision.payload,
                "message_key": f"approval/{decision.key}",
            },
        )
    ).one()
    target = Target(decision.run_id, row.group_id) if row.group_id is not None else None
    return Decided(row.decided == 1, target is not None, target)


async def escalate(connection: AsyncConnection, event_type: str, limit: int) -> list[EventRow]:
    """Escalate approvals whose time has come: their assignees grow. Answers the events that tell of it, stored."""
    rows = await connection.execute(ESCALATE, {"type": event_type, "limit": limit})
    return [EventRow(r.seq, r.namespace_id, r.type, bytes(r.content), r.received_at) for r in rows]


async def read_approval(engine: AsyncEngine, namespace: str, run_id: bytes, key: str) -> approvals_pb2.Approval | None:
    """One approval, or None."""
    rows = await fetch(engine, READ, {"run_id": run_id.hex(), "key": key, "namespace": namespace})
    return _approval(rows[0]) if rows else None


async def list_approvals(
    engine: AsyncEngine,
    namespace: str,
    *,
    limit: int,
    before: int = 0,
    states: Sequence[int] = (),
    assignee: str = "",
    workflow_id: str = "",
) -> list[tuple[int, approvals_pb2.Approval]]:
    """Approvals with their numbers, newest first, without form and fields."""
    conditions = ["a.namespace_id = :namespace"]
    parameters: dict[str, object] = {"namespace": namespace, "limit": limit}
    if before:
        conditions.append("a.number < :before")
        parameters["before"] = before
    if list(states) == [approvals_pb2.Approval.STATE_OPEN]:
        conditions.append("a.state = 1")  # as the partial indexes say it
    elif states:
        conditions.append("a.state = ANY(CAST(:states AS int[]))")
        parameters["states"] = integers(states)
    if assignee:
        conditions.append("a.assignees @> CAST(:assignee AS text[])")
        parameters["assignee"] = texts([assignee])
    if workflow_id:
        conditions.append("a.workflow_id = :workflow_id")
        parameters["workflow_id"] = workflow_id
    statement = text(
        f"SELECT {_COLUMNS.format(payloads='NULL::bytea, NULL::bytea')} FROM approval a "
        f"WHERE {' AND '.join(conditions)} ORDER BY a.number DESC LIMIT :limit"
    )
    return [(row[0], _approval(row)) for row in await fetch(engine, statement, parameters)]


def _approval(row: Sequence[Any]) -> approvals_pb2.Approval:
    values = list(row)
    (_, run_id, key, namespace, workflow_id, version, step, iteration, state, title, description, assignees) = values[
        :12
    ]
    form, fields, created_at, deadline_at, escalate_at, escalated_at, ended_at = values[12:19]
    decided_by, decided_key, comment = values[19:]
    approval = approvals_pb2.Approval(
        name=f"namespaces/{namespace}/runs/{run_id}/approvals/{key}",
        workflow=f"namespaces/{namespace}/workflows/{workflow_id}/versions/{version}",
        step=step,
        iteration=iteration,
        state=state,
        title=title,
        description=description,
        assignees=assignees,
        form=bytes(form or b""),
    )
    for name, moment in (
        ("create_time", created_at),
        ("deadline", deadline_at),
        ("escalate_time", escalate_at),
        ("escalated_time", escalated_at),
        ("end_time", ended_at),
    ):
        set_timestamp(getattr(approval, name), moment)
    if state in (approvals_pb2.Approval.STATE_APPROVED, approvals_pb2.Approval.STATE_REJECTED):
        approval.decision.approved = state == approvals_pb2.Approval.STATE_APPROVED
        approval.decision.decided_by = str(decided_by)
        approval.decision.key = str(decided_key)
        approval.decision.comment = str(comment)
        approval.decision.fields = bytes(fields or b"")
    return approval
