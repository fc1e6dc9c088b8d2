from __future__ import annotations

import asyncio

import pytest
from eventually import eventually
from nats_server import NatsServer

from flint_bus import Bus, BusTimeout, Disconnected, Message, NoResponders
from flint_bus.wire import Wire
from flint_ops.config import NatsSettings


async def test_publish_and_subscribe(bus: Bus) -> None:
    seen: list[Message] = []
    subscription = await bus.subscribe("test.a", seen.append)
    await bus.publish("test.a", b"hello")
    await eventually(lambda: len(seen) == 1)
    assert (seen[0].subject, seen[0].data, seen[0].reply, seen[0].headers) == ("test.a", b"hello", "", {})
    await subscription.close()
    await bus.publish("test.a", b"again")
    with pytest.raises(NoResponders):
        await bus.request("test.a", b"", 60)
    assert len(seen) == 1


async def test_coroutine_handlers_run_one_after_another(bus: Bus) -> None:
    running, order = 0, []

    async def handler(message: Message) -> None:
        nonlocal running
        running += 1
        assert running == 1
        await asyncio.sleep(0)
        order.append(message.data)
        running -= 1
        if message.data == b"1":
            raise RuntimeError("a defect in one call does not stop the next")

    subscription = await bus.subscribe("test.b", handler)
    for n in range(5):
        bus.publish_now("test.b", b"%d" % n)
    await eventually(lambda: len(order) == 5)
    assert order == [b"0", b"1", b"2", b"3", b"4"]
    await subscription.close()


async def test_request_and_reply_of_any_size(bus: Bus) -> None:
    subscription = await bus.subscribe("test.echo", lambda message: message.respond(message.data))
    for size in (0, 1, 100, 40_000, 1_000_000):
        data = bytes(n & 0xFF for n in range(256)) * (size // 256 + 1)
        assert await bus.request("test.echo", data[:size], 60) == data[:size]
    answers = await asyncio.gather(*(bus.request("test.echo", b"%d" % n, 60) for n in range(500)))
    assert answers == [b"%d" % n for n in range(500)]
    await subscription.close()


async def test_queue_groups_share(bus: Bus) -> None:
    seen: list[bytes] = []
    subscriptions = [await bus.subscribe("test.q", lambda m: seen.append(m.data), queue="group") for _ in range(3)]
    for n in range(30):
        bus.publish_now("test.q", b"%d" % n)
    await bus.subscribe("test.marker", lambda m: m.respond(b""))
    await bus.request("test.marker", b"", 60)
    assert len(seen) == 30
    for subscription in subscriptions:
        await subscription.close()


async def test_a_request_that_nobody_answers_in_time(bus: Bus) -> None:
    subscription = await bus.subscribe("test.silent", lambda message: None)
    with pytest.raises(BusTimeout):
        await bus.request("test.silent", b"", 0.1)
    await subscription.close()


async def test_subscriptions_survive_a_restart_and_reconnects_are_announced(own_bus: Bus, own_nats: NatsServer) -> None:
    reconnects: list[int] = []
    own_bus.on_reconnect(lambda: reconnects.append(1))
    await own_bus.subscribe("test.echo", lambda message: message.respond(message.data))
    own_nats.kill()
    await eventually(lambda: not own_bus.connected.is_set())
    with pytest.raises(Disconnected):
        await own_bus.request("test.echo", b"", 0.1)
    own_nats.start()
    await eventually(lambda: reconnects == [1])
    assert await own_bus.request("test.echo", b"x", 60) == b"x"


async def test_a_connection_closed_for_good_is_replaced(own_bus: Bus, own_nats: NatsServer) -> None:
    await own_bus.subscribe("test.echo", lambda message: message.respond(message.data))
    await own_bus._wire.close()  # what nats-py does when a server refuses the client
    await eventually(own_bus.connected.is_set)
    assert await own_bus.request("test.echo", b"x", 60) == b"x"


async def test_a_defect_in_a_plain_handler_does_not_stop_the_reader(bus: Bus) -> None:
    def broken(message: Message) -> None:
        raise RuntimeError("defect")

    await bus.subscribe("test.broken", broken)
    bus.publish_now("test.broken", b"")
    await bus.subscribe("test.fine", lambda message: message.respond(b"yes"))
    assert await bus.request("test.fine", b"", 60) == b"yes"


async def test_connecting_is_given_up_although_the_library_loses_a_cancellation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began, lost = asyncio.Event(), asyncio.Event()

    async def connect(self: Wire, server: object) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            assert not lost.is_set()
            lost.set()
            raise ConnectionRefusedError from None

    monkeypatch.setattr(Wire, "_connect_to_server", connect)
    connecting = asyncio.create_task(Bus.connect(NatsSettings(urls=["nats://127.0.0.1:1"]), name="early"))
    async with asyncio.timeout(60):
        await began.wait()
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
    assert lost.is_set()


async def test_connecting_waits_for_the_server(own_nats: NatsServer) -> None:
    own_nats.kill()
    connecting = asyncio.create_task(Bus.connect(NatsSettings(urls=[own_nats.url]), name="early"))
    await asyncio.sleep(0)
    own_nats.start()
    async with asyncio.timeout(60):
        bus = await connecting
    assert bus.connected.is_set()
    await bus.close()
