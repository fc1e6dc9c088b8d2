"""Who may call what: the table of roles, and the one interceptor that applies it.

Every public method has an entry; `check_policies` refuses to start a gateway that serves a method without one. Health
and reflection are open. The interceptor authenticates by the key cache, authorises by the namespace that the request
names, and leaves the principal to the servicer (`current_principal`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import grpc

from flint_contracts.gen.flint.identity.v1 import identity_pb2
from flint_gateway.principals import KeyCache, Principal
from flint_rpc.boundary import Handler, HandlerWrapper
from flint_rpc.errors import ErrorReason, Refused, field_invalid
from flint_rpc.names import ALL_NAMESPACES
from flint_rpc.server import Service, is_open_method

__all__ = ["POLICIES", "AuthInterceptor", "Policy", "Scope", "authorise", "check_policies", "current_principal"]

Role = identity_pb2.Role


class Scope(Enum):
    """Where a role must hold."""

    PARENT = auto()
    """In the namespace of the request's `parent`."""
    NAME = auto()
    """In the namespace of the request's `name`."""
    START = auto()
    """In the namespace of the `parent` of the request's `start`."""
    SCHEDULE = auto()
    """In the namespace of the name of the request's `schedule`."""
    CALENDAR = auto()
    """In the namespace of the name of the request's `calendar`."""
    ANY = auto()
    """In any namespace: the key's own."""
    CLUSTER = auto()
    """In all namespaces: a key of `namespaces/-`."""
    EACH = auto()
    """In the namespace of each name in a stream of requests: the servicer calls `authorise` for each."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What a method demands."""

    role: Role.ValueType
    scope: Scope


_VIEWER = Role.ROLE_VIEWER
_OPERATOR = Role.ROLE_OPERATOR
_EDITOR = Role.ROLE_EDITOR
_ADMIN = Role.ROLE_ADMIN

POLICIES: dict[str, Policy] = {
    "/flint.runs.v1.RunService/StartRun": Policy(_OPERATOR, Scope.PARENT),
    "/flint.runs.v1.RunService/StartRuns": Policy(_OPERATOR, Scope.PARENT),
    "/flint.runs.v1.RunService/GetRun": Policy(_VIEWER, Scope.NAME),
    "/flint.runs.v1.RunService/AwaitRun": Policy(_VIEWER, Scope.NAME),
    "/flint.runs.v1.RunService/StreamStarts": Policy(_OPERATOR, Scope.EACH),
    "/flint.runs.v1.RunService/AwaitRuns": Policy(_VIEWER, Scope.EACH),
    "/flint.runs.v1.RunService/RunWorkflow": Policy(_OPERATOR, Scope.START),
    "/flint.runs.v1.RunService/ListRuns": Policy(_VIEWER, Scope.PARENT),
    "/flint.runs.v1.RunService/CancelRun": Policy(_OPERATOR, Scope.NAME),
    "/flint.runs.v1.RunService/WatchRun": Policy(_VIEWER, Scope.NAME),
    "/flint.runs.v1.RunService/GetRunHistory": Policy(_VIEWER, Scope.NAME),
    "/flint.runs.v1.RunControlService/TerminateRun": Policy(_OPERATOR, Scope.NAME),
    "/flint.runs.v1.RunControlService/PauseRun": Policy(_OPERATOR, Scope.NAME),
    "/flint.runs.v1.RunControlService/ResumeRun": Policy(_OPERATOR, Scope.NAME),
    "/flint.runs.v1.RunControlService/ResetRun": Policy(_OPERATOR, Scope.NAME),
    "/flint.runs.v1.RunControlService/SetRunLevel": Policy(_OPERATOR, Scope.NAME),
    "/flint.runs.v1.RunControlService/SignalRun": Policy(_OPERATOR, Scope.NAME),
    "/flint.runs.v1.RunControlService/UpdateRun": Policy(_OPERATOR, Scope.NAME),
    "/flint.runs.v1.RunControlService/StartBatch": Policy(_OPERATOR, Scope.PARENT),
    "/flint.runs.v1.RunControlService/GetBatch": Policy(_VIEWER, Scope.NAME),
    "/flint.runs.v1.RunControlService/ListBatches": Policy(_VIEWER, Scope.PARENT),
    "/flint.runs.v1.RunControlService/CancelBatch": Policy(_OPERATOR, Scope.NAME),
    "/flint.runs.v1.RunControlService/HoldWorkflow": Policy(_EDITOR, Scope.NAME),
    "/flint.runs.v1.RunControlService/ReleaseWorkflow": Policy(_EDITOR, Scope.NAME),
    "/flint.runs.v1.RunControlService/ListHolds": Policy(_VIEWER, Scope.PARENT),
    "/flint.workflows.v1.WorkflowService/ApplyWorkflow": Policy(_EDITOR, Scope.PARENT),
    "/flint.workflows.v1.WorkflowService/GetWorkflow": Policy(_VIEWER, Scope.NAME),
    "/flint.workflows.v1.WorkflowService/ListWorkflows": Policy(_VIEWER, Scope.PARENT),
    "/flint.workflows.v1.WorkflowService/DeleteWorkflow": Policy(_EDITOR, Scope.NAME),
    "/flint.fleet.v1.FleetService/ListWorkers": Policy(_VIEWER, Scope.ANY),
    "/flint.fleet.v1.FleetService/ListPools": Policy(_VIEWER, Scope.ANY),
    "/flint.fleet.v1.FleetService/DrainWorker": Policy(_ADMIN, Scope.CLUSTER),
    "/flint.fleet.v1.FleetService/ReleaseWorker": Policy(_ADMIN, Scope.CLUSTER),
    "/flint.fleet.v1.FleetService/GetPool": Policy(_VIEWER, Scope.ANY),
    "/flint.fleet.v1.FleetService/UpdatePool": Policy(_ADMIN, Scope.CLUSTER),
    "/flint.fleet.v1.FleetService/ListScalingDecisions": Policy(_VIEWER, Scope.ANY),
    "/flint.functions.v1.FunctionService/ListFunctions": Policy(_VIEWER, Scope.PARENT),
    "/flint.functions.v1.FunctionWorkerService/Connect": Policy(_OPERATOR, Scope.EACH),
    "/flint.payloads.v1.PayloadService/UploadPayload": Policy(_OPERATOR, Scope.EACH),
    "/flint.payloads.v1.PayloadService/DownloadPayload": Policy(_VIEWER, Scope.NAME),
    "/flint.events.v1.EventService/PublishEvents": Policy(_OPERATOR, Scope.PARENT),
    "/flint.events.v1.EventService/SubscribeEvents": Policy(_VIEWER, Scope.PARENT),
    "/flint.approvals.v1.ApprovalService/ListApprovals": Policy(_VIEWER, Scope.PARENT),
    "/flint.approvals.v1.ApprovalService/GetApproval": Policy(_VIEWER, Scope.NAME),
    "/flint.approvals.v1.ApprovalService/DecideApproval": Policy(_OPERATOR, Scope.NAME),
    "/flint.schedules.v1.ScheduleService/CreateSchedule": Policy(_OPERATOR, Scope.PARENT),
    "/flint.schedules.v1.ScheduleService/UpdateSchedule": Policy(_OPERATOR, Scope.SCHEDULE),
    "/flint.schedules.v1.ScheduleService/DeleteSchedule": Policy(_OPERATOR, Scope.NAME),
    "/flint.schedules.v1.ScheduleService/GetSchedule": Policy(_VIEWER, Scope.NAME),
    "/flint.schedules.v1.ScheduleService/ListSchedules": Policy(_VIEWER, Scope.PARENT),
    "/flint.schedules.v1.ScheduleService/PauseSchedule": Policy(_OPERATOR, Scope.NAME),
    "/flint.schedules.v1.ScheduleService/ResumeSchedule": Policy(_OPERATOR, Scope.NAME),
    "/flint.schedules.v1.ScheduleService/TriggerSchedule": Policy(_OPERATOR, Scope.NAME),
    "/flint.schedules.v1.ScheduleService/BackfillSchedule": Policy(_OPERATOR, Scope.NAME),
    "/flint.schedules.v1.ScheduleService/CancelBackfill": Policy(_OPERATOR, Scope.NAME),
    "/flint.schedules.v1.ScheduleService/PreviewSchedule": Policy(_VIEWER, Scope.PARENT),
    "/flint.schedules.v1.ScheduleService/PutCalendar": Policy(_OPERATOR, Scope.CALENDAR),
    "/flint.schedules.v1.ScheduleService/GetCalendar": Policy(_VIEWER, Scope.NAME),
    "/flint.schedules.v1.ScheduleService/ListCalendars": Policy(_VIEWER, Scope.PARENT),
    "/flint.schedules.v1.ScheduleService/DeleteCalendar": Policy(_OPERATOR, Scope.NAME),
    "/flint.namespaces.v1.NamespaceService/GetNamespaceSettings": Policy(_VIEWER, Scope.NAME),
    "/flint.namespaces.v1.NamespaceService/UpdateNamespaceSettings": Policy(_ADMIN, Scope.CLUSTER),
    "/flint.namespaces.v1.NamespaceService/SetLevel": Policy(_ADMIN, Scope.NAME),
    "/flint.namespaces.v1.NamespaceService/DeleteLevel": Policy(_ADMIN, Scope.NAME),
    "/flint.namespaces.v1.NamespaceService/DescribeQueue": Policy(_VIEWER, Scope.ANY),
    "/flint.namespaces.v1.NamespaceService/DescribeRetention": Policy(_VIEWER, Scope.NAME),
    "/flint.limits.v1.LimitService/SetLimit": Policy(_OPERATOR, Scope.NAME),
    "/flint.limits.v1.LimitService/ListLimits": Policy(_VIEWER, Scope.PARENT),
    "/flint.limits.v1.LimitService/DeleteLimit": Policy(_OPERATOR, Scope.NAME),
    "/flint.identity.v1.IdentityService/CreateKey": Policy(_ADMIN, Scope.PARENT),
    "/flint.identity.v1.IdentityService/ListKeys": Policy(_ADMIN, Scope.PARENT),
    "/flint.identity.v1.IdentityService/RevokeKey": Policy(_ADMIN, Scope.NAME),
    "/flint.identity.v1.IdentityService/WhoAmI": Policy(_VIEWER, Scope.ANY),
}

_principal: ContextVar[Principal] = ContextVar("principal")


def current_principal() -> Principal:
    """The caller of the RPC that is being answered."""
    return _principal.get()


def check_policies(services: Iterable[Service]) -> None:
    """Raises RuntimeError when a served method has no entry in the table, or an entry has no method."""
    served = {method for service in services for method in service.methods}
    wrong = sorted(served ^ POLICIES.keys())
    if wrong:
        raise RuntimeError(f"methods without a required role, or roles without a method: {', '.join(wrong)}")


def authorise(principal: Principal, role: Role.ValueType, namespace: str) -> None:
    """Raises `Refused` (PERMISSION_DENIED) unless the principal has the role or more in the namespace (`-`: in all)."""
    if principal.role >= role and principal.namespace in (ALL_NAMESPACES, namespace):
        return
    wanted = Role.Name(role).removeprefix("ROLE_").lower()
    where = "all namespaces" if namespace == ALL_NAMESPACES else f"namespace {namespace}"
    held = Role.Name(principal.role).removeprefix("ROLE_").lower()
    scope = "all namespaces" if principal.namespace == ALL_NAMESPACES else f"namespace {principal.namespace}"
    raise Refused(
        grpc.StatusCode.PERMISSION_DENIED,
        ErrorReason.ERROR_REASON_ROLE_INSUFFICIENT,
        f"this needs the role {wanted} in {where}; the key has the role {held} in {scope}",
        metadata={"required_role": wanted, "namespace": namespace},
    )


class AuthInterceptor(HandlerWrapper):
    """See the module. One per gateway, directly inside the boundary."""

    def __init__(self, keys: KeyCache) -> None:
        self._keys = keys

    def wrap(self, method: str, handler: Handler) -> Handler:
        """The handler behind authentication and authorisation."""
        if is_open_method(method):
            return handler
        policy = POLICIES[method]
        if handler.request_streaming and not handler.response_streaming:
            return grpc.stream_unary_rpc_method_handler(
                self._upload(policy, handler.stream_unary), handler.request_deserializer, handler.response_serializer
            )
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._stream(policy, handler.stream_stream), handler.request_deserializer, handler.response_serializer
            )
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._stream(policy, handler.unary_stream), handler.request_deserializer, handler.response_serializer
            )
        return grpc.unary_unary_rpc_method_handler(
            self._unary(policy, handler.unary_unary), handler.request_deserializer, handler.response_serializer
        )

    def _unary(self, policy: Policy, behaviour: Any) -> Any:
        known = self._keys.known

        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            authorization = _authorization(context)
            principal = known(authorization) or await self._keys.find(authorization)
            _permit(policy, principal, request)
            _principal.set(principal)
            return await behaviour(request, context)

        return call

    def _upload(self, policy: Policy, behaviour: Any) -> Any:
        known = self._keys.known

        async def call(requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            authorization = _authorization(context)
            principal = known(authorization) or await self._keys.find(authorization)
            _permit(policy, principal, requests)
            _principal.set(principal)
            return await behaviour(self._checked(authorization, requests), context)

        return call

    def _stream(self, policy: Policy, behaviour: Any) -> Any:
        known = self._keys.known

        async def generate(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            authorization = _authorization(context)
            principal = known(authorization) or await self._keys.find(authorization)
            _permit(policy, principal, request)
            _principal.set(principal)
            if policy.scope is Scope.EACH:
                request = self._checked(authorization, request)
            async for response in behaviour(request, context):
                # A stream may outlive its key: nothing is sent on one that was revoked longer ago than the cache's ttl.
                if known(authorization) is None:
                    _permit(policy, await self._keys.find(authorization), request)
                yield response

        return generate

    async def _checked(self, authorization: str, requests: Any) -> AsyncIterator[Any]:
        """The requests of a stream; the principal that `current_principal` gives to their reader is kept true."""
        async for request in requests:
            _principal.set(self._keys.known(authorization) or await self._keys.find(authorization))
            yield request


def _authorization(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == "authorization" and isinstance(value, str):
            return value
    raise Refused(
        grpc.StatusCode.UNAUTHENTICATED,
        ErrorReason.ERROR_REASON_CREDENTIALS_MISSING,
        "send an API key as metadata «authorization: Bearer flint_…»",
    )


def _permit(policy: Policy, principal: Principal, request: Any) -> None:
    scope = policy.scope
    if scope is Scope.PARENT:
        namespace = _namespace_of(request.parent, "parent")
    elif scope is Scope.NAME:
        namespace = _namespace_of(request.name, "name")
    elif scope is Scope.START:
        namespace = _namespace_of(request.start.parent, "start.parent")
    elif scope is Scope.SCHEDULE:
        namespace = _namespace_of(request.schedule.name, "schedule.name")
    elif scope is Scope.CALENDAR:
        namespace = _namespace_of(request.calendar.name, "calendar.name")
    elif scope is Scope.CLUSTER:
        namespace = ALL_NAMESPACES
    else:
        namespace = principal.namespace
    authorise(principal, policy.role, namespace)


def _namespace_of(name: str, field: str) -> str:
    """The namespace that a resource name begins with; the servicer checks the rest of it."""
    parts = name.split("/", 2)
    if len(parts) < 2 or parts[0] != "namespaces" or not 0 < len(parts[1]) <= 63:
        raise field_invalid((field, "must begin with namespaces/{namespace}" if name else "is required"))
    return parts[1]
