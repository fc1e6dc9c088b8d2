"""Approvals as the client hands them out, and from the contract's messages."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from flint_contracts.gen.flint.approvals.v1 import approvals_pb2
from flint_sdk._errors import FieldViolation, InvalidArgument
from flint_sdk._messages import decode_json, encode_json, moment


class ApprovalState(StrEnum):
    """Where an approval is."""

    UNSPECIFIED = "UNSPECIFIED"
    OPEN = "OPEN"
    APPROVED = "APPROVED"
    REJECTED = "REJECTED"
    CLOSED = "CLOSED"


@dataclass(frozen=True, slots=True)
class Decision:
    """What a person decided. `key`: name of the API key that was used."""

    approved: bool
    decided_by: str
    key: str
    comment: str
    fields: Any


@dataclass(frozen=True, slots=True)
class Approval:
    """Something that a run asks a person to decide. `form` (a JSON Schema) is None in lists."""

    name: str
    workflow: str
    step: str
    iteration: str
    state: ApprovalState
    title: str
    description: str
    assignees: tuple[str, ...]
    form: Any
    create_time: datetime | None
    deadline: datetime | None
    escalate_time: datetime | None
    escalated_time: datetime | None
    end_time: datetime | None
    decision: Decision | None

    @property
    def id(self) -> str:
        """What commands take: the run's id, a slash, and the approval's key."""
        parts = self.name.split("/")
        return f"{parts[3]}/{parts[5]}" if len(parts) == 6 else self.name

    @property
    def run(self) -> str:
        """The run's name."""
        return self.name.rpartition("/approvals/")[0]

    @property
    def workflow_id(self) -> str:
        """The workflow's id."""
        parts = self.workflow.split("/")
        return parts[3] if len(parts) > 3 else self.workflow


def approval_from(message: approvals_pb2.Approval) -> Approval:
    """From the contract's message."""
    decision = None
    if message.HasField("decision"):
        said = message.decision
        decision = Decision(said.approved, said.decided_by, said.key, said.comment, decode_json(said.fields))
    return Approval(
        name=message.name,
        workflow=message.workflow,
        step=message.step,
        iteration=message.iteration,
        state=ApprovalState(approvals_pb2.Approval.State.Name(message.state).removeprefix("STATE_")),
        title=message.title,
        description=message.description,
        assignees=tuple(message.assignees),
        form=decode_json(message.form),
        create_time=moment(message, "create_time"),
        deadline=moment(message, "deadline"),
        escalate_time=moment(message, "escalate_time"),
        escalated_time=moment(message, "escalated_time"),
        end_time=moment(message, "end_time"),
        decision=decision,
    )


def approval_name(namespace: str, approval: str) -> str:
    """The resource name, from a name or `{run}/{key}`. Raises InvalidArgument."""
    if approval.startswith("namespaces/"):
        return approval
    run, slash, key = approval.partition("/")
    if not (run and slash and key):
        why = "must be the approval's name, or the run's id, a slash and the approval's key"
        raise InvalidArgument(f"approval {approval!r} {why}", violations=[FieldViolation("approval", why)])
    return f"namespaces/{namespace}/runs/{run}/approvals/{key}"


def decide_request(
    name: str, *, approve: bool, comment: str, fields: Any, decided_by: str
) -> approvals_pb2.DecideApprovalRequest:
    """The contract's message. Raises InvalidArgument for fields that are not JSON."""
    verdicts = approvals_pb2.DecideApprovalRequest
    try:
        payload = b"" if fields is None else encode_json(fields)
    except TypeError as error:
        violation = FieldViolation("fields", str(error))
        raise InvalidArgument(f"the fields are not JSON: {error}", violations=[violation]) from error
    return approvals_pb2.DecideApprovalRequest(
        name=name,
        verdict=verdicts.VERDICT_APPROVE if approve else verdicts.VERDICT_REJECT,
        comment=comment,
        fields=payload,
        decided_by=decided_by,
    )
