"""ControlService: what gateways ask of a scheduler to steer runs. Any replica stores; the owners carry out."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from uuid import UUID

import grpc
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_bus import Bus
from flint_bus.subjects import WORKFLOWS, owner_subject
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_contracts.gen.flint.runs.v1 import control_pb2, runs_pb2
from flint_contracts.gen.flint.scheduling.v1 import control_pb2 as pb
from flint_contracts.gen.flint.scheduling.v1 import control_pb2_grpc
from flint_core.ids import SHARDS, group_of_run, make_run_id
from flint_rpc.errors import ErrorReason, Refused, component_unavailable, field_invalid, status_proto
from flint_scheduler.control.applying import Applied, apply_once
from flint_scheduler.control.signals import SignalDesk
from flint_scheduler.nudges import nudge_inboxes
from flint_scheduler.record import Record, RecordUnavailable
from flint_scheduler.refusals import store_refusals
from flint_store import batches, runs_read
from flint_store.engine import transaction
from flint_store.signals import is_taken
from flint_store.workflow_control import hold_workflow, read_holds, release_workflow, workflow_known

__all__ = ["ControlServicer"]

_TRIES = 3
_PAUSE_S = 0.05

Context = grpc.aio.ServicerContext[Any, Any]


class ControlServicer(control_pb2_grpc.ControlServiceServicer):
    """See the module."""

    def __init__(
        self,
        engine: AsyncEngine,
        record: Record,
        bus: Bus,
        signals: SignalDesk,
        groups: int,
        batch_size: int,
        message_bytes: int,
        now_ms: Callable[[], int],
    ) -> None:
        self._engine = engine
        self._record = record
        self._bus = bus
        self._signals = signals
        self._groups = groups
        self._batch_size = batch_size
        self._message_bytes = message_bytes
        self._now_ms = now_ms

    async def CommandRuns(self, request: pb.CommandRunsRequest, context: Context) -> pb.CommandRunsResponse:
        """Store one command for each run, then tell the owners."""
        if not 1 <= len(request.run_ids) <= self._batch_size:
            raise field_invalid(("run_ids", f"must hold 1 to {self._batch_size} ids"))
        if request.action.WhichOneof("action") is None:
            raise field_invalid(("action", "must be set"))
        run_ids = list(dict.fromkeys(request.run_ids))
        applied = await self._transaction(
            partial(
                self._apply,
                namespace=request.namespace,
                run_ids=run_ids,
                action=request.action,
                request_id=request.request_id,
            )
        )
        nudge_inboxes(self._bus, applied.targets)
        if applied.signalled:
            await self._reading(self._signals.offer(applied.signalled))
        with store_refusals():
            found = await runs_read.read_runs(
                self._engine, run_ids, with_input=False, budget_bytes=self._message_bytes // 2
            )
        runs = {run.name.rsplit("/", 1)[1]: run for run in found.runs}
        return pb.CommandRunsResponse(results=[_result(r, applied, runs) for r in request.run_ids])

    async def _apply(
        self,
        engine: AsyncEngine,
        namespace: str,
        run_ids: Sequence[bytes],
        action: control_pb2.BatchAction,
        request_id: str,
    ) -> Applied:
        async with transaction(engine) as connection:
            return await apply_once(connection, namespace, run_ids, action, request_id)

    async def ReadSignal(self, request: pb.ReadSignalRequest, context: Context) -> pb.ReadSignalResponse:
        """Whether the run has recorded that it took the signal."""
        taken = await self._reading(self._record.read(lambda c: is_taken(c, request.run_id, request.signal_id)))
        return pb.ReadSignalResponse(taken=taken)

    # -- jobs ----------------------------------------------------------------------------------------------------------

    async def PutBatch(self, request: pb.PutBatchRequest, context: Context) -> pb.PutBatchResponse:
        """Store a job and tell the owner of its group."""
        noise = os.urandom(11)
        shard = int.from_bytes(noise[9:], "big") % SHARDS
        batch_id = make_run_id(shard, self._now_ms(), noise[:9])
        group = group_of_run(batch_id, self._groups)
        message, same = await self._reading(
            self._record.read(
                lambda c: batches.put_batch(
                    c, request.namespace, batch_id, group, request.request_id, request.action, request.filter
                )
            )
        )
        if not same:
            raise Refused(
                grpc.StatusCode.ALREADY_EXISTS,
                ErrorReason.ERROR_REASON_REQUEST_ID_REUSED,
                f"request_id {request.request_id!r} was used before for another job; use a new one",
            )
        identity = UUID(message.name.rpartition("/")[2]).bytes
        nudge = dispatch_pb2.OwnerNudge(control=True).SerializeToString()
        self._bus.publish_now(owner_subject(group_of_run(identity, self._groups)), nudge)
        return pb.PutBatchResponse(batch=message)

    async def ReadBatches(self, request: pb.ReadBatchesRequest, context: Context) -> pb.ReadBatchesResponse:
        """One job or a page of them."""
        found = await self._reading(
            self._record.read(
                lambda c: batches.read_batches(
                    c,
                    request.namespace,
                    batch_id=request.batch_id,
                    before=request.before_id,
                    limit=min(max(request.limit, 1), 501),
                )
            )
        )
        return pb.ReadBatchesResponse(batches=found)

    async def EndBatch(self, request: pb.EndBatchRequest, context: Context) -> pb.EndBatchResponse:
        """End a job early; one that has ended stays as it is."""
        await self._reading(self._record.read(lambda c: batches.end_batch(c, request.namespace, request.batch_id)))
        found = await self._reading(
            self._record.read(lambda c: batches.read_batches(c, request.namespace, batch_id=request.batch_id))
        )
        return pb.EndBatchResponse(batch=found[0] if found else None)

    # -- workflows -----------------------------------------------------------------------------------------------------

    async def SetHold(self, request: pb.SetHoldRequest, context: Context) -> pb.SetHoldResponse:
        """Hold or release a workflow and tell the replicas."""
        namespace, workflow_id = request.namespace, request.workflow_id
        if not await self._reading(self._record.read(lambda c: workflow_known(c, namespace, workflow_id))):
            raise Refused(
                grpc.StatusCode.NOT_FOUND,
                ErrorReason.ERROR_REASON_WORKFLOW_NOT_FOUND,
                f"there is no workflow {workflow_id}",
            )
        if request.hold:
            work = partial(hold_workflow, namespace=namespace, workflow_id=workflow_id, reason=request.reason)
        else:
            work = partial(release_workflow, namespace=namespace, workflow_id=workflow_id)
        changed = await self._reading(self._record.read(work))
        holds = await self._reading(self._record.read(lambda c: read_holds(c, namespace, workflow_id)))
        self.tell_replicas(namespace, workflow_id)
        return pb.SetHoldResponse(hold=holds[0] if holds else None, changed=changed)

    def tell_replicas(self, namespace: str, workflow_id: str) -> None:
        """Something about the workflow has changed."""
        changed = dispatch_pb2.WorkflowsChanged(namespace=namespace, workflow_id=workflow_id)
        self._bus.publish_now(WORKFLOWS, changed.SerializeToString())

    async def ReadHolds(self, request: pb.ReadHoldsRequest, context: Context) -> pb.ReadHoldsResponse:
        """The workflows of a namespace that are on hold."""
        holds = await self._reading(self._record.read(lambda c: read_holds(c, request.namespace)))
        return pb.ReadHoldsResponse(holds=holds)

    # -- inside --------------------------------------------------------------------------------------------------------

    async def _transaction(self, work: Callable[[AsyncEngine], Any]) -> Any:
        """Tried again when two waited for each other."""
        for attempt in range(1, _TRIES + 1):
            try:
                return await self._record.transaction(work)
            except RecordUnavailable as error:
                if attempt == _TRIES:
                    raise component_unavailable("PostgreSQL", str(error)) from error
                await asyncio.sleep(_PAUSE_S * attempt)
        raise AssertionError("unreachable")

    async def _reading(self, work: Any) -> Any:
        try:
            return await work
        except RecordUnavailable as error:
            raise component_unavailable("PostgreSQL", str(error)) from error


def _result(run_id: bytes, applied: Applied, runs: dict[str, runs_pb2.Run]) -> pb.CommandResult:
    result = pb.CommandResult(created=applied.created.get(run_id, False), kept_entries=applied.kept.get(run_id, 0))
    refused = applied.refused.get(run_id)
    if refused is not None:
        result.error.CopyFrom(status_proto(refused))
    run = runs.get(str(UUID(bytes=run_id)))
    if run is not None and refused is None:
        result.run.CopyFrom(run)
    return result
