"""A gateway that answers by script: a real gRPC server on a free port, with the public contracts, no engine behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from flint_contracts.gen.flint.runs.v1 import runs_pb2, runs_pb2_grpc
from flint_contracts.gen.flint.workflows.v1 import workflows_pb2, workflows_pb2_grpc

RUN = "namespaces/default/runs/01890000-0000-7000-8000-000000000001"


def packed(*details: Any) -> list[any_pb2.Any]:
    found = []
    for detail in details:
        box = any_pb2.Any()
        box.Pack(detail)
        found.append(box)
    return found


def refusal(code: grpc.StatusCode, reason: str, message: str, *details: Any) -> status_pb2.Status:
    info = error_details_pb2.ErrorInfo(domain="flint.dev", reason=reason)
    return status_pb2.Status(code=code.value[0], message=message, details=packed(info, *details))


def run(
    name: str = RUN, state: Any = runs_pb2.Run.STATE_RUNNING, change: int = 1, output: bytes = b"", **more: Any
) -> runs_pb2.Run:
    workflow = "namespaces/default/workflows/greet/versions/1.0.0"
    return runs_pb2.Run(name=name, workflow=workflow, state=state, change=change, output=output, **more)


def succeeded(name: str = RUN, output: bytes = b'{"ok":true}', change: int = 9) -> runs_pb2.Run:
    return run(name, runs_pb2.Run.STATE_SUCCEEDED, change, output)


def change(cursor: int, state: Any = runs_pb2.Run.STATE_RUNNING) -> runs_pb2.WatchRunResponse:
    return runs_pb2.WatchRunResponse(change=runs_pb2.RunChange(run=run(state=state, change=cursor)), cursor=cursor)


async def abort(context: Any, status: status_pb2.Status) -> None:
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    await context.abort(code, status.message)


@dataclass
class Script:
    """What the gateway answers and what it was asked."""

    refusals: list[status_pb2.Status] = field(default_factory=list)
    starts: list[runs_pb2.StartRunRequest] = field(default_factory=list)
    applied: list[workflows_pb2.ApplyWorkflowRequest] = field(default_factory=list)
    applied_version: str = "1.0.0"
    stored: dict[str, str] = field(default_factory=dict)  # version to source; the greatest is the latest
    findings: list[workflows_pb2.Finding] = field(default_factory=list)
    batches: list[runs_pb2.StartRunsRequest] = field(default_factory=list)
    streams: bool = False  # whether it knows StreamStarts
    streamed: list[list[str]] = field(default_factory=list)  # request ids of each batch, one list for all streams
    start_streams: int = 0
    answering: asyncio.Event = field(default_factory=asyncio.Event)  # cleared: starts are taken and not answered
    batch_refusal: Callable[[runs_pb2.StartRunsRequest], status_pb2.Status | None] = lambda request: None
    start_result: Callable[[runs_pb2.StartRunRequest], runs_pb2.StartRunResult | None] = lambda request: None
    await_streams: int = 0
    awaited: list[str] = field(default_factory=list)
    ended: dict[str, runs_pb2.AwaitedRun] = field(default_factory=dict)
    news: asyncio.Condition = field(default_factory=asyncio.Condition)
    watches: list[runs_pb2.WatchRunRequest] = field(default_factory=list)
    watch_scripts: list[list[runs_pb2.WatchRunResponse | status_pb2.Status]] = field(default_factory=list)
    pages: dict[str, runs_pb2.ListRunsResponse] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.answering.set()

    async def end(self, *names: str) -> None:
        await self.answer(*(runs_pb2.AwaitedRun(name=name, run=succeeded(name)) for name in names))

    async def answer(self, *answers: runs_pb2.AwaitedRun) -> None:
        async with self.news:
            self.ended.update({answer.name: answer for answer in answers})
            self.news.notify_all()


class Runs(runs_pb2_grpc.RunServiceServicer):
    def __init__(self, script: Script) -> None:
        self.script = script

    async def _refuse(self, context: Any) -> None:
        self.script.keys += [str(value) for key, value in context.invocation_metadata() if key == "authorization"]
        if self.script.refusals:
            await abort(context, self.script.refusals.pop(0))

    async def StartRun(self, request: Any, context: Any) -> runs_pb2.StartRunResponse:
        self.script.starts.append(request)
        await self.script.answering.wait()
        await self._refuse(context)
        return runs_pb2.StartRunResponse(run=run(state=runs_pb2.Run.STATE_QUEUED), created=len(self.script.starts) == 1)

    async def StartRuns(self, request: Any, context: Any) -> runs_pb2.StartRunsResponse:
        self.script.batches.append(request)
        await self.script.answering.wait()
        await self._refuse(context)
        refused = self.script.batch_refusal(request)
        if refused is not None:
            await abort(context, refused)
        results = []
        for start in request.requests:
            name = f"namespaces/default/runs/{start.request_id}"
            accepted = runs_pb2.StartRunResult(response=runs_pb2.StartRunResponse(run=run(name), created=True))
            results.append(self.script.start_result(start) or accepted)
        return runs_pb2.StartRunsResponse(results=results)

    async def StreamStarts(self, requests: Any, context: Any) -> AsyncIterator[runs_pb2.StreamStartsResponse]:
        if not self.script.streams:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no such method")
        self.script.start_streams += 1
        async for request in requests:
            self.script.streamed.append([start.request_id for start in request.batch.requests])
            answer = await self.StartRuns(request.batch, context)
            yield runs_pb2.StreamStartsResponse(answer=answer)

    async def GetRun(self, request: Any, context: Any) -> runs_pb2.GetRunResponse:
        await self._refuse(context)
        return runs_pb2.GetRunResponse(run=run(request.name))

    async def ListRuns(self, request: Any, context: Any) -> runs_pb2.ListRunsResponse:
        await self._refuse(context)
        return self.script.pages[request.page_token]

    async def AwaitRuns(self, requests: Any, context: Any) -> AsyncIterator[runs_pb2.AwaitRunsResponse]:
        self.script.await_streams += 1
        await self._refuse(context)
        names: set[str] = set()

        async def listen() -> None:
            async for request in requests:
                async with self.script.news:
                    names.update(request.names)
                    self.script.awaited.extend(request.names)
                    self.script.news.notify_all()

        listener = asyncio.create_task(listen())
        try:
            while True:
                async with self.script.news:
                    await self.script.news.wait_for(lambda: names & self.script.ended.keys())  # noqa: B023  (waited for here)
                    done = names & self.script.ended.keys()
                    names -= done
                    answers = [self.script.ended.pop(name) for name in done]
                yield runs_pb2.AwaitRunsResponse(runs=answers)
        finally:
            listener.cancel()

    async def WatchRun(self, request: Any, context: Any) -> AsyncIterator[runs_pb2.WatchRunResponse]:
        self.script.watches.append(request)
        for message in self.script.watch_scripts.pop(0):
            if isinstance(message, status_pb2.Status):
                await abort(context, message)
            yield message


class Workflows(workflows_pb2_grpc.WorkflowServiceServicer):
    def __init__(self, script: Script) -> None:
        self.script = script

    async def ApplyWorkflow(self, request: Any, context: Any) -> workflows_pb2.ApplyWorkflowResponse:
        if self.script.refusals:
            await abort(context, self.script.refusals.pop(0))
        version = self.script.applied_version
        workflow = workflows_pb2.Workflow(
            workflow_id="greet", version=version, source=request.source, definition_hash=request.source
        )
        self.script.applied.append(request)
        return workflows_pb2.ApplyWorkflowResponse(workflow=workflow, created=True, findings=self.script.findings)

    async def GetWorkflow(self, request: Any, context: Any) -> workflows_pb2.GetWorkflowResponse:
        asked = request.name.partition("/versions/")[2] or max(self.script.stored, default="")
        if asked not in self.script.stored:
            status = refusal(grpc.StatusCode.NOT_FOUND, "WORKFLOW_NOT_FOUND", f"there is no {request.name}")
            await abort(context, status)
        source = self.script.stored[asked]
        workflow = workflows_pb2.Workflow(workflow_id="greet", version=asked, source=source, definition_hash=source)
        return workflows_pb2.GetWorkflowResponse(workflow=workflow)


class ScriptedGateway:
    """One server; `stop` and `start` keep its port."""

    def __init__(self) -> None:
        self.script = Script()
        self.port = 0
        self._server: grpc.aio.Server | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        server = grpc.aio.server()
        runs_pb2_grpc.add_RunServiceServicer_to_server(Runs(self.script), server)
        workflows_pb2_grpc.add_WorkflowServiceServicer_to_server(Workflows(self.script), server)
        self.port = server.add_insecure_port(f"127.0.0.1:{self.port}")
        await server.start()
        self._server = server

    async def __aenter__(self) -> ScriptedGateway:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None
