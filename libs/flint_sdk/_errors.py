"""The client's exceptions, and the one place that makes them from what the gateway answers.

    FlintError
    ├── ConfigurationError            no address or key to be found, or a malformed one
    ├── InvalidArgument               .violations: field and description
    │   ├── DefinitionInvalid         the definition does not follow the language
    │   │   └── DefinitionUnsupported it uses what this Flint does not run yet
    │   ├── PayloadTooLarge           input or request above its limit
    │   └── PageTokenInvalid
    ├── Unauthenticated
    │   ├── CredentialsMissing
    │   └── CredentialsInvalid        unknown, malformed or revoked
    ├── PermissionDenied
    │   └── RoleInsufficient
    ├── NotFound
    │   ├── WorkflowNotFound
    │   ├── RunNotFound
    │   ├── KeyNotFound
    │   ├── NamespaceNotFound
    │   ├── WorkerNotFound
    │   ├── ApprovalNotFound
    │   ├── LimitNotFound
    │   ├── PoolNotFound
    │   ├── ScheduleNotFound
    │   ├── CalendarNotFound
    │   ├── BatchNotFound
    │   └── PayloadNotFound
    ├── Conflict
    │   ├── RequestIdReused           the same request_id with other content
    │   └── VersionExists             the same version with other content
    ├── FailedPrecondition
    │   ├── RunEnded                  cannot be cancelled any more
    │   ├── RunNotPaused
    │   ├── RunEnding                 a cancel was asked for before
    │   ├── ResetPointNotFound        its record has no such step
    │   ├── RunUndone                 its effects were undone: only a reset to its beginning is possible
    │   ├── ResetUnderWay
    │   ├── WorkflowInUse
    │   ├── LastAdminKey
    │   ├── ScheduleConflict          there with other content, or changed meanwhile
    │   ├── CalendarInUse             a schedule names it
    │   ├── LevelUnknown              no level of this name
    │   ├── QueueHintInvalid          a key that the input does not have
    │   ├── ApprovalDecided           by somebody else, or otherwise, before
    │   └── ApprovalClosed            its run waits for it no more
    ├── ResourceExhausted             .retry_after_s
    │   ├── QueueFull
    │   ├── QuotaExceeded
    │   ├── TooManySignals            that the run did not take
    │   └── TooManyWatches
    ├── Unavailable                   .retry_after_s; nothing reachable until the deadline: the call may have happened
    ├── TimedOut                      also a TimeoutError: the deadline passed before the answer
    ├── InternalError                 a defect in Flint; the message holds an id to search its logs for
    └── RunEndedBadly                 .run
        ├── RunFailed                 .problem
        └── RunCancelled

Every error of an RPC has `reason` (a name of flint.errors.v1.ErrorReason without its prefix, or "" when the server
gave none).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

if TYPE_CHECKING:
    from flint_sdk._models import Problem, Run

ERROR_DOMAIN: Final = "flint.dev"
_DETAILS_KEY: Final = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field that was refused. For definitions, `field` is the place in the document."""

    field: str
    description: str


class FlintError(Exception):
    """Base of everything that this library raises on purpose."""

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        violations: Iterable[FieldViolation] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.violations = tuple(violations)
        self.retry_after_s = retry_after_s


class ConfigurationError(FlintError):
    """The client does not know where Flint is, or which key to show."""


class InvalidArgument(FlintError):
    """The request was refused for its content; `violations` names the fields."""


class DefinitionInvalid(InvalidArgument):
    """The definition does not parse or does not follow the language; `violations` names the places."""


class DefinitionUnsupported(DefinitionInvalid):
    """The definition uses a construct that this Flint does not run yet."""


class PayloadTooLarge(InvalidArgument):
    """The input, or the request as a whole, is larger than the limit."""


class PageTokenInvalid(InvalidArgument):
    """The page token belongs to another list or other filters."""


class Unauthenticated(FlintError):
    """The gateway does not know who calls."""


class CredentialsMissing(Unauthenticated):
    """No key was sent."""


class CredentialsInvalid(Unauthenticated):
    """The key is unknown, malformed, expired or revoked."""


class PermissionDenied(FlintError):
    """The caller may not do this."""


class RoleInsufficient(PermissionDenied):
    """The key's role in the namespace does not allow this."""


class NotFound(FlintError):
    """What was named does not exist."""


class WorkflowNotFound(NotFound):
    """No such workflow or version."""


class RunNotFound(NotFound):
    """No such run."""


class KeyNotFound(NotFound):
    """No such key."""


class NamespaceNotFound(NotFound):
    """No such namespace."""


class WorkerNotFound(NotFound):
    """No such worker."""


class LimitNotFound(NotFound):
    """No such named limit."""


class PoolNotFound(NotFound):
    """No such pool."""


class ApprovalNotFound(NotFound):
    """No such approval."""


class PayloadNotFound(NotFound):
    """No such large value in this namespace."""


class Conflict(FlintError):
    """Something else is already there under this name."""


class RequestIdReused(Conflict):
    """The same request_id was used before with other content."""


class VersionExists(Conflict):
    """The version was applied before with other content; versions are immutable."""


class FailedPrecondition(FlintError):
    """The thing is not in a state that allows this."""


class RunEnded(FailedPrecondition):
    """The run has already ended."""


class RunNotPaused(FailedPrecondition):
    """The run is not paused."""


class RunEnding(FailedPrecondition):
    """The run is ending: a cancel was asked for before."""


class ResetPointNotFound(FailedPrecondition):
    """The run's record has no such step, or nothing that failed."""


class RunUndone(FailedPrecondition):
    """What the run did was undone: it can only be reset to its beginning."""


class ResetUnderWay(FailedPrecondition):
    """Another reset of the run is under way."""


class BatchNotFound(NotFound):
    """No such job over runs."""


class WorkflowInUse(FailedPrecondition):
    """Unfinished runs use the version."""


class LastAdminKey(FailedPrecondition):
    """The last key with the cluster's admin role cannot be revoked."""


class ApprovalDecided(FailedPrecondition):
    """The approval was decided before: otherwise, or by somebody else."""


class ApprovalClosed(FailedPrecondition):
    """The approval's run waits for it no more."""


class ScheduleNotFound(NotFound):
    """There is no such schedule or backfill."""


class CalendarNotFound(NotFound):
    """There is no such calendar; a schedule may name it."""


class ScheduleConflict(FailedPrecondition):
    """The schedule is there with other content, was changed meanwhile, or does not allow this."""


class CalendarInUse(FailedPrecondition):
    """A schedule names the calendar."""


class ResourceExhausted(FlintError):
    """A queue or quota is full; `retry_after_s` says when to try again, if the server knows."""


class QueueFull(ResourceExhausted):
    """A queue or quota is full."""


class QuotaExceeded(ResourceExhausted):
    """A quota of the namespace is used up; the message says which."""


class LevelUnknown(FailedPrecondition):
    """The namespace has no level of this name."""


class QueueHintInvalid(FailedPrecondition):
    """How the run should queue cannot be told from its input."""


class TooManySignals(ResourceExhausted):
    """The run has too many signals that it did not take."""


class TooManyWatches(ResourceExhausted):
    """Too many watches or waits are open at this gateway."""


class Unavailable(FlintError):
    """No gateway answered until the deadline. What was asked may have happened all the same."""


class TimedOut(FlintError, TimeoutError):
    """The deadline passed before the answer. What was asked may have happened, or may yet."""


class InternalError(FlintError):
    """A defect in Flint; the message holds an id to search its logs for."""


class RunEndedBadly(FlintError):
    """A run whose result was asked for did not succeed. `run` is the run as it ended."""

    def __init__(self, message: str, run: Run) -> None:
        super().__init__(message)
        self.run = run


class RunFailed(RunEndedBadly):
    """The run ended with an error; `problem` says which, and at which step."""

    def __init__(self, run: Run, problem: Problem) -> None:
        place = f" at {problem.instance}" if problem.instance else ""
        what = ": ".join(part for part in (problem.title or problem.type, problem.detail) if part)
        super().__init__(f"run {run.id} failed{place}: {what}", run)
        self.problem = problem


class RunCancelled(RunEndedBadly):
    """The run was cancelled."""

    def __init__(self, run: Run) -> None:
        super().__init__(f"run {run.id} was cancelled", run)


_BY_REASON: Final[dict[str, type[FlintError]]] = {
    "FIELD_INVALID": InvalidArgument,
    "DEFINITION_INVALID": DefinitionInvalid,
    "DEFINITION_UNSUPPORTED": DefinitionUnsupported,
    "PAYLOAD_TOO_LARGE": PayloadTooLarge,
    "CREDENTIALS_MISSING": CredentialsMissing,
    "CREDENTIALS_INVALID": CredentialsInvalid,
    "ROLE_INSUFFICIENT": RoleInsufficient,
    "WORKFLOW_NOT_FOUND": WorkflowNotFound,
    "RUN_NOT_FOUND": RunNotFound,
    "KEY_NOT_FOUND": KeyNotFound,
    "NAMESPACE_NOT_FOUND": NamespaceNotFound,
    "WORKER_NOT_FOUND": WorkerNotFound,
    "REQUEST_ID_REUSED": RequestIdReused,
    "RUN_ENDED": RunEnded,
    "RUN_NOT_PAUSED": RunNotPaused,
    "RUN_ENDING": RunEnding,
    "RESET_POINT_NOT_FOUND": ResetPointNotFound,
    "RUN_UNDONE": RunUndone,
    "RESET_UNDER_WAY": ResetUnderWay,
    "BATCH_NOT_FOUND": BatchNotFound,
    "TOO_MANY_SIGNALS": TooManySignals,
    "VERSION_EXISTS": VersionExists,
    "WORKFLOW_IN_USE": WorkflowInUse,
    "LAST_ADMIN_KEY": LastAdminKey,
    "APPROVAL_NOT_FOUND": ApprovalNotFound,
    "LIMIT_NOT_FOUND": LimitNotFound,
    "POOL_NOT_FOUND": PoolNotFound,
    "PAYLOAD_NOT_FOUND": PayloadNotFound,
    "APPROVAL_DECIDED": ApprovalDecided,
    "APPROVAL_CLOSED": ApprovalClosed,
    "SCHEDULE_NOT_FOUND": ScheduleNotFound,
    "CALENDAR_NOT_FOUND": CalendarNotFound,
    "SCHEDULE_CONFLICT": ScheduleConflict,
    "CALENDAR_IN_USE": CalendarInUse,
    "INCARNATION_ENDED": FailedPrecondition,
    "QUEUE_FULL": QueueFull,
    "QUOTA_EXCEEDED": QuotaExceeded,
    "LEVEL_UNKNOWN": LevelUnknown,
    "QUEUE_HINT_INVALID": QueueHintInvalid,
    "TOO_MANY_WATCHES": TooManyWatches,
    "COMPONENT_UNAVAILABLE": Unavailable,
    "PAGE_TOKEN_INVALID": PageTokenInvalid,
    "INTERNAL": InternalError,
}
"""Every reason of flint.errors.v1.ErrorReason (a test compares)."""

_BY_CODE: Final[dict[int, type[FlintError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT.value[0]: InvalidArgument,
    grpc.StatusCode.OUT_OF_RANGE.value[0]: InvalidArgument,
    grpc.StatusCode.UNAUTHENTICATED.value[0]: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED.value[0]: PermissionDenied,
    grpc.StatusCode.NOT_FOUND.value[0]: NotFound,
    grpc.StatusCode.ALREADY_EXISTS.value[0]: Conflict,
    grpc.StatusCode.FAILED_PRECONDITION.value[0]: FailedPrecondition,
    grpc.StatusCode.ABORTED.value[0]: FailedPrecondition,
    grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]: ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE.value[0]: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED.value[0]: TimedOut,
    grpc.StatusCode.CANCELLED.value[0]: Unavailable,
}


def error_from_status(status: status_pb2.Status) -> FlintError:
    """The typed exception for a google.rpc.Status, by its ErrorInfo's reason, else by its code."""
    info, bad_request, retry = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
    )
    reason = ""
    violations: list[FieldViolation] = []
    retry_after_s: float | None = None
    for detail in status.details:
        if detail.Unpack(info):
            if info.domain == ERROR_DOMAIN:
                reason = info.reason.removeprefix("ERROR_REASON_")
        elif detail.Unpack(bad_request):
            violations += [FieldViolation(v.field, v.description) for v in bad_request.field_violations]
        elif detail.Unpack(retry):
            retry_after_s = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    kind = _BY_REASON.get(reason) or _BY_CODE.get(status.code, InternalError)
    message = status.message or f"the gateway answered code {status.code} without a message"
    return kind(message, reason=reason, violations=violations, retry_after_s=retry_after_s)


def error_from_rpc(error: grpc.aio.AioRpcError) -> FlintError:
    """The typed exception for a failed RPC."""
    metadata = error.trailing_metadata()
    if metadata is not None:
        for key, value in metadata:
            if key == _DETAILS_KEY and isinstance(value, bytes):
                status = status_pb2.Status()
                try:
                    status.ParseFromString(value)
                except DecodeError:
                    break
                return error_from_status(status)
    code = error.code()
    return error_from_status(status_pb2.Status(code=code.value[0], message=error.details() or ""))
