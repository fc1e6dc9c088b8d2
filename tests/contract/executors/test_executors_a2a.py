"""The a2a executor against an agent made with the official SDK, and against misbehaving ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn
from a2a.helpers import new_task_from_user_message, new_text_artifact, new_text_message
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes
from a2a.server.tasks import InMemoryTaskStore, TaskUpdater
from a2a.types import AgentCapabilities, AgentCard, AgentInterface, AgentSkill
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from flint_core.problems import ProblemType
from flint_ops.config import LimitSettings, Settings, WorkerSettings
from flint_worker.executors import ExecutionFailed, ResolvedCall
from flint_worker.executors.a2a import A2aExecutor
from flint_worker.executors.outbound import Outbound

TRACE = "0af7651916cd43dd8448eb211c80319c"


class Agent(AgentExecutor):
    """Echoes; «work» makes a task with an artifact, «wait» one that ends when it is cancelled."""

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        text = context.get_user_input()
        if text not in ("work", "wait"):
            await event_queue.enqueue_event(new_text_message(f"{text} ({context.message.message_id})"))
            return
        task = context.current_task or new_task_from_user_message(context.message)
        await event_queue.enqueue_event(task)
        updater = TaskUpdater(event_queue, task.id, task.context_id)
        await updater.start_work()
        if text == "wait":
            await asyncio.Event().wait()
        artifact = new_text_artifact("report", "done")
        await updater.add_artifact(artifact.parts, artifact_id="1", name="report")
        await updater.complete()

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        await TaskUpdater(event_queue, context.task_id, context.context_id).cancel()


class World:
    """What the odd endpoints saw."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[tuple[dict[str, str], Any]] = []
        self.left = asyncio.Event()

    async def odd(self, request: Request) -> Response:
        document = await request.json()
        self.requests.append((dict(request.headers), document))
        kind = request.path_params["kind"]
        if kind == "echo":
            return JSONResponse({"jsonrpc": "2.0", "id": 1, "result": document})
        if kind == "error":
            error = {"code": -32001, "message": "no such task"}
            return JSONResponse({"jsonrpc": "2.0", "id": 1, "error": error})
        if kind == "html":
            return PlainTextResponse("<html>")
        if kind == "endless":
            return StreamingResponse(self.endless(), media_type="text/event-stream")
        if kind == "cut":
            return StreamingResponse(self.cut(), media_type="text/event-stream")
        if kind == "slow":
            await asyncio.Event().wait()
        return PlainTextResponse("no", int(kind), {"retry-after": "3"})

    async def endless(self) -> AsyncIterator[str]:
        for _ in range(100):
            yield 'data: {"jsonrpc": "2.0", "id": 1, "result": {"n": 1}}\r\n\r\n'

    async def cut(self) -> AsyncIterator[bytes]:
        yield b'data: {"jsonrpc": "2.0",\ndata: "id": 1,\r'
        yield b'\ndata: "result": [\r\n'
        yield b": a comment\rdata: 5]}\n\n"

    async def card(self, request: Request) -> Response:
        if "authorization" not in request.headers:
            return PlainTextResponse("no", 401)
        target = request.query_params.get("to") or f"{self.url}/odd/echo"
        return JSONResponse({"name": "odd", "url": target, "preferredTransport": "JSONRPC"})


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    sock_config = uvicorn.Config(
        lambda *_: None, port=0, log_level="error", lifespan="off", timeout_graceful_shutdown=1
    )
    sockets = [sock_config.bind_socket()]
    world.url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    routes = [
        Route("/odd/{kind}", world.odd, methods=["POST"]),
        Route("/card.json", world.card),
    ]
    for path, version in (("v03", "0.3.0"), ("v1", "1.0")):
        card = AgentCard(
            name="echo",
            description="Echoes",
            version="1.0.0",
            default_input_modes=["text/plain"],
            default_output_modes=["text/plain"],
            capabilities=AgentCapabilities(streaming=True),
            supported_interfaces=[
                AgentInterface(url=f"{world.url}/{path}", protocol_binding="JSONRPC", protocol_version=version)
            ],
            skills=[AgentSkill(id="echo", name="echo", description="echoes", tags=["echo"])],
        )
        handler = DefaultRequestHandler(Agent(), InMemoryTaskStore(), card)
        routes += create_jsonrpc_routes(handler, f"/{path}", enable_v0_3_compat=True)
        routes += create_agent_card_routes(card, card_url=f"/{path}/agent-card.json")
    config = uvicorn.Config(Starlette(routes=routes), log_level="error", lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets))
    yield world
    server.should_exit = True
    await serving


@pytest.fixture
async def executor() -> AsyncIterator[A2aExecutor]:
    settings = Settings(
        worker=WorkerSettings(allow_private_addresses=True, stream_messages=20),
        limits=LimitSettings(value_bytes=50_000, payload_bytes=10_000),
    )
    outbound = Outbound(settings)
    executor = A2aExecutor(settings, outbound)
    yield executor
    await executor.close()
    await outbound.close()


def call(method: str, deadline_s: float | None = 30, **arguments: Any) -> ResolvedCall:
    return ResolvedCall("a2a", {"method": method, **arguments}, "key-1", "/do/0/x", "run", TRACE, deadline_s)


def message(text: str, **part: Any) -> dict[str, Any]:
    return {"message": {"parts": [{"text": text, **part}]}}


async def failed(executor: A2aExecutor, resolved: ResolvedCall) -> ExecutionFailed:
    with pytest.raises(ExecutionFailed) as raised:
        await executor.execute(resolved)
    assert raised.value.problem.instance == "/do/0/x"
    return raised.value


@pytest.mark.parametrize(("path", "kind"), [("v03", {"kind": "text"}), ("v1", {})])
async def test_an_agent_of_the_official_sdk(
    executor: A2aExecutor, world: World, path: str, kind: dict[str, str]
) -> None:
    card = {"endpoint": f"{world.url}/{path}/agent-card.json"}
    said = []
    for _ in range(2):
        answer = await executor.execute(call("message/send", agentCard=card, parameters=message("hi", **kind)))
        said.append((answer if path == "v03" else answer["message"])["parts"][0]["text"])
    assert said[0].startswith("hi (")
    assert said[0] == said[1], "a repeat has the message id of the first"
    task = await executor.execute(call("message/send", agentCard=card, parameters=message("work", **kind)))
    task = task if path == "v03" else task["task"]
    assert task["status"]["state"] == ("completed" if path == "v03" else "TASK_STATE_COMPLETED")
    found = await executor.execute(call("tasks/get", agentCard=card, parameters={"id": task["id"]}))
    assert found["artifacts"][0]["parts"][0]["text"] == "done"
    events = await executor.execute(call("message/stream", agentCard=card, parameters=message("work", **kind)))
    assert len(events) >= 3
    gone = await failed(executor, call("tasks/get", agentCard=card, parameters={"id": "nothing"}))
    assert (gone.problem.type, gone.problem.status) == (ProblemType.RUNTIME, 404)


async def test_a_server_without_a_card(executor: A2aExecutor, world: World) -> None:
    server = {"uri": f"{world.url}/odd/echo", "authentication": {"bearer": {"token": "s3cret"}}}
    seen = await executor.execute(call("message/send", server=server, parameters=message("hi")))
    assert seen["method"] == "message/send"
    assert seen["params"]["message"]["role"] == "user"
    headers, _ = world.requests[0]
    assert headers["authorization"] == "Bearer s3cret"
    assert headers["idempotency-key"] == "key-1"
    assert headers["traceparent"].startswith(f"00-{TRACE}-")


async def test_credentials_stay_with_the_origin_of_the_card(executor: A2aExecutor, world: World) -> None:
    policy = {"basic": {"username": "ada", "password": "s3cret"}}
    card = {"endpoint": {"uri": f"{world.url}/card.json", "authentication": policy}}
    await executor.execute(call("tasks/list", agentCard=card))
    assert "authorization" in world.requests[-1][0]
    elsewhere = world.url.replace("127.0.0.1", "localhost")
    card["endpoint"]["uri"] += f"?to={elsewhere}/odd/echo"
    await executor.execute(call("tasks/list", agentCard=card))
    assert "authorization" not in world.requests[-1][0]
    refused = await failed(executor, call("tasks/list", agentCard={"endpoint": f"{world.url}/card.json"}))
    assert (refused.problem.status, refused.problem.title) == (401, "The agent's card cannot be had")


async def test_an_event_may_come_in_pieces(executor: A2aExecutor, world: World) -> None:
    assert await executor.execute(call("message/stream", server=f"{world.url}/odd/cut")) == [[5]]


@pytest.mark.parametrize(
    ("kind", "method", "type_", "status"),
    [
        ("error", "tasks/get", ProblemType.RUNTIME, 404),
        ("html", "tasks/get", ProblemType.COMMUNICATION, 502),
        ("503", "tasks/get", ProblemType.COMMUNICATION, 503),
        ("401", "tasks/get", ProblemType.AUTHENTICATION, 401),
        ("403", "tasks/get", ProblemType.AUTHORIZATION, 403),
        ("endless", "message/stream", ProblemType.PAYLOAD_TOO_LARGE, 413),
    ],
)
async def test_failures(executor: A2aExecutor, world: World, kind: str, method: str, type_: str, status: int) -> None:
    refused = await failed(executor, call(method, server=f"{world.url}/odd/{kind}"))
    assert (refused.problem.type, refused.problem.status) == (type_, status)
    assert refused.retry_after_ms == (3000 if kind.isdigit() else None)


async def test_a_deadline(executor: A2aExecutor, world: World) -> None:
    late = await failed(executor, call("tasks/get", deadline_s=0.2, server=f"{world.url}/odd/slow"))
    assert late.problem.type == ProblemType.TIMEOUT


async def test_bad_arguments(executor: A2aExecutor, world: World) -> None:
    for more in ({}, {"server": "ftp://x"}, {"server": world.url, "parameters": {}}):
        assert (await failed(executor, call("tasks/get", **more))).problem.type == ProblemType.VALIDATION
    assert (await failed(executor, call("tasks/nothing", server=world.url))).problem.type == ProblemType.VALIDATION
