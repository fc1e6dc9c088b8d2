"""kill -9 of the owners of schedules while one of every 200 ms fires and a backfill runs: each time has one run."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flint_sdk import AsyncFlint, Backfill, BackfillState, Schedule, ScheduleSpec
from support.record_reader import Record
from support.stack import RunningStack, eventually, running_stack

pytestmark = pytest.mark.robustness

NOTHING = "document: {dsl: 1.0.3, namespace: default, name: %s, version: 1.0.0}\ndo: [{nothing: {set: {}}}]"
STEP = timedelta(milliseconds=200)
BEHIND = 200
KILLS = 3


async def owner_of(record: Record, schedule: str) -> str:
    """The scheduler that serves a schedule; empty while there is none."""
    found = await record.rows(
        "SELECT o.scheduler_id FROM schedule s JOIN shard_group g USING (group_id) JOIN owner_session o"
        " USING (session_id) WHERE s.workflow_id = :w AND o.ended_at IS NULL",
        w=f"@{schedule}",
    )
    return str(found[0][0]) if found else ""


async def times_of(flint: AsyncFlint, workflow: str) -> Counter[datetime]:
    runs = [run async for run in flint.list_runs(workflow=workflow, page_size=500)]
    return Counter(run.schedule_time for run in runs if run.schedule_time is not None)


async def fires_through_kills(stack: RunningStack, flint: AsyncFlint, record: Record) -> None:
    for name in ("live", "past"):
        await flint.apply(NOTHING % name)
    window = timedelta(minutes=10)
    live = await flint.schedules.create(
        "live", "live", ScheduleSpec(every="PT0.2S", catch_up="all", catch_up_window=window)
    )
    end = datetime.now(UTC).replace(second=0, microsecond=0)
    begin = end - timedelta(minutes=BEHIND - 1)
    await flint.schedules.create("past", "past", ScheduleSpec(cron="* * * * *"), paused=True)
    filling = await flint.schedules.backfill("past", begin, end, concurrency=3)

    async def started(least: int) -> Schedule | None:
        found = await flint.schedules.get("live")
        return found if found.started >= least else None

    async def some_filled(least: int) -> Backfill | None:
        (found,) = (await flint.schedules.get("past")).backfills
        return found if found.started >= least or found.state is BackfillState.DONE else None

    for kill in range(1, KILLS + 1):
        before = await eventually(lambda kill=kill: started(15 * kill), 60.0, interval_s=0.1)
        await eventually(lambda kill=kill: some_filled(5 * kill), 60.0, interval_s=0.1)
        victim = await eventually(lambda kill=kill: owner_of(record, "live" if kill % 2 else "past"))
        await stack.kill(victim)
        await eventually(lambda before=before: started(before.started + 15), 90.0, interval_s=0.2)

    async def filled() -> Backfill | None:
        (found,) = (await flint.schedules.get("past")).backfills
        return found if found.id == filling.id and found.state is BackfillState.DONE else None

    done = await eventually(filled, 120.0, interval_s=0.2)
    paused = await flint.schedules.pause("live", "the test has seen enough")
    moments, past = await asyncio.gather(times_of(flint, "live"), times_of(flint, "past"))
    # Each time exactly one run, and none left out.
    assert set(moments.values()) == {1}
    assert live.create_time is not None
    first, last = min(moments), max(moments)
    assert round((first - live.create_time) / STEP, 2) == 1
    assert len(moments) == round((last - first) / STEP) + 1, "a time is missing"
    assert paused.missed == 0
    # What was being stored when it was paused has a run and is not counted.
    assert len(moments) - 200 <= paused.started <= len(moments)
    assert past == Counter(begin + n * timedelta(minutes=1) for n in range(BEHIND))
    assert (done.total, done.started, done.present, done.running) == (BEHIND, BEHIND, 0, 0)
    assert done.succeeded == BEHIND


async def test_each_time_has_one_run_whoever_dies(tmp_path: Path) -> None:
    async with running_stack(tmp_path) as stack:
        record = Record(stack.settings.postgres)
        flint = AsyncFlint(address=stack.gateway, key=stack.admin_key)
        try:
            await fires_through_kills(stack, flint, record)
        finally:
            await flint.close()
            await record.close()
