"""SchedulingService: what gateways ask of a scheduler. Reads are in `reading`; the rest needs an orchestrator."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import grpc
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_bus import Bus
from flint_bus.subjects import WORKFLOWS
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_contracts.gen.flint.runs.v1 import control_pb2, runs_pb2
from flint_contracts.gen.flint.scheduling.v1 import scheduling_pb2 as pb
from flint_contracts.gen.flint.scheduling.v1 import scheduling_pb2_grpc
from flint_ops.config import Settings
from flint_rpc.errors import ErrorReason, Refused, component_unavailable, field_invalid, status_proto
from flint_rpc.turns import Turns
from flint_scheduler.accept import Acceptor, NewStart
from flint_scheduler.cards import Phase, RunBook
from flint_scheduler.control.applying import Applied, apply_once
from flint_scheduler.holdings import Holdings
from flint_scheduler.lane import LaneClosed
from flint_scheduler.namespaces import NamespaceDesk
from flint_scheduler.nudges import nudge_inboxes
from flint_scheduler.reading import Reading
from flint_scheduler.ready import ReadyQueue
from flint_scheduler.record import Record, RecordUnavailable
from flint_scheduler.refusals import store_refusals
from flint_scheduler.schedules import nudge_workflow
from flint_scheduler.starts import start_of
from flint_store import runs_read
from flint_store.accept import Accepted
from flint_store.definitions import DefinitionCache, ResolvedDefinition
from flint_store.engine import transaction

__all__ = ["SchedulingServicer"]

Context = grpc.aio.ServicerContext[Any, Any]


class SchedulingServicer(Reading, scheduling_pb2_grpc.SchedulingServiceServicer):
    """Any replica answers any call; only ownership decides who works on a run."""

    def __init__(
        self,
        settings: Settings,
        engine: AsyncEngine,
        record: Record,
        definitions: DefinitionCache,
        acceptor: Acceptor,
        holdings: Holdings,
        book: RunBook,
        queue: ReadyQueue,
        bus: Bus,
        namespaces: NamespaceDesk,
    ) -> None:
        super().__init__(
            engine,
            definitions,
            message_bytes=settings.limits.message_bytes,
            definitions_changed=self._tell_replicas,
        )
        self._settings = settings
        self._record = record
        self._cache = definitions
        self._acceptor = acceptor
        self._holdings = holdings
        self._book = book
        self._queue = queue
        self._bus = bus
        self._namespaces = namespaces
        self._limit = settings.scheduler.queue_limit
        self.streams = Turns("flint.scheduling.v1.SchedulingService/AcceptRunsStream", self._accept_batch)

    async def AcceptRuns(self, request: pb.AcceptRunsRequest, context: Context) -> pb.AcceptRunsResponse:
        """Accept a batch of starts; each succeeds or fails for itself. Those for which there is no room are refused one
        by one, or the call as a whole when there is none at all, so that another replica is asked.
        """
        if not 1 <= len(request.starts) <= self._settings.limits.batch_size:
            raise field_invalid(("starts", f"must hold 1 to {self._settings.limits.batch_size} starts"))
        room = self._limit - len(self._queue) - self._acceptor.waiting_starts
        if room <= 0:
            raise self._full()
        response = pb.AcceptRunsResponse()
        results: list[pb.AcceptResult] = []
        starts: list[NewStart] = []
        places: list[int] = []
        known: dict[tuple[str, str, str], ResolvedDefinition] = {}
        for place, start in enumerate(request.starts):
            result = response.results.add()
            results.append(result)
            if len(starts) >= room:
                result.error.CopyFrom(status_proto(self._full()))
                continue
            try:
                starts.append(await self._resolve(start, known))
                places.append(place)
            except Refused as refused:
                result.error.CopyFrom(status_proto(refused))
        if starts:
            try:
                answers = await self._acceptor.accept(starts, request.watcher)
            except RecordUnavailable as error:
                raise component_unavailable("PostgreSQL", str(error)) from error
            except LaneClosed as error:
                raise component_unavailable("this scheduler", "it is stopping") from error
            for place, accepted, answer in zip(places, starts, answers, strict=True):
                if answer.refused:
                    results[place].error.CopyFrom(status_proto(self._over_quota(accepted.namespace, answer.refused)))
                else:
                    _fill(results[place], accepted, answer)
        return response

    async def AcceptRunsStream(
        self, request_iterator: AsyncIterator[pb.AcceptRunsStreamRequest], context: Context
    ) -> AsyncIterator[pb.AcceptRunsStreamResponse]:
        """Accept one batch after the other."""
        async for response in self.streams.serve(request_iterator, context):
            yield response

    async def _accept_batch(self, request: pb.AcceptRunsStreamRequest, context: Context) -> pb.AcceptRunsStreamResponse:
        return pb.AcceptRunsStreamResponse(answer=await self.AcceptRuns(request.batch, context))

    def _full(self) -> Refused:
        return Refused(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            ErrorReason.ERROR_REASON_QUEUE_FULL,
            f"{len(self._queue)} runs wait for a slot already (scheduler.queue_limit); try again later",
            retry_after_s=1.0,
        )

    def _over_quota(self, namespace: str, which: str) -> Refused:
        quota = self._namespaces.quotas.get(namespace)
        retry_s = 1.0
        if quota is None:
            message = f"a quota of namespace {namespace} is used up"
        elif which == "rate" and quota.rate:
            message = f"namespace {namespace} may make {quota.rate:g} starts per second (starts_per_second)"
            retry_s = min(60.0, max(0.05, 1 / quota.rate))
        else:
            message = f"{quota.queued} runs of namespace {namespace} wait for a slot already (max_queued)"
        return Refused(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            ErrorReason.ERROR_REASON_QUOTA_EXCEEDED,
            f"{message}; try again later",
            retry_after_s=retry_s,
            metadata={"quota": "starts_per_second" if which == "rate" else "max_queued"},
            quota=f"namespaces/{namespace}",
        )

    async def _resolve(self, start: pb.Start, known: dict[tuple[str, str, str], ResolvedDefinition]) -> NewStart:
        """`known`: definitions of the other starts of the request."""
        key = start.namespace, start.workflow_id, start.version
        definition = known.get(key) or self._cache.cached(*key)
        if definition is None:
            with store_refusals():
                definition = await self._cache.resolve(*key)
        known[key] = definition
        resolved = start_of(definition, start, self._namespaces.level_named)
        resolved.counted = start.namespace in self._namespaces.quotas
        return resolved

    async def CancelRuns(self, request: pb.CancelRunsRequest, context: Context) -> pb.CancelRunsResponse:
        """Store a cancel in each run's inbox, then nudge the owners."""
        if not 1 <= len(request.run_ids) <= self._settings.limits.batch_size:
            raise field_invalid(("run_ids", f"must hold 1 to {self._settings.limits.batch_size} ids"))
        action = control_pb2.BatchAction(cancel=control_pb2.CancelAction(reason=request.reason))
        if request.HasField("grace_ms"):
            action.cancel.grace.FromMilliseconds(request.grace_ms)
        run_ids = list(dict.fromkeys(request.run_ids))

        async def store(engine: AsyncEngine) -> Applied:
            async with transaction(engine) as connection:
                return await apply_once(connection, request.namespace, run_ids, action, request.request_id)

        try:
            applied = await self._record.transaction(store)
        except RecordUnavailable as error:
            raise component_unavailable("PostgreSQL", str(error)) from error
        nudge_inboxes(self._bus, applied.targets)
        with store_refusals():
            found = await runs_read.read_runs(
                self._engine, run_ids, with_input=False, budget_bytes=self._settings.limits.message_bytes
            )
        runs = {run.name.rsplit("/", 1)[1]: run for run in found.runs}
        return pb.CancelRunsResponse(results=[_cancel_result(r, applied, runs) for r in request.run_ids])

    async def DescribeOwner(self, request: pb.DescribeOwnerRequest, context: Context) -> pb.DescribeOwnerResponse:
        """What this replica owns now."""
        return pb.DescribeOwnerResponse(
            scheduler_id=self._settings.scheduler.id,
            pid=os.getpid(),
            groups=[
                pb.OwnedGroup(group=h.group, term=h.term)
                for h in sorted(self._holdings.groups.values(), key=lambda h: h.group)
                if h.settled
            ],
            queued=len(self._queue),
            legs=sum(1 for c in self._book if c.phase in (Phase.OPEN, Phase.SEALING)),
            journal_generation=self._holdings.generation,
        )

    async def _tell_replicas(self, namespace: str, workflow_id: str) -> None:
        changed = dispatch_pb2.WorkflowsChanged(namespace=namespace, workflow_id=workflow_id)
        self._bus.publish_now(WORKFLOWS, changed.SerializeToString())
        nudge_workflow(self._bus, self._holdings.group_count, namespace, workflow_id)


def _cancel_result(run_id: bytes, applied: Applied, runs: dict[str, runs_pb2.Run]) -> pb.CancelResult:
    refused = applied.refused.get(run_id)
    run = runs.get(str(UUID(bytes=run_id)))
    if run is None or (refused is not None and refused.reason == ErrorReason.ERROR_REASON_RUN_NOT_FOUND):
        return pb.CancelResult()
    if refused is not None and refused.reason != ErrorReason.ERROR_REASON_RUN_ENDED:
        raise refused
    return pb.CancelResult(run=run, stored=refused is None)


def _fill(result: pb.AcceptResult, start: NewStart, answer: Accepted) -> None:
    if not answer.same_request:
        refused = Refused(
            grpc.StatusCode.ALREADY_EXISTS,
            ErrorReason.ERROR_REASON_REQUEST_ID_REUSED,
            f"request_id {start.request_id!r} was used before for a start with other content; use a new one",
        )
        result.error.CopyFrom(status_proto(refused))
        return
    result.run_id = answer.run_id
    result.created = answer.created
    result.version = start.version
    result.state = answer.state  # type: ignore[assignment]
    result.level = start.level
    at_us = int(answer.created_at.timestamp() * 1_000_000)
    created = result.create_time
    created.seconds = at_us // 1_000_000
    created.nanos = at_us % 1_000_000 * 1000
