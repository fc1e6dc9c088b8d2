"""Servers of other protocols for the language's tests: gRPC, A2A and MCP, each made with its official library."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import uvicorn
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer
from grpc_tools import protoc
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from support.language_documents import PROTO
from support.mcp_server import make_server

__all__ = ["agent_routes", "grpc_server", "mcp_server"]


@asynccontextmanager
async def grpc_server(folder: Path) -> AsyncIterator[int]:
    """A shop that tells what it was asked, with reflection; gives its port."""
    (folder / "shop.proto").write_text(PROTO)
    made = folder / "shop.pb"
    assert protoc.main(["protoc", f"-I{folder}", f"--descriptor_set_out={made}", "shop.proto"]) == 0
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(made.read_bytes()).file:
        pool.Add(file)
    service = pool.FindServiceByName("shop.v1.Shop")
    request_type = message_factory.GetMessageClass(service.methods_by_name["Order"].input_type)
    response_type = message_factory.GetMessageClass(service.methods_by_name["Order"].output_type)

    async def order(request: Any, context: Any) -> Any:
        if request.sku == "none":
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")
        seen = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        shown = [seen[key] for key in ("x-shop", "authorization") if key in seen]
        return response_type(text=" ".join([f"{request.sku} x{request.amount}", *shown]), total=request.amount)

    async def watch(request: Any, context: Any) -> AsyncIterator[Any]:
        for number in range(request.amount):
            yield response_type(text=request.sku, total=number)

    async def total(requests: AsyncIterator[Any], context: Any) -> Any:
        return response_type(total=sum([request.amount async for request in requests]))

    codec = {
        "request_deserializer": request_type.FromString,
        "response_serializer": response_type.SerializeToString,
    }
    handlers = {
        "Order": grpc.unary_unary_rpc_method_handler(order, **codec),
        "Watch": grpc.unary_stream_rpc_method_handler(watch, **codec),
        "Sum": grpc.stream_unary_rpc_method_handler(total, **codec),
    }
    servicer = ReflectionServicer(["shop.v1.Shop", reflection.SERVICE_NAME], pool=pool)
    reflecting = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler("shop.v1.Shop", handlers),
            grpc.method_handlers_generic_handler(
                "grpc.reflection.v1alpha.ServerReflection", {"ServerReflectionInfo": reflecting}
            ),
        )
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


@asynccontextmanager
async def mcp_server() -> AsyncIterator[str]:
    """The tests' MCP server over streamable HTTP; gives its address."""
    config = uvicorn.Config(
        make_server().streamable_http_app(), port=0, log_level="error", lifespan="on", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    sockets = [config.bind_socket()]
    serving = asyncio.create_task(server.serve(sockets))
    while not server.started:
        await asyncio.sleep(0)
    try:
        yield f"http://127.0.0.1:{sockets[0].getsockname()[1]}/mcp"
    finally:
        server.should_exit = True
        await serving


def agent_routes(places: dict[str, str]) -> list[Route]:
    """An agent of A2A that answers with what it was asked, as one result or as a stream of two."""

    async def card(request: Request) -> Response:
        return JSONResponse({"name": "echo", "url": f"{places['http']}/agent", "preferredTransport": "JSONRPC"})

    async def ask(request: Request) -> Response:
        asked = await request.json()
        result = {"method": asked["method"], "params": asked.get("params")}
        answer = {"jsonrpc": "2.0", "id": asked["id"], "result": result}
        if (asked.get("params") or {}).get("id") == "nothing":
            error = {"code": -32001, "message": "no such task"}
            return JSONResponse({"jsonrpc": "2.0", "id": asked["id"], "error": error})
        if asked["method"] not in ("message/stream", "tasks/resubscribe"):
            return JSONResponse(answer)

        async def events() -> AsyncIterator[str]:
            for number in range(2):
                text = JSONResponse({**answer, "result": {**result, "n": number}}).body
                yield f"data: {bytes(text).decode()}\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    return [Route("/agent-card.json", card), Route("/agent", ask, methods=["POST"])]
