"""WorkflowService: applies, reads, lists and deletes versions of workflows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from flint_contracts.gen.flint.scheduling.v1 import scheduling_pb2
from flint_contracts.gen.flint.workflows.v1 import workflows_pb2
from flint_contracts.gen.flint.workflows.v1.workflows_pb2_grpc import WorkflowServiceServicer
from flint_gateway.definitions import DefinitionChecker, finding_message
from flint_gateway.fleet_advice import FleetAdvice
from flint_gateway.functions_advice import FunctionAdvice
from flint_gateway.validation import namespace_of_parent
from flint_ops.config import LimitSettings
from flint_rpc.errors import ErrorReason, FieldViolation, Refused, field_invalid
from flint_rpc.names import format_version, parse_workflow, parse_workflow_parent
from flint_rpc.paging import PageBinding, page_size
from flint_rpc.upstream import Client

if TYPE_CHECKING:
    from flint_contracts.gen.flint.scheduling.v1.scheduling_pb2_grpc import SchedulingServiceAsyncStub

__all__ = ["WorkflowServicer"]

_TIMEOUT_S = 15.0
_ALL_VERSIONS = "-"

Context = grpc.aio.ServicerContext[Any, Any]


class WorkflowServicer(WorkflowServiceServicer):
    """See the module. Callers are authenticated and authorised by the interceptor."""

    def __init__(
        self,
        client: Client[SchedulingServiceAsyncStub],
        checker: DefinitionChecker,
        limits: LimitSettings,
        functions: FunctionAdvice | None = None,
        fleet: FleetAdvice | None = None,
    ) -> None:
        self._client = client
        self._fleet = fleet
        self._functions = functions
        self._checker = checker
        self._limits = limits

    async def ApplyWorkflow(
        self, request: workflows_pb2.ApplyWorkflowRequest, context: Context
    ) -> workflows_pb2.ApplyWorkflowResponse:
        """Checks, then stores unless `validate_only`."""
        namespace = namespace_of_parent(request.parent)
        limit = self._limits.definition_bytes
        if not request.source.strip():
            raise field_invalid(("source", "is required: a definition in YAML or JSON"))
        if len(request.source.encode()) > limit:
            raise Refused(
                grpc.StatusCode.INVALID_ARGUMENT,
                ErrorReason.ERROR_REASON_PAYLOAD_TOO_LARGE,
                f"the definition has more than {limit} bytes (limits.definition_bytes)",
                field_violations=[FieldViolation("source", f"has more than {limit} bytes")],
            )
        checked = await self._checker.check(request.source, namespace)
        program = checked.program
        warnings = checked.warnings
        if self._fleet is not None:
            await self._checker.refuse(request.source, await self._fleet.refusals(program))
        if self._functions is not None:
            faults = await self._functions.warnings(program, namespace)
            warnings = [*warnings, *await self._checker.warnings(request.source, faults)]
        response = workflows_pb2.ApplyWorkflowResponse(findings=map(finding_message, warnings))
        if request.validate_only:
            response.workflow.CopyFrom(
                workflows_pb2.Workflow(
                    name=format_version(namespace, program.workflow_id, program.version),
                    workflow_id=program.workflow_id,
                    version=program.version,
                    title=program.title,
                    summary=program.summary,
                    source=request.source,
                    definition_hash=program.hash.hex(),
                )
            )
            return response
        inner = scheduling_pb2.PutWorkflowRequest(
            namespace=namespace,
            workflow_id=program.workflow_id,
            version=program.version,
            title=program.title,
            summary=program.summary,
            source=request.source,
            program=checked.encoded,
            definition_hash=program.hash,
        )
        stored = await self._client.call(lambda stub: stub.PutWorkflow, inner, _TIMEOUT_S)
        response.workflow.CopyFrom(stored.workflow)
        response.created = stored.created
        return response

    async def GetWorkflow(
        self, request: workflows_pb2.GetWorkflowRequest, context: Context
    ) -> workflows_pb2.GetWorkflowResponse:
        """One version with its source; the latest when none is named."""
        name = parse_workflow(request.name)
        inner = scheduling_pb2.ReadWorkflowsRequest(
            namespace=name.namespace,
            workflow_id=name.workflow_id,
            version=name.version,
            limit=1,
            with_source=True,
        )
        response = await self._client.call(lambda stub: stub.ReadWorkflows, inner, _TIMEOUT_S)
        if not response.workflows:
            raise Refused(
                grpc.StatusCode.NOT_FOUND,
                ErrorReason.ERROR_REASON_WORKFLOW_NOT_FOUND,
                f"there is no {request.name}",
            )
        return workflows_pb2.GetWorkflowResponse(workflow=response.workflows[0])

    async def ListWorkflows(
        self, request: workflows_pb2.ListWorkflowsRequest, context: Context
    ) -> workflows_pb2.ListWorkflowsResponse:
        """A page of workflows by id, or of one workflow's versions, newest first."""
        parent = parse_workflow_parent(request.parent)
        size = page_size(request.page_size, default=50, most=500)
        binding = PageBinding("workflows", request.parent)
        inner = scheduling_pb2.ReadWorkflowsRequest(
            namespace=parent.namespace,
            workflow_id=parent.workflow_id,
            version=_ALL_VERSIONS if parent.workflow_id else "",
            limit=size + 1,
            after=binding.decode(request.page_token),
        )
        response = await self._client.call(lambda stub: stub.ReadWorkflows, inner, _TIMEOUT_S)
        page = response.workflows[:size]
        token = ""
        if len(response.workflows) > size:
            token = binding.encode(page[-1].version if parent.workflow_id else page[-1].workflow_id)
        return workflows_pb2.ListWorkflowsResponse(workflows=page, next_page_token=token)

    async def DeleteWorkflow(
        self, request: workflows_pb2.DeleteWorkflowRequest, context: Context
    ) -> workflows_pb2.DeleteWorkflowResponse:
        """Deletes one version."""
        name = parse_workflow(request.name, version=True)
        inner = scheduling_pb2.DeleteWorkflowRequest(
            namespace=name.namespace, workflow_id=name.workflow_id, version=name.version
        )
        await self._client.call(lambda stub: stub.DeleteWorkflow, inner, _TIMEOUT_S)
        return workflows_pb2.DeleteWorkflowResponse()
