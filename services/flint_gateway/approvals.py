"""ApprovalService: what runs ask people, and what they answer."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import grpc

from flint_contracts.gen.flint.approvals.v1 import approvals_pb2
from flint_contracts.gen.flint.approvals.v1.approvals_pb2_grpc import ApprovalServiceServicer
from flint_contracts.gen.flint.scheduling.v1 import events_pb2 as scheduling_pb2
from flint_gateway.auth import current_principal
from flint_gateway.validation import check_json, namespace_of_parent, page_token_invalid
from flint_rpc.errors import ErrorReason, FieldViolation, Refused, field_invalid
from flint_rpc.names import is_label, parse_approval
from flint_rpc.paging import PageBinding, page_size
from flint_rpc.upstream import Client

if TYPE_CHECKING:
    from flint_contracts.gen.flint.scheduling.v1.events_pb2_grpc import ApprovalStoreServiceAsyncStub

__all__ = ["ApprovalServicer"]

_TIMEOUT_S: Final = 10.0
_COMMENT_CHARACTERS: Final = 4096
_PERSON_CHARACTERS: Final = 256
_FIELDS_BYTES: Final = 65_536

_Verdict = approvals_pb2.DecideApprovalRequest.Verdict
_VERDICTS: Final = {_Verdict.VERDICT_APPROVE: True, _Verdict.VERDICT_REJECT: False}

Context = grpc.aio.ServicerContext[Any, Any]


class ApprovalServicer(ApprovalServiceServicer):
    """See the module. Callers are authenticated and authorised by the interceptor."""

    def __init__(self, client: Client[ApprovalStoreServiceAsyncStub]) -> None:
        self._client = client

    async def ListApprovals(
        self, request: approvals_pb2.ListApprovalsRequest, context: Context
    ) -> approvals_pb2.ListApprovalsResponse:
        """A page, newest first."""
        namespace = namespace_of_parent(request.parent)
        size = page_size(request.page_size, default=50, most=500)
        known = approvals_pb2.Approval.State.values()
        violations = [
            FieldViolation(f"states[{index}]", "is not a state of an approval")
            for index, state in enumerate(request.states)
            if state not in known or state == approvals_pb2.Approval.STATE_UNSPECIFIED
        ]
        if request.workflow_id and not is_label(request.workflow_id):
            violations.append(FieldViolation("workflow_id", "must be a DNS label of at most 63 characters, or empty"))
        if len(request.assignee) > _PERSON_CHARACTERS or "\0" in request.assignee:
            violations.append(FieldViolation("assignee", f"must have at most {_PERSON_CHARACTERS} characters"))
        if violations:
            raise field_invalid(*violations)
        states = sorted(set(request.states))
        binding = PageBinding("approvals", namespace, ",".join(map(str, states)), request.assignee, request.workflow_id)
        cursor = binding.decode(request.page_token)
        if cursor and re.fullmatch(r"[0-9]{1,18}", cursor) is None:
            raise page_token_invalid()
        inner = scheduling_pb2.ReadApprovalsRequest(
            namespace=namespace,
            limit=size + 1,
            before=int(cursor or 0),
            states=states,
            assignee=request.assignee,
            workflow_id=request.workflow_id,
        )
        response = await self._client.call(lambda stub: stub.ReadApprovals, inner, _TIMEOUT_S)
        more = len(response.approvals) > size
        token = binding.encode(str(response.numbers[size - 1])) if more else ""
        return approvals_pb2.ListApprovalsResponse(approvals=response.approvals[:size], next_page_token=token)

    async def GetApproval(
        self, request: approvals_pb2.GetApprovalRequest, context: Context
    ) -> approvals_pb2.GetApprovalResponse:
        """One approval, with its form."""
        name = parse_approval(request.name)
        inner = scheduling_pb2.ReadApprovalsRequest(namespace=name.namespace, run_id=name.run_id, key=name.key)
        response = await self._client.call(lambda stub: stub.ReadApprovals, inner, _TIMEOUT_S)
        if not response.approvals:
            raise Refused(
                grpc.StatusCode.NOT_FOUND,
                ErrorReason.ERROR_REASON_APPROVAL_NOT_FOUND,
                f"there is no {request.name[:200]}",
            )
        return approvals_pb2.GetApprovalResponse(approval=response.approvals[0])

    async def DecideApproval(
        self, request: approvals_pb2.DecideApprovalRequest, context: Context
    ) -> approvals_pb2.DecideApprovalResponse:
        """Answers when the decision is stored."""
        name = parse_approval(request.name)
        violations: list[FieldViolation] = []
        if request.verdict not in _VERDICTS:
            violations.append(FieldViolation("verdict", "is required: APPROVE or REJECT"))
        if len(request.comment) > _COMMENT_CHARACTERS:
            violations.append(FieldViolation("comment", f"has more than {_COMMENT_CHARACTERS} characters"))
        if len(request.decided_by) > _PERSON_CHARACTERS:
            violations.append(FieldViolation("decided_by", f"has more than {_PERSON_CHARACTERS} characters"))
        if len(request.fields) > _FIELDS_BYTES:
            violations.append(FieldViolation("fields", f"has more than {_FIELDS_BYTES} bytes"))
        elif request.fields and (problem := check_json(request.fields)) is not None:
            violations.append(FieldViolation("fields", problem))
        if violations:
            raise field_invalid(*violations)
        key = current_principal().key
        inner = scheduling_pb2.StoreDecisionRequest(
            namespace=name.namespace,
            run_id=name.run_id,
            key=name.key,
            decision=approvals_pb2.Decision(
                approved=_VERDICTS[request.verdict],
                decided_by=request.decided_by or key.display_name or key.name.rpartition("/")[2],
                key=key.name,
                comment=request.comment,
                fields=request.fields,
            ),
        )
        response = await self._client.call(lambda stub: stub.StoreDecision, inner, _TIMEOUT_S)
        return approvals_pb2.DecideApprovalResponse(approval=response.approval)
