"""Approvals: awaits of kind APPROVAL, decisions, escalation.

    opened ──▶ OPEN ── StoreDecision ──▶ APPROVED, REJECTED (with the message for the run, in one commit)
                 │  └─ its time comes ──▶ OPEN, escalated: more assignees, and an event
                 └──── closed ──▶ CLOSED (deadline, cancel, or another branch)

The deadline is the run's own timer. Escalation is a sweep of any scheduler, in one commit with the event that tells of
it. When the loop dies the service stops; rows remain and other schedulers go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import grpc
import jsonschema_rs
import orjson
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_bus import Bus
from flint_contracts.gen.flint.approvals.v1 import approvals_pb2
from flint_contracts.gen.flint.scheduling.v1 import events_pb2 as pb
from flint_contracts.gen.flint.scheduling.v1 import events_pb2_grpc
from flint_core.plan import Schema
from flint_ops.logging import get_logger
from flint_rpc.errors import ErrorReason, Refused, component_unavailable, field_invalid
from flint_scheduler.event_delivery import Arrival, EventDelivery
from flint_scheduler.nudges import nudge_inboxes
from flint_scheduler.record import Record, RecordUnavailable
from flint_scheduler.refusals import store_refusals
from flint_store import approvals as store
from flint_store.awaits import AwaitRow

__all__ = ["ESCALATED", "ApprovalDesk"]

log = get_logger(__name__)

ESCALATED: Final = "dev.flint.approval.escalated"
"""Type of the event that tells of an escalation."""

_LANE: Final = "matching"
_ESCALATIONS: Final = 500
_MAX_PAGE: Final = 501
_TITLE: Final = 512
_DESCRIPTION: Final = 20_000
_ASSIGNEES: Final = 100
_ASSIGNEE: Final = 256
_LAST_MOMENT_MS: Final = 253_402_300_799_000  # the year 9999

Context = grpc.aio.ServicerContext[Any, Any]


class ApprovalDesk(events_pb2_grpc.ApprovalStoreServiceServicer):
    """Serves awaits of kind APPROVAL (`flint_scheduler.awaits.Handler`), gateways, and the clock."""

    def __init__(
        self, record: Record, engine: AsyncEngine, bus: Bus, delivery: EventDelivery, sweep_interval_s: float
    ) -> None:
        self._record = record
        self._engine = engine
        self._bus = bus
        self._delivery = delivery
        self._interval_s = sweep_interval_s

    # -- awaits --------------------------------------------------------------------------------------------------------

    async def opened(self, rows: Sequence[AwaitRow]) -> Iterable[AwaitRow]:
        """Show what is asked."""
        asked = [_new_approval(row) for row in rows]
        await self._record.lane(_LANE, lambda c: store.open_approvals(c, asked))
        return ()

    async def closed(self, rows: Sequence[AwaitRow]) -> Iterable[AwaitRow]:
        """What nobody decided is closed."""
        await self._record.lane(_LANE, lambda c: store.close_approvals(c, rows))
        return ()

    # -- escalation ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Escalate what is due, every few seconds, for ever."""
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.escalate()
            except RecordUnavailable as error:
                log.warning("escalation_waits_for_postgresql", error=str(error))

    async def escalate(self) -> None:
        """Escalate what is due now."""
        while True:
            rows = await self._record.lane(_LANE, lambda c: store.escalate(c, ESCALATED, _ESCALATIONS))
            self._delivery.arrived([Arrival(row, orjson.loads(row.content)) for row in rows])
            if len(rows) < _ESCALATIONS:
                return

    # -- gateways ------------------------------------------------------------------------------------------------------

    async def ReadApprovals(self, request: pb.ReadApprovalsRequest, context: Context) -> pb.ReadApprovalsResponse:
        """One approval, or a page of them."""
        if request.run_id:
            if len(request.run_id) != 16:
                raise field_invalid(("run_id", "must be 16 bytes"))
            with store_refusals():
                found = await store.read_approval(self._engine, request.namespace, request.run_id, request.key)
            return pb.ReadApprovalsResponse(approvals=[found] if found is not None else [])
        if not 1 <= request.limit <= _MAX_PAGE:
            raise field_invalid(("limit", f"must be 1 to {_MAX_PAGE}"))
        with store_refusals():
            page = await store.list_approvals(
                self._engine,
                request.namespace,
                limit=request.limit,
                before=request.before,
                states=list(request.states),
                assignee=request.assignee,
                workflow_id=request.workflow_id,
            )
        return pb.ReadApprovalsResponse(approvals=[a for _, a in page], numbers=[n for n, _ in page])

    async def StoreDecision(self, request: pb.StoreDecisionRequest, context: Context) -> pb.StoreDecisionResponse:
        """Decide; the same decision of the same person again answers the approval as it is."""
        approval = await self._read(request)
        decision = request.decision
        if approval.state == approvals_pb2.Approval.STATE_OPEN:
            fields = _checked_fields(approval, decision)
            new = store.NewDecision(
                namespace=request.namespace,
                run_id=request.run_id,
                key=request.key,
                approved=decision.approved,
                decided_by=_clean(decision.decided_by),
                decided_key=decision.key,
                comment=_clean(decision.comment),
                fields=decision.fields,
                payload=orjson.dumps(
                    {
                        "decision": "approved" if decision.approved else "rejected",
                        "by": _clean(decision.decided_by),
                        "comment": _clean(decision.comment),
                        "fields": fields,
                        "at": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                    }
                ),
            )
            try:
                decided = await self._record.lane(_LANE, lambda c: store.decide(c, new))
            except RecordUnavailable as error:
                raise component_unavailable("PostgreSQL", str(error)) from error
            if decided.stored and decided.target is not None:
                nudge_inboxes(self._bus, [decided.target])
            approval = await self._read(request)
        state, past = approvals_pb2.Approval, approval.decision
        name = approval.name
        if approval.state in (state.STATE_APPROVED, state.STATE_REJECTED):
            if (past.approved, past.decided_by, past.key) == (
                decision.approved,
                _clean(decision.decided_by),
                decision.key,
            ):
                return pb.StoreDecisionResponse(approval=approval)
            how = "approved" if past.approved else "rejected"
            raise Refused(
                grpc.StatusCode.FAILED_PRECONDITION,
                ErrorReason.ERROR_REASON_APPROVAL_DECIDED,
                f"{name} was {how} by {past.decided_by} before",
                metadata={"decision": how},
            )
        raise Refused(
            grpc.StatusCode.FAILED_PRECONDITION,
            ErrorReason.ERROR_REASON_APPROVAL_CLOSED,
            f"{name} cannot be decided any more: its run does not wait for it",
        )

    async def _read(self, request: pb.StoreDecisionRequest) -> approvals_pb2.Approval:
        with store_refusals():
            found = await store.read_approval(self._engine, request.namespace, request.run_id, request.key)
        if found is None:
            raise Refused(
                grpc.StatusCode.NOT_FOUND, ErrorReason.ERROR_REASON_APPROVAL_NOT_FOUND, "there is no such approval"
            )
        return found


def _new_approval(row: AwaitRow) -> store.NewApproval:
    """What an await's request asks, within the bounds of the table: a value that does not fit is cut, not refused."""
    request = orjson.loads(row.request)
    escalation = request.get("escalation") or {}
    form = request.get("form")
    return store.NewApproval(
        row=row,
        title=_clean(str(request.get("title") or ""))[:_TITLE],
        description=_clean(str(request.get("description") or ""))[:_DESCRIPTION],
        assignees=_people(request.get("assignees")),
        form=orjson.dumps(form) if isinstance(form, dict) and form else None,
        deadline=_moment(request.get("deadline_ms")),
        escalate_at=_moment(escalation.get("at_ms")),
        escalate_to=_people(escalation.get("assignees")),
    )


def _people(names: Any) -> list[str]:
    if not isinstance(names, list):
        return []
    return list(dict.fromkeys(_clean(str(name))[:_ASSIGNEE] for name in names[:_ASSIGNEES]))


def _moment(at_ms: Any) -> datetime | None:
    if not isinstance(at_ms, int | float) or isinstance(at_ms, bool):
        return None
    return datetime.fromtimestamp(min(max(at_ms, 0), _LAST_MOMENT_MS) / 1000, UTC)


def _clean(text: str) -> str:
    """Without the one character that PostgreSQL does not keep in text."""
    return text.replace("\0", "")


def _checked_fields(approval: approvals_pb2.Approval, decision: approvals_pb2.Decision) -> Any:
    """The fields as JSON. Raises `Refused` when they do not follow the form."""
    try:
        fields = orjson.loads(decision.fields) if decision.fields else {}
    except orjson.JSONDecodeError as error:
        raise field_invalid(("fields", f"is not JSON: {error}")) from None
    if not isinstance(fields, dict):
        raise field_invalid(("fields", "must be a JSON object"))
    if approval.form and (decision.approved or fields):
        try:
            schema = Schema(orjson.loads(approval.form))
        except (ValueError, jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError) as error:
            raise Refused(
                grpc.StatusCode.FAILED_PRECONDITION,
                ErrorReason.ERROR_REASON_FIELD_INVALID,
                f"the approval's form is no usable JSON Schema: {str(error)[:300]}; reject it without fields",
            ) from None
        problem = schema.first_error(fields)
        if problem is not None:
            raise field_invalid(("fields", problem))
    return fields
