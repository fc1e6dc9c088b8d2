"""RunService: starts, reads, waits for, watches and cancels runs."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc

from flint_bus.bus import Bus
from flint_bus.messages import Message
from flint_bus.subjects import hints_subject
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_contracts.gen.flint.identity.v1 import identity_pb2
from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_contracts.gen.flint.runs.v1.runs_pb2_grpc import RunServiceServicer
from flint_contracts.gen.flint.scheduling.v1 import scheduling_pb2
from flint_core.queueing import DEFAULT_POOL
from flint_gateway.answers import entry_cursor, fill_in, fitting, last_fitting, run_cursor
from flint_gateway.auth import authorise, current_principal
from flint_gateway.awaiting import AwaitStream
from flint_gateway.namespaces import Backlogs
from flint_gateway.payloads import LargeInputs
from flint_gateway.reading import RunReader
from flint_gateway.results import TERMINAL
from flint_gateway.run_control import grace_ms, own_request_id
from flint_gateway.starts import StartBatcher
from flint_gateway.validation import make_start, namespace_of_parent
from flint_gateway.watches import Watch
from flint_gateway.watching import Hub, run_not_found
from flint_ops.config import LimitSettings
from flint_rpc.errors import ErrorReason, FieldViolation, Refused, field_invalid, from_status_proto, status_proto
from flint_rpc.names import RunName, format_run, is_label, parse_run
from flint_rpc.paging import PageBinding, page_size
from flint_rpc.tracing import new_trace_ids, trace_id_of
from flint_rpc.turns import Turns
from flint_rpc.upstream import Client

if TYPE_CHECKING:
    from flint_contracts.gen.flint.scheduling.v1.scheduling_pb2_grpc import SchedulingServiceAsyncStub

__all__ = ["RunServicer"]

_TIMEOUT_S = 15.0
_AWAIT_DEFAULT_S = 60.0
_AWAIT_MOST_S = 600.0
_ANSWER_S = 1.0
"""So long before a call's deadline its wait is over."""
_STANDING_S = 5.0
_REASON_CHARACTERS = 512

Context = grpc.aio.ServicerContext[Any, Any]


class RunServicer(RunServiceServicer):
    """See the module. Callers are authenticated and authorised by the interceptor."""

    def __init__(
        self,
        client: Client[SchedulingServiceAsyncStub],
        batcher: StartBatcher,
        hub: Hub,
        reader: RunReader,
        bus: Bus,
        limits: LimitSettings,
        inputs: LargeInputs,
    ) -> None:
        self._client = client
        self._batcher = batcher
        self._hub = hub
        self._reader = reader
        self._bus = bus
        self._limits = limits
        self._inputs = inputs
        self.backlogs: Backlogs | None = None
        self.start_streams = Turns("flint.runs.v1.RunService/StreamStarts", self._stream_batch)
        # What a client with the usual settings can receive, less some room for the envelope.
        self._snapshot_bytes = limits.message_bytes - 65_536

    # -- starts -------------------------------------------------------------------------------------------------------

    async def StartRun(self, request: runs_pb2.StartRunRequest, context: Context) -> runs_pb2.StartRunResponse:
        """Answers after the commit."""
        start, result = await self._start(request, context)
        response = runs_pb2.StartRunResponse()
        fill_in(response, start, result, self._accepted(start, result))
        return response

    async def RunWorkflow(self, request: runs_pb2.RunWorkflowRequest, context: Context) -> runs_pb2.RunWorkflowResponse:
        """Answers when the run has ended, or as it stands when the wait is over.

        What may be refused of either part is refused before anything is started. Once the run is started its name is
        answered: a gateway that stops, or cannot read the record, answers it as it was accepted.
        """
        timeout_s = _wait_s(request)
        with self._hub.admit():
            start, result = await self._start(request.start, context, "start.")
            name = self._accepted(start, result)
            try:
                run = await self._hub.ended(name.name, _before_deadline(context, timeout_s))
            except Refused as error:
                if error.code is not grpc.StatusCode.UNAVAILABLE:
                    raise
                run = None
            if run is None:
                run = await self._standing(name, context)
            response = runs_pb2.RunWorkflowResponse(created=result.created)
            if run is not None:
                response.run.CopyFrom(run)
            else:
                fill_in(response, start, result, name)
            return response

    async def StartRuns(self, request: runs_pb2.StartRunsRequest, context: Context) -> runs_pb2.StartRunsResponse:
        """Each start succeeds or fails for itself; those that are valid share one commit."""
        namespace = namespace_of_parent(request.parent)
        # The call's own trace is the first start's.
        return await self._start_batch(request, namespace, trace_id_of(context.invocation_metadata()))

    async def StreamStarts(
        self, request_iterator: Any, context: Context
    ) -> AsyncIterator[runs_pb2.StreamStartsResponse]:
        """One batch after the other."""
        async for response in self.start_streams.serve(request_iterator, context):
            yield response

    async def _stream_batch(
        self, request: runs_pb2.StreamStartsRequest, context: Context
    ) -> runs_pb2.StreamStartsResponse:
        namespace = namespace_of_parent(request.batch.parent)
        authorise(current_principal(), identity_pb2.ROLE_OPERATOR, namespace)
        (trace_id,) = new_trace_ids(1)
        return runs_pb2.StreamStartsResponse(answer=await self._start_batch(request.batch, namespace, trace_id))

    async def _start_batch(
        self, request: runs_pb2.StartRunsRequest, namespace: str, trace_id: bytes
    ) -> runs_pb2.StartRunsResponse:
        count = len(request.requests)
        if not 1 <= count <= self._limits.batch_size:
            raise field_invalid(("requests", f"must hold 1 to {self._limits.batch_size} starts, not {count}"))
        trace_ids = [trace_id, *new_trace_ids(count - 1)]
        starts: list[scheduling_pb2.Start] = []
        refused: dict[int, Refused] = {}
        for index, entry in enumerate(request.requests):
            prefix = f"requests[{index}]."
            try:
                if entry.parent and entry.parent != request.parent:
                    raise field_invalid((prefix + "parent", "must be empty or the batch's own parent"))
                if len(entry.input) > self._limits.payload_bytes:
                    entry.input = await self._inputs.fit(namespace, entry.input, prefix)
                starts.append(make_start(entry, namespace, trace_ids[index], self._limits.payload_bytes, prefix))
            except Refused as error:
                refused[index] = error
        results = iter(await self._batcher.submit(starts) if starts else ())
        accepted = iter(starts)
        response = runs_pb2.StartRunsResponse()
        for index in range(count):
            item = response.results.add()
            if index in refused:
                item.error.CopyFrom(status_proto(refused[index]))
                continue
            start, result = next(accepted), next(results)
            if result.HasField("error"):
                item.error.CopyFrom(result.error)
            else:
                fill_in(item.response, start, result, self._accepted(start, result))
        return response

    async def _start(
        self, request: runs_pb2.StartRunRequest, context: Context, prefix: str = ""
    ) -> tuple[scheduling_pb2.Start, scheduling_pb2.AcceptResult]:
        """One start, stored. Raises `Refused` that names wrong fields with `prefix` before them."""
        namespace = namespace_of_parent(request.parent, prefix + "parent")
        trace_id = trace_id_of(context.invocation_metadata())
        most = self._limits.payload_bytes
        if len(request.input) > most:
            request.input = await self._inputs.fit(namespace, request.input, prefix)
        start = make_start(request, namespace, trace_id, most, prefix)
        (result,) = await self._batcher.submit((start,))
        if result.HasField("error"):
            raise from_status_proto(result.error)
        return start, result

    def _accepted(self, start: scheduling_pb2.Start, result: scheduling_pb2.AcceptResult) -> RunName:
        """The run's name. The end of one that was started just now will be told here without being asked for; that of
        one which a repeated start has found may be told to another gateway.
        """
        run_id = result.run_id
        name = RunName(format_run(start.namespace, run_id), start.namespace, run_id)
        if result.created:
            self._hub.started(name)
        return name

    async def _standing(self, name: RunName, context: Context) -> runs_pb2.Run | None:
        """The run as it is now, without input; None when the record cannot be read in time. Raises `Refused` when it
        is not there any more.
        """
        try:
            async with asyncio.timeout(min(_STANDING_S, _left_s(context) / 2)):
                run = await self._reader.read(name)
        except (TimeoutError, Refused):
            return None
        if run is None:
            raise run_not_found(name.name)
        return run

    # -- reads --------------------------------------------------------------------------------------------------------

    async def GetRun(self, request: runs_pb2.GetRunRequest, context: Context) -> runs_pb2.GetRunResponse:
        """The run as recorded now, with input."""
        run, _ = await self._read(parse_run(request.name))
        if run.state == runs_pb2.Run.STATE_QUEUED and self.backlogs is not None:
            run.waiting_for = self.backlogs.waiting_for(run.pool or DEFAULT_POOL, run.region)
        return runs_pb2.GetRunResponse(run=run)

    async def ListRuns(self, request: runs_pb2.ListRunsRequest, context: Context) -> runs_pb2.ListRunsResponse:
        """A page, newest first."""
        namespace = namespace_of_parent(request.parent)
        size = page_size(request.page_size, default=50, most=500)
        violations = []
        fork_of = parse_run(request.branches_of) if request.branches_of else None
        if fork_of is not None and fork_of.namespace != namespace:
            violations.append(FieldViolation("branches_of", "must be a run of the same namespace"))
        if request.workflow_id and not is_label(request.workflow_id):
            violations.append(FieldViolation("workflow_id", "must be a DNS label of at most 63 characters, or empty"))
        known = runs_pb2.Run.State.values()
        violations += [
            FieldViolation(f"states[{index}]", "is not a state of a run")
            for index, state in enumerate(request.states)
            if state not in known or state == runs_pb2.Run.STATE_UNSPECIFIED
        ]
        if violations:
            raise field_invalid(*violations)
        binding = PageBinding(
            "runs",
            namespace,
            request.workflow_id,
            ",".join(map(str, sorted(request.states))),
            request.created_after.SerializeToString() if request.HasField("created_after") else b"-",
            request.created_before.SerializeToString() if request.HasField("created_before") else b"-",
            *([request.branches_of] if request.branches_of else []),
        )
        cursor = binding.decode(request.page_token)
        inner = scheduling_pb2.ListRunsRequest(
            namespace=namespace,
            limit=size + 1,
            before_id=run_cursor(cursor),
            workflow_id=request.workflow_id,
            states=request.states,
            branches_of=b"" if fork_of is None else fork_of.run_id,
        )
        if request.HasField("created_after"):
            inner.created_after.CopyFrom(request.created_after)
        if request.HasField("created_before"):
            inner.created_before.CopyFrom(request.created_before)
        response = await self._client.call(lambda stub: stub.ListRuns, inner, _TIMEOUT_S)
        runs = response.runs[:size]
        token = binding.encode(parse_run(runs[-1].name).run_id.hex()) if len(response.runs) > size else ""
        return runs_pb2.ListRunsResponse(runs=runs, next_page_token=token)

    async def GetRunHistory(
        self, request: runs_pb2.GetRunHistoryRequest, context: Context
    ) -> runs_pb2.GetRunHistoryResponse:
        """A page of the run's recorded entries, cut where a client could not receive more."""
        name = parse_run(request.name)
        size = page_size(request.page_size, default=200, most=2000)
        binding = PageBinding("history", name.name)
        after = entry_cursor(binding.decode(request.page_token))
        inner = scheduling_pb2.ReadHistoryRequest(run_id=name.run_id, after_index=after, limit=size + 1)
        history = await self._client.call(lambda stub: stub.ReadHistory, inner, _TIMEOUT_S)
        if history.namespace != name.namespace:
            raise run_not_found(name.name)
        entries = fitting(history.entries[:size], self._snapshot_bytes)
        more = history.more or len(history.entries) > len(entries)
        token = binding.encode(str(entries[-1].index)) if more and entries else ""
        return runs_pb2.GetRunHistoryResponse(entries=entries, next_page_token=token)

    async def CancelRun(self, request: runs_pb2.CancelRunRequest, context: Context) -> runs_pb2.CancelRunResponse:
        """Answers when the cancel is stored."""
        name = parse_run(request.name)
        if len(request.reason) > _REASON_CHARACTERS:
            raise field_invalid(("reason", f"has more than {_REASON_CHARACTERS} characters"))
        inner = scheduling_pb2.CancelRunsRequest(
            namespace=name.namespace,
            run_ids=[name.run_id],
            reason=request.reason,
            request_id=own_request_id(request.request_id),
        )
        if request.HasField("grace"):
            inner.grace_ms = grace_ms(request.grace, "grace")
        response = await self._client.call(lambda stub: stub.CancelRuns, inner, _TIMEOUT_S)
        result = response.results[0]
        if not result.HasField("run") or result.run.name != name.name:
            raise run_not_found(name.name)
        if not result.stored:
            raise Refused(
                grpc.StatusCode.FAILED_PRECONDITION,
                ErrorReason.ERROR_REASON_RUN_ENDED,
                f"{name.name} has already ended as {runs_pb2.Run.State.Name(result.run.state).removeprefix('STATE_')}",
            )
        return runs_pb2.CancelRunResponse(run=result.run)

    # -- waits and watches --------------------------------------------------------------------------------------------

    async def AwaitRun(self, request: runs_pb2.AwaitRunRequest, context: Context) -> runs_pb2.AwaitRunResponse:
        """Answers the ended run, without input; when the wait is over, the run as it is."""
        timeout_s = _wait_s(request)
        with self._hub.admit():
            run = await self._hub.ended(request.name, timeout_s)
            if run is None:
                name = parse_run(request.name)
                run = await self._reader.read(name)
                if run is None:
                    raise run_not_found(name.name)
            return runs_pb2.AwaitRunResponse(run=run)

    async def AwaitRuns(self, request_iterator: Any, context: Context) -> AsyncIterator[runs_pb2.AwaitRunsResponse]:
        """Answers each name once, many in a message."""
        with self._hub.admit():
            async for response in AwaitStream(self._hub).answers(request_iterator):
                yield response

    async def WatchRun(
        self, request: runs_pb2.WatchRunRequest, context: Context
    ) -> AsyncIterator[runs_pb2.WatchRunResponse]:
        """A snapshot, then dense changes; a snapshot again where the changes between are not to be had."""
        name = parse_run(request.name)
        cursor = request.cursor if request.HasField("cursor") else -1
        if request.HasField("cursor") and cursor < 0:
            raise field_invalid(("cursor", "must not be negative"))
        with self._hub.admit(), self._hub.watch(name) as watch:
            hints = None
            if not request.recorded_only:
                subject = hints_subject(name.name.rpartition("/")[2])
                hints = await self._bus.subscribe(subject, partial(_hinted, watch))
            try:
                async for response in self._follow(watch, cursor):
                    yield response
            finally:
                if hints is not None:
                    await hints.close()

    async def _follow(self, watch: Watch, cursor: int) -> AsyncIterator[runs_pb2.WatchRunResponse]:
        seen = cursor
        while True:
            if watch.stale:
                run, steps = await self._read(watch.name, with_steps=True)
                watch.stale = False
                watch.change = run.change
                if run.change != seen:
                    last = last_fitting(steps, self._snapshot_bytes - run.ByteSize())
                    snapshot = runs_pb2.RunSnapshot(run=run, steps=last)
                    yield runs_pb2.WatchRunResponse(snapshot=snapshot, cursor=run.change)
                    seen = run.change
                if run.state in TERMINAL:
                    return
            event = watch.take()
            if event is None:
                if not watch.stale:
                    await watch.wait()
                continue
            if isinstance(event, runs_pb2.StepRecord):
                yield runs_pb2.WatchRunResponse(hint=event, cursor=watch.change)
                continue
            seen = watch.change
            yield runs_pb2.WatchRunResponse(change=event, cursor=seen)
            if event.run.state in TERMINAL:
                return

    async def _read(
        self, name: RunName, *, with_steps: bool = False
    ) -> tuple[runs_pb2.Run, Sequence[runs_pb2.StepRecord]]:
        request = scheduling_pb2.ReadRunsRequest(run_ids=[name.run_id], with_steps=with_steps)
        response = await self._client.call(lambda stub: stub.ReadRuns, request, _TIMEOUT_S)
        for run in response.runs:
            if run.name == name.name:  # the namespace is part of the name: another's run is not found
                return run, response.steps
        raise run_not_found(name.name)


def _wait_s(request: runs_pb2.AwaitRunRequest | runs_pb2.RunWorkflowRequest) -> float:
    """How long to wait. Raises `Refused`."""
    if not request.HasField("timeout"):
        return _AWAIT_DEFAULT_S
    timeout_s = request.timeout.ToMilliseconds() / 1000
    if not 0 <= timeout_s <= _AWAIT_MOST_S:
        raise field_invalid(("timeout", f"must be between 0 and {_AWAIT_MOST_S:g} s"))
    return timeout_s


def _left_s(context: Context) -> float:
    """Seconds to the call's deadline."""
    left_s = context.time_remaining()
    return math.inf if left_s is None else left_s


def _before_deadline(context: Context, timeout_s: float) -> float:
    """The wait, cut so that its answer comes before the call's deadline: who gave no request id would lose the run."""
    left_s = _left_s(context)
    return min(timeout_s, left_s - min(_ANSWER_S, left_s / 10))


def _hinted(watch: Watch, message: Message) -> None:
    for step in dispatch_pb2.StepHints.FromString(message.data).steps:
        step.provisional = True
        watch.hint(step)
