"""Every command in every state of a run: queued, running, waiting, paused, ended, in the middle of undoing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from flint_bus import Bus
from flint_bus.messages import Message
from flint_bus.subjects import JOBS_STREAM, control_subject
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_core.ids import run_id_text
from flint_sdk import (
    AsyncRunHandle,
    ResetPointNotFound,
    Run,
    RunEnded,
    RunEnding,
    RunNotPaused,
    RunState,
    RunUndone,
)
from support.house import House
from support.outside import Outside
from support.stack import eventually

pytestmark = pytest.mark.asyncio(loop_scope="package")

WAIT_S = 60


def came(world: Outside) -> list[str]:
    return [each.step for each in world.executions]


def post(world: Outside, step: str) -> str:
    return f"{{ call: http, with: {{ method: post, endpoint: '{world.url}/steps/{step}' }} }}"


@contextlib.asynccontextmanager
async def cancels_told(house: House) -> AsyncIterator[set[str]]:
    """Ids of the runs whose workers are told meanwhile that they were cancelled."""
    told: set[str] = set()

    def hear(message: Message) -> None:
        request = dispatch_pb2.ControlRequest.FromString(message.data)
        told.update(run_id_text(leg.run_id) for leg in request.cancel.legs)

    bus = await Bus.connect(house.stack.settings.nats, name="test")
    try:
        await bus.subscribe(control_subject("*"), hear)
        await bus.stream_state(JOBS_STREAM)  # answered: the server knows the subscription, too
        yield told
    finally:
        await bus.close()


async def reaches(house: House, handle: AsyncRunHandle, state: RunState) -> Run:
    async def there() -> bool:
        return (await house.flint.get_run(handle.id)).state is state

    await eventually(there)
    return await house.flint.get_run(handle.id)


async def waiting(house: House, world: Outside, seconds: int = 3600) -> AsyncRunHandle:
    """A run that did `a` and waits before `b`."""
    text = (
        f"do:\n  - a: {post(world, 'a')}\n  - pause: {{ wait: {{ seconds: {seconds} }} }}\n  - b: {post(world, 'b')}\n"
    )
    handle = await house.flint.start(await house.apply(text), {})
    await reaches(house, handle, RunState.WAITING)
    return handle


async def test_a_waiting_run_is_paused_and_its_overdue_timer_fires_on_resume(house: House, world: Outside) -> None:
    handle = await waiting(house, world, seconds=7)
    due = (await house.flint.get_run(handle.id)).wake_time
    assert due is not None
    await house.flint.pause(handle.id)
    paused = await reaches(house, handle, RunState.PAUSED)
    assert paused.wake_time is None
    await house.flint.pause(handle.id)  # again changes nothing

    async def overdue() -> bool:
        assert (await house.flint.get_run(handle.id)).state is RunState.PAUSED
        return time.time() > due.timestamp() + 1.5

    await eventually(overdue)
    assert came(world) == ["a"]
    listed = [run.id async for run in house.flint.list_runs(states=[RunState.PAUSED])]
    assert handle.id in listed
    await house.flint.resume(handle.id)
    assert (await house.flint.wait(handle.id, WAIT_S)).state is RunState.SUCCEEDED
    assert came(world) == ["a", "b"]
    with pytest.raises(RunEnded):
        await house.flint.pause(handle.id)
    with pytest.raises(RunEnded):
        await house.flint.resume(handle.id)


async def test_a_running_run_is_paused_between_two_steps(house: House, world: Outside) -> None:
    world.delay_s = 0.05
    handle = await started(
        house,
        world,
        f"""
do:
  - each:
      for: {{ each: n, in: '${{ [range(200)] }}' }}
      do:
        - a: {post(world, "a")}
""",
    )

    async def under_way() -> bool:
        return len(came(world)) > 2

    await eventually(under_way)
    with pytest.raises(RunNotPaused):
        await house.flint.resume(handle.id)
    await house.flint.pause(handle.id)
    run = await reaches(house, handle, RunState.PAUSED)
    done = len(came(world))
    assert done < 200 and run.worker == ""
    world.delay_s = 0
    await house.flint.resume(handle.id)
    assert (await house.flint.wait(handle.id, WAIT_S)).state is RunState.SUCCEEDED
    assert len(came(world)) == 200 and len(world.by_key()) == 200


async def test_what_comes_for_a_paused_run_is_kept(house: House, world: Outside) -> None:
    text = f"""
do:
  - ask: {{ listen: {{ to: {{ one: {{ with: {{ type: dev.flint.signal.go }} }} }} }} }}
  - b: {post(world, "b")}
"""
    handle = await started(house, world, text)
    await reaches(house, handle, RunState.WAITING)
    await house.flint.pause(handle.id)
    await reaches(house, handle, RunState.PAUSED)
    await house.flint.signal(handle.id, "go", {"x": 1})
    assert (await house.flint.get_run(handle.id)).state is RunState.PAUSED
    await house.flint.resume(handle.id)
    assert (await house.flint.wait(handle.id, WAIT_S)).state is RunState.SUCCEEDED


async def test_terminating_ends_at_once_and_undoes_nothing(house: House, world: Outside) -> None:
    text = f"""
do:
  - a:
      call: http
      with: {{ method: post, endpoint: '{world.url}/steps/a' }}
      metadata:
        flint:
          compensate: {post(world, "undo-a")}
  - b: {post(world, "b")}
"""
    handle = await started(house, world, text)
    await reaches(house, handle, RunState.SUCCEEDED)
    world.executions.clear()
    world.gate.clear()
    handle = await started(house, world, text)
    await until_came(world, ["a"])
    await house.flint.terminate(handle.id, "enough")
    run = await house.flint.wait(handle.id, WAIT_S)
    assert run.state is RunState.CANCELLED and run.error is not None
    assert run.error.type.endswith("/terminated") and run.error.detail == "enough"
    position = run.position
    world.gate.set()
    with pytest.raises(RunEnded):
        await house.flint.terminate(handle.id)
    other = await waiting(house, world)
    await house.flint.terminate(other.id)
    assert (await house.flint.wait(other.id, WAIT_S)).state is RunState.CANCELLED
    await house.flint.pause((await waiting(house, world)).id)
    assert (await house.flint.get_run(handle.id)).position == position
    assert "undo-a" not in came(world)


async def test_a_cancel_gives_steps_their_grace_and_undoes(house: House, world: Outside) -> None:
    text = f"""
do:
  - a:
      call: http
      with: {{ method: post, endpoint: '{world.url}/steps/a' }}
      metadata:
        flint:
          compensate: {post(world, "undo-a")}
  - b: {post(world, "b")}
"""
    world.gate.clear()
    handle = await started(house, world, text)
    await until_came(world, ["a"])
    async with cancels_told(house) as told:
        await house.flint.cancel(handle.id, "late", grace_s=600)
        with pytest.raises(RunEnding):
            await house.flint.pause(handle.id)
        # The cancel is answered when it is stored. Only once the worker was told does the run end behind this step.
        await eventually(lambda: handle.id in told)
    world.gate.set()
    run = await house.flint.wait(handle.id, WAIT_S)
    assert run.state is RunState.CANCELLED
    assert came(world) == ["a", "undo-a"]  # it ended by itself, so it was there to be undone
    world.executions.clear()
    world.gate.clear()
    handle = await started(house, world, f"do:\n  - a: {post(world, 'a')}\n")
    await until_came(world, ["a"])
    await house.flint.cancel(handle.id, grace_s=0.2)
    assert (await house.flint.wait(handle.id, WAIT_S)).state is RunState.CANCELLED  # it was aborted


async def test_a_failed_run_is_retried_from_the_failed_step(house: House, world: Outside) -> None:
    text = f"do:\n  - a: {post(world, 'a')}\n  - b: {post(world, 'b')}\n  - c: {post(world, 'c')}\n"
    world.failures = {"b": 1}
    handle = await started(house, world, text)
    failed = await house.flint.wait(handle.id, WAIT_S)
    assert failed.state is RunState.FAILED and failed.error is not None
    world.failures = {}
    await house.flint.retry(handle.id)
    run = await wait_reset(house, handle, 1)
    assert run.state is RunState.SUCCEEDED, run.error
    assert came(world) == ["a", "b", "b", "c"]
    keys = [each.key for each in world.executions]
    assert keys[1] != keys[2], "the generation is part of the key"
    entries = [entry async for entry in house.flint.history(handle.id)]
    assert [entry.superseded_by for entry in entries if entry.superseded_by] == [1]
    with pytest.raises(ResetPointNotFound):
        await house.flint.retry(handle.id)
    await house.flint.reset(handle.id, "/do/1/b")
    run = await wait_reset(house, handle, 2)
    assert run.state is RunState.SUCCEEDED and came(world) == ["a", "b", "b", "c", "b", "c"]
    await house.flint.reset(handle.id)
    run = await wait_reset(house, handle, 3)
    assert run.state is RunState.SUCCEEDED and came(world)[6:] == ["a", "b", "c"]
    with pytest.raises(ResetPointNotFound):
        await house.flint.reset(handle.id, "/do/9/nothing")


async def test_a_running_and_a_waiting_run_are_reset(house: House, world: Outside) -> None:
    handle = await waiting(house, world)
    await house.flint.reset(handle.id, "/do/0/a")
    await until_came(world, ["a", "a"])
    await reaches(house, handle, RunState.WAITING)
    run = await house.flint.get_run(handle.id)
    assert run.reset == 1 and run.wake_time is not None
    await house.flint.terminate(handle.id)
    await reaches(house, handle, RunState.CANCELLED)
    await house.flint.retry(handle.id)  # goes on where it stood
    await reaches(house, handle, RunState.WAITING)
    assert came(world) == ["a", "a"]
    world.gate.clear()
    world.executions.clear()
    text = f"do:\n  - a: {post(world, 'a')}\n  - b: {post(world, 'b')}\n"
    other = await started(house, world, text)
    await until_came(world, ["a"])
    await house.flint.reset(other.id)
    world.gate.set()
    run = await wait_reset(house, other, 1)
    assert run.state is RunState.SUCCEEDED
    # It stopped at the next boundary that came after the command: before `b`, or behind it.
    assert came(world) in (["a", "a", "b"], ["a", "b", "a", "b"])


async def test_nested_work_is_reset(house: House, world: Outside) -> None:
    """Branches that were recorded before the failure are not executed again.

    The wait is longer than one that keeps its slot: what came before it is recorded when the run blocks.
    """
    text = f"""
do:
  - each:
      for: {{ each: n, in: '${{ [1, 2, 3] }}' }}
      do:
        - one: {post(world, "one")}
  - both:
      fork:
        branches:
          - left: {post(world, "left")}
          - right:
              try:
                - pause: {{ wait: {{ seconds: 1 }} }}
                - right: {post(world, "right")}
              catch: {{ errors: {{ with: {{ status: 418 }} }} }}
  - last: {post(world, "last")}
"""
    world.failures = {"right": 1}
    handle = await started(house, world, text)
    assert (await house.flint.wait(handle.id, WAIT_S)).state is RunState.FAILED
    world.failures = {}
    assert sorted(came(world)) == ["left", "one", "one", "one", "right"]
    await house.flint.retry(handle.id)
    run = await wait_reset(house, handle, 1)
    assert run.state is RunState.SUCCEEDED, run.error
    assert sorted(came(world)) == ["last", "left", "one", "one", "one", "right", "right"]
    await house.flint.reset(handle.id, "/do/0/each/do/0/one", "2")
    run = await wait_reset(house, handle, 2)
    assert run.state is RunState.SUCCEEDED, run.error
    assert came(world).count("one") == 4 and came(world).count("last") == 2


async def test_what_was_undone_is_only_reset_to_its_beginning(house: House, world: Outside) -> None:
    text = f"""
do:
  - a:
      call: http
      with: {{ method: post, endpoint: '{world.url}/steps/a' }}
      metadata:
        flint:
          compensate: {post(world, "undo-a")}
  - b: {post(world, "b")}
"""
    world.failures = {"b": 1}
    handle = await started(house, world, text)
    assert (await house.flint.wait(handle.id, WAIT_S)).state is RunState.FAILED
    assert came(world) == ["a", "b", "undo-a"]
    world.failures = {}
    with pytest.raises(RunUndone):
        await house.flint.retry(handle.id)
    with pytest.raises(RunUndone):
        await house.flint.reset(handle.id, "/do/1/b")
    await house.flint.reset(handle.id)
    assert (await wait_reset(house, handle, 1)).state is RunState.SUCCEEDED
    assert came(world)[3:] == ["a", "b"]


async def test_signals_are_kept_and_each_is_taken_once(house: House, world: Outside) -> None:
    text = f"""
do:
  - a: {post(world, "a")}
  - first: {{ listen: {{ to: {{ one: {{ with: {{ type: dev.flint.signal.go }} }} }} }} }}
  - second:
      listen:
        to:
          any: [{{ with: {{ type: dev.flint.signal.go }} }}, {{ with: {{ type: dev.flint.signal.stop }} }}]
  - b: {post(world, "b")}
  - third: {{ listen: {{ to: {{ one: {{ with: {{ type: dev.flint.signal.go }} }} }} }} }}
"""
    world.gate.clear()
    handle = await started(house, world, text)
    await until_came(world, ["a"])
    one = await house.flint.signal(handle.id, "go", {"n": 1}, signal_id="one")
    again = await house.flint.signal(handle.id, "go", {"n": 1}, signal_id="one")
    assert one.created and not again.created
    await house.flint.signal(handle.id, "go", {"n": 2})
    world.gate.set()
    await until_came(world, ["a", "b"])
    await reaches(house, handle, RunState.WAITING)
    told = await house.flint.update(handle.id, "go", {"n": 3}, timeout_s=WAIT_S)
    assert told.taken
    run = await house.flint.wait(handle.id, WAIT_S)
    assert run.state is RunState.SUCCEEDED and run.output == [{"n": 3}]
    with pytest.raises(RunEnded):
        await house.flint.signal(handle.id, "go")


async def test_the_level_of_a_run_is_changed(house: House, world: Outside) -> None:
    handle = await waiting(house, world)
    await house.flint.set_level(handle.id, 0)
    assert (await house.flint.get_run(handle.id)).level == 0
    await house.flint.terminate(handle.id)
    await reaches(house, handle, RunState.CANCELLED)
    with pytest.raises(RunEnded):
        await house.flint.set_level(handle.id, 3)


async def started(house: House, world: Outside, text: str) -> AsyncRunHandle:
    return await house.flint.start(await house.apply(text), {})


async def until_came(world: Outside, steps: list[str]) -> None:
    async def there() -> bool:
        return came(world) == steps

    await eventually(there)


async def wait_reset(house: House, handle: AsyncRunHandle, reset: int) -> Run:
    """The run after this reset, ended."""

    async def there() -> bool:
        run = await house.flint.get_run(handle.id)
        return run.reset == reset and run.state.terminal

    await eventually(there)
    return await house.flint.get_run(handle.id)
