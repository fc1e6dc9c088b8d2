"""Calls of gRPC, AsyncAPI, MCP and A2A through the whole engine, to servers of the test's own."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import uvicorn
from google.protobuf import struct_pb2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from flint_core.problems import ProblemType
from flint_sdk import RunState
from support.house import House
from support.mcp_server import make_server
from support.nats_server import NatsServer

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROTO = """
syntax = "proto3";
package counter.v1;
import "google/protobuf/struct.proto";
service Counter { rpc Count(google.protobuf.Struct) returns (stream google.protobuf.Struct); }
"""


@asynccontextmanager
async def served(app: Any, lifespan: str = "off") -> AsyncIterator[str]:
    config = uvicorn.Config(app, port=0, log_level="error", lifespan=lifespan, timeout_graceful_shutdown=1)  # type: ignore[arg-type]
    server = uvicorn.Server(config)
    sockets = [config.bind_socket()]
    serving = asyncio.create_task(server.serve(sockets))
    while not server.started:
        await asyncio.sleep(0)
    try:
        yield f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving


async def test_grpc_in_a_run(house: House) -> None:
    keys: list[str] = []

    async def count(request: struct_pb2.Struct, context: Any) -> AsyncIterator[struct_pb2.Struct]:
        keys.append(dict(context.invocation_metadata())["idempotency-key"])
        if len(keys) == 1:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        for number in range(int(request["to"])):
            answer = struct_pb2.Struct()
            answer["n"] = number
            yield answer

    server = grpc.aio.server()
    method = grpc.unary_stream_rpc_method_handler(
        count,
        request_deserializer=struct_pb2.Struct.FromString,
        response_serializer=struct_pb2.Struct.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("counter.v1.Counter", {"Count": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    body = f"""
timeout: {{after: PT30S}}
do:
  - careful:
      try:
        - count:
            call: grpc
            with:
              proto: {{content: {json.dumps(PROTO)}}}
              service: {{name: counter.v1.Counter, host: 127.0.0.1, port: {port}}}
              method: Count
              arguments: {{to: "${{ .to }}"}}
      catch:
        errors: {{with: {{status: 503}}}}
        retry: {{delay: {{milliseconds: 10}}, limit: {{attempt: {{count: 3}}}}}}
"""
    run = await house.run(body, {"to": 3})
    await server.stop(None)
    assert run.state is RunState.SUCCEEDED, run.error
    assert [int(entry["n"]) for entry in run.output] == [0, 1, 2]
    assert len(keys) == 2
    assert keys[0] == keys[1] != ""


async def test_asyncapi_in_a_run(house: House, tmp_path: Path) -> None:
    broker = NatsServer(tmp_path / "outside")
    broker.start()
    document = {
        "asyncapi": "3.0.0",
        "info": {"title": "Shop", "version": "1"},
        "servers": {"main": {"host": f"127.0.0.1:{broker.port}", "protocol": "nats"}},
        "channels": {"orders": {"address": "orders.new"}},
        "operations": {"talk": {"action": "send", "channel": {"$ref": "#/channels/orders"}}},
    }

    async def give(request: Request) -> Response:
        return JSONResponse(document)

    body = """
timeout: {after: PT30S}
use:
  functions:
    talk:
      call: asyncapi
      with:
        document: {endpoint: "${ .at }"}
        operation: talk
        message: {payload: {order: "${ .order }"}}
do:
  - both:
      fork:
        compete: true
        branches:
          - hear:
              call: asyncapi
              with:
                document: {endpoint: "${ .at }"}
                operation: talk
                subscription:
                  filter: ${ .payload.order == $workflow.input.wanted }
                  consume:
                    until: ${ ($messages | length) >= 2 }
          - say:
              do:
                - again: {call: talk, with: {at: "${ $workflow.input.at }", order: 7}}
                - other:
                    call: talk
                    with: {at: "${ $workflow.input.at }", order: 8}
                    then: again
"""
    async with served(Starlette(routes=[Route("/asyncapi.json", give)])) as url:
        run = await house.run(body, {"at": f"{url}/asyncapi.json", "wanted": 7})
    broker.kill()
    assert run.state is RunState.SUCCEEDED, run.error
    assert [message["payload"] for message in run.output] == [{"order": 7}, {"order": 7}]


async def test_mcp_in_a_run(house: House) -> None:
    script = Path(__file__).parents[2] / "support" / "mcp_server.py"
    body = f"""
timeout: {{after: PT1M}}
do:
  - add:
      call: mcp
      with:
        method: tools/call
        parameters: {{name: add, arguments: {{a: "${{ .a }}", b: 3}}}}
        transport: {{http: {{endpoint: "${{ .at }}"}}}}
      output: {{as: "${{ {{a: .structuredContent.result}} }}"}}
  - again:
      call: mcp
      with:
        method: tools/call
        parameters: {{name: add, arguments: {{a: "${{ .a }}", b: 10}}}}
        transport: {{stdio: {{command: {sys.executable}, arguments: ["{script}"]}}}}
      output: {{as: "${{ {{sum: .structuredContent.result}} }}"}}
  - careful:
      try:
        - fail:
            call: mcp
            with:
              method: tools/call
              parameters: {{name: fail, arguments: {{text: sold out}}}}
              transport: {{http: {{endpoint: "${{ $workflow.input.at }}"}}}}
      catch:
        as: problem
        do:
          - tell:
              set: {{sum: "${{ $steps.again.sum }}", type: "${{ $problem.type }}", why: "${{ $problem.detail }}"}}
"""
    async with served(make_server().streamable_http_app(), lifespan="on") as url:
        run = await house.run(body, {"a": 2, "at": f"{url}/mcp"})
    assert run.state is RunState.SUCCEEDED, run.error
    assert (run.output["sum"], run.output["type"]) == (15, ProblemType.RUNTIME)
    assert "sold out" in run.output["why"]


async def test_a2a_in_a_run(house: House) -> None:
    seen: list[dict[str, Any]] = []

    async def card(request: Request) -> Response:
        return JSONResponse({"name": "agent", "url": str(request.url_for("agent")), "preferredTransport": "JSONRPC"})

    async def agent(request: Request) -> Response:
        document = await request.json()
        seen.append(document)
        result = {"kind": "message", "role": "agent", "parts": document["params"]["message"]["parts"]}
        if document["method"] == "message/send":
            return JSONResponse({"jsonrpc": "2.0", "id": document["id"], "result": result})
        events = [f"data: {json.dumps({'jsonrpc': '2.0', 'id': 1, 'result': {'n': n}})}\n\n" for n in range(3)]
        return StreamingResponse(iter(events), media_type="text/event-stream")

    body = """
timeout: {after: PT30S}
do:
  - ask:
      call: a2a
      with:
        method: message/send
        agentCard: {endpoint: "${ .at }"}
        parameters: {message: {parts: [{kind: text, text: "${ .question }"}]}}
      output: {as: "${ .parts[0].text }"}
  - stream:
      input: {from: "${ $workflow.input }"}
      call: a2a
      with:
        method: message/stream
        agentCard: {endpoint: "${ .at }"}
        parameters: {message: {parts: [{kind: text, text: go on}]}}
      output: {as: "${ {said: $steps.ask, events: map(.n)} }"}
"""
    app = Starlette(routes=[Route("/card.json", card), Route("/agent", agent, methods=["POST"], name="agent")])
    async with served(app) as url:
        run = await house.run(body, {"at": f"{url}/card.json", "question": "how are you?"})
    assert run.state is RunState.SUCCEEDED, run.error
    assert run.output == {"said": "how are you?", "events": [0, 1, 2]}
    assert seen[0]["params"]["message"]["messageId"] != seen[1]["params"]["message"]["messageId"]
