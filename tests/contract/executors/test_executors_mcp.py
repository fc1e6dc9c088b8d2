"""The mcp executor against servers made with the official SDK, over HTTP and as processes."""

from __future__ import annotations

import asyncio
import gzip
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from flint_core.problems import ProblemType
from flint_ops.config import LimitSettings, Settings, WorkerSettings
from flint_worker.executors import ExecutionFailed, ResolvedCall
from flint_worker.executors.mcp import McpExecutor
from flint_worker.executors.outbound import Outbound
from support.eventually import eventually
from support.mcp_server import make_server

TRACE = "0af7651916cd43dd8448eb211c80319c"
SCRIPT = str(Path(__file__).parents[2] / "support" / "mcp_server.py")


class World:
    def __init__(self) -> None:
        self.url = ""
        self.headers: list[tuple[str, dict[str, str]]] = []


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    inner = make_server().streamable_http_app()

    async def status(request: Request) -> Response:
        return PlainTextResponse("no", int(request.path_params["code"]), {"retry-after": "2"})

    async def packed(request: Request) -> Response:
        size = int(request.path_params["size"])
        message = {"jsonrpc": "2.0", "id": 0, "result": {"padding": "x" * size}}
        headers = {"content-encoding": request.query_params["as"], "content-type": "application/json"}
        return Response(gzip.compress(orjson.dumps(message)), headers=headers)

    app = Starlette(
        routes=[
            Route("/status/{code}", status, methods=["POST", "GET", "DELETE"]),
            Route("/packed/{size}", packed, methods=["POST"]),
            Mount("/", app=inner),
        ],
        lifespan=lambda _: inner.router.lifespan_context(inner),
    )

    async def recording(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            headers = {name.decode(): value.decode() for name, value in scope["headers"]}
            world.headers.append((scope["method"], headers))
        await app(scope, receive, send)

    config = uvicorn.Config(recording, port=0, log_level="error", lifespan="on", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    sockets = [config.bind_socket()]
    world.url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    serving = asyncio.create_task(server.serve(sockets))
    while not server.started:
        await asyncio.sleep(0)
    yield world
    server.should_exit = True
    await serving


@pytest.fixture
async def executor() -> AsyncIterator[McpExecutor]:
    settings = Settings(
        worker=WorkerSettings(allow_private_addresses=True, mcp_commands=[sys.executable, "not-there"]),
        limits=LimitSettings(value_bytes=50_000, payload_bytes=10_000),
    )
    outbound = Outbound(settings)
    executor = McpExecutor(settings, outbound)
    yield executor
    await executor.close()
    await outbound.close()


def call(method: str, transport: dict[str, Any], deadline_s: float | None = 30, **arguments: Any) -> ResolvedCall:
    arguments = {"method": method, "transport": transport, **arguments}
    return ResolvedCall("mcp", arguments, "key-1", "/do/0/x", "run", TRACE, deadline_s)


def stdio(*arguments: str, **environment: str) -> dict[str, Any]:
    return {"stdio": {"command": sys.executable, "arguments": [SCRIPT, *arguments], "environment": environment}}


def http(world: World, path: str = "/mcp", **more: Any) -> dict[str, Any]:
    return {"http": {"endpoint": world.url + path, **more}}


async def failed(executor: McpExecutor, resolved: ResolvedCall) -> ExecutionFailed:
    with pytest.raises(ExecutionFailed) as raised:
        await executor.execute(resolved)
    assert raised.value.problem.instance == "/do/0/x"
    return raised.value


@pytest.mark.parametrize("kind", ["http", "stdio"])
async def test_every_method(executor: McpExecutor, world: World, kind: str) -> None:
    transport = http(world) if kind == "http" else stdio()

    async def ask(method: str, **parameters: Any) -> Any:
        return await executor.execute(call(method, transport, parameters=parameters))

    added = await ask("tools/call", name="add", arguments={"a": 2, "b": 3})
    assert added["content"][0]["text"] == "5"
    assert added["structuredContent"] == {"result": 5}
    assert "add" in [tool["name"] for tool in (await ask("tools/list"))["tools"]]
    assert (await ask("resources/list"))["resources"][0]["uri"] == "shop://opening-hours"
    assert (await ask("resources/read", uri="shop://opening-hours"))["contents"][0]["text"] == "always"
    assert (await ask("resources/templates/list"))["resourceTemplates"] == []
    assert (await ask("prompts/list"))["prompts"][0]["name"] == "greet"
    greeting = await ask("prompts/get", name="greet", arguments={"name": "Ada"})
    assert greeting["messages"][0]["content"]["text"] == "Greet Ada"


async def test_a_session_over_http(executor: McpExecutor, world: World) -> None:
    policy = {"bearer": {"token": "s3cret"}}
    transport = {
        "http": {
            "endpoint": {"uri": f"{world.url}/mcp", "authentication": policy},
            "headers": {"X-Shop": "north"},
        }
    }
    parameters = {"name": "surroundings", "arguments": {}}
    got = await executor.execute(call("tools/call", transport, parameters=parameters, protocolVersion="2025-03-26"))
    meta = got["structuredContent"]["meta"]
    assert meta["flint.dev/idempotency-key"] == "key-1"
    assert meta["traceparent"].startswith(f"00-{TRACE}-")
    assert all(headers["authorization"] == "Bearer s3cret" for _, headers in world.headers)
    assert all(headers["x-shop"] == "north" for _, headers in world.headers)
    assert [method for method, _ in world.headers][-1] == "DELETE", "the session is ended"
    versions = {headers.get("mcp-protocol-version") for _, headers in world.headers[1:]}
    assert versions == {"2025-03-26"}


async def test_a_process_inherits_nothing_and_ends(executor: McpExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLINT_SECRETS__TOKEN", "s3cret")
    parameters = {"name": "surroundings", "arguments": {}}
    got = await executor.execute(call("tools/call", stdio(OWN="1"), parameters=parameters))
    seen = got["structuredContent"]
    assert seen["environment"].keys() - {"LC_CTYPE"} == {"PATH", "LANG", "HOME", "TMPDIR", "OWN"}
    assert seen["group"] == seen["pid"] != os.getpgrp()
    assert seen["folder"] == seen["environment"]["HOME"]
    assert not os.path.exists(seen["folder"])  # noqa: PTH110, ASYNC240
    with pytest.raises(ProcessLookupError):
        os.kill(seen["pid"], 0)


@pytest.mark.parametrize("kind", ["http", "stdio"])
async def test_failures_of_the_other_side(executor: McpExecutor, world: World, kind: str) -> None:
    transport = http(world) if kind == "http" else stdio()
    tool = await failed(
        executor, call("tools/call", transport, parameters={"name": "fail", "arguments": {"text": "sold out"}})
    )
    assert (tool.problem.type, tool.problem.title) == (ProblemType.RUNTIME, "The tool failed")
    assert "sold out" in tool.problem.detail
    prompt = await failed(executor, call("prompts/get", transport, parameters={"name": "nothing"}))
    assert prompt.problem.type == ProblemType.RUNTIME
    large = await failed(
        executor, call("tools/call", transport, parameters={"name": "large", "arguments": {"size": 60_000}})
    )
    assert large.problem.type == ProblemType.PAYLOAD_TOO_LARGE
    late = await failed(
        executor, call("tools/call", transport, timeout={"seconds": 1.5}, parameters={"name": "slow", "arguments": {}})
    )
    assert late.problem.type == ProblemType.TIMEOUT


@pytest.mark.parametrize(
    ("code", "type_"),
    [(401, ProblemType.AUTHENTICATION), (403, ProblemType.AUTHORIZATION), (503, ProblemType.COMMUNICATION)],
)
async def test_http_statuses(executor: McpExecutor, world: World, code: int, type_: str) -> None:
    refused = await failed(executor, call("tools/list", http(world, f"/status/{code}")))
    assert (refused.problem.type, refused.problem.status) == (type_, code)
    assert refused.retry_after_ms == 2000


async def test_servers_that_are_not_there(executor: McpExecutor, world: World) -> None:
    nobody = await failed(executor, call("tools/list", {"http": {"endpoint": "http://127.0.0.1:1/mcp"}}))
    assert nobody.problem.type == ProblemType.COMMUNICATION
    dead = await failed(executor, call("tools/list", stdio("die")))
    assert dead.problem.title == "The MCP server ended before it answered"
    other = await failed(executor, call("tools/list", {"stdio": {"command": "/bin/sh", "arguments": ["-c", "true"]}}))
    assert other.problem.type == ProblemType.AUTHORIZATION
    missing = await failed(executor, call("tools/list", {"stdio": {"command": "not-there"}}))
    assert missing.problem.type == ProblemType.CONFIGURATION


async def test_private_addresses_are_refused(world: World) -> None:
    outbound = Outbound(Settings())
    refused = await failed(McpExecutor(Settings(), outbound), call("tools/list", http(world)))
    assert refused.problem.type == ProblemType.AUTHORIZATION
    assert not world.headers
    await outbound.close()


async def test_a_cancelled_call_leaves_no_process(executor: McpExecutor, tmp_path: Path) -> None:
    # A server that keeps its input open beyond its end and has a child: both must go.
    script = tmp_path / "stubborn.py"
    script.write_text(
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = os.fork()\n"
        f"open({str(tmp_path / 'pids')!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
        "time.sleep(60)\n"
    )
    transport = {"stdio": {"command": sys.executable, "arguments": [str(script)]}}
    task = asyncio.create_task(executor.execute(call("tools/list", transport)))
    pids = tmp_path / "pids"
    await eventually(lambda: pids.exists() and len(pids.read_text().splitlines()) == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    def gone() -> bool:
        for pid in pids.read_text().split():
            try:
                if " Z " not in Path(f"/proc/{pid}/stat").read_text():
                    return False
            except (FileNotFoundError, ProcessLookupError):
                continue
        return True

    await eventually(gone)


async def test_bad_arguments(executor: McpExecutor, world: World) -> None:
    for transport in (
        {},
        {"http": {"endpoint": "ftp://x"}},
        {"http": {"endpoint": world.url, "headers": {"x": "a\nb"}}},
        {"http": {"endpoint": world.url}, "stdio": {"command": "x"}},
        stdio("a\0b"),
        stdio(**{"a=b": "c"}),
    ):
        assert (await failed(executor, call("tools/list", transport))).problem.type == ProblemType.VALIDATION
    assert (await failed(executor, call("tools/nothing", http(world)))).problem.type == ProblemType.VALIDATION
    wrong = await failed(executor, call("tools/list", http(world), timeout="soon"))
    assert wrong.problem.type == ProblemType.VALIDATION


@pytest.mark.parametrize(
    ("path", "type_", "title"),
    [
        # 60 KB of gzip, 60 MB of answer: what counts is what it becomes.
        ("/packed/60000000?as=gzip", ProblemType.PAYLOAD_TOO_LARGE, "too large"),
        ("/packed/10?as=br", ProblemType.COMMUNICATION, "packed in a way nobody asked for"),
        ("/packed/10?as=gzip,gzip", ProblemType.COMMUNICATION, "packed in a way nobody asked for"),
    ],
)
async def test_an_answer_packed_unasked_is_bounded(
    executor: McpExecutor, world: World, path: str, type_: str, title: str
) -> None:
    failure = await failed(executor, call("tools/list", http(world, path)))
    assert failure.problem.type == type_
    assert title in failure.problem.title
