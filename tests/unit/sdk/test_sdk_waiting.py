"""Waits of many callers over one stream, and what happens to them when it breaks."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_sdk import AsyncFlint, CredentialsInvalid, RunCancelled, RunFailed, RunNotFound, TimedOut, Unavailable
from support.eventually import eventually
from support.scripted_gateway import RUN, ScriptedGateway, refusal, run


def names(count: int) -> list[str]:
    return [f"namespaces/default/runs/{index}" for index in range(count)]


async def test_many_callers_share_one_stream(gateway: ScriptedGateway) -> None:
    async with AsyncFlint(gateway.address, "k") as flint:
        waits = [asyncio.create_task(flint.result(name)) for name in names(2500) for _ in range(2)]
        await eventually(lambda: len(gateway.script.awaited) >= 2500)
        await gateway.script.end(*names(2500))
        assert await asyncio.gather(*waits) == [{"ok": True}] * 5000
    assert gateway.script.await_streams == 1
    assert sorted(gateway.script.awaited) == sorted(names(2500))


async def test_a_broken_stream_is_opened_again_with_the_open_names(gateway: ScriptedGateway) -> None:
    async with AsyncFlint(gateway.address, "k") as flint:
        waits = [asyncio.create_task(flint.result(name)) for name in names(3)]
        await eventually(lambda: len(gateway.script.awaited) == 3)
        await gateway.script.end(names(3)[0])
        assert await waits[0] == {"ok": True}
        await gateway.stop()
        await gateway.start()
        await eventually(lambda: len(gateway.script.awaited) == 5)
        await gateway.script.end(*names(3))
        assert await asyncio.gather(*waits[1:]) == [{"ok": True}] * 2
    assert gateway.script.await_streams >= 2


async def test_another_gateway_goes_on_waiting(gateway: ScriptedGateway, second_gateway: ScriptedGateway) -> None:
    async with AsyncFlint([gateway.address, second_gateway.address], "k") as flint:
        wait = asyncio.create_task(flint.result(RUN))
        await eventually(lambda: gateway.script.awaited == [RUN])
        await gateway.stop()
        await eventually(lambda: second_gateway.script.awaited == [RUN])
        await second_gateway.script.end(RUN)
        assert await wait == {"ok": True}


async def test_the_end_decides_what_a_result_raises(gateway: ScriptedGateway) -> None:
    failed, cancelled, missing = names(3)
    problem = runs_pb2.Problem(type="about:blank", title="Timeout", detail="took 5 s", instance="/do/0/slow")
    no_run = refusal(grpc.StatusCode.NOT_FOUND, "RUN_NOT_FOUND", "no such run")
    async with AsyncFlint(gateway.address, "k") as flint:
        await gateway.script.answer(
            runs_pb2.AwaitedRun(name=failed, run=run(failed, runs_pb2.Run.STATE_FAILED, error=problem)),
            runs_pb2.AwaitedRun(name=cancelled, run=run(cancelled, runs_pb2.Run.STATE_CANCELLED)),
            runs_pb2.AwaitedRun(name=missing, error=no_run),
        )
        with pytest.raises(RunFailed, match="run 0 failed at /do/0/slow: Timeout: took 5 s") as found:
            await flint.result(failed)
        assert found.value.problem.title == "Timeout"
        with pytest.raises(RunCancelled):
            await flint.result(cancelled)
        with pytest.raises(RunNotFound):
            await flint.result(missing)


async def test_a_wait_that_gave_up_does_not_disturb_the_others(gateway: ScriptedGateway) -> None:
    async with AsyncFlint(gateway.address, "k") as flint:
        patient = asyncio.create_task(flint.wait(RUN))
        with pytest.raises(TimedOut, match=r"0\.05 s"):
            await flint.wait(RUN, 0.05)
        await gateway.script.end(RUN)
        assert (await patient).output == {"ok": True}


async def test_a_name_whose_component_is_away_is_asked_again(gateway: ScriptedGateway) -> None:
    away = refusal(grpc.StatusCode.UNAVAILABLE, "COMPONENT_UNAVAILABLE", "no scheduler")
    async with AsyncFlint(gateway.address, "k") as flint:
        await gateway.script.answer(runs_pb2.AwaitedRun(name=RUN, error=away))
        wait = asyncio.create_task(flint.result(RUN))
        await eventually(lambda: gateway.script.awaited.count(RUN) == 2)
        await gateway.script.end(RUN)
        assert await wait == {"ok": True}


async def test_a_refused_stream_fails_all_waits(gateway: ScriptedGateway) -> None:
    gateway.script.refusals = [refusal(grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_INVALID", "unknown key")]
    async with AsyncFlint(gateway.address, "k") as flint:
        results = await asyncio.gather(*(flint.result(name) for name in names(3)), return_exceptions=True)
    assert [type(result) for result in results] == [CredentialsInvalid] * 3


async def test_waits_end_when_nothing_is_reachable_for_long(gateway: ScriptedGateway) -> None:
    await gateway.stop()
    async with AsyncFlint(gateway.address, "k", reconnect_s=0.2) as flint:
        with pytest.raises(Unavailable):
            await flint.result(RUN)
