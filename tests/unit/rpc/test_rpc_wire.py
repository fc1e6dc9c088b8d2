"""Servers and upstreams over real sockets, with small servicers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from prometheus_client import REGISTRY

from flint_contracts.gen.flint.registry.v1 import registry_pb2 as pb
from flint_contracts.gen.flint.registry.v1 import registry_pb2_grpc as pb_grpc
from flint_rpc.errors import Refused, field_invalid
from flint_rpc.server import RpcServer, Service, TokenInterceptor, create_server
from flint_rpc.upstream import Client, Upstream

Behaviour = Callable[[pb.HeartbeatRequest], Awaitable[pb.HeartbeatResponse]]


class Servicer(pb_grpc.RegistryServiceServicer):
    """Answers heartbeats as told; everything else is a defect."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.calls = 0

    async def Heartbeat(self, request: pb.HeartbeatRequest, context: Any) -> pb.HeartbeatResponse:
        self.calls += 1
        return await self.behaviour(request)

    async def Register(self, request: pb.RegisterRequest, context: Any) -> pb.RegisterResponse:
        raise RuntimeError("secret of the house")

    async def Deregister(self, request: pb.DeregisterRequest, context: Any) -> pb.DeregisterResponse:
        raise field_invalid(("lease_id", "is required"))

    async def ListWorkers(self, request: pb.ListWorkersRequest, context: Any) -> pb.ListWorkersResponse:
        return pb.ListWorkersResponse()

    async def DrainWorker(self, request: pb.DrainWorkerRequest, context: Any) -> pb.DrainWorkerResponse:
        return pb.DrainWorkerResponse()


async def fine(request: pb.HeartbeatRequest) -> pb.HeartbeatResponse:
    return pb.HeartbeatResponse(results=[pb.BeatResult(renewed=True)])


async def gone(request: pb.HeartbeatRequest) -> pb.HeartbeatResponse:
    from flint_rpc.errors import component_unavailable

    raise component_unavailable("etcd")


def service(servicer: Servicer) -> Service:
    return Service(
        pb.DESCRIPTOR.services_by_name["RegistryService"], pb_grpc.add_RegistryServiceServicer_to_server, servicer
    )


class House:
    """Servers and upstreams of one test."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    async def serve(self, behaviour: Behaviour, listen: str = "127.0.0.1:0") -> tuple[RpcServer, Servicer]:
        servicer = Servicer(behaviour)
        server = create_server(listen, [service(servicer)], interceptors=[TokenInterceptor("token")])
        await server.start()
        self._stack.push_async_callback(server.stop, 0)
        return server, servicer

    def upstream(self, *addresses: str, token: str = "token") -> Upstream:
        upstream = Upstream(addresses, token, "registry")
        self._stack.push_async_callback(upstream.close)
        return upstream

    def client(self, *addresses: str, token: str = "token") -> Client[pb_grpc.RegistryServiceAsyncStub]:
        return self.upstream(*addresses, token=token).client(pb_grpc.RegistryServiceStub)

    def channel(self, address: str) -> grpc.aio.Channel:
        channel = grpc.aio.insecure_channel(address)
        self._stack.push_async_callback(channel.close)
        return channel


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        yield House(stack)


async def beat(client: Client[pb_grpc.RegistryServiceAsyncStub], timeout_s: float = 5.0, **options: Any) -> None:
    response = await client.call(lambda stub: stub.Heartbeat, pb.HeartbeatRequest(), timeout_s, **options)
    assert response.results[0].renewed


async def test_replicas_take_turns(house: House) -> None:
    (one, first), (two, second) = await house.serve(fine), await house.serve(fine)
    client = house.client(one.address, two.address)
    for _ in range(6):
        await beat(client)
    assert (first.calls, second.calls) == (3, 3)
    await beat(client, prefer=1)
    assert second.calls == 4


async def test_a_lost_replica_fails_no_call_and_is_left_alone(house: House) -> None:
    (one, first), (two, second) = await house.serve(fine), await house.serve(gone)
    client = house.client(one.address, two.address)
    for _ in range(20):
        await beat(client)
    assert first.calls == 20
    assert second.calls < 5
    await one.stop(0)
    second.behaviour = fine
    await beat(client)


async def test_a_hung_replica_costs_one_attempt(house: House) -> None:
    released = asyncio.Event()

    async def hang(request: pb.HeartbeatRequest) -> pb.HeartbeatResponse:
        await released.wait()
        return await fine(request)

    (one, _), (two, _) = await house.serve(hang), await house.serve(fine)
    await beat(house.client(one.address, two.address), attempt_timeout_s=0.2, prefer=0)
    released.set()


async def test_a_call_waits_for_a_replica_that_comes_back(house: House) -> None:
    server, _ = await house.serve(fine)
    await server.stop(0)
    client = house.client(server.address)
    call = asyncio.create_task(beat(client, 10.0))
    await house.serve(fine, server.address)
    await call


async def test_no_replica_is_component_unavailable_at_the_deadline(house: House) -> None:
    server, _ = await house.serve(gone)
    upstream = house.upstream(server.address)
    with pytest.raises(Refused) as caught:
        await beat(upstream.client(pb_grpc.RegistryServiceStub), 0.3)
    assert caught.value.reason_name == "COMPONENT_UNAVAILABLE"
    assert caught.value.retry_after_s is not None
    assert upstream.problem() is not None
    assert await upstream.probe(5.0)
    assert upstream.problem() is None


async def test_refusals_arrive_with_details_and_are_not_retried(house: House) -> None:
    server, _ = await house.serve(fine)
    with pytest.raises(Refused) as caught:
        await house.client(server.address).call(lambda stub: stub.Deregister, pb.DeregisterRequest(), 5.0)
    assert caught.value.field_violations == (("lease_id", "is required"),)


async def test_a_defect_is_internal_with_an_id_and_without_its_text(house: House) -> None:
    server, _ = await house.serve(fine)
    with pytest.raises(Refused) as caught:
        await house.client(server.address).call(lambda stub: stub.Register, pb.RegisterRequest(), 5.0)
    assert caught.value.code is grpc.StatusCode.INTERNAL
    assert caught.value.metadata["error_id"] in caught.value.message
    assert "secret of the house" not in caught.value.message


async def test_the_token_is_demanded(house: House) -> None:
    server, servicer = await house.serve(fine)
    with pytest.raises(Refused) as wrong:
        await beat(house.client(server.address, token="other"))
    assert wrong.value.reason_name == "CREDENTIALS_INVALID"
    with pytest.raises(grpc.aio.AioRpcError) as missing:
        await pb_grpc.RegistryServiceStub(house.channel(server.address)).Heartbeat(pb.HeartbeatRequest(), timeout=5)
    assert missing.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert servicer.calls == 0


async def test_health_and_reflection_are_open(house: House) -> None:
    server, _ = await house.serve(fine)
    channel = house.channel(server.address)
    for name in ("", "flint.registry.v1.RegistryService"):
        health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
    for version in ("v1", "v1alpha"):
        method = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        call = method(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=5)
        answer = await call.read()
        names = {entry.name for entry in answer.list_services_response.service}
        assert "flint.registry.v1.RegistryService" in names
        assert await call.read() is grpc.aio.EOF


async def test_calls_are_counted_by_code(house: House) -> None:
    def count(code: str) -> float:
        labels = {"method": "flint.registry.v1.RegistryService/Heartbeat", "code": code}
        return REGISTRY.get_sample_value("flint_rpc_server_calls_total", labels) or 0.0

    before = count("OK"), count("UNAVAILABLE")
    server, servicer = await house.serve(fine)
    client = house.client(server.address)
    await beat(client)
    servicer.behaviour = gone
    with pytest.raises(Refused):
        await beat(client, 0.05)
    assert count("OK") == before[0] + 1
    assert count("UNAVAILABLE") > before[1]


async def test_a_taken_port_is_an_error(house: House) -> None:
    server, _ = await house.serve(fine)
    with pytest.raises(OSError, match="cannot listen"):
        create_server(server.address, [])


async def test_a_stop_lets_calls_finish(house: House) -> None:
    begun, release = asyncio.Event(), asyncio.Event()

    async def slow(request: pb.HeartbeatRequest) -> pb.HeartbeatResponse:
        begun.set()
        await release.wait()
        return await fine(request)

    server, _ = await house.serve(slow)
    call = asyncio.create_task(beat(house.client(server.address)))
    await begun.wait()
    stop = asyncio.create_task(server.stop(5.0))
    release.set()
    await call
    await stop
