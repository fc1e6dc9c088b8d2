"""Errors of RPCs: one typed exception, and the one place that maps it to and from `google.rpc.Status`.

A servicer raises `Refused`; the boundary (`flint_rpc.boundary`) answers it with its details. A caller of another
service gets `Refused` again through `from_rpc_error`. Anything else that escapes a servicer is a defect: INTERNAL with
an id.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from flint_contracts.gen.flint.errors.v1 import errors_pb2

__all__ = [
    "DOMAIN",
    "ErrorReason",
    "FieldViolation",
    "Refused",
    "component_unavailable",
    "field_invalid",
    "from_rpc_error",
    "from_status_proto",
    "status_proto",
]

DOMAIN = "flint.dev"
STATUS_DETAILS_KEY = "grpc-status-details-bin"

ErrorReason = errors_pb2.ErrorReason
_Detail = TypeVar("_Detail", bound=Message)
_PREFIX = "ERROR_REASON_"
_CODES: Mapping[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


class FieldViolation(NamedTuple):
    """One field that is wrong: its path (`requests[3].input`) and what is wrong with it."""

    field: str
    description: str


class Refused(Exception):
    """An RPC's refusal. `code` and `reason` are for programs, `message` (one or two sentences) for people.

    `retry_after_s` becomes RetryInfo, `quota` (whose quota, such as namespaces/default) QuotaFailure with the message,
    `field_violations` BadRequest, `metadata` ErrorInfo's metadata (no secrets, no
    payloads: it goes to the caller and into logs).
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: ErrorReason.ValueType,
        message: str,
        *,
        field_violations: Sequence[FieldViolation] = (),
        retry_after_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
        quota: str = "",
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.field_violations = tuple(field_violations)
        self.retry_after_s = retry_after_s
        self.metadata = dict(metadata or {})
        self.quota = quota

    @property
    def reason_name(self) -> str:
        """The reason as sent: without the prefix."""
        return ErrorReason.Name(self.reason).removeprefix(_PREFIX)

    def __str__(self) -> str:
        return f"{self.code.name} {self.reason_name}: {self.message}"


def field_invalid(*violations: FieldViolation | tuple[str, str]) -> Refused:
    """INVALID_ARGUMENT, FIELD_INVALID for one or more fields."""
    found = [FieldViolation(*violation) for violation in violations]
    text = "; ".join(f"{violation.field}: {violation.description}" for violation in found[:5])
    more = f" (and {len(found) - 5} more)" if len(found) > 5 else ""
    return Refused(
        grpc.StatusCode.INVALID_ARGUMENT,
        ErrorReason.ERROR_REASON_FIELD_INVALID,
        text + more,
        field_violations=found,
    )


def component_unavailable(component: str, detail: str = "", *, retry_after_s: float = 1.0) -> Refused:
    """UNAVAILABLE, COMPONENT_UNAVAILABLE with RetryInfo: trying again later, or another replica now, may help."""
    return Refused(
        grpc.StatusCode.UNAVAILABLE,
        ErrorReason.ERROR_REASON_COMPONENT_UNAVAILABLE,
        f"{component} cannot be reached now{f': {detail}' if detail else ''}",
        retry_after_s=retry_after_s,
        metadata={"component": component},
    )


def status_proto(error: Refused) -> status_pb2.Status:
    """The refusal as `google.rpc.Status`: ErrorInfo, then BadRequest and RetryInfo when there is something in them."""
    status = status_pb2.Status(code=error.code.value[0], message=error.message)
    info = error_details_pb2.ErrorInfo(reason=error.reason_name, domain=DOMAIN, metadata=error.metadata)
    status.details.add().Pack(info)
    if error.field_violations:
        bad = error_details_pb2.BadRequest()
        for field, description in error.field_violations:
            bad.field_violations.add(field=field, description=description)
        status.details.add().Pack(bad)
    if error.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(max(0, round(error.retry_after_s * 1000)))
        status.details.add().Pack(retry)
    if error.quota:
        failure = error_details_pb2.QuotaFailure()
        failure.violations.add(subject=error.quota, description=error.message)
        status.details.add().Pack(failure)
    return status


def from_status_proto(status: status_pb2.Status) -> Refused:
    """The reverse of `status_proto`. Statuses of others become the nearest of Flint's reasons."""
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    reason = _reason_of(code, "")
    violations: list[FieldViolation] = []
    retry_after_s: float | None = None
    metadata: dict[str, str] = {}
    quota = ""
    for detail in status.details:
        if (info := _unpack(detail, error_details_pb2.ErrorInfo)) is not None and info.domain == DOMAIN:
            reason = _reason_of(code, info.reason)
            metadata = dict(info.metadata)
        elif (bad := _unpack(detail, error_details_pb2.BadRequest)) is not None:
            violations += [FieldViolation(entry.field, entry.description) for entry in bad.field_violations]
        elif (retry := _unpack(detail, error_details_pb2.RetryInfo)) is not None:
            retry_after_s = retry.retry_delay.ToMilliseconds() / 1000
        elif (failure := _unpack(detail, error_details_pb2.QuotaFailure)) is not None and failure.violations:
            quota = failure.violations[0].subject
    return Refused(
        code,
        reason,
        status.message,
        field_violations=violations,
        retry_after_s=retry_after_s,
        metadata=metadata,
        quota=quota,
    )


def from_rpc_error(error: grpc.aio.AioRpcError) -> Refused:
    """What a called service refused with, details included; plain gRPC errors get the nearest reason."""
    raw = _details_of(error.trailing_metadata() or ())
    if raw is not None:
        return from_status_proto(status_pb2.Status.FromString(raw))
    code = error.code()
    return Refused(
        code,
        _reason_of(code, ""),
        error.details() or code.name,
        retry_after_s=1.0 if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED) else None,
    )


def _details_of(metadata: Iterable[tuple[str, str | bytes]]) -> bytes | None:
    for key, value in metadata:
        if key == STATUS_DETAILS_KEY and isinstance(value, bytes):
            return value
    return None


def _reason_of(code: grpc.StatusCode, name: str) -> ErrorReason.ValueType:
    if name and _PREFIX + name in ErrorReason.keys():  # noqa: SIM118 - an enum wrapper, not a dict
        return ErrorReason.Value(_PREFIX + name)
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return ErrorReason.ERROR_REASON_COMPONENT_UNAVAILABLE
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return ErrorReason.ERROR_REASON_FIELD_INVALID
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        # gRPC itself answers so when a message is larger than the limit; Flint's own carry a reason.
        return ErrorReason.ERROR_REASON_PAYLOAD_TOO_LARGE
    return ErrorReason.ERROR_REASON_INTERNAL


def _unpack(detail: any_pb2.Any, kind: type[_Detail]) -> _Detail | None:
    message = kind()
    return message if detail.Unpack(message) else None
