"""What the servers underneath allow on this machine, measured raw: the denominators of the ratios."""

from __future__ import annotations

import asyncio
import time

import grpc
from sqlalchemy import text

from flint_bus import Bus
from flint_contracts.gen.flint.registry.v1 import registry_pb2
from flint_ops.config import Settings
from flint_store.engine import create_engine


async def publish_pipelined(settings: Settings, messages: int = 20_000, size: int = 200) -> float:
    """JetStream publishes a second from one process, many outstanding, file storage."""
    bus = await Bus.connect(settings.nats, name="bench")
    try:
        await _stream(bus)
        data = b"x" * size
        began = time.perf_counter()
        for at in range(0, messages, 2000):
            futures = [
                bus.append_now("flint.bench.p", data, msg_id=f"p{began}.{at}.{n}", stream="FLINT_BENCH")
                for n in range(2000)
            ]
            await asyncio.gather(*futures)
        return messages / (time.perf_counter() - began)
    finally:
        await bus.delete_stream("FLINT_BENCH")
        await bus.close()


async def publish_alone(settings: Settings, messages: int = 1000, size: int = 200) -> float:
    """Median milliseconds of one JetStream publish at a time."""
    bus = await Bus.connect(settings.nats, name="bench")
    try:
        await _stream(bus)
        times = []
        for n in range(messages):
            began = time.perf_counter()
            await bus.append("flint.bench.a", b"x" * size, msg_id=f"a{began}.{n}", stream="FLINT_BENCH")
            times.append(time.perf_counter() - began)
        return sorted(times)[messages // 2] * 1000
    finally:
        await bus.delete_stream("FLINT_BENCH")
        await bus.close()


async def _stream(bus: Bus) -> None:
    config = (
        b'{"name":"FLINT_BENCH","subjects":["flint.bench.>"],"retention":"limits","storage":"file",'
        b'"discard":"old","num_replicas":1,"max_age":0,"duplicate_window":2000000000}'
    )
    await bus.request("$JS.API.STREAM.CREATE.FLINT_BENCH", config, 5.0)


async def commits(settings: Settings, seconds: float = 2.0, connections: int = 10) -> float:
    """Single-row commits a second on ten connections, each waiting for its own fsync."""
    engine = create_engine(settings.postgres, "reading", pool_size=connections + 1)
    try:
        async with engine.connect() as connection:
            await connection.execute(text("CREATE TABLE IF NOT EXISTS bench_commit (n bigint)"))
        done = 0
        until = time.perf_counter() + seconds

        async def loop() -> None:
            nonlocal done
            async with engine.connect() as connection:
                while time.perf_counter() < until:
                    await connection.execute(text("INSERT INTO bench_commit VALUES (1)"))
                    done += 1

        await asyncio.gather(*(loop() for _ in range(connections)))
        async with engine.connect() as connection:
            await connection.execute(text("DROP TABLE bench_commit"))
        return done / seconds
    finally:
        await engine.dispose()


async def unary_calls(calls: int = 5000, concurrency: int = 100) -> float:
    """gRPC unary calls a second, client and server in one process of this Python."""

    async def answer(request: registry_pb2.ListWorkersRequest, context: object) -> registry_pb2.ListWorkersResponse:
        return registry_pb2.ListWorkersResponse()

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(
        answer, registry_pb2.ListWorkersRequest.FromString, registry_pb2.ListWorkersResponse.SerializeToString
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Bench", {"Call": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(
            "/bench.Bench/Call",
            request_serializer=registry_pb2.ListWorkersRequest.SerializeToString,
            response_deserializer=registry_pb2.ListWorkersResponse.FromString,
        )
        began = time.perf_counter()

        async def loop() -> None:
            for _ in range(calls // concurrency):
                await call(registry_pb2.ListWorkersRequest())

        await asyncio.gather(*(loop() for _ in range(concurrency)))
        rate = calls / (time.perf_counter() - began)
    await server.stop(None)
    return rate
