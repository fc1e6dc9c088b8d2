"""Jobs over many runs, workflows on hold, escalation; from the client library and the command line."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from flint_sdk import Batch, BatchNotFound, BatchState, InvalidArgument, RunState
from support.house import House
from support.outside import Outside
from support.stack import eventually

pytestmark = pytest.mark.asyncio(loop_scope="package")

WAIT_S = 60
SLEEPS = "do:\n  - nap: { wait: { hours: 1 } }\n"


async def ended(house: House, batch: Batch) -> Batch:
    async def there() -> bool:
        return (await house.flint.get_batch(batch.id)).state is not BatchState.RUNNING

    await eventually(there, WAIT_S)
    return await house.flint.get_batch(batch.id)


async def states(house: House, workflow: str) -> list[str]:
    return [run.state.value async for run in house.flint.list_runs(workflow=workflow)]


async def test_a_job_comes_to_every_run_that_matches_once(house: House) -> None:
    workflow = await house.apply(SLEEPS)
    other = await house.apply(SLEEPS)
    handles = [await house.flint.start(workflow, {}) for _ in range(12)]
    bystander = await house.flint.start(other, {})

    async def asleep() -> bool:
        return await states(house, workflow) == ["WAITING"] * 12 and await states(house, other) == ["WAITING"]

    await eventually(asleep, WAIT_S)
    await house.flint.terminate(handles[0].id)
    job = await house.flint.start_batch("pause", workflow=workflow, request_id=f"pause-{workflow}")
    same = await house.flint.start_batch("pause", workflow=workflow, request_id=f"pause-{workflow}")
    assert same.id == job.id
    job = await ended(house, job)
    assert job.state is BatchState.COMPLETED and job.matched == 12 and job.done + job.refused == 12

    async def paused() -> bool:
        return (await states(house, workflow)).count("PAUSED") == 11

    await eventually(paused, WAIT_S)
    job = await ended(house, await house.flint.start_batch("resume", workflow=workflow, states=["PAUSED"]))
    assert (job.matched, job.done) == (11, 11)
    await eventually(asleep_again(house, workflow), WAIT_S)
    job = await ended(house, await house.flint.start_batch("level", workflow=workflow, level=1))
    assert job.done == 11 and job.refused == 1 and job.refusals[0].reason == "RUN_ENDED"
    job = await ended(house, await house.flint.start_batch("cancel", runs=[h.id for h in handles[:3]], reason="enough"))
    assert job.matched == 3

    async def cancelled() -> bool:
        return (await states(house, workflow)).count("CANCELLED") == 3

    await eventually(cancelled, WAIT_S)
    assert (await house.flint.get_run(bystander.id)).state is RunState.WAITING
    listed = [found.id async for found in house.flint.list_batches()]
    assert job.id in listed
    with pytest.raises(BatchNotFound):
        await house.flint.get_batch("01a2048b-f5b3-7478-bb09-68bac0b10482")
    with pytest.raises(InvalidArgument):
        await house.flint.start_batch("level", workflow=workflow, level=10)
    assert (await house.flint.cancel_batch(job.id)).state is BatchState.COMPLETED
    await ended(house, await house.flint.start_batch("terminate", states=["WAITING", "PAUSED"]))


def asleep_again(house: House, workflow: str) -> Callable[[], Awaitable[bool]]:
    async def there() -> bool:
        return (await states(house, workflow)).count("WAITING") == 11

    return there


async def test_a_held_workflow_accepts_and_does_not_begin(house: House, world: Outside) -> None:
    call = f"{{ call: http, with: {{ method: post, endpoint: '{world.url}/steps/a' }} }}"
    workflow = await house.apply(f"do:\n  - a: {call}\n")
    await house.flint.hold_workflow(workflow, "maintenance")
    assert [(h.workflow_id, h.reason) for h in await house.flint.list_holds()] == [(workflow, "maintenance")]

    async def known() -> bool:
        """Every scheduler has heard of it: runs that are started stay queued through a run of another workflow."""
        before = len(world.executions)
        started = [await house.flint.start(workflow, {}) for _ in range(6)]  # some of them at each
        await house.run("do:\n  - pause: { wait: { milliseconds: 800 } }\n")
        found = [(await house.flint.get_run(handle.id)).state for handle in started]
        return len(world.executions) == before and set(found) == {RunState.QUEUED}

    await eventually(known, WAIT_S)
    begun = len(world.executions)
    handles = [await house.flint.start(workflow, {}) for _ in range(4)]
    await house.run("do:\n  - pause: { wait: { milliseconds: 800 } }\n")
    assert [(await house.flint.get_run(h.id)).state for h in handles] == [RunState.QUEUED] * 4
    assert len(world.executions) == begun
    assert await house.flint.release_workflow(workflow) and not await house.flint.release_workflow(workflow)
    for handle in handles:
        assert (await house.flint.wait(handle.id, WAIT_S)).state is RunState.SUCCEEDED


async def test_failures_that_are_too_many_escalate_once(house: House) -> None:
    name = house.name("broken")
    document = f"""
document:
  dsl: 1.0.3
  namespace: default
  name: {name}
  version: 1.0.0
  metadata:
    flint:
      escalation: {{ failures: 3, within: {{ minutes: 10 }}, pause: true }}
do:
  - boom: {{ raise: {{ error: {{ type: https://example.com/boom, status: 500, title: Boom }} }} }}
"""
    await house.flint.apply(document)

    async def escalated() -> bool:
        handle = await house.flint.start(name, {})
        run = await house.flint.get_run(handle.id)
        if run.state is RunState.QUEUED and await house.flint.list_holds():
            return True
        return any(h.workflow_id == name for h in await house.flint.list_holds())

    await eventually(escalated, WAIT_S)
    count = await house.record.number(
        "SELECT count(*) FROM workflow_escalation WHERE workflow_id = :name AND failures >= 3", name=name
    )
    assert count == 1
    (hold,) = [h for h in await house.flint.list_holds() if h.workflow_id == name]
    assert hold.reason.startswith("3 runs failed")

    async def told() -> bool:
        return bool(
            await house.record.number(
                "SELECT count(*) FROM event WHERE type = 'dev.flint.workflow.escalated' "
                "AND convert_from(content, 'UTF8') LIKE '%' || :name || '%'",
                name=name,
            )
        )

    await eventually(told, WAIT_S)


async def test_the_command_line(house: House) -> None:
    workflow = await house.apply(SLEEPS)
    handle = await house.flint.start(workflow, {})

    async def asleep() -> bool:
        return (await house.flint.get_run(handle.id)).state is RunState.WAITING

    await eventually(asleep, WAIT_S)

    def flint(*arguments: str) -> str:
        environment = os.environ | {"FLINT_ADDRESS": house.stack.gateway, "FLINT_KEY": house.stack.admin_key}
        command = [str(Path(sys.executable).with_name("flint")), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        return done.stdout + done.stderr

    assert "is being paused" in await asyncio.to_thread(flint, "runs", "pause", handle.id)
    assert "has level 2" in await asyncio.to_thread(flint, "runs", "level", handle.id, "2")
    job = (await asyncio.to_thread(flint, "batch", "start", "terminate", "--workflow", workflow)).strip()
    assert (await ended(house, await house.flint.get_batch(job))).matched == 1
    assert "terminate" in await asyncio.to_thread(flint, "batch", "get", job)
