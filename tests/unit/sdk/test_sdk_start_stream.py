"""Starts on a stream that stays open, against a scripted gateway: when one is used, and what happens when it breaks."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2

from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_sdk import AsyncFlint, FlintError, PermissionDenied, WorkflowNotFound
from support.eventually import eventually
from support.scripted_gateway import ScriptedGateway, refusal


@pytest.fixture
async def streaming(gateway: ScriptedGateway) -> ScriptedGateway:
    gateway.script.streams = True
    return gateway


async def start(flint: AsyncFlint, *request_ids: str) -> list[str]:
    return [(await flint.start("greet", {}, request_id=request_id)).id for request_id in request_ids]


async def test_the_first_start_is_a_call_and_the_next_ones_share_a_stream(streaming: ScriptedGateway) -> None:
    async with AsyncFlint(streaming.address, "k") as flint:
        await start(flint, "first")
        assert await start(flint, "a", "b") == ["a", "b"]
        together = await asyncio.gather(*(start(flint, name) for name in ("c", "d", "e")))
    assert together == [["c"], ["d"], ["e"]]
    assert [each.request_id for each in streaming.script.starts] == ["first"]
    assert streaming.script.streamed == [["a"], ["b"], ["c", "d", "e"]]
    assert streaming.script.start_streams == 1
    assert len(streaming.script.batches) == 3, "and none of them by a call"


async def test_a_gateway_that_does_not_know_such_streams_is_called(gateway: ScriptedGateway) -> None:
    async with AsyncFlint(gateway.address, "k") as flint:
        await start(flint, "a", "b", "c")
    assert [each.request_id for each in gateway.script.starts] == ["a", "b", "c"]


async def test_a_start_that_is_refused_ends_no_stream(streaming: ScriptedGateway) -> None:
    def result(request: runs_pb2.StartRunRequest) -> runs_pb2.StartRunResult | None:
        if request.request_id != "wrong":
            return None
        return runs_pb2.StartRunResult(error=refusal(grpc.StatusCode.NOT_FOUND, "WORKFLOW_NOT_FOUND", "no greet"))

    streaming.script.start_result = result
    async with AsyncFlint(streaming.address, "k") as flint:
        await start(flint, "first")
        with pytest.raises(WorkflowNotFound, match="no greet"):
            await start(flint, "wrong")
        assert await start(flint, "right") == ["right"]
    assert streaming.script.streamed == [["wrong"], ["right"]]
    assert streaming.script.start_streams == 1


async def test_a_start_that_is_refused_for_a_reason_that_passes_is_sent_again(streaming: ScriptedGateway) -> None:
    soon = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(nanos=1_000_000))
    full = refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", "full", soon)
    refusals = [runs_pb2.StartRunResult(error=full)]
    streaming.script.start_result = lambda request: refusals.pop() if refusals else None
    async with AsyncFlint(streaming.address, "k") as flint:
        await start(flint, "first")
        assert await start(flint, "again") == ["again"]
    assert streaming.script.streamed == [["again"], ["again"]]


async def test_what_a_stream_did_not_answer_is_asked_by_a_call(streaming: ScriptedGateway) -> None:
    async with AsyncFlint(streaming.address, "k") as flint:
        await start(flint, "first")
        streaming.script.answering.clear()
        starting = asyncio.create_task(start(flint, "a"))
        await eventually(lambda: streaming.script.streamed == [["a"]])
        await streaming.stop()
        streaming.script.answering.set()
        await streaming.start()
        await starting
        assert [each.request_id for each in streaming.script.starts] == ["first", "a"]


async def test_a_batch_that_is_refused_as_a_whole_is_told_in_the_words_of_a_call(streaming: ScriptedGateway) -> None:
    denied = refusal(grpc.StatusCode.PERMISSION_DENIED, "ROLE_INSUFFICIENT", "not you")
    async with AsyncFlint(streaming.address, "k") as flint:
        await start(flint, "first")
        streaming.script.refusals = [denied, denied]
        with pytest.raises(PermissionDenied, match="not you"):
            await start(flint, "a")


async def test_a_caller_that_leaves_ends_the_stream_and_nobody_else_gets_its_answer(streaming: ScriptedGateway) -> None:
    async with AsyncFlint(streaming.address, "k") as flint:
        await start(flint, "first")
        streaming.script.answering.clear()
        leaving = asyncio.create_task(start(flint, "left"))
        await eventually(lambda: streaming.script.streamed == [["left"]])
        leaving.cancel()
        streaming.script.answering.set()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        together = await asyncio.gather(start(flint, "a"), start(flint, "b"))
        assert together == [["a"], ["b"]]


async def test_a_client_that_is_closed_meanwhile_says_so(streaming: ScriptedGateway) -> None:
    flint = AsyncFlint(streaming.address, "k")
    await start(flint, "first")
    streaming.script.answering.clear()
    starting = asyncio.create_task(start(flint, "a"))
    await eventually(lambda: streaming.script.streamed == [["a"]])
    await flint.close()
    with pytest.raises(FlintError):
        await starting
    streaming.script.answering.set()
