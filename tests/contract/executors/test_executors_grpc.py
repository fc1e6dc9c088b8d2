"""The grpc executor against a real gRPC server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import trustme
import uvicorn
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, duration_pb2, message_factory
from google.rpc import error_details_pb2, status_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer
from grpc_tools import protoc
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from flint_core.problems import ProblemType
from flint_ops.config import LimitSettings, Settings, WorkerSettings
from flint_worker.executors import ExecutionFailed, ResolvedCall
from flint_worker.executors.grpc import GrpcExecutor
from flint_worker.executors.outbound import Outbound

TRACE = "0af7651916cd43dd8448eb211c80319c"
PROTO = """
syntax = "proto3";
package shop.v1;
import "google/protobuf/timestamp.proto";
import "google/protobuf/struct.proto";
import "google/type/money.proto";

service Shop {
  rpc Order(OrderRequest) returns (OrderResponse);
  rpc Watch(OrderRequest) returns (stream OrderResponse);
  rpc Sum(stream OrderRequest) returns (OrderResponse);
  rpc Echo(stream OrderRequest) returns (stream OrderResponse);
}

enum Size { SIZE_UNSPECIFIED = 0; SIZE_LARGE = 1; }

message OrderRequest {
  string sku = 1;
  int64 amount = 2;
  Size size = 3;
  google.protobuf.Timestamp at = 4;
  google.type.Money price = 5;
}

message OrderResponse {
  string text = 1;
  int64 total = 2;
  google.protobuf.Struct seen = 3;
  Size size = 4;
  bool express = 5;
  google.protobuf.Timestamp at = 6;
}
"""


class Shop:
    """A service whose answers tell what it got; the sku says how it behaves."""

    def __init__(self, pool: descriptor_pool.DescriptorPool) -> None:
        service = pool.FindServiceByName("shop.v1.Shop")
        self.request = message_factory.GetMessageClass(service.methods_by_name["Order"].input_type)
        self.response = message_factory.GetMessageClass(service.methods_by_name["Order"].output_type)
        self.waiting = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.peers: set[str] = set()

    def answer(self, request: Any, context: Any) -> Any:
        response = self.response(text=f"{request.sku} x{request.amount}", total=request.amount, size=request.size)
        response.seen.update({key: value for key, value in context.invocation_metadata() if isinstance(value, str)})
        response.at.CopyFrom(request.at)
        return response

    async def order(self, request: Any, context: Any) -> Any:
        self.peers.add(context.peer())
        if request.sku == "slow":
            self.waiting.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        if request.sku.startswith("status:"):
            code = grpc.StatusCode[request.sku.partition(":")[2]]
            retry = any_pb2.Any()
            retry.Pack(error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=7)))
            status = status_pb2.Status(code=code.value[0], message="no", details=[retry])
            context.set_trailing_metadata([("grpc-status-details-bin", status.SerializeToString())])
            await context.abort(code, "not today")
        if request.sku == "large":
            return self.response(text="x" * request.amount)
        return self.answer(request, context)

    async def watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for number in range(request.amount):
            yield self.response(text=request.sku, total=number)

    async def sum(self, requests: AsyncIterator[Any], context: Any) -> Any:
        return self.response(total=sum([request.amount async for request in requests]))

    async def echo(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            yield self.answer(request, context)

    def handler(self) -> grpc.GenericRpcHandler:
        codec = {
            "request_deserializer": self.request.FromString,
            "response_serializer": self.response.SerializeToString,
        }
        return grpc.method_handlers_generic_handler(
            "shop.v1.Shop",
            {
                "Order": grpc.unary_unary_rpc_method_handler(self.order, **codec),
                "Watch": grpc.unary_stream_rpc_method_handler(self.watch, **codec),
                "Sum": grpc.stream_unary_rpc_method_handler(self.sum, **codec),
                "Echo": grpc.stream_stream_rpc_method_handler(self.echo, **codec),
            },
        )


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> descriptor_pool.DescriptorPool:
    folder = tmp_path_factory.mktemp("shop")
    (folder / "shop.proto").write_text(PROTO)
    own = Path(protoc.__file__).parent / "_proto"
    common = Path(status_pb2.__file__).parents[2]
    arguments = [f"-I{folder}", f"-I{own}", f"-I{common}", "--include_imports"]
    assert protoc.main(["protoc", *arguments, f"--descriptor_set_out={folder}/shop.pb", "shop.proto"]) == 0
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString((folder / "shop.pb").read_bytes()).file:
        pool.Add(file)
    return pool


class Served:
    def __init__(self, shop: Shop, port: int) -> None:
        self.shop = shop
        self.port = port


async def serve(pool: descriptor_pool.DescriptorPool, reflected: str) -> tuple[grpc.aio.Server, Served]:
    shop = Shop(pool)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((shop.handler(),))
    if reflected:
        servicer = ReflectionServicer(["shop.v1.Shop", reflection.SERVICE_NAME], pool=pool)
        method = grpc.stream_stream_rpc_method_handler(
            servicer.ServerReflectionInfo,
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        name = f"grpc.reflection.{reflected}.ServerReflection"
        handler = grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": method})
        server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, Served(shop, port)


@pytest.fixture(params=["v1", "v1alpha"])
async def reflecting(pool: descriptor_pool.DescriptorPool, request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    server, served = await serve(pool, request.param)
    yield served
    await server.stop(None)


@pytest.fixture
async def plain(pool: descriptor_pool.DescriptorPool) -> AsyncIterator[Served]:
    server, served = await serve(pool, "")
    yield served
    await server.stop(None)


@pytest.fixture
async def executor() -> AsyncIterator[GrpcExecutor]:
    settings = Settings(
        worker=WorkerSettings(allow_private_addresses=True, stream_messages=5),
        limits=LimitSettings(value_bytes=20_000, payload_bytes=10_000),
    )
    outbound = Outbound(settings)
    executor = GrpcExecutor(settings, outbound)
    yield executor
    await executor.close()
    await outbound.close()


def call(served: Served, method: str, deadline_s: float | None = 30, **more: Any) -> ResolvedCall:
    service = {"name": "shop.v1.Shop", "host": "127.0.0.1", "port": served.port, **more.pop("service", {})}
    arguments = {"service": service, "method": method, **more}
    return ResolvedCall("grpc", arguments, "key-1", "/do/0/x", "run", TRACE, deadline_s)


async def failed(executor: GrpcExecutor, resolved: ResolvedCall) -> ExecutionFailed:
    with pytest.raises(ExecutionFailed) as raised:
        await executor.execute(resolved)
    assert raised.value.problem.instance == "/do/0/x"
    return raised.value


async def test_a_unary_call_by_reflection(executor: GrpcExecutor, reflecting: Served) -> None:
    at = "2026-01-02T03:04:05Z"
    arguments = {"sku": "chair", "amount": "3", "size": "SIZE_LARGE", "at": at}
    got = await executor.execute(call(reflecting, "Order", arguments=arguments, metadata={"X-Shop": "north"}))
    assert (got["text"], got["total"], got["size"], got["at"]) == ("chair x3", "3", "SIZE_LARGE", at)
    assert got["express"] is False
    assert got["seen"]["idempotency-key"] == "key-1"
    assert got["seen"]["x-shop"] == "north"
    assert got["seen"]["traceparent"].startswith(f"00-{TRACE}-")


async def test_a_unary_call_by_a_document(executor: GrpcExecutor, plain: Served) -> None:
    got = await executor.execute(call(plain, "Order", proto={"content": PROTO}, arguments={"sku": "a", "amount": 1}))
    assert got["text"] == "a x1"


async def test_streams(executor: GrpcExecutor, reflecting: Served) -> None:
    watched = await executor.execute(call(reflecting, "Watch", arguments={"sku": "a", "amount": 3}))
    assert [answer["total"] for answer in watched] == ["0", "1", "2"]
    amounts = [{"amount": 2}, {"amount": 5}]
    assert (await executor.execute(call(reflecting, "Sum", arguments=amounts)))["total"] == "7"
    echoed = await executor.execute(call(reflecting, "Echo", arguments=amounts))
    assert [answer["total"] for answer in echoed] == ["2", "5"]
    assert await executor.execute(call(reflecting, "Echo", arguments=[])) == []


async def test_a_channel_is_shared(executor: GrpcExecutor, plain: Served) -> None:
    for _ in range(3):
        await executor.execute(call(plain, "Order", proto={"content": PROTO}, arguments={"sku": "a"}))
    assert len(plain.shop.peers) == 1


async def test_limits_on_answers(executor: GrpcExecutor, reflecting: Served) -> None:
    many = await failed(executor, call(reflecting, "Watch", arguments={"sku": "a", "amount": 6}))
    assert many.problem.type == ProblemType.PAYLOAD_TOO_LARGE
    assert "worker.stream_messages" in many.problem.detail
    large = await failed(executor, call(reflecting, "Order", arguments={"sku": "large", "amount": 30_000}))
    assert large.problem.type == ProblemType.PAYLOAD_TOO_LARGE
    long = await failed(executor, call(reflecting, "Sum", arguments=[{}] * 6))
    assert long.problem.type == ProblemType.VALIDATION


@pytest.mark.parametrize(
    ("code", "type_", "status"),
    [
        ("NOT_FOUND", ProblemType.COMMUNICATION, 404),
        ("UNAVAILABLE", ProblemType.COMMUNICATION, 503),
        ("INTERNAL", ProblemType.COMMUNICATION, 500),
        ("RESOURCE_EXHAUSTED", ProblemType.COMMUNICATION, 429),
        ("UNAUTHENTICATED", ProblemType.AUTHENTICATION, 401),
        ("PERMISSION_DENIED", ProblemType.AUTHORIZATION, 403),
        ("DEADLINE_EXCEEDED", ProblemType.TIMEOUT, 408),
    ],
)
async def test_status_codes(executor: GrpcExecutor, plain: Served, code: str, type_: str, status: int) -> None:
    refused = await failed(
        executor, call(plain, "Order", proto={"content": PROTO}, arguments={"sku": f"status:{code}"})
    )
    assert (refused.problem.type, refused.problem.status) == (type_, status)
    assert code in refused.problem.detail
    assert "not today" in refused.problem.detail
    assert refused.retry_after_ms == 7000


async def test_nobody_there(executor: GrpcExecutor, plain: Served) -> None:
    refused = await failed(executor, call(plain, "Order", proto={"content": PROTO}, service={"port": 1}))
    assert (refused.problem.type, refused.problem.status) == (ProblemType.COMMUNICATION, 503)


async def test_a_deadline_and_a_cancellation_reach_the_service(executor: GrpcExecutor, plain: Served) -> None:
    slow = {"proto": {"content": PROTO}, "arguments": {"sku": "slow"}}
    await executor.execute(call(plain, "Order", proto={"content": PROTO}))
    late = await failed(executor, call(plain, "Order", deadline_s=2.0, **slow))
    assert late.problem.type == ProblemType.TIMEOUT
    async with asyncio.timeout(60):
        await plain.shop.cancelled.wait()
    plain.shop.waiting.clear()
    plain.shop.cancelled.clear()
    task = asyncio.create_task(executor.execute(call(plain, "Order", **slow)))
    async with asyncio.timeout(60):
        await plain.shop.waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await plain.shop.cancelled.wait()


async def test_private_addresses_are_refused(plain: Served) -> None:
    outbound = Outbound(Settings())
    executor = GrpcExecutor(Settings(), outbound)
    refused = await failed(executor, call(plain, "Order", proto={"content": PROTO}))
    assert refused.problem.type == ProblemType.AUTHORIZATION
    assert not plain.shop.peers
    await executor.close()
    await outbound.close()


async def test_authentication_becomes_metadata(executor: GrpcExecutor, reflecting: Served) -> None:
    policy = {"basic": {"username": "ada", "password": "s3cret"}}
    got = await executor.execute(call(reflecting, "Order", service={"authentication": policy}))
    assert got["seen"]["authorization"] == "Basic YWRhOnMzY3JldA=="
    digest = await failed(executor, call(reflecting, "Order", service={"authentication": {"digest": policy["basic"]}}))
    assert digest.problem.type == ProblemType.CONFIGURATION


async def test_a_document_that_is_fetched(executor: GrpcExecutor, plain: Served) -> None:
    fetched = 0

    async def document(request: Request) -> Response:
        nonlocal fetched
        fetched += 1
        return PlainTextResponse(PROTO)

    config = uvicorn.Config(
        Starlette(routes=[Route("/shop.proto", document)]), port=0, log_level="error", lifespan="off"
    )
    server = uvicorn.Server(config)
    sockets = [config.bind_socket()]
    serving = asyncio.create_task(server.serve(sockets))
    uri = f"http://127.0.0.1:{sockets[0].getsockname()[1]}/shop.proto"
    for _ in range(2):
        got = await executor.execute(call(plain, "Order", proto={"endpoint": uri}, arguments={"sku": "a"}))
        assert got["text"] == "a x0"
    assert fetched == 1
    missing = await failed(executor, call(plain, "Order", proto={"endpoint": uri + "x"}))
    assert missing.problem.status == 404
    server.should_exit = True
    await serving


async def test_what_is_not_described(executor: GrpcExecutor, reflecting: Served, plain: Served) -> None:
    none = await failed(executor, call(plain, "Order"))
    assert none.problem.type == ProblemType.CONFIGURATION
    assert "reflection" in none.problem.detail
    method = await failed(executor, call(reflecting, "Nothing"))
    assert "it has Echo, Order, Sum, Watch" in method.problem.detail
    service = await failed(executor, call(reflecting, "Order", service={"name": "shop.v1.Other"}))
    assert "shop.v1.Other" in service.problem.detail
    broken = await failed(executor, call(plain, "Order", proto={"content": 'syntax = "proto3"; message {'}))
    assert "line 1:" in broken.problem.detail
    elsewhere = 'syntax = "proto3"; import "/etc/passwd";'
    assert (await failed(executor, call(plain, "Order", proto={"content": elsewhere}))).problem.type == (
        ProblemType.CONFIGURATION
    )


@pytest.mark.parametrize(
    "more",
    [
        {"arguments": {"sku": 5}},
        {"arguments": {"amount": "s3cret"}},
        {"arguments": {"nothing": "s3cret"}},
        {"arguments": {"at": "s3cret"}},
        {"arguments": [{}]},
        {"metadata": {"grpc-timeout": "1"}},
        {"metadata": {"x": "s3cret\n"}},
        {"metadata": {"x-bin": "s3cret!"}},
        {"service": {"host": "a/b"}},
    ],
)
async def test_bad_arguments(executor: GrpcExecutor, plain: Served, more: dict[str, Any]) -> None:
    refused = await failed(executor, call(plain, "Order", proto={"content": PROTO}, **more))
    assert refused.problem.type == ProblemType.VALIDATION
    assert "s3cret" not in refused.problem.detail


async def test_tls(pool: descriptor_pool.DescriptorPool, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    certificate = authority.issue_cert("localhost")
    shop = Shop(pool)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((shop.handler(),))
    credentials = grpc.ssl_server_credentials(
        [(certificate.private_key_pem.bytes(), b"".join(pem.bytes() for pem in certificate.cert_chain_pems))]
    )
    port = server.add_secure_port("localhost:0", credentials)
    await server.start()
    served = Served(shop, port)
    for ca_file, host, works in (
        ("ca.pem", "localhost", True),
        ("ca.pem", "127.0.0.1", False),
        ("", "localhost", False),
    ):
        worker = WorkerSettings(allow_private_addresses=True, ca_file=str(tmp_path / ca_file) if ca_file else "")
        settings = Settings(worker=worker)
        outbound = Outbound(settings)
        executor = GrpcExecutor(settings, outbound)
        resolved = call(served, "Order", proto={"content": PROTO}, service={"host": host, "tls": True})
        if works:
            assert (await executor.execute(resolved))["text"] == " x0"
        else:
            assert (await failed(executor, resolved)).problem.status == 503
        await executor.close()
        await outbound.close()
    await server.stop(None)
