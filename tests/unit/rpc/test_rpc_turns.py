"""Streams of requests: each is answered before the next is read, and a server that stops ends none in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import grpc
import pytest

from flint_contracts.gen.flint.scheduling.v1 import scheduling_pb2 as pb
from flint_rpc.errors import ErrorReason, Refused
from flint_rpc.turns import Turns

CONTEXT = cast(Any, None)


class Gateway:
    """A gateway's end of a stream, and the acceptor behind the streams."""

    def __init__(self) -> None:
        self.sent: asyncio.Queue[pb.AcceptRunsStreamRequest] = asyncio.Queue()
        self.gate = asyncio.Event()
        self.gate.set()
        self.accepting: list[str] = []
        self.streams = Turns("test.Service/Method", self.accept)
        self.answers = self.streams.serve(self.requests(), CONTEXT)

    async def requests(self) -> AsyncIterator[pb.AcceptRunsStreamRequest]:
        while True:
            yield await self.sent.get()

    async def accept(self, request: pb.AcceptRunsStreamRequest, context: object) -> pb.AcceptRunsStreamResponse:
        watcher = request.batch.watcher
        self.accepting.append(watcher)
        await self.gate.wait()
        if watcher == "refused":
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, ErrorReason.ERROR_REASON_QUEUE_FULL, "full")
        answer = pb.AcceptRunsResponse(results=[pb.AcceptResult(version=watcher)])
        return pb.AcceptRunsStreamResponse(answer=answer)

    def send(self, name: str) -> None:
        self.sent.put_nowait(pb.AcceptRunsStreamRequest(batch=pb.AcceptRunsRequest(watcher=name)))

    async def answer(self) -> str:
        async with asyncio.timeout(60):
            return (await anext(self.answers)).answer.results[0].version


async def test_each_batch_is_answered_before_the_next_is_read() -> None:
    gateway = Gateway()
    gateway.send("one")
    gateway.send("two")
    assert await gateway.answer() == "one"
    assert gateway.accepting == ["one"]
    assert await gateway.answer() == "two"


async def test_a_batch_that_is_refused_ends_the_stream() -> None:
    gateway = Gateway()
    gateway.send("refused")
    with pytest.raises(Refused):
        await gateway.answer()
    with pytest.raises(StopAsyncIteration):
        await anext(gateway.answers)


async def test_an_idle_stream_ends_when_the_replica_stops() -> None:
    gateway = Gateway()
    gateway.send("one")
    await gateway.answer()
    ending = asyncio.ensure_future(anext(gateway.answers, None))
    await asyncio.sleep(0)
    gateway.streams.close()
    async with asyncio.timeout(60):
        assert await ending is None
    gateway.streams.close()  # harmless
    assert [answer async for answer in gateway.streams.serve(gateway.requests(), CONTEXT)] == []


async def test_a_batch_under_way_is_answered_before_its_stream_ends() -> None:
    gateway = Gateway()
    gateway.gate.clear()
    gateway.send("one")
    gateway.send("two")
    answering = asyncio.ensure_future(gateway.answer())
    while not gateway.accepting:
        await asyncio.sleep(0)
    gateway.streams.close()
    gateway.gate.set()
    assert await answering == "one"
    with pytest.raises(StopAsyncIteration):
        await anext(gateway.answers)
    assert gateway.accepting == ["one"]


async def test_a_gateway_that_ends_its_stream_ends_it_here() -> None:
    gateway = Gateway()

    async def one() -> AsyncIterator[pb.AcceptRunsStreamRequest]:
        yield pb.AcceptRunsStreamRequest(batch=pb.AcceptRunsRequest(watcher="one"))

    answers = [answer async for answer in gateway.streams.serve(one(), CONTEXT)]
    assert [answer.answer.results[0].version for answer in answers] == ["one"]


async def test_a_stream_that_is_cancelled_while_it_is_idle_is_cancelled_for_whoever_waits() -> None:
    gateway = Gateway()
    ending = asyncio.ensure_future(anext(gateway.answers, None))
    await asyncio.sleep(0)
    gateway.streams.close()
    ending.cancel()  # by another, in the same moment
    with pytest.raises(asyncio.CancelledError):
        await ending
