"""A watch across broken connections: nothing twice, nothing missed, told quietly."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_sdk import (
    AsyncFlint,
    Flint,
    RunChanged,
    RunNotFound,
    RunSnapshot,
    StepBegan,
    Unavailable,
    WatchEvent,
    WatchInterrupted,
    WatchResumed,
)
from support.scripted_gateway import RUN, ScriptedGateway, change, refusal, run

AWAY = refusal(grpc.StatusCode.UNAVAILABLE, "COMPONENT_UNAVAILABLE", "gateway is stopping")
ENDED = runs_pb2.Run.STATE_SUCCEEDED


def snapshot(cursor: int) -> runs_pb2.WatchRunResponse:
    return runs_pb2.WatchRunResponse(snapshot=runs_pb2.RunSnapshot(run=run(change=cursor)), cursor=cursor)


def hint(cursor: int) -> runs_pb2.WatchRunResponse:
    step = runs_pb2.StepRecord(step="/do/0/call", attempt=1, state=runs_pb2.StepRecord.STATE_RUNNING, provisional=True)
    return runs_pb2.WatchRunResponse(hint=step, cursor=cursor)


def shape(event: WatchEvent) -> tuple[str, int | None]:
    return type(event).__name__, event.cursor


async def test_a_watch_shows_all_and_ends_with_the_run(gateway: ScriptedGateway) -> None:
    gateway.script.watch_scripts = [[snapshot(3), hint(3), change(4), change(5, ENDED), change(6)]]
    async with AsyncFlint(gateway.address, "k") as flint:
        events = [event async for event in flint.watch(RUN)]
    assert [type(event) for event in events] == [RunSnapshot, StepBegan, RunChanged, RunChanged]
    assert not gateway.script.watches[0].HasField("cursor")


async def test_a_broken_watch_goes_on_from_its_cursor(gateway: ScriptedGateway) -> None:
    gateway.script.watch_scripts = [[snapshot(3), change(4), AWAY], [change(4), change(5, ENDED)]]
    async with AsyncFlint(gateway.address, "k") as flint:
        events = [shape(event) async for event in flint.watch(RUN)]
    assert events == [
        (RunSnapshot.__name__, 3),
        (RunChanged.__name__, 4),
        (WatchInterrupted.__name__, 4),
        (WatchResumed.__name__, 4),
        (RunChanged.__name__, 5),
    ]
    assert gateway.script.watches[1].cursor == 4


async def test_another_gateway_goes_on_watching(gateway: ScriptedGateway, second_gateway: ScriptedGateway) -> None:
    gateway.script.watch_scripts = [[snapshot(3), AWAY]]
    second_gateway.script.watch_scripts = [[change(4, ENDED)]]
    async with AsyncFlint([gateway.address, second_gateway.address], "k") as flint:
        events = [shape(event)[0] async for event in flint.watch(RUN)]
    assert events == ["RunSnapshot", "WatchInterrupted", "WatchResumed", "RunChanged"]
    assert second_gateway.script.watches[0].cursor == 3


async def test_a_stream_that_ends_early_is_opened_again_without_a_word(gateway: ScriptedGateway) -> None:
    gateway.script.watch_scripts = [[snapshot(3)], [change(4, ENDED)]]
    async with AsyncFlint(gateway.address, "k") as flint:
        assert [shape(event) async for event in flint.watch(RUN)] == [("RunSnapshot", 3), ("RunChanged", 4)]


async def test_a_watch_of_nothing_is_refused(gateway: ScriptedGateway) -> None:
    gateway.script.watch_scripts = [[refusal(grpc.StatusCode.NOT_FOUND, "RUN_NOT_FOUND", "no such run")]]  # type: ignore[list-item]
    async with AsyncFlint(gateway.address, "k") as flint:
        with pytest.raises(RunNotFound):
            await anext(flint.watch(RUN))


async def test_a_watch_gives_up_when_nothing_is_reachable_for_long(gateway: ScriptedGateway) -> None:
    await gateway.stop()
    async with AsyncFlint(gateway.address, "k", reconnect_s=0.1) as flint:
        watch = flint.watch(RUN)
        assert isinstance(await anext(watch), WatchInterrupted)
        with pytest.raises(Unavailable):
            await anext(watch)


async def test_the_blocking_watch(gateway: ScriptedGateway) -> None:
    gateway.script.watch_scripts = [[snapshot(3), change(4, ENDED)], [snapshot(3), change(4)]]

    def use() -> tuple[int, WatchEvent]:
        with Flint(gateway.address, "k") as flint:
            count = len(list(flint.watch(RUN)))
            partly = flint.watch(RUN)
            first = next(partly)
            partly.close()  # type: ignore[attr-defined]
            return count, first

    count, first = await asyncio.to_thread(use)
    assert count == 2
    assert isinstance(first, RunSnapshot)
