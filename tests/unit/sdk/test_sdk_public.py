"""The public face: what is exported, how the exceptions hang together, the two clients' equal surfaces."""

from __future__ import annotations

import inspect

import flint_sdk
from flint_contracts.gen.flint.errors.v1 import errors_pb2
from flint_sdk import _errors

EXPORTS = [
    "Applied",
    "Approval",
    "ApprovalClosed",
    "ApprovalDecided",
    "ApprovalNotFound",
    "ApprovalState",
    "AsyncFlint",
    "AsyncRunHandle",
    "AsyncSchedules",
    "Backfill",
    "BackfillState",
    "Batch",
    "BatchNotFound",
    "BatchRefusal",
    "BatchState",
    "BranchRange",
    "Calendar",
    "CalendarInUse",
    "CalendarNotFound",
    "ConfigurationError",
    "Conflict",
    "CreatedKey",
    "CredentialsInvalid",
    "CredentialsMissing",
    "Decision",
    "DefinitionInvalid",
    "DefinitionUnsupported",
    "FailedPrecondition",
    "FieldViolation",
    "Finding",
    "Flint",
    "FlintError",
    "Function",
    "FunctionContext",
    "FunctionError",
    "FunctionWorker",
    "HistoryEntry",
    "InternalError",
    "InvalidArgument",
    "Key",
    "KeyNotFound",
    "LastAdminKey",
    "LevelUnknown",
    "LimitNotFound",
    "NamedLimit",
    "NamespaceNotFound",
    "NamespaceSettings",
    "NotFound",
    "PageTokenInvalid",
    "PayloadNotFound",
    "PayloadTooLarge",
    "PermissionDenied",
    "Pool",
    "PoolNotFound",
    "PoolSettings",
    "Problem",
    "PublishedEvent",
    "QueueFull",
    "QueueHintInvalid",
    "QueuedPool",
    "QuotaExceeded",
    "ReceivedEvent",
    "RegisteredFunction",
    "RequestIdReused",
    "ResetPointNotFound",
    "ResetUnderWay",
    "ResourceExhausted",
    "Retention",
    "Role",
    "RoleInsufficient",
    "Run",
    "RunCancelled",
    "RunChanged",
    "RunEnded",
    "RunEndedBadly",
    "RunEnding",
    "RunFailed",
    "RunHandle",
    "RunNotFound",
    "RunNotPaused",
    "RunSnapshot",
    "RunState",
    "RunUndone",
    "ScalingDecision",
    "Schedule",
    "ScheduleConflict",
    "ScheduleNotFound",
    "ScheduleSpec",
    "ScheduleState",
    "ScheduledRun",
    "ScheduledTime",
    "Schedules",
    "SentSignal",
    "Severity",
    "StartRequest",
    "Step",
    "StepBegan",
    "StepState",
    "TimedOut",
    "TooManySignals",
    "TooManyWatches",
    "Unauthenticated",
    "Unavailable",
    "VersionExists",
    "WatchEvent",
    "WatchInterrupted",
    "WatchResumed",
    "Worker",
    "WorkerNotFound",
    "WorkerState",
    "Workflow",
    "WorkflowHold",
    "WorkflowInUse",
    "WorkflowNotFound",
    "function",
]


def test_the_export_list_is_what_users_rely_on() -> None:
    assert sorted(flint_sdk.__all__) == sorted(EXPORTS)
    assert all(hasattr(flint_sdk, name) for name in flint_sdk.__all__)


def test_every_error_reason_has_an_exception() -> None:
    reasons = {value.name.removeprefix("ERROR_REASON_") for value in errors_pb2.ErrorReason.DESCRIPTOR.values}
    assert reasons - {"UNSPECIFIED"} == _errors._BY_REASON.keys()


def test_every_exception_is_exported_and_drawn_in_the_tree() -> None:
    kinds = {kind for kind in vars(_errors).values() if isinstance(kind, type) and issubclass(kind, _errors.FlintError)}
    assert {kind.__name__ for kind in kinds} <= set(flint_sdk.__all__)
    assert _errors.__doc__ is not None
    lines = _errors.__doc__.splitlines()
    depth = {line.split("─ ")[-1].split()[0]: len(line) - len(line.lstrip(" │├└─")) for line in lines if "─ " in line}
    for kind in kinds - {_errors.FlintError}:
        parent = kind.__bases__[0].__name__
        assert depth[kind.__name__] == depth.get(parent, 4) + 4, kind


def public(kind: type) -> dict[str, inspect.Signature]:
    return {
        name: inspect.signature(member)
        for name, member in vars(kind).items()
        if inspect.isfunction(member) and not name.startswith("_")
    }


def test_blocking_and_asyncio_clients_have_the_same_surface() -> None:
    for blocking, asynchronous in (
        (flint_sdk.Flint, flint_sdk.AsyncFlint),
        (flint_sdk.RunHandle, flint_sdk.AsyncRunHandle),
    ):
        ours, theirs = public(blocking), public(asynchronous)
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert list(ours[name].parameters.values()) == list(theirs[name].parameters.values()), name
