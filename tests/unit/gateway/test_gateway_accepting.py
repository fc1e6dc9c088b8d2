"""Batches of starts travel on streams, and by calls where a stream fails them."""

from __future__ import annotations

import asyncio
from typing import Any

from flint_contracts.gen.flint.scheduling.v1 import scheduling_pb2
from support.eventually import eventually


def streamed(house: Any) -> list[int]:
    return [scheduler.streamed for scheduler in house.schedulers]


def accepts(house: Any) -> int:
    return sum(scheduler.accepts for scheduler in house.schedulers)


async def test_batches_travel_on_one_stream_for_each_scheduler(house: Any) -> None:
    for _ in range(6):
        await house.admin.start()
    streams = house.gateway._batcher._streams
    calls = [stream.call for stream in streams._streams]
    assert sum(streamed(house)) == 6 == accepts(house)
    for _ in range(6):
        await house.admin.start()
    assert sum(streamed(house)) == 12 == accepts(house), "no call of its own for any of them"
    assert [stream.call for stream in streams._streams] == calls, "the same streams"


async def test_a_batch_whose_answer_was_lost_is_asked_by_a_call_and_starts_nothing_twice(house: Any) -> None:
    for scheduler in house.schedulers:
        scheduler.lose_answers = True
    starting = asyncio.create_task(house.admin.start())
    await eventually(lambda: accepts(house) >= 2)  # on the stream, then by a call
    assert sum(streamed(house)) == 1
    for scheduler in house.schedulers:
        scheduler.lose_answers = False
    await starting
    assert len(house.record.runs) == 1
    streams = house.gateway._batcher._streams
    (rests,) = [n for n, stream in enumerate(streams._streams) if stream.rests_until]
    before = streamed(house)[rests]
    streams._streams[rests].rests_until = 0.0  # a second later
    for replica in house.gateway._schedulers._replicas:
        replica.worked()
    for _ in range(4):
        await house.admin.start()
    assert streamed(house)[rests] > before, "opened again"
    assert len(house.record.runs) == 5


async def test_a_scheduler_that_stops_and_one_that_never_answers_fail_no_start(house: Any) -> None:
    await asyncio.gather(*(house.admin.start() for _ in range(4)))
    await house.servers[0].stop(0)
    runs = [await house.admin.start() for _ in range(4)]
    assert len({run.name for run in runs}) == 4
    assert len(house.record.runs) == 8


async def test_a_silent_stream_is_left_for_another_replica(house: Any) -> None:
    streams = house.gateway._batcher._streams
    request = runs_of_nobody()
    house.schedulers[0].gate.clear()
    assert await streams.accept(request, 0, 0.05) is None
    assert streams._streams[0].call is None
    silent, other = house.gateway._schedulers._replicas
    assert silent.rest_s > 0 == other.rest_s, "others are preferred for a moment"
    house.schedulers[0].gate.set()
    assert await streams.accept(request, 1, 60.0) is not None


async def test_one_batch_at_a_time(house: Any) -> None:
    streams = house.gateway._batcher._streams
    house.schedulers[0].gate.clear()
    first = asyncio.create_task(streams.accept(runs_of_nobody(), 0, 60.0))
    await eventually(lambda: house.schedulers[0].streamed == 1)
    assert await streams.accept(runs_of_nobody(), 0, 60.0) is None
    house.schedulers[0].gate.set()
    assert await first is not None
    assert not streams._streams[0].busy


def runs_of_nobody() -> Any:
    """An empty batch, which the small schedulers accept."""
    return scheduling_pb2.AcceptRunsRequest()
