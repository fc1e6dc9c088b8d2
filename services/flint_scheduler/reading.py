"""What SchedulingService answers from the record alone, on any replica: reads of runs, and the store of definitions.

A mixin: the scheduler's servicer adds what only a running orchestrator can do (accept, cancel, describe). Requests come
from gateways, which have authenticated, authorised and validated them; what is checked here are bounds that keep a
defect in a caller from becoming a large query.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from hashlib import sha256
from typing import Any

import grpc
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_contracts.gen.flint.scheduling.v1 import scheduling_pb2 as pb
from flint_rpc.errors import ErrorReason, Refused, field_invalid
from flint_scheduler.refusals import store_refusals
from flint_store import history, runs_read, workflows
from flint_store.definitions import DefinitionCache, queue_of, retention_of
from flint_store.schedules import spec_of
from flint_store.timestamps import from_timestamp
from flint_store.version_order import version_sort

__all__ = ["Reading"]

MAX_IDS = 1_000
MAX_PAGE = 501
MAX_HISTORY_PAGE = 2_001
ALL_VERSIONS = "-"

DefinitionsChanged = Callable[[str, str], Awaitable[None]]
"""Called with (namespace, workflow id) after a version was stored or deleted; tells the other replicas. Must not raise:
that nobody was told only delays them by the cache's ttl_s."""

Context = grpc.aio.ServicerContext[Any, Any]


class Reading:
    """Answers from the record. `message_bytes`: the largest message that may leave (limits.message_bytes)."""

    def __init__(
        self,
        engine: AsyncEngine,
        definitions: DefinitionCache,
        *,
        message_bytes: int,
        definitions_changed: DefinitionsChanged,
    ) -> None:
        self._engine = engine
        self._definitions = definitions
        self._budget_bytes = message_bytes * 3 // 4  # the rest is for framing and for sizes that are estimated
        self._definitions_changed = definitions_changed

    async def ReadRuns(self, request: pb.ReadRunsRequest, context: Context) -> pb.ReadRunsResponse:
        """Runs by id; with `with_steps` (one id) also the steps. What does not fit is in `left_out`."""
        _check_ids(request.run_ids)
        if request.with_steps and len(request.run_ids) != 1:
            raise field_invalid(("with_steps", "needs exactly one run id"))
        response = pb.ReadRunsResponse()
        with store_refusals():
            found = await runs_read.read_runs(
                self._engine,
                request.run_ids,
                with_input=not request.without_input,
                budget_bytes=self._budget_bytes,
            )
            response.runs.extend(found.runs)
            response.left_out.extend(found.left_out)
            if request.with_steps and found.runs:
                left = max(0, self._budget_bytes - response.ByteSize())
                # Up to the run's own position: steps and change number then belong to the same commit, and a watch
                # that goes on from that number misses none and repeats none.
                steps = await history.read_steps(
                    self._engine, request.run_ids[0], up_to=found.runs[0].position, budget_bytes=left
                )
                response.steps.extend(steps)
        return response

    async def ListRuns(self, request: pb.ListRunsRequest, context: Context) -> pb.ListRunsResponse:
        """A page of runs, newest first."""
        _check_ids([request.before_id or bytes(16), request.branches_of or bytes(16)])
        filters = runs_read.RunFilter(
            workflow_id=request.workflow_id,
            states=frozenset(request.states),
            created_after=from_timestamp(request.created_after) if request.HasField("created_after") else None,
            created_before=from_timestamp(request.created_before) if request.HasField("created_before") else None,
            branches_of=request.branches_of,
        )
        with store_refusals():
            runs = await runs_read.list_runs(
                self._engine,
                request.namespace,
                filters,
                before_id=request.before_id,
                limit=_limit(request.limit, MAX_PAGE),
            )
        return pb.ListRunsResponse(runs=runs)

    async def ReadHistory(self, request: pb.ReadHistoryRequest, context: Context) -> pb.ReadHistoryResponse:
        """Entries of one run's record; an empty answer when there is no such run."""
        _check_ids([request.run_id])
        with store_refusals():
            found = await history.read_history(
                self._engine,
                request.run_id,
                after_index=request.after_index,
                limit=_limit(request.limit, MAX_HISTORY_PAGE),
                budget_bytes=self._budget_bytes,
            )
        if found is None:
            return pb.ReadHistoryResponse()
        return pb.ReadHistoryResponse(namespace=found.namespace, entries=found.entries, more=found.more)

    async def PutWorkflow(self, request: pb.PutWorkflowRequest, context: Context) -> pb.PutWorkflowResponse:
        """Store a version. After the answer this replica's starts use it; others by the broadcast or within the ttl."""
        if sha256(request.program).digest() != request.definition_hash:
            raise field_invalid(("definition_hash", "is not the SHA-256 of the program"))
        schedule, level = spec_of(request.program)
        with store_refusals():
            stored, created = await workflows.put_version(
                self._engine,
                workflows.NewVersion(
                    namespace=request.namespace,
                    workflow_id=request.workflow_id,
                    version=request.version,
                    title=request.title,
                    summary=request.summary,
                    source=request.source,
                    program=request.program,
                    definition_hash=request.definition_hash,
                    schedule=schedule,
                    level=level,
                    queue=queue_of(request.program),
                    retention_s=retention_of(request.program),
                ),
            )
        # Also when it was there before: the answer to the call that stored it may have been lost, and its hint with it.
        await self._tell(request.namespace, request.workflow_id)
        return pb.PutWorkflowResponse(workflow=stored, created=created)

    async def ReadWorkflows(self, request: pb.ReadWorkflowsRequest, context: Context) -> pb.ReadWorkflowsResponse:
        """One version, all versions of a workflow, or the latest version of each; source only for one version."""
        limit = _limit(request.limit, MAX_PAGE)
        with store_refusals():
            if not request.workflow_id:
                found = await workflows.list_workflows(
                    self._engine, request.namespace, after=request.after, limit=limit
                )
            elif request.version == ALL_VERSIONS:
                found = await workflows.list_versions(
                    self._engine, request.namespace, request.workflow_id, after=request.after, limit=limit
                )
            else:
                if request.version:
                    version_sort(request.version)  # refuses what is no version
                one = await workflows.read_version(
                    self._engine, request.namespace, request.workflow_id, request.version
                )
                if one is None:
                    raise _workflow_not_found(request)
                if not request.with_source:
                    one.ClearField("source")
                found = [one]
        return pb.ReadWorkflowsResponse(workflows=found)

    async def DeleteWorkflow(self, request: pb.DeleteWorkflowRequest, context: Context) -> pb.DeleteWorkflowResponse:
        """Delete a version that no unfinished run uses."""
        with store_refusals():
            await workflows.delete_version(self._engine, request.namespace, request.workflow_id, request.version)
        await self._tell(request.namespace, request.workflow_id)
        return pb.DeleteWorkflowResponse()

    async def _tell(self, namespace: str, workflow_id: str) -> None:
        self._definitions.invalidate(namespace, workflow_id)
        await self._definitions_changed(namespace, workflow_id)


def _check_ids(run_ids: Sequence[bytes]) -> None:
    if not 1 <= len(run_ids) <= MAX_IDS:
        raise field_invalid(("run_ids", f"must hold 1 to {MAX_IDS} ids"))
    if any(len(run_id) != 16 for run_id in run_ids):
        raise field_invalid(("run_ids", "an id is 16 bytes"))


def _limit(value: int, highest: int) -> int:
    if value < 1:
        raise field_invalid(("limit", f"must be 1 to {highest}"))
    return min(value, highest)


def _workflow_not_found(request: pb.ReadWorkflowsRequest) -> Refused:
    return Refused(
        grpc.StatusCode.NOT_FOUND,
        ErrorReason.ERROR_REASON_WORKFLOW_NOT_FOUND,
        f"there is no version {request.version} of workflow {request.workflow_id}"
        if request.version
        else f"there is no workflow {request.workflow_id}",
    )
