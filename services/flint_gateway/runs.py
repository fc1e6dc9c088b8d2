"""RunService: starts, reads, waits for, watches and cancels runs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc

from flint_bus.bus import Bus
from flint_bus.messages import Message
from flint_bus.subjects import hints_subject
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_contracts.gen.flint.runs.v1.runs_pb2_grpc import RunServiceServicer
from flint_contracts.gen.flint.scheduling.v1 import scheduling_pb2
from flint_core.queueing import DEFAULT_POOL
from flint_gateway.awaiting import AwaitStream
from flint_gateway.namespaces import Backlogs
from flint_gateway.payloads import LargeInputs
from flint_gateway.reading import RunReader
from flint_gateway.results import TERMINAL
from flint_gateway.run_control import grace_ms, own_request_id
from flint_gateway.starts import StartBatcher
from flint_gateway.validation import OWN_REQUEST_ID, make_start, namespace_of_parent, page_token_invalid
from flint_gateway.watches import Watch
from flint_gateway.watching import Hub, run_not_found
from flint_ops.config import LimitSettings
from flint_rpc.errors import ErrorReason, FieldViolation, Refused, field_invalid, from_status_proto, status_proto
from flint_rpc.names import RunName, format_run, format_version, is_label, parse_run
from flint_rpc.paging import PageBinding, page_size
from flint_rpc.tracing import new_trace_ids, trace_id_of
from flint_rpc.upstream import Client

if TYPE_CHECKING:
    from flint_contracts.gen.flint.scheduling.v1.scheduling_pb2_grpc import SchedulingServiceAsyncStub

__all__ = ["RunServicer"]

_TIMEOUT_S = 15.0
_AWAIT_DEFAULT_S = 60.0
_AWAIT_MOST_S = 600.0
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
        # What a client with the usual settings can receive, less some room for the envelope.
        self._snapshot_bytes = limits.message_bytes - 65_536

    # -- starts -------------------------------------------------------------------------------------------------------

    async def StartRun(self, request: runs_pb2.StartRunRequest, context: Context) -> runs_pb2.StartRunResponse:
        """Answers after the commit."""
        namespace = namespace_of_parent(request.parent)
        trace_id = trace_id_of(context.invocation_metadata())
        if len(request.input) > self._limits.payload_bytes:
            request.input = await self._inputs.fit(namespace, request.input)
        start = make_start(request, namespace, trace_id, self._limits.payload_bytes)
        (result,) = await self._batcher.submit((start,))
        if result.HasField("error"):
            raise from_status_proto(result.error)
        response = runs_pb2.StartRunResponse()
        self._accepted(response, start, result)
        return response

    async def StartRuns(self, request: runs_pb2.StartRunsRequest, context: Context) -> runs_pb2.StartRunsResponse:
        """Each start succeeds or fails for itself; those that are valid share one commit."""
        namespace = namespace_of_parent(request.parent)
        count = len(request.requests)
        if not 1 <= count <= self._limits.batch_size:
            raise field_invalid(("requests", f"must hold 1 to {self._limits.batch_size} starts, not {count}"))
        # The call's own trace is the first start's.
        trace_ids = [trace_id_of(context.invocation_metadata()), *new_trace_ids(count - 1)]
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
                self._accepted(item.response, start, result)
        return response

    def _accepted(
        self, response: runs_pb2.StartRunResponse, start: scheduling_pb2.Start, result: scheduling_pb2.AcceptResult
    ) -> None:
        """Fills in the answer where it is to be: a message that is built apart costs a copy."""
        run_id = result.run_id
        namespace = start.namespace
        name = format_run(namespace, run_id)
        if result.state not in TERMINAL:
            self._hub.started(RunName(name, namespace, run_id))
        response.created = result.created
        run = response.run
        run.name = name
        run.workflow = format_version(namespace, start.workflow_id, result.version)
        run.state = result.state or runs_pb2.Run.STATE_QUEUED
        run.level = start.level if start.HasField("level") else result.level
        run.create_time.CopyFrom(result.create_time)
        request_id = start.request_id
        if not request_id.startswith(OWN_REQUEST_ID):
            run.request_id = request_id
        # A repeated start answers the first one's run, whose trace this call does not know.
        if result.created:
            run.trace_id = start.trace_id.hex()

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
            before_id=_run_cursor(cursor),
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
        after = _entry_cursor(binding.decode(request.page_token))
        inner = scheduling_pb2.ReadHistoryRequest(run_id=name.run_id, after_index=after, limit=size + 1)
        history = await self._client.call(lambda stub: stub.ReadHistory, inner, _TIMEOUT_S)
        if history.namespace != name.namespace:
            raise run_not_found(name.name)
        fitting = _fitting(history.entries[:size], self._snapshot_bytes)
        more = history.more or len(history.entries) > len(fitting)
        token = binding.encode(str(fitting[-1].index)) if more and fitting else ""
        return runs_pb2.GetRunHistoryResponse(entries=fitting, next_page_token=token)

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
        timeout_s = request.timeout.ToMilliseconds() / 1000 if request.HasField("timeout") else _AWAIT_DEFAULT_S
        if not 0 <= timeout_s <= _AWAIT_MOST_S:
            raise field_invalid(("timeout", f"must be between 0 and {_AWAIT_MOST_S:g} s"))
        with self._hub.admit():
            ended: asyncio.Future[runs_pb2.Run | Refused] = asyncio.get_running_loop().create_future()
            sink = partial(_settle, ended)
            self._hub.wait(request.name, sink)
            if not ended.done():
                try:
                    async with asyncio.timeout(timeout_s):
                        await ended
                except TimeoutError:
                    name = parse_run(request.name)
                    run = await self._reader.read(name)
                    if run is None:
                        raise run_not_found(name.name) from None
                    return runs_pb2.AwaitRunResponse(run=run)
                finally:
                    self._hub.leave(request.name, sink)
            result = ended.result()
            if isinstance(result, Refused):
                raise result
            return runs_pb2.AwaitRunResponse(run=result)

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
                    fitting = _last_fitting(steps, self._snapshot_bytes - run.ByteSize())
                    snapshot = runs_pb2.RunSnapshot(run=run, steps=fitting)
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


def _settle(future: asyncio.Future[runs_pb2.Run | Refused], result: runs_pb2.Run | Refused) -> None:
    if not future.done():
        future.set_result(result)


def _hinted(watch: Watch, message: Message) -> None:
    for step in dispatch_pb2.StepHints.FromString(message.data).steps:
        step.provisional = True
        watch.hint(step)


def _run_cursor(cursor: str) -> bytes:
    """The id in the token of a list of runs. Raises `Refused` for a token that was cut or changed on its way."""
    if cursor and re.fullmatch(r"[0-9a-f]{32}", cursor) is None:
        raise page_token_invalid()
    return bytes.fromhex(cursor)


def _entry_cursor(cursor: str) -> int:
    """The index in the token of a history, likewise."""
    if cursor and re.fullmatch(r"[0-9]{1,18}", cursor) is None:
        raise page_token_invalid()
    return int(cursor or 0)


def _fitting(entries: Iterable[runs_pb2.HistoryEntry], limit: int) -> list[runs_pb2.HistoryEntry]:
    """The first entries that fit a message; at least one."""
    fitting: list[runs_pb2.HistoryEntry] = []
    for entry in entries:
        limit -= entry.ByteSize() + 8
        if limit < 0 and fitting:
            break
        fitting.append(entry)
    return fitting


def _last_fitting(steps: Sequence[runs_pb2.StepRecord], limit: int) -> Sequence[runs_pb2.StepRecord]:
    """The last steps that fit a message, in order."""
    count = 0
    for step in reversed(steps):
        limit -= step.ByteSize() + 8
        if limit < 0:
            break
        count += 1
    return steps[len(steps) - count :]
