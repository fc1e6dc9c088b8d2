"""Escalation: workflows whose runs fail again and again.

    run fails ── the same commit ──▶ failure noted ── sweep ──▶ counted, one workflow at a time ──▶ too many: escalation
    noted and, if asked, the workflow put on hold: one commit ──▶ event stored ──▶ told

Any scheduler does each part, and whoever comes after a crash goes on with what is not marked yet. A failure counts
once, and the failures before an escalation count for that one alone: so there is one escalation in each window, and its
event has an id that makes a repeat the same event.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import UUID

import orjson
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_contracts.gen.flint.scheduling.v1 import events_pb2
from flint_ops.logging import get_logger
from flint_scheduler.record import Record
from flint_store.engine import transaction
from flint_store.workflow_control import (
    Escalation,
    count_failure,
    escalate,
    forget_failures,
    hold_workflow,
    new_failures,
    settle_escalation,
    untold_escalations,
)

__all__ = ["ESCALATED", "EscalationDesk"]

log = get_logger(__name__)

ESCALATED = "dev.flint.workflow.escalated"
"""Type of the event, unless the policy names another."""


class EscalationDesk:
    """Counts failures and tells of those that are too many; any number of schedulers may at a time."""

    def __init__(self, record: Record, store: Callable[[events_pb2.StoreEventsRequest], Awaitable[Any]]) -> None:
        """`store`: of the event desk."""
        self._record = record
        self._store = store
        self.on_held: Callable[[str, str], None] = lambda namespace, workflow_id: None

    async def count(self) -> None:
        """Count what is new. Raises RecordUnavailable."""
        while failures := await self._record.read(new_failures):
            for failure in failures:
                held = await self._record.transaction(partial(self._count_one, failure=failure))
                if held:
                    self.on_held(failure[0], failure[1])
        await self._record.read(forget_failures)

    async def _count_one(self, engine: AsyncEngine, failure: tuple[str, str, bytes, int, datetime]) -> bool:
        """Whether the workflow was put on hold."""
        async with transaction(engine) as connection:
            encoded, counted = await count_failure(connection, failure)
            if not counted or encoded is None:
                return False
            policy = orjson.loads(encoded)
            if not await escalate(connection, failure, encoded, int(policy["failures"]), policy["within_ms"] / 1000):
                return False
            namespace, workflow_id = failure[:2]
            log.warning("workflow_escalated", namespace=namespace, workflow=workflow_id)
            if not policy.get("pause"):
                return False
            reason = f"{policy['failures']} runs failed within {policy['within_ms'] / 1000:g} s"
            return await hold_workflow(connection, namespace, workflow_id, reason)

    async def tell(self) -> None:
        """Publish what is not published yet. Raises RecordUnavailable, Refused."""
        for escalation in await self._record.read(untold_escalations):
            await self._store(
                events_pb2.StoreEventsRequest(namespace=escalation.namespace, events=[_event(escalation)])
            )
            await self._record.read(partial(settle_escalation, escalation=escalation))


def _event(escalation: Escalation) -> bytes:
    policy = orjson.loads(escalation.policy)
    at = escalation.escalated_at.astimezone(UTC)
    return orjson.dumps(
        {
            "specversion": "1.0",
            "id": f"{escalation.workflow_id}/{at.isoformat()}",
            "source": f"/namespaces/{escalation.namespace}/workflows/{escalation.workflow_id}",
            "type": policy.get("notify") or ESCALATED,
            "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "datacontenttype": "application/json",
            "data": {
                "workflow": escalation.workflow_id,
                "failures": escalation.failures,
                "withinSeconds": policy["within_ms"] / 1000,
                "lastRun": str(UUID(bytes=escalation.last_run_id)),
                "held": bool(policy.get("pause")),
            },
        }
    )
