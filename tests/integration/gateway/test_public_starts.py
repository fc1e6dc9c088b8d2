"""Single starts that the client library sends together: what a real gateway counts, and that nothing else differs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_sdk import (
    AsyncFlint,
    AsyncRunHandle,
    CredentialsInvalid,
    CredentialsMissing,
    FlintError,
    RequestIdReused,
    Role,
    RoleInsufficient,
)
from support.house import PARENT, House, Stubs, refusal

pytestmark = pytest.mark.asyncio(loop_scope="session")

ECHO = "do: [{a: {call: noop, with: {output: '${ . }'}}}]"
CALLERS = 128


async def calls(house: House) -> tuple[float, float]:
    """How many calls of single starts the gateway has answered, and how many of batches or messages on a stream."""
    figures = await house.figures("gateway")
    names = ("StartRun", "StartRuns")
    one, many = (
        figures.total("flint_rpc_server_calls_total", method=f"flint.runs.v1.RunService/{name}") for name in names
    )
    streamed = figures.total("flint_rpc_server_turns_total", method="flint.runs.v1.RunService/StreamStarts")
    return one, many + streamed


async def test_many_callers_make_few_calls_and_each_gets_its_own_result(house: House) -> None:
    name = await house.apply(ECHO)
    before = await calls(house)

    async def caller(number: int) -> Any:
        handle = await house.flint.start(name, {"n": number})
        assert handle.created
        return await handle.result(60)

    results = await asyncio.gather(*(caller(number) for number in range(CALLERS)))
    assert results == [{"n": number} for number in range(CALLERS)]
    after = await calls(house)
    assert sum(after) - sum(before) <= CALLERS / 8  # one, unless the machine kept some callers waiting
    assert after[1] > before[1]


async def test_a_start_that_comes_alone_goes_alone_and_on_a_stream_when_it_is_not_the_first(house: House) -> None:
    name = await house.apply(ECHO)
    before = await calls(house)
    async with AsyncFlint(house.stack.gateway, house.stack.admin_key) as flint:
        for number in range(3):
            assert await (await flint.start(name, {"n": number})).result(60) == {"n": number}
        after = await calls(house)
        assert (after[0] - before[0], after[1] - before[1]) == (1, 2)
        with pytest.raises(FlintError) as refused:
            await flint.start("no-such-workflow")
        again = await calls(house)
        assert (again[0] - after[0], again[1] - after[1]) == (0, 1)
    async with AsyncFlint(house.stack.gateway, house.stack.admin_key, coalesce_starts=False) as alone:
        expected = await _error(alone, {"workflow": "no-such-workflow"})
    assert (type(refused.value), str(refused.value)) == (type(expected), str(expected))


async def test_a_stream_is_as_closed_as_a_call_to_those_who_may_not_start(house: House) -> None:
    name = await house.apply(ECHO)
    viewer = await house.flint.create_key("a viewer", Role.VIEWER)
    start = runs_pb2.StartRunRequest(workflow_id=name)
    request = runs_pb2.StreamStartsRequest(batch=runs_pb2.StartRunsRequest(parent=PARENT, requests=[start]))
    for key, refused in ((viewer.secret, RoleInsufficient), ("no-key", CredentialsInvalid), ("", CredentialsMissing)):
        stubs = house.as_key(key)

        async def first_answer(stubs: Stubs = stubs) -> Any:
            call = stubs.runs.StreamStarts(metadata=stubs.metadata, timeout=60)
            await call.write(request)
            return await call.read()

        assert isinstance(await refusal(first_answer()), refused)


async def test_what_is_refused_together_is_refused_in_the_words_of_one_that_is_alone(house: House) -> None:
    name, request_id = await house.apply(ECHO), house.name("request")
    await house.flint.start(name, {"n": 1}, request_id=request_id)
    wrong: list[dict[str, Any]] = [
        {"workflow": "no-such-workflow"},
        {"workflow": "Not A Label", "version": "one"},
        {"workflow": name, "level": 11},
        {"workflow": name, "version": "9.9.9"},
        {"workflow": name, "input": {"n": 2}, "request_id": request_id},
        {"workflow": name, "request_id": "~mine"},
        {"workflow": name, "fairness_key": "k" * 129},
        {"workflow": name, "level": "no-such-level"},
    ]
    async with AsyncFlint(house.stack.gateway, house.stack.admin_key, coalesce_starts=False) as alone:
        expected = [await _error(alone, start) for start in wrong]
    assert isinstance(expected[4], RequestIdReused)
    before = await calls(house)
    *refused, started = await asyncio.gather(
        *(_error(house.flint, start) for start in wrong), house.flint.start(name, {"n": 3})
    )
    after = await calls(house)
    assert isinstance(started, AsyncRunHandle)
    assert await started.result(60) == {"n": 3}
    assert (after[0] - before[0], after[1] - before[1]) == (0, 1)

    def told(errors: list[FlintError]) -> list[tuple[Any, ...]]:
        return [(type(error), error.message, error.reason, error.violations) for error in errors]

    assert told(refused) == told(expected)


async def test_large_inputs_come_whole_beside_small_ones(house: House) -> None:
    name = await house.apply(ECHO)
    inputs = ["x" * size for size in (10, 4_000, 60_000, 70_000, 300_000, 3_500_000, 20)]
    handles = await asyncio.gather(*(house.flint.start(name, text) for text in inputs))
    assert await asyncio.gather(*(handle.result(60) for handle in handles)) == inputs


async def test_callers_that_leave_take_nobody_along(house: House) -> None:
    name = await house.apply(ECHO)
    stems = [house.name("request") for _ in range(20)]
    tasks = [asyncio.create_task(house.flint.start(name, {"n": n}, request_id=stem)) for n, stem in enumerate(stems)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    handles = await asyncio.gather(*tasks[1::2])
    assert [await handle.result(60) for handle in handles] == [{"n": n} for n in range(1, 20, 2)]
    # What was cancelled may have happened: its request_id answers that run, or starts it now.
    again = await asyncio.gather(
        *(house.flint.start(name, {"n": n}, request_id=stems[n]) for n in range(0, 20, 2)),
    )
    assert [await handle.result(60) for handle in again] == [{"n": n} for n in range(0, 20, 2)]


async def _error(flint: AsyncFlint, start: dict[str, Any]) -> FlintError:
    with pytest.raises(FlintError) as refused:
        await flint.start(**start)
    return refused.value
