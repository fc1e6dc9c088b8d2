"""WatchRun: a snapshot, then every change in order; and to go on from a cursor."""

from __future__ import annotations

import asyncio

import pytest

from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_sdk import RunChanged, RunSnapshot, RunState, StepBegan, StepState
from support.house import House, refusal
from support.outside import Outside
from support.stack import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

FIVE = "do:\n" + "".join(
    f"  - s{n}: {{call: http, with: {{method: post, endpoint: '${{ $workflow.input.url + \"/steps/s{n}\" }}'}}}}\n"
    for n in range(5)
)


async def test_a_snapshot_then_dense_changes(house: House, world: Outside) -> None:
    world.gate.clear()
    handle = await house.flint.start(await house.apply(FIVE), {"url": world.url})
    await eventually(lambda: world.executions)
    events = []
    async for event in handle.watch():
        events.append(event)
        world.gate.set()
    snapshot, changes = events[0], [event for event in events if isinstance(event, RunChanged)]
    assert isinstance(snapshot, RunSnapshot)
    assert snapshot.run.state is RunState.RUNNING
    assert [e for e in events[1:] if isinstance(e, RunSnapshot)] == []
    cursors = [snapshot.cursor, *(change.cursor for change in changes)]
    assert cursors == list(range(cursors[0], cursors[0] + len(cursors)))
    assert [change.run.change for change in changes] == cursors[1:]
    recorded = [*snapshot.steps, *(step for change in changes for step in change.steps)]
    assert [(step.step, step.state) for step in recorded] == [(f"/do/{n}/s{n}", StepState.SUCCEEDED) for n in range(5)]
    assert not any(step.provisional for step in recorded)
    assert all(event.step.provisional for event in events if isinstance(event, StepBegan))
    assert changes[-1].run.state is RunState.SUCCEEDED
    assert changes[-1].run.output is not None
    assert all(change.run.output is None for change in changes[:-1])


async def test_a_watch_goes_on_from_its_cursor(house: House, world: Outside) -> None:
    world.gate.clear()
    handle = await house.flint.start(await house.apply(FIVE), {"url": world.url})
    await eventually(lambda: world.executions)
    watch = handle.watch(recorded_only=True)
    first = await anext(watch)
    assert isinstance(first, RunSnapshot)
    open_before = (await house.figures("gateway")).total("flint_gateway_watches")
    resumed = handle.watch(cursor=first.cursor, recorded_only=True)
    following = asyncio.ensure_future(anext(resumed))

    async def opened() -> bool:
        return (await house.figures("gateway")).total("flint_gateway_watches") > open_before

    await eventually(opened)
    world.gate.set()
    second = await anext(watch)
    # Nothing had changed at the cursor, so there is no snapshot again: the next event is the same change.
    assert isinstance(second, RunChanged)
    again = await following
    if isinstance(again, RunSnapshot):  # the change came while the gateway was looking: then it is told as a whole
        assert (again.cursor, len(again.steps)) == (second.cursor, len(second.steps))
    else:
        assert (again.cursor, type(again)) == (second.cursor, RunChanged)
    rest, others = [event async for event in watch], [event async for event in resumed]
    assert [e.cursor for e in rest] == [e.cursor for e in others]
    assert not any(isinstance(event, StepBegan) for event in rest)
    # From a cursor of the past: one snapshot that holds all, and the end.
    past = [event async for event in handle.watch(cursor=first.cursor)]
    assert [type(event) for event in past] == [RunSnapshot]
    assert isinstance(past[0], RunSnapshot)
    assert len(past[0].steps) == 5


async def test_many_watches_see_the_same(house: House, world: Outside) -> None:
    world.gate.clear()
    handle = await house.flint.start(await house.apply(FIVE), {"url": world.url})
    await eventually(lambda: world.executions)
    began = 0

    async def follow() -> list[int]:
        nonlocal began
        cursors = []
        async for event in handle.watch(recorded_only=True):
            began += not cursors
            cursors.append(event.cursor)
        return cursors

    following = [asyncio.ensure_future(follow()) for _ in range(20)]
    await eventually(lambda: began == 20)
    world.gate.set()
    seen = await asyncio.gather(*following)
    assert all(cursors == seen[0] for cursors in seen)


async def test_an_ended_run_is_one_snapshot(house: House) -> None:
    run = await house.run("do: [{s: {call: noop, with: {output: 1}}}]")
    (event,) = [event async for event in house.flint.watch(run.id)]
    assert isinstance(event, RunSnapshot)
    assert (event.run.state, event.run.output, event.cursor) == (RunState.SUCCEEDED, 1, run.change)
    assert [event async for event in house.flint.watch(run.id, cursor=event.cursor)] == []


async def test_a_negative_cursor_is_refused(house: House) -> None:
    run = await house.run("do: [{s: {set: {n: 1}}}]")
    call = house.raw.runs.WatchRun(runs_pb2.WatchRunRequest(name=run.name, cursor=-1), metadata=house.raw.metadata)
    assert [v.field for v in (await refusal(call.read())).violations] == ["cursor"]
