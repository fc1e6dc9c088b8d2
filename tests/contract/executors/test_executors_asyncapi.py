"""The asyncapi executor against real brokers: NATS, MQTT (3.1.1 and 5), AMQP (RabbitMQ) and HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aio_pika
import orjson
import pytest
import trustme
import uvicorn
from amqtt.broker import Broker
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from flint_core.problems import ProblemType
from flint_jq import EvaluatorPool
from flint_ops.config import LimitSettings, Settings, WorkerSettings
from flint_worker.executors import ExecutionFailed, ResolvedCall
from flint_worker.executors.asyncapi import AsyncApiExecutor
from flint_worker.executors.outbound import Outbound
from support.brokers import Mosquitto, RabbitMq
from support.nats_server import NatsServer, free_port

TRACE = "0af7651916cd43dd8448eb211c80319c"
ADA = {"basic": {"username": "ada", "password": "s3cret"}}


@pytest.fixture(scope="module")
def nats_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    server.start()
    yield server.port
    server.kill()


@pytest.fixture(scope="module")
def mosquitto_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    broker = Mosquitto(tmp_path_factory.mktemp("mosquitto"))
    broker.start("ada", "s3cret")
    yield broker.port
    broker.stop()


@pytest.fixture(scope="module")
def rabbit_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    broker = RabbitMq(tmp_path_factory.mktemp("rabbit"))
    try:
        broker.start()
        yield broker.port
    finally:
        broker.stop()


@pytest.fixture
async def amqtt_port() -> AsyncIterator[int]:
    port = free_port()
    config = {
        "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }
    broker = Broker(config)
    await broker.start()
    yield port
    await broker.shutdown()


class World:
    """Serves documents by name, and channels of HTTP."""

    def __init__(self) -> None:
        self.url = ""
        self.port = 0
        self.documents: dict[str, Any] = {}
        self.requests: list[tuple[str, dict[str, str], bytes]] = []

    async def document(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self.documents:
            return PlainTextResponse("no", 404)
        return JSONResponse(self.documents[name])

    async def channel(self, request: Request) -> Response:
        self.requests.append((request.method, dict(request.headers), await request.body()))
        kind = request.path_params["kind"]
        if kind == "events":
            return StreamingResponse(self.events(), media_type="text/event-stream")
        if kind == "lines":
            return StreamingResponse(self.lines(), media_type="application/x-ndjson")
        if kind == "refuse":
            return PlainTextResponse("no", 503, {"retry-after": "4"})
        return JSONResponse({"ok": True}, 202)

    async def events(self) -> AsyncIterator[str]:
        for number in range(4):
            yield f'data: {{"n": {number}}}\n\n'
        await asyncio.Event().wait()

    async def lines(self) -> AsyncIterator[bytes]:
        for number in range(4):
            yield orjson.dumps({"n": number}) + b"\n"

    def put(self, name: str, document: dict[str, Any]) -> dict[str, Any]:
        self.documents[name] = document
        return {"endpoint": f"{self.url}/documents/{name}"}


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    app = Starlette(
        routes=[
            Route("/documents/{name}", world.document),
            Route("/api/{kind}", world.channel, methods=["GET", "POST", "PUT"]),
        ]
    )
    config = uvicorn.Config(app, port=0, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    sockets = [config.bind_socket()]
    world.port = sockets[0].getsockname()[1]
    world.url = f"http://127.0.0.1:{world.port}"
    serving = asyncio.create_task(server.serve(sockets))
    yield world
    server.should_exit = True
    await serving


SETTINGS = Settings(
    worker=WorkerSettings(allow_private_addresses=True, stream_messages=20),
    limits=LimitSettings(value_bytes=50_000, payload_bytes=10_000),
)


@pytest.fixture
async def executor() -> AsyncIterator[AsyncApiExecutor]:
    outbound = Outbound(SETTINGS)
    evaluators = EvaluatorPool(1, 2_000, 256 * 2**20, 262_144)
    await evaluators.start()
    executor = AsyncApiExecutor(SETTINGS, outbound, evaluators)
    yield executor
    await executor.close()
    await evaluators.close()
    await outbound.close()


def call(deadline_s: float | None = 60, **arguments: Any) -> ResolvedCall:
    return ResolvedCall("asyncapi", arguments, "key-1", "/do/0/x", "run", TRACE, deadline_s)


async def failed(executor: AsyncApiExecutor, resolved: ResolvedCall) -> ExecutionFailed:
    with pytest.raises(ExecutionFailed) as raised:
        await executor.execute(resolved)
    assert raised.value.problem.instance == "/do/0/x"
    return raised.value


def version3(protocol: str, port: int, address: str, **more: Any) -> dict[str, Any]:
    """A document of version 3 with one server, one channel and the operation `talk`."""
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "Shop", "version": "1"},
        "defaultContentType": "application/json",
        "servers": {"main": {"host": f"127.0.0.1:{port}", "protocol": protocol, **more.pop("server", {})}},
        "channels": {"orders": {"address": address, **more.pop("channel", {})}},
        "operations": {
            "talk": {"action": "send", "channel": {"$ref": "#/channels/orders"}, **more.pop("operation", {})}
        },
    }


def version2(protocol: str, port: int, address: str) -> dict[str, Any]:
    return {
        "asyncapi": "2.6.0",
        "info": {"title": "Shop", "version": "1"},
        "servers": {
            "other": {"url": "kafka.example.com:9092", "protocol": "kafka"},
            "main": {
                "url": "{host}:" + str(port),
                "protocol": protocol,
                "variables": {"host": {"default": "127.0.0.1", "enum": ["127.0.0.1", "localhost"]}},
            },
        },
        "channels": {address: {"publish": {"operationId": "say"}, "subscribe": {"operationId": "hear"}}},
    }


def condition(expression: str, **variables: Any) -> dict[str, Any]:
    return {"expression": expression, "variables": variables}


async def converse(
    executor: AsyncApiExecutor, document: dict[str, Any], subscription: dict[str, Any], **more: Any
) -> list[dict[str, Any]]:
    """Subscribes, publishes 0, 1, 2, … until the subscription has enough, and gives what it consumed."""
    consuming = asyncio.create_task(
        executor.execute(call(document=document, operation="talk", subscription=subscription, **more))
    )
    number = 0
    while not consuming.done():
        message = {"payload": {"n": number % 5}}
        await executor.execute(call(document=document, operation="talk", message=message, **more))
        number += 1
        await asyncio.sleep(0)
    messages: list[dict[str, Any]] = await consuming
    return messages


async def test_nats(executor: AsyncApiExecutor, world: World, nats_port: int) -> None:
    document = world.put("nats", version3("nats", nats_port, "orders.new"))
    wanted = condition(".payload.n == $wanted", wanted=3)
    got = await converse(executor, document, {"filter": wanted, "consume": {"amount": 2}})
    assert [message["payload"] for message in got] == [{"n": 3}, {"n": 3}]
    headers = got[0]["headers"]
    assert headers["Nats-Msg-Id"] == "key-1"
    assert headers["Content-Type"] == "application/json"
    assert headers["traceparent"].startswith(f"00-{TRACE}-")


@pytest.mark.parametrize(
    ("consume", "last"),
    [
        ({"until": condition(".payload.n == 2")}, 2),
        ({"while": condition(".payload.n != 3")}, 2),
        ({"until": condition("($messages | map(.payload.n) | add) >= $limit", limit=1)}, None),
    ],
)
async def test_when_a_subscription_ends(
    executor: AsyncApiExecutor, world: World, nats_port: int, consume: dict[str, Any], last: int | None
) -> None:
    document = world.put("nats", version3("nats", nats_port, "orders.ends"))
    got = await converse(executor, document, {"consume": consume})
    assert got or last is None
    if got and last is not None:
        assert got[-1]["payload"]["n"] == last or "while" in consume


async def test_a_subscription_for_a_time(executor: AsyncApiExecutor, world: World, nats_port: int) -> None:
    document = world.put("nats", version3("nats", nats_port, "orders.none"))
    subscription = {"consume": {"amount": 3, "for": {"milliseconds": 200}}}
    assert await executor.execute(call(document=document, operation="talk", subscription=subscription)) == []
    late = await failed(
        executor,
        call(0.3, document=document, operation="talk", subscription={"consume": {"amount": 1}}),
    )
    assert late.problem.type == ProblemType.TIMEOUT


async def test_version_2_chooses_a_server_it_can_speak_to(
    executor: AsyncApiExecutor, world: World, nats_port: int
) -> None:
    document = world.put("two", version2("nats", nats_port, "orders.two"))
    said = await executor.execute(call(document=document, channel="orders.two", message={"payload": "hi"}))
    assert said == {"protocol": "nats", "address": "orders.two"}
    said = await executor.execute(call(document=document, operation="say", message={"payload": "hi"}))
    assert said["address"] == "orders.two"
    server = {"name": "main", "variables": {"host": "localhost"}}
    await executor.execute(call(document=document, channel="orders.two", message={}, server=server))
    kafka = await failed(executor, call(document=document, channel="orders.two", message={}, server={"name": "other"}))
    assert (kafka.problem.type, kafka.problem.status) == (ProblemType.CONFIGURATION, 501)
    assert "kafka" in kafka.problem.title
    for more in (
        {"channel": "nothing"},
        {"channel": "orders.two", "server": {"name": "nothing"}},
        {"channel": "orders.two", "protocol": "amqp"},
        {"channel": "orders.two", "server": {"name": "main", "variables": {"host": "elsewhere"}}},
    ):
        refused = await failed(executor, call(document=document, message={}, **more))
        assert refused.problem.type == ProblemType.VALIDATION


async def test_parameters_of_an_address_come_from_the_message(
    executor: AsyncApiExecutor, world: World, nats_port: int
) -> None:
    channel = {"parameters": {"shop": {"location": "$message.payload#/shop"}, "kind": {"default": "new"}}}
    document = world.put("parameters", version3("nats", nats_port, "orders.{shop}.{kind}", channel=channel))
    said = await executor.execute(call(document=document, operation="talk", message={"payload": {"shop": "north"}}))
    assert said["address"] == "orders.north.new"
    refused = await failed(executor, call(document=document, operation="talk", message={"payload": {}}))
    assert "'shop'" in refused.problem.detail


async def test_mqtt5(executor: AsyncApiExecutor, world: World, mosquitto_port: int) -> None:
    document = world.put("mqtt5", version3("mqtt", mosquitto_port, "orders/new", server={"protocolVersion": "5"}))
    got = await converse(executor, document, {"consume": {"amount": 3}}, authentication=ADA, protocol="mqtt5")
    assert len(got) == 3
    assert got[0]["headers"]["idempotency-key"] == "key-1"
    wrong = {"basic": {"username": "ada", "password": "wrong"}}
    refused = await failed(
        executor, call(document=document, operation="talk", message={"payload": 1}, authentication=wrong)
    )
    assert refused.problem.type == ProblemType.AUTHENTICATION


@pytest.mark.filterwarnings("default")  # the broker's, which runs in this process
async def test_mqtt_3(executor: AsyncApiExecutor, world: World, amqtt_port: int) -> None:
    document = world.put("mqtt", version3("mqtt", amqtt_port, "orders/new"))
    got = await converse(executor, document, {"consume": {"amount": 2}})
    assert len(got) == 2
    assert got[0]["headers"] == {}
    refused = await failed(
        executor, call(document=document, operation="talk", message={"payload": 1, "headers": {"a": "b"}})
    )
    assert refused.problem.type == ProblemType.VALIDATION


async def given_back(queue: aio_pika.abc.AbstractQueue) -> aio_pika.abc.AbstractIncomingMessage:
    """The next message, as soon as the broker has it back from a consumer that is gone."""
    async with asyncio.timeout(60):
        while (message := await queue.get(fail=False, timeout=60)) is None:
            await asyncio.sleep(0.01)
    return message


async def test_amqp_queues(executor: AsyncApiExecutor, world: World, rabbit_port: int) -> None:
    channel = {"bindings": {"amqp": {"is": "queue", "queue": {"name": "orders"}}}}
    document = world.put("queue", version3("amqp", rabbit_port, "orders", channel=channel))
    missing = await failed(executor, call(document=document, operation="talk", message={"payload": 0}))
    assert (missing.problem.type, missing.problem.status) == (ProblemType.COMMUNICATION, 404)
    nothing = await failed(executor, call(document=document, operation="talk", subscription={"consume": {"amount": 1}}))
    assert nothing.problem.status == 404
    connection = await aio_pika.connect(host="127.0.0.1", port=rabbit_port)
    async with connection, connection.channel() as administration:
        queue = await administration.declare_queue("orders", durable=True)
        for number in range(5):
            message = {"payload": {"n": number}, "headers": {"shop": "north"}}
            await executor.execute(call(document=document, operation="talk", message=message))
        subscription = {"filter": condition(".payload.n != 1"), "consume": {"amount": 3}}
        got = await executor.execute(call(document=document, operation="talk", subscription=subscription))
        assert [message["payload"]["n"] for message in got] == [0, 2, 3]
        assert got[0]["headers"]["shop"] == "north"
        left = await given_back(queue)
        assert orjson.loads(left.body) == {"n": 4}
        assert left.message_id == "key-1"
        await left.ack()
        for number in range(2):
            await executor.execute(call(document=document, operation="talk", message={"payload": number}))
        too_few = {"consume": {"amount": 3}}
        late = await failed(executor, call(1.0, document=document, operation="talk", subscription=too_few))
        assert late.problem.type == ProblemType.TIMEOUT
        again = [await given_back(queue) for _ in range(2)]
        assert [orjson.loads(message.body) for message in again] == [0, 1], "a failed step consumed nothing"
        for message in again:
            await message.ack()
        await queue.delete()
    wrong = {"basic": {"username": "guest", "password": "wrong"}}
    refused = await failed(
        executor, call(document=document, operation="talk", message={"payload": 1}, authentication=wrong)
    )
    assert refused.problem.type == ProblemType.AUTHENTICATION


async def test_amqp_routing_keys(executor: AsyncApiExecutor, world: World, rabbit_port: int) -> None:
    channel = {"bindings": {"amqp": {"is": "routingKey", "exchange": {"name": "amq.topic", "type": "topic"}}}}
    document = world.put("key", version3("amqp", rabbit_port, "orders.new", channel=channel))
    got = await converse(executor, document, {"consume": {"amount": 2}})
    assert len(got) == 2


async def test_http(executor: AsyncApiExecutor, world: World) -> None:
    events = world.put("events", version3("http", world.port, "events", server={"pathname": "/api"}))
    got = await executor.execute(
        call(document=events, operation="talk", subscription={"consume": {"amount": 2}}, authentication=ADA)
    )
    assert [message["payload"] for message in got] == [{"n": 0}, {"n": 1}]
    assert world.requests[0][1]["authorization"].startswith("Basic ")
    lines = world.put("lines", version3("http", world.port, "lines", server={"pathname": "api"}))
    got = await executor.execute(call(document=lines, operation="talk", subscription={"consume": {"amount": 10}}))
    assert len(got) == 4, "the server ended the stream"
    operation = {"bindings": {"http": {"method": "PUT"}}}
    post = world.put("post", version3("http", world.port, "orders", server={"pathname": "/api"}, operation=operation))
    said = await executor.execute(
        call(document=post, operation="talk", message={"payload": {"a": 1}, "headers": {"X-Shop": "north"}})
    )
    assert said == {"protocol": "http", "address": "orders", "statusCode": 202}
    method, headers, body = world.requests[-1]
    assert (method, orjson.loads(body)) == ("PUT", {"a": 1})
    assert headers["idempotency-key"] == "key-1"
    assert headers["x-shop"] == "north"
    refuse = world.put("refuse", version3("http", world.port, "refuse", server={"pathname": "/api"}))
    refused = await failed(executor, call(document=refuse, operation="talk", message={"payload": 1}))
    assert (refused.problem.status, refused.retry_after_ms) == (503, 4000)


async def test_limits(executor: AsyncApiExecutor, world: World) -> None:
    events = world.put("lines", version3("http", world.port, "lines", server={"pathname": "/api"}))
    tight = SETTINGS.model_copy(update={"worker": SETTINGS.worker.model_copy(update={"stream_messages": 2})})
    outbound = Outbound(tight)
    small = AsyncApiExecutor(tight, outbound, None)
    refused = await failed(small, call(document=events, operation="talk", subscription={"consume": {"amount": 3}}))
    assert refused.problem.type == ProblemType.PAYLOAD_TOO_LARGE
    await outbound.close()


async def test_private_brokers_are_refused(world: World, nats_port: int) -> None:
    outbound = Outbound(SETTINGS)
    document = world.put("nats", version3("nats", nats_port, "x"))
    public = SETTINGS.model_copy(
        update={"worker": SETTINGS.worker.model_copy(update={"allow_private_addresses": False})}
    )
    # The document may come from a private place here, the broker may not be one.
    executor = AsyncApiExecutor(public, outbound, None)
    for protocol in ("nats", "mqtt", "amqp"):
        document = world.put(protocol, version3(protocol, nats_port, "x"))
        refused = await failed(executor, call(document=document, operation="talk", message={"payload": 1}))
        assert refused.problem.type == ProblemType.AUTHORIZATION
    await outbound.close()


@pytest.mark.parametrize("protocol", ["nats", "mqtt", "amqp"])
async def test_nobody_there(executor: AsyncApiExecutor, world: World, protocol: str) -> None:
    document = world.put("nobody", version3(protocol, 1, "x"))
    refused = await failed(executor, call(document=document, operation="talk", message={"payload": 1}))
    assert (refused.problem.type, refused.problem.status) == (ProblemType.COMMUNICATION, 503)


async def test_documents_that_cannot_be_used(executor: AsyncApiExecutor, world: World) -> None:
    missing = await failed(
        executor, call(document={"endpoint": f"{world.url}/documents/none"}, channel="x", message={})
    )
    assert missing.problem.status == 404
    other = world.put("other", {"openapi": "3.1.0"})
    refused = await failed(executor, call(document=other, channel="x", message={}))
    assert refused.problem.type == ProblemType.CONFIGURATION
    assert "AsyncAPI" in refused.problem.title


async def test_a_cancelled_subscription_ends(executor: AsyncApiExecutor, world: World, nats_port: int) -> None:
    document = world.put("nats", version3("nats", nats_port, "orders.cancelled"))
    subscription = {"consume": {"amount": 1}}
    task = asyncio.create_task(executor.execute(call(document=document, operation="talk", subscription=subscription)))
    await asyncio.sleep(0.05)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_tls_names_the_host_although_the_address_is_connected_to(
    executor: AsyncApiExecutor, world: World, tmp_path: Path
) -> None:
    authority = trustme.CA()
    for name, host in (("right", "localhost"), ("wrong", "elsewhere.example.com")):
        authority.issue_cert(host).private_key_and_cert_chain_pem.write_to_path(str(tmp_path / f"{name}.pem"))
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    worker = SETTINGS.worker.model_copy(update={"ca_file": str(tmp_path / "ca.pem")})
    trusting = SETTINGS.model_copy(update={"worker": worker})
    outbound = Outbound(trusting)
    trusts = AsyncApiExecutor(trusting, outbound, None)

    async def attempt(name: str) -> None:
        broker = Mosquitto(tmp_path / name)
        pem = tmp_path / f"{name}.pem"
        broker.start(certificate=(pem, pem))
        try:
            server = {"host": f"localhost:{broker.port}"}
            document = world.put(name, version3("mqtts", broker.port, "x", server=server))
            if name == "right":
                await trusts.execute(call(document=document, operation="talk", message={"payload": 1}))
            refused = await failed(
                executor if name == "right" else trusts,
                call(document=document, operation="talk", message={"payload": 1}),
            )
            assert refused.problem.type == ProblemType.COMMUNICATION
        finally:
            broker.stop()

    for name in ("right", "wrong"):
        await attempt(name)
    await outbound.close()
