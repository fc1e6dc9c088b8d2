"""Cancelled runs that no worker holds, and workers lost in mid-undo: everything done is undone all the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from flint_sdk import AsyncRunHandle, RunState
from support.house import House
from support.houses import Houses
from support.outside import Outside, outside_world
from support.stack import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

WAIT_S = 60


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def house(houses: Houses) -> House:
    return await houses.get("compensation", scheduler={"sweep_interval_s": 1.0}, worker={"inline_wait_s": 10})


@pytest_asyncio.fixture(loop_scope="session")
async def world() -> AsyncIterator[Outside]:
    async with outside_world(delay_s=0) as world:
        yield world


def trip(world: Outside, last: str) -> str:
    """Two bookings, then something that takes long."""
    return f"""
do:
  - a:
      call: http
      with: {{ method: post, endpoint: '{world.url}/steps/a' }}
      metadata:
        flint:
          compensate: {{ call: http, with: {{ method: post, endpoint: '{world.url}/steps/undo-a' }} }}
  - b:
      call: http
      with: {{ method: post, endpoint: '{world.url}/steps/b' }}
      metadata:
        flint:
          compensate: {{ call: http, with: {{ method: post, endpoint: '{world.url}/steps/undo-b' }} }}
  - last: {last}
"""


def came(world: Outside) -> list[str]:
    return [each.step for each in world.executions]


async def started(house: House, world: Outside, last: str, state: str = "WAITING") -> AsyncRunHandle:
    handle = await house.flint.start(await house.apply(trip(world, last)), {})

    async def there() -> bool:
        return bool((await house.flint.get_run(handle.id)).state == state and came(world)[:2] == ["a", "b"])

    await eventually(there)
    return handle


async def undone(house: House, world: Outside, handle: AsyncRunHandle) -> None:
    run = await house.flint.wait(handle.id, WAIT_S)
    assert run.state is RunState.CANCELLED, run.error
    assert run.error is not None and run.error.detail == "enough"
    assert came(world) == ["a", "b", "undo-b", "undo-a"]
    assert len(world.by_key()) == 4
    count = "SELECT count(*) FROM run_await WHERE run_id = CAST(:r AS uuid)"

    async def nothing_left() -> bool:
        return await house.record.number(count, r=handle.id) == 0

    await eventually(nothing_left)


@pytest.mark.parametrize(
    "last",
    [
        "{ wait: { hours: 1 } }",
        "{ call: approval, with: { title: May it } }",
        "{ listen: { to: { one: { with: { type: never.comes } } } } }",
    ],
    ids=["timer", "approval", "event"],
)
async def test_a_cancel_of_a_waiting_run_undoes_what_it_did(house: House, world: Outside, last: str) -> None:
    handle = await started(house, world, last)
    await house.flint.cancel(handle.id, reason="enough")
    await undone(house, world, handle)


async def test_a_cancel_of_a_run_that_waits_for_a_child_ends_both(house: House, world: Outside) -> None:
    child = await house.apply("do: [{sleep: {wait: {hours: 1}}}]")
    handle = await started(house, world, f"{{ run: {{ workflow: {{ name: {child} }} }} }}")
    query = "SELECT run_id FROM run WHERE parent_run_id = CAST(:r AS uuid)"

    async def started_child() -> str:
        return "".join(str(row[0]) for row in await house.record.rows(query, r=handle.id))

    child_id = await eventually(started_child)
    await house.flint.cancel(handle.id, reason="enough")
    await undone(house, world, handle)
    assert (await house.flint.wait(child_id, WAIT_S)).state is RunState.CANCELLED


async def test_a_cancel_of_a_run_without_anything_to_undo_ends_it_at_once(house: House) -> None:
    body = "do: [{sleep: {wait: {hours: 1}, metadata: {flint: {compensate: {call: noop, with: {}}}}}}]"
    handle = await house.flint.start(await house.apply(body), {})

    async def waits() -> bool:
        return bool((await house.flint.get_run(handle.id)).state == "WAITING")

    await eventually(waits)
    before = await house.flint.get_run(handle.id)
    await house.flint.cancel(handle.id)
    run = await house.flint.wait(handle.id, WAIT_S)
    assert (run.state, run.leg) == (RunState.CANCELLED, before.leg)


async def test_a_cancel_of_a_run_queued_behind_drained_workers(house: House, world: Outside) -> None:
    handle = await started(house, world, "{ wait: { seconds: 8 } }", "RUNNING")
    workers = ("worker-1", "worker-2")
    await asyncio.gather(*(house.stack.stop(worker) for worker in workers))

    async def queued() -> bool:
        return bool((await house.flint.get_run(handle.id)).state == "QUEUED")

    await eventually(queued)
    await house.flint.cancel(handle.id, reason="enough")

    async def noted() -> bool:
        return bool((await house.flint.get_run(handle.id)).cancel_requested)

    await eventually(noted)
    assert (await house.flint.get_run(handle.id)).state == "QUEUED"
    await asyncio.gather(*(house.stack.start(worker) for worker in workers))
    await undone(house, world, handle)


async def holder(house: House, handle: AsyncRunHandle) -> str:
    """The child process that has the run."""
    incarnation = (await handle.get()).worker
    workers = [worker async for worker in house.flint.list_workers()]
    return next(w.worker_id for w in workers if incarnation in (w.incarnation, w.worker_id, w.name))


@pytest.mark.parametrize("how", ["kill", "drain"])
async def test_a_worker_that_goes_in_mid_undo_is_followed_by_another(house: House, world: Outside, how: str) -> None:
    handle = await started(house, world, "{ wait: { hours: 1 } }")
    world.gate.clear()
    await house.flint.cancel(handle.id, reason="enough")
    await eventually(lambda: "undo-b" in came(world))
    worker = await holder(house, handle)
    if how == "kill":
        await house.stack.kill(worker)
        await eventually(lambda: came(world).count("undo-b") == 2, WAIT_S)
        world.gate.set()
    else:
        world.gate.set()  # between two of them, or after the first: wherever the drain finds it
        await house.stack.restart(worker)
    run = await house.flint.wait(handle.id, WAIT_S)
    assert run.state is RunState.CANCELLED, run.error
    steps = came(world)
    assert list(dict.fromkeys(steps)) == ["a", "b", "undo-b", "undo-a"]
    assert len(world.by_key()) == 4, "a compensation was repeated under another idempotency key"


async def test_what_undoes_may_wait_without_a_worker(house: House, world: Outside) -> None:
    """A second cancel changes nothing, the wait goes on, and the run ends as cancelled."""
    body = trip(world, "{ wait: { hours: 1 } }").replace(
        f"compensate: {{ call: http, with: {{ method: post, endpoint: '{world.url}/steps/undo-b' }} }}",
        "compensate: slow",
    )
    slow = f"""
    slow:
      do:
        - pause: {{ wait: {{ seconds: 11 }} }}
        - tell: {{ call: http, with: {{ method: post, endpoint: '{world.url}/steps/undo-b' }} }}
"""
    body = "use:\n  functions:" + slow + body
    handle = await house.flint.start(await house.apply(body), {})

    async def waits(leg: int) -> bool:
        run = await house.flint.get_run(handle.id)
        return bool(run.state == "WAITING" and run.leg >= leg)

    await eventually(lambda: waits(1))
    before = await house.flint.get_run(handle.id)
    await house.flint.cancel(handle.id, reason="enough")
    await eventually(lambda: waits(before.leg + 1))
    await house.flint.cancel(handle.id, reason="again")
    await undone(house, world, handle)
