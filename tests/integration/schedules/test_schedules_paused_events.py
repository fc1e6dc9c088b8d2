"""Schedules by events that are paused: what is published meanwhile starts nothing, also not afterwards."""

from __future__ import annotations

from typing import Any

import pytest

from flint_sdk import Run, Schedule, ScheduleState
from support.house import House
from support.stack import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

WAIT_S = 60.0
ECHO = "do: [{echo: {set: '${ {got: [.[].data.n]} }'}}]"


def event(kind: str, number: int) -> dict[str, Any]:
    return {"type": kind, "source": "/tests/pauses", "id": f"{kind}-{number}", "data": {"n": number}}


async def outputs(house: House, name: str, count: int) -> list[list[int]]:
    """What at least so many runs had, in order of their start."""

    async def there() -> list[Run] | None:
        found = [run async for run in house.flint.list_runs(workflow=name)]
        return found if len(found) >= count else None

    runs = await eventually(there, WAIT_S)
    return sorted([(await house.flint.wait(run.id, WAIT_S)).output["got"] for run in runs])


async def missed(house: House, schedule: str, count: int) -> Schedule:
    async def there() -> Schedule | None:
        found = await house.flint.schedules.get(schedule)
        return found if found.missed >= count else None

    return await eventually(there, WAIT_S)


async def test_what_is_published_during_a_pause_is_dropped(house: House) -> None:
    kind = f"com.example.{house.name('paused')}"
    schedules, publish = house.flint.schedules, house.flint.publish_events
    name = await house.apply(f"schedule: {{on: {{one: {{with: {{type: {kind}}}}}}}}}\n{ECHO}")
    own = f"workflow.{name}"
    await publish([event(kind, 1)])
    # At once: what was published before the pause counts, whether it has arrived by then or not.
    paused = await schedules.pause(own, "the bank is closed")
    assert (paused.state, paused.pause_note, paused.missed) == (ScheduleState.PAUSED, "the bank is closed", 0)
    await publish([event(kind, 2), event(kind, 3)])
    assert (await schedules.pause(own, "still")).pause_note == "still"
    assert (await missed(house, own, 2)).state is ScheduleState.PAUSED
    assert await outputs(house, name, 1) == [[1]]
    await publish([event(kind, 4)])
    # At once: it may be on its way when the schedule goes on.
    resumed = await schedules.resume(own)
    assert (resumed.state, resumed.pause_note) == (ScheduleState.ACTIVE, "")
    await publish([event(kind, 5)])
    assert await outputs(house, name, 2) == [[1], [5]]
    assert (await missed(house, own, 3)).missed == 3
    # A pause outlives a version, and the time of its beginning too.
    await schedules.pause(own)
    await publish([event(kind, 6)])
    await house.apply(f"schedule: {{on: {{any: [{{with: {{type: {kind}}}}}]}}}}\n{ECHO}", name, "1.1.0")
    assert (await schedules.get(own)).state is ScheduleState.PAUSED
    await publish([event(kind, 7)])
    await schedules.resume(own)
    await publish([event(kind, 8)])
    assert await outputs(house, name, 3) == [[1], [5], [8]]
    await house.apply("do: [{nothing: {set: {}}}]", name, "2.0.0")


async def test_a_set_is_completed_by_what_comes_after_the_pause(house: House) -> None:
    one, other = (f"com.example.{house.name('paused')}" for _ in range(2))
    schedules, publish = house.flint.schedules, house.flint.publish_events
    filters = ", ".join(f"{{with: {{type: {kind}}}}}" for kind in (one, other))
    name = await house.apply(f"schedule: {{on: {{all: [{filters}]}}}}\n{ECHO}")
    own = f"workflow.{name}"
    await publish([event(one, 1)])
    await schedules.pause(own)
    await publish([event(other, 2)])
    await missed(house, own, 1)
    await schedules.resume(own)
    await publish([event(other, 3)])
    assert await outputs(house, name, 1) == [[1, 3]]
    assert (await schedules.get(own)).missed == 1
    await house.apply("do: [{nothing: {set: {}}}]", name, "2.0.0")
