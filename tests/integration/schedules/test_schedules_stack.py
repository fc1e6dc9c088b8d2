"""Workflows that start by themselves, on a real stack: by time, after each other, by events, through a kill."""

from __future__ import annotations

import asyncio
from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest

from flint_sdk import InvalidArgument, Run, WorkflowInUse, WorkflowNotFound
from support.house import House
from support.stack import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

NOTHING = "do: [{nothing: {set: {}}}]"
ECHO = "do: [{echo: {set: '${ {got: [.[] | .data]} }'}}]"


def named(name: str, body: str, hints: str = "", version: str = "1.0.0") -> str:
    metadata = f", metadata: {{flint: {{{hints}}}}}" if hints else ""
    return f"document: {{dsl: 1.0.3, namespace: default, name: {name}, version: {version}{metadata}}}\n{body}"


async def runs_of(house: House, name: str) -> list[Run]:
    """Oldest first."""
    return [run async for run in house.flint.list_runs(workflow=name)][::-1]


async def at_least(house: House, name: str, count: int, timeout_s: float = 60.0) -> list[Run]:
    async def enough() -> list[Run]:
        found = await runs_of(house, name)
        return found if len(found) >= count else []

    return await eventually(enough, timeout_s, interval_s=0.1)


async def end(house: House, name: str, *versions: str) -> None:
    """Deletes versions, as soon as none of their runs is under way."""
    for version in versions or ("1.0.0",):

        async def deleted(version: str = version) -> bool:
            try:
                await house.flint.delete_workflow(name, version)
            except WorkflowInUse:
                return False
            return True

        await eventually(deleted)


def moments(runs: list[Run]) -> list[datetime]:
    found = [run.schedule_time for run in runs]
    assert all(found), "not started by a schedule"
    return found  # type: ignore[return-value]


async def schedule_of(house: House, name: str) -> str:
    """The id of a workflow's schedule."""
    found = await house.record.rows("SELECT schedule_id FROM schedule WHERE workflow_id = :w", w=name)
    return str(found[0][0])


async def nothing_left(house: House, schedule: str) -> bool:
    """Of a schedule by events: no await, no subscription, no event."""
    counts = [
        await house.record.number(f"SELECT count(*) FROM {table} WHERE run_id = CAST(:s AS uuid)", s=schedule)
        for table in ("run_await", "event_subscription", "inbox")
    ]
    return not any(counts)


async def test_every_second(house: House) -> None:
    name = await house.apply(f"schedule: {{every: PT1S}}\n{NOTHING}")
    workflow = await house.flint.get_workflow(name)
    assert workflow.scheduled and workflow.next_start_time is not None
    runs = await at_least(house, name, 4)
    await end(house, name)
    times = moments(runs)
    assert [(b - a).total_seconds() for a, b in pairwise(times)] == [1.0] * (len(times) - 1)
    assert workflow.create_time is not None
    assert abs((times[0] - workflow.create_time).total_seconds() - 1) < 0.2
    late = [(run.create_time - run.schedule_time).total_seconds() for run in runs]  # type: ignore[operator]
    assert min(late) >= 0, late
    assert all(run.request_id == "" for run in runs)
    count = len(await runs_of(house, name))
    assert await house.record.number("SELECT count(*) FROM schedule WHERE workflow_id = :w", w=name) == 0
    other = await house.apply(f"schedule: {{every: PT1S}}\n{NOTHING}")
    await at_least(house, other, 2)  # seconds have passed
    await end(house, other)
    assert len(await runs_of(house, name)) == count


async def test_a_newer_version_replaces_the_schedule_and_one_without_ends_it(house: House) -> None:
    name = await house.apply(f"schedule: {{cron: '* * * * * *'}}\n{NOTHING}")
    await at_least(house, name, 2)
    await house.apply(f"schedule: {{cron: '*/2 * * * * *'}}\n{NOTHING}", name, "1.1.0")
    await house.apply(f"schedule: {{every: PT1S}}\n{NOTHING}", name, "1.0.1")  # not the latest
    assert not (await house.flint.get_workflow(name, "1.0.0")).scheduled
    assert not (await house.flint.get_workflow(name, "1.0.1")).scheduled
    assert (await house.flint.get_workflow(name)).scheduled

    async def of_the_new_one() -> list[Run]:
        found = [run for run in await runs_of(house, name) if run.version == "1.1.0"]
        return found if len(found) >= 2 else []

    found = await eventually(of_the_new_one, 60.0, interval_s=0.1)
    assert all(moment.second % 2 == 0 for moment in moments(found))
    assert not [run for run in await runs_of(house, name) if run.version == "1.0.1"]
    await house.apply(NOTHING, name, "2.0.0")
    assert not (await house.flint.get_workflow(name)).scheduled
    # Deleting it brings back the one before.
    await end(house, name, "2.0.0")
    assert (await house.flint.get_workflow(name)).scheduled
    await end(house, name, "1.1.0", "1.0.1", "1.0.0")
    with pytest.raises(WorkflowNotFound):
        await house.flint.get_workflow(name)
    assert await house.record.number("SELECT count(*) FROM schedule WHERE workflow_id = :w", w=name) == 0


async def test_after_counts_from_the_end_of_the_run_before(house: House) -> None:
    name = await house.apply("schedule: {after: PT0.3S}\ndo: [{rest: {wait: PT0.5S}}]")
    runs = [run for run in await at_least(house, name, 4) if run.end_time is not None]
    for before, following in pairwise(runs):
        assert before.end_time is not None and following.create_time is not None
        pause = (following.create_time - before.end_time).total_seconds()
        assert pause > 0.29, pause
    await end(house, name)


async def test_a_run_that_goes_on_leaves_the_next_time_out_when_asked_to(house: House) -> None:
    name = house.name("skips")
    body = "schedule: {every: PT1S}\ndo: [{rest: {wait: PT2.5S}}]"
    await house.flint.apply(named(name, body, "schedule: {overlap: skip}, level: 2"))
    runs = await at_least(house, name, 3)
    assert all(run.level == 2 for run in runs)
    for before, following in pairwise(runs):
        assert before.end_time is not None and following.create_time is not None
        assert before.end_time <= following.create_time
    await house.apply(NOTHING, name, "2.0.0")


async def test_the_level_of_the_definition_holds_where_a_start_names_none(house: House) -> None:
    name = house.name("urgent")
    await house.flint.apply(named(name, NOTHING, "level: 1"))
    run = await house.flint.start(name)
    assert (await house.flint.wait(run.id)).level == 1
    run = await house.flint.start(name, level=7)
    assert (await house.flint.wait(run.id)).level == 7
    with pytest.raises(InvalidArgument):
        await house.flint.apply(named(name, NOTHING, "level: 10", "2.0.0"))


def event(kind: str, number: int, **data: Any) -> dict[str, Any]:
    return {"type": kind, "source": "/tests/schedules", "id": f"{kind}-{number}", "data": data}


async def test_each_event_starts_a_run_once(house: House) -> None:
    filters = "{with: {type: com.example.placed, data: '${ .total > 10 }'}}"
    name = await house.apply(f"schedule: {{on: {{one: {filters}}}}}\n{ECHO}")
    events = [event("com.example.placed", number, total=number) for number in range(1, 31)]
    await house.flint.publish_events(events)
    await house.flint.publish_events(events)  # the same again
    runs = await at_least(house, name, 20)
    for run in runs:
        await house.flint.wait(run.id)
    await house.flint.publish_events([event("com.example.placed", 99, total=99)])
    runs = await at_least(house, name, 21)
    assert len(runs) == 21
    found = [(await house.flint.wait(run.id)).output["got"] for run in runs]
    assert sorted(data["total"] for (data,) in found) == [*range(11, 31), 99]
    schedule = await schedule_of(house, name)
    await end(house, name)
    await eventually(lambda: nothing_left(house, schedule))


async def test_sets_of_events_that_belong_together(house: House) -> None:
    correlate = "correlate: {order: {from: .data.order}}"
    filters = ", ".join(f"{{with: {{type: {kind}}}, {correlate}}}" for kind in ("com.example.a", "com.example.b"))
    name = await house.apply(f"schedule: {{on: {{all: [{filters}]}}}}\n{ECHO}")
    await house.flint.publish_events([event("com.example.a", n, order=n, of="a") for n in range(6)])
    await house.flint.publish_events([event("com.example.b", n, order=n, of="b") for n in (4, 2, 9, 0)])
    runs = await at_least(house, name, 3)
    found = [(await house.flint.wait(run.id)).output["got"] for run in runs]
    assert sorted(tuple(data["order"] for data in got) for got in found) == [(0, 0), (2, 2), (4, 4)]
    assert all([data["of"] for data in got] == ["a", "b"] for got in found)
    schedule = await schedule_of(house, name)
    await end(house, name)
    await eventually(lambda: nothing_left(house, schedule))


async def owner_of(house: House, name: str) -> str:
    found = await house.record.rows(
        "SELECT o.scheduler_id FROM schedule s JOIN shard_group g USING (group_id) JOIN owner_session o"
        " USING (session_id) WHERE s.workflow_id = :w AND o.ended_at IS NULL",
        w=name,
    )
    return str(found[0][0]) if found else ""


async def test_no_time_fires_twice_when_owners_die(house: House) -> None:
    """A kill loses moments only while nobody serves the group, and the latest of those is made up for.

    That none is lost where all are to be made up for is shown by test_each_time_has_one_run_whoever_dies.
    """
    name = await house.apply(f"schedule: {{every: PT1S}}\n{NOTHING}")
    kind = "com.example.through-kills"
    listener = await house.apply(f"schedule: {{on: {{any: [{{with: {{type: {kind}}}}}]}}}}\n{ECHO}")
    await at_least(house, name, 2)
    published = 0
    for _ in range(2):
        victim = await eventually(lambda: owner_of(house, name))
        before = len(await runs_of(house, name))
        await asyncio.gather(
            house.flint.publish_events([event(kind, published + n, n=published + n) for n in range(10)]),
            house.stack.kill(victim),
        )
        published += 10
        await at_least(house, name, before + 3)
        await house.stack.ready(victim, 120.0)  # the next one that dies has an heir
    runs = await at_least(house, listener, published)
    outputs = [(await house.flint.wait(run.id)).output["got"] for run in runs]
    assert sorted(data["n"] for (data,) in outputs) == list(range(published))
    await end(house, name)
    await end(house, listener)
    times = moments(await runs_of(house, name))
    assert len(times) == len(set(times)), "a moment fired twice"
    gaps = [(b - a).total_seconds() for a, b in pairwise(sorted(times))]
    assert all(gap == int(gap) for gap in gaps)
    assert max(gaps) < 60, gaps
