"""Commands whose answer is lost: the client repeats them, and each takes effect once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from flint_contracts.gen.flint.runs.v1 import control_pb2
from flint_sdk import AsyncFlint, AsyncRunHandle, RequestIdReused, RunEnded, RunState, ScheduleSpec
from support.house import House
from support.lost_answers import LostAnswers, losing_answers
from support.outside import Outside
from support.stack import eventually

pytestmark = pytest.mark.asyncio(loop_scope="package")

WAIT_S = 60.0
ASLEEP = "do:\n  - a: { set: { x: 1 } }\n  - sleep: { wait: { hours: 1 } }\n  - b: { set: { y: 1 } }\n"


@pytest_asyncio.fixture(loop_scope="package")
async def door(house: House) -> AsyncIterator[LostAnswers]:
    async with losing_answers(house.stack.gateway) as answers:
        yield answers


@pytest_asyncio.fixture(loop_scope="package")
async def behind(house: House, door: LostAnswers) -> AsyncIterator[AsyncFlint]:
    """A client whose answers may be lost."""
    async with AsyncFlint(address=door.address, key=house.stack.admin_key, timeout_s=WAIT_S) as client:
        yield client


def is_so(house: House, handle: AsyncRunHandle, state: RunState, reset: int) -> Callable[[], Awaitable[bool]]:
    async def there() -> bool:
        run = await house.flint.get_run(handle.id)
        return (run.state, run.reset) == (state, reset)

    return there


async def becomes(house: House, handle: AsyncRunHandle, state: RunState, reset: int = 0) -> None:
    await eventually(is_so(house, handle, state, reset), WAIT_S)


async def asked_for(house: House, handle: AsyncRunHandle) -> int:
    """Commands in the run's inbox, which its owner has not carried out yet."""
    return await house.record.number("SELECT count(*) FROM inbox WHERE run_id = CAST(:r AS uuid)", r=handle.id)


async def waiting(house: House, reset: int = 0) -> AsyncRunHandle:
    handle = await house.flint.start(await house.apply(ASLEEP), {})
    await becomes(house, handle, RunState.WAITING, reset)
    return handle


async def test_a_reset_whose_answer_was_lost_is_done_once(house: House, door: LostAnswers, behind: AsyncFlint) -> None:
    handle = await waiting(house)

    async def took_effect() -> None:
        await becomes(house, handle, RunState.WAITING, 1)

    door.lost["ResetRun"] = took_effect
    await behind.reset(handle.id, "/do/1/sleep")
    requests = [control_pb2.ResetRunRequest.FromString(call) for call in door.calls["ResetRun"]]
    assert len(requests) >= 2 and requests[0].request_id
    assert all(request == requests[0] for request in requests)
    # What was stored is answered after it is committed: nothing more is asked of the run, and nothing more was done.
    assert await asked_for(house, handle) == 0
    run = await house.flint.get_run(handle.id)
    assert (run.state, run.reset) == (RunState.WAITING, 1)

    # One that fails is judged anew when it is repeated; another one is another reset.
    await behind.reset(handle.id)
    await becomes(house, handle, RunState.WAITING, 2)


async def test_one_id_at_the_same_time_is_one_reset(house: House) -> None:
    handle = await waiting(house)
    resets = (house.flint.reset(handle.id, "/do/1/sleep", request_id="again") for _ in range(8))
    assert [run.id for run in await asyncio.gather(*resets)] == [handle.id] * 8
    await becomes(house, handle, RunState.WAITING, 1)
    await house.flint.reset(handle.id, "/do/1/sleep", request_id="again")
    assert await asked_for(house, handle) == 0
    with pytest.raises(RequestIdReused):
        await house.flint.reset(handle.id, request_id="again")
    with pytest.raises(RequestIdReused):
        await house.flint.terminate(handle.id, request_id="again")
    assert await asked_for(house, handle) == 0
    assert (await house.flint.get_run(handle.id)).reset == 1
    await house.flint.reset(handle.id, request_id="another")
    await becomes(house, handle, RunState.WAITING, 2)
    # What was refused is not remembered: the same call may succeed later.
    await house.flint.terminate(handle.id)
    await becomes(house, handle, RunState.CANCELLED, 2)
    with pytest.raises(RunEnded):
        await house.flint.pause(handle.id, request_id="pause")
    await house.flint.retry(handle.id)
    await becomes(house, handle, RunState.WAITING, 3)
    await house.flint.pause(handle.id, request_id="pause")
    await becomes(house, handle, RunState.PAUSED, 3)


async def test_other_commands_are_answered_again_and_not_done_again(
    house: House, door: LostAnswers, behind: AsyncFlint
) -> None:
    handle = await waiting(house)

    async def paused_and_resumed() -> None:
        await becomes(house, handle, RunState.PAUSED)
        await house.flint.resume(handle.id)
        await becomes(house, handle, RunState.WAITING)

    door.lost["PauseRun"] = paused_and_resumed
    await behind.pause(handle.id)
    assert len(door.calls["PauseRun"]) >= 2 and await asked_for(house, handle) == 0

    async def ended() -> None:
        await becomes(house, handle, RunState.CANCELLED)

    # Without its id the repeat would be told that the run has ended already.
    door.lost["CancelRun"] = ended
    await behind.cancel(handle.id, "enough")
    assert len(door.calls["CancelRun"]) >= 2
    with pytest.raises(RunEnded):
        await behind.cancel(handle.id, "enough")

    other = await house.flint.start(
        await house.apply("do:\n  - wish: { listen: { to: { one: { with: { type: dev.flint.signal.go } } } } }\n"), {}
    )
    await becomes(house, other, RunState.WAITING)

    async def taken() -> None:
        await becomes(house, other, RunState.SUCCEEDED)

    door.lost["SignalRun"] = taken
    sent = await behind.signal(other.id, "go")
    assert len(door.calls["SignalRun"]) >= 2 and not sent.created
    with pytest.raises(RunEnded):
        await behind.signal(other.id, "go")


async def test_what_starts_runs_starts_them_once(
    house: House, world: Outside, door: LostAnswers, behind: AsyncFlint
) -> None:
    workflow = await house.apply(
        f"do:\n  - a: {{ call: http, with: {{ method: post, endpoint: '{world.url}/steps/a' }} }}"
    )
    await house.flint.schedules.create(workflow, workflow, ScheduleSpec(cron="0 0 1 1 *"))

    async def ran() -> None:
        await eventually(lambda: len(world.executions) == 1, WAIT_S)

    door.lost["TriggerSchedule"] = ran
    name = await behind.schedules.trigger(workflow)
    assert len(door.calls["TriggerSchedule"]) >= 2
    assert [run.name async for run in house.flint.list_runs(workflow=workflow)] == [name]
    await house.flint.schedules.delete(workflow)
