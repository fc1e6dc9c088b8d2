"""Schedules in the record: in force with the latest version, due by the sweep, moved on once, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import orjson
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_core.ids import group_of_run
from flint_core.schedule import Schedule
from flint_store.awaits import NewMessage, put_messages
from flint_store.fence import OwnerSession
from flint_store.ownership import begin_session, take_groups
from flint_store.schedule_mail import claim, consume, delete_unowned, drop_mail, miss, read_claimed, read_mail
from flint_store.schedule_names import request_by_events, request_by_time, request_by_trigger, schedule_of, scheduled_at
from flint_store.schedule_objects import pause_schedule, read_schedule, resume_schedule
from flint_store.schedules import (
    AWAIT_KEY,
    Advance,
    ScheduleRow,
    advance,
    group_of_workflow,
    read_schedules,
    spec_of,
)
from flint_store.sweep import Sweep, sweep
from flint_store.workflows import delete_version, list_workflows, put_version, read_version
from support.record import GROUPS, RUNNING, SUCCEEDED, add_runs, moment, new_version


@pytest.fixture
async def session(engine: AsyncEngine) -> OwnerSession:
    started = await begin_session(engine, "s1", "127.0.0.1:1")
    await take_groups(engine, started, range(GROUPS))
    return started


async def put(engine: AsyncEngine, version: str = "1.0.0", workflow: str = "orders", **schedule: Any) -> None:
    spec = orjson.dumps({**schedule, "timezone": "Europe/Berlin"}) if schedule else None
    await put_version(engine, replace(new_version(workflow, version), schedule=spec))


async def in_force(engine: AsyncEngine, workflow: str = "orders") -> ScheduleRow | None:
    async with engine.connect() as connection:
        found = await connection.execute(
            text("SELECT schedule_id FROM schedule WHERE workflow_id = :w"), {"w": workflow}
        )
        ids = [row.schedule_id.bytes for row in found]
        rows = await read_schedules(connection, ids)
    return rows[0] if rows else None


async def found_by_sweep(engine: AsyncEngine, session: OwnerSession, horizon_s: float = 10.0) -> Sweep:
    async with engine.connect() as connection:
        return await sweep(connection, session, range(GROUPS), horizon_s, 100)


async def test_the_schedule_of_the_latest_version_is_in_force(engine: AsyncEngine, session: OwnerSession) -> None:
    await put(engine, "1.0.0", every="PT90S")
    first = await in_force(engine)
    assert first is not None and first.schedule == Schedule(every="PT90S") and first.version == "1.0.0"
    assert first.next_ms == first.since_ms + 90_000
    assert first.group == group_of_run(first.schedule_id, GROUPS) == group_of_workflow("default", "orders", GROUPS)
    await put(engine, "1.0.0", every="PT90S")  # the same again
    await put(engine, "0.9.0", cron="@daily")  # an older one
    assert await in_force(engine) == first
    assert (await found_by_sweep(engine, session, 100.0)).schedules == [(first.schedule_id, first.next_ms)]
    assert (await found_by_sweep(engine, session, 1.0)).schedules == []
    await put(engine, "1.1.0", cron="0 3 * * *")
    second = await in_force(engine)
    assert second is not None and second.schedule_id != first.schedule_id and second.version == "1.1.0"
    assert second.next_ms is not None and second.next_ms % 86_400_000 in (3_600_000, 7_200_000)  # 03:00 in Berlin
    await put(engine, "2.0.0")
    assert await in_force(engine) is None
    await delete_version(engine, "default", "orders", "2.0.0")
    third = await in_force(engine)
    assert third is not None and third.version == "1.1.0"
    read = await read_version(engine, "default", "orders")
    assert read is not None and read.scheduled and read.next_start_time.ToMilliseconds() == third.next_ms
    older = await read_version(engine, "default", "orders", "1.0.0")
    assert older is not None and not older.scheduled and not older.HasField("next_start_time")
    (listed,) = await list_workflows(engine, "default", limit=10)
    assert listed.scheduled
    for version in ("1.1.0", "1.0.0", "0.9.0"):
        await delete_version(engine, "default", "orders", version)
    assert await in_force(engine) is None


async def test_applies_at_the_same_time_leave_the_latest_in_force(engine: AsyncEngine) -> None:
    versions = [f"1.{minor}.0" for minor in range(8)]
    await asyncio.gather(*[put(engine, version, every=f"PT{60 + n}S") for n, version in enumerate(versions)])
    row = await in_force(engine)
    assert row is not None and row.version == "1.7.0" and row.schedule.every == "PT67S"


async def test_a_step_is_made_once(engine: AsyncEngine) -> None:
    await put(engine, every="PT5S")
    row = await in_force(engine)
    assert row is not None and row.next_ms is not None
    runs = await add_runs(engine, [{"definition_id": row.definition_id}] * 2)
    async with engine.connect() as connection:
        step = Advance(row, row.next_ms + 5_000, fired_ms=row.next_ms, run_id=runs[0], started=1)
        assert await advance(connection, [step]) == {row.schedule_id}
        # Of an owner before.
        late = replace(step, next_ms=row.next_ms + 60_000, run_id=runs[1])
        assert await advance(connection, [late]) == set()
        moved = await in_force(engine)
        assert moved is not None
        assert (moved.next_ms, moved.last_run_id, moved.last_state) == (row.next_ms + 5_000, runs[0], 1)
        # Somebody changed the schedule meanwhile: only the run is noted, and once.
        await connection.execute(text("UPDATE schedule SET revision = revision + 1, next_fire_at = NULL"))
        step = Advance(moved, row.next_ms + 10_000, fired_ms=moved.next_ms, run_id=runs[1], started=1)
        for _ in range(2):
            assert await advance(connection, [step]) == set()
    changed = await in_force(engine)
    assert changed is not None
    assert (changed.next_ms, changed.last_run_id, changed.started) == (None, runs[1], 2)


async def test_after_waits_for_the_end_of_its_run(engine: AsyncEngine, session: OwnerSession) -> None:
    await put(engine, after="PT5S")
    row = await in_force(engine)
    assert row is not None and row.next_ms == row.since_ms + 5_000
    common = {"definition_id": row.definition_id, "ended_at": moment(1_760_000_000_000)}
    going, ended = await add_runs(
        engine, [{"definition_id": row.definition_id, "state": RUNNING}, common | {"state": SUCCEEDED}]
    )
    async with engine.connect() as connection:
        await advance(connection, [Advance(row, None, fired_ms=row.next_ms, run_id=going)])
        assert (await found_by_sweep(engine, session)).schedules == []
        await connection.execute(text("UPDATE schedule SET last_run_id = CAST(:r AS uuid)"), {"r": ended.hex()})
    assert (await found_by_sweep(engine, session)).schedules == [(row.schedule_id, 1_760_000_000_000)]
    waiting = await in_force(engine)
    assert waiting is not None and waiting.next_ms is None and waiting.last_ended_ms == 1_760_000_000_000


async def test_a_time_that_waits_is_found_once_nothing_runs(engine: AsyncEngine, session: OwnerSession) -> None:
    await put(engine, every="PT5S")
    row = await in_force(engine)
    assert row is not None and row.next_ms is not None
    ended_ms = 1_760_000_000_000
    going, ended = await add_runs(
        engine,
        [
            {"definition_id": row.definition_id, "state": RUNNING},
            {"definition_id": row.definition_id, "state": SUCCEEDED, "ended_at": moment(ended_ms)},
        ],
    )
    async with engine.connect() as connection:
        # Claimed by an owner that died before it started it; there is nothing else for which to look at it.
        assert await advance(connection, [Advance(row, None, held_ms=row.next_ms)]) == {row.schedule_id}
        assert (await found_by_sweep(engine, session)).schedules == [(row.schedule_id, row.next_ms)]
        for run, found in ((going, []), (ended, [(row.schedule_id, ended_ms)])):
            await connection.execute(text("UPDATE schedule SET last_run_id = CAST(:r AS uuid)"), {"r": run.hex()})
            assert (await found_by_sweep(engine, session)).schedules == found


async def test_events_are_claimed_and_consumed_once(engine: AsyncEngine, session: OwnerSession) -> None:
    await put(engine, on={"all": [{"with": {"type": "a"}}, {"with": {"type": "b"}}]})
    row = await in_force(engine)
    assert row is not None and row.next_ms is None
    found = await found_by_sweep(engine, session)
    assert found.awaits == [row.schedule_id] and not found.schedules
    (run,) = await add_runs(engine, [{"definition_id": row.definition_id}])
    keys = [f"event/{n}/{AWAIT_KEY}" for n in range(3)]
    async with engine.connect() as connection:
        messages = [NewMessage(row.schedule_id, key, AWAIT_KEY, b'{"type":"a"}') for key in keys]
        (target,) = await put_messages(connection, messages)
        assert target.group == row.group
        assert [m.key for m in await read_mail(connection, row.schedule_id, 2)] == keys[:2]
        assert await claim(connection, row.schedule_id, keys[:2])
        assert not await claim(connection, row.schedule_id, keys[1:])
        assert {m.key for m in await read_claimed(connection, row.schedule_id, keys[:2])} == set(keys[:2])
        await consume(connection, row.schedule_id, [keys[2]], run)  # of another claim: it leaves this one alone
        claimed = await in_force(engine)
        assert claimed is not None and claimed.claimed == tuple(keys[:2])
        await consume(connection, row.schedule_id, keys[:2], run)
        assert await read_mail(connection, row.schedule_id, 10) == []
        consumed = await in_force(engine)
        assert consumed is not None and not consumed.claimed and consumed.consumed == set(keys[:2])
        assert consumed.last_run_id == run
        await put_messages(connection, [NewMessage(row.schedule_id, "event/9/x", AWAIT_KEY, b"{}")])
        await drop_mail(connection, row.schedule_id, ["event/9/x"])
        assert await read_mail(connection, row.schedule_id, 10) == []


async def test_events_of_a_pause_are_told_by_their_numbers(engine: AsyncEngine) -> None:
    own = "workflow.orders"
    await put(engine, on={"any": [{"with": {"type": "a"}}]})

    async def store(number: int) -> None:
        async with engine.connect() as connection:
            seq = (await connection.execute(text("SELECT nextval('event_seq_seq')"))).scalar_one()
        assert seq == number

    async def come(*numbers: int) -> dict[int, bool]:
        """These arrive now; what is in the inbox, and whether it was missed."""
        row = await in_force(engine)
        assert row is not None
        async with engine.connect() as connection:
            messages = [NewMessage(row.schedule_id, f"event/{n}/{AWAIT_KEY}", AWAIT_KEY, b"{}") for n in numbers]
            await put_messages(connection, messages)
            return {int(m.key.split("/")[1]): m.missed for m in await read_mail(connection, row.schedule_id, 10)}

    await pause_schedule(engine, "default", own, "before the first event", "me")
    await store(1)
    assert await come(1) == {1: True}
    await resume_schedule(engine, "default", own)
    await store(2)
    assert await come(2) == {1: True, 2: False}
    await pause_schedule(engine, "default", own, "", "me")
    await store(3)
    await pause_schedule(engine, "default", own, "again", "me")
    assert await come(3) == {1: False, 2: False, 3: True}  # what was left of a pause before is not known to be of it
    await store(4)
    await put(engine, "2.0.0", on={"any": [{"with": {"type": "a"}}]})
    assert await come(2, 4) == {2: True, 4: True}  # what was before the pause was for the version before
    await resume_schedule(engine, "default", own)
    await store(5)
    assert await come(3, 5) == {2: True, 3: True, 4: True, 5: False}
    row = await in_force(engine)
    assert row is not None
    async with engine.connect() as connection:
        keys = [f"event/{n}/{AWAIT_KEY}" for n in (3, 4)]
        await miss(connection, row.schedule_id, keys)
        await miss(connection, row.schedule_id, keys)
    assert await come() == {2: True, 5: False}
    assert (await read_schedule(engine, "default", own)).missed == 2


async def test_the_end_of_a_schedule_by_events_asks_for_the_end_of_its_subscriptions(
    engine: AsyncEngine, session: OwnerSession
) -> None:
    await put(engine, on={"one": {"with": {"type": "a"}}})
    row = await in_force(engine)
    assert row is not None
    async with engine.connect() as connection:
        await put_messages(connection, [NewMessage(row.schedule_id, "k", AWAIT_KEY, b"{}")])
        await put(engine, "2.0.0", on={"any": []})
        following = await in_force(engine)
        assert following is not None
        rows = await connection.execute(text("SELECT run_id, closed, served FROM run_await"))
        closed = {r.run_id.bytes: (r.closed, r.served) for r in rows}
        assert closed == {row.schedule_id: (True, False), following.schedule_id: (False, False)}
        assert await read_mail(connection, row.schedule_id, 10) == []
        assert await put_messages(connection, [NewMessage(row.schedule_id, "k", AWAIT_KEY, b"{}")]) == []
        # What was on its way when it ended.
        insert = (
            "INSERT INTO inbox (run_id, key, group_id, kind, await_key) VALUES (CAST(:r AS uuid), 'k', 0, 'm', 'k')"
        )
        (run,) = await add_runs(engine, [{"definition_id": row.definition_id}])
        ids = [row.schedule_id, following.schedule_id, run]
        for run_id in ids:
            await connection.execute(text(insert), {"r": run_id.hex()})
        await delete_unowned(connection, ids)
        left = await connection.execute(text("SELECT run_id FROM inbox"))
        assert {r.run_id.bytes for r in left} == {following.schedule_id, run}


async def test_what_a_program_says(engine: AsyncEngine) -> None:
    program = orjson.dumps({"schedule": {"every": "PT1S"}, "timezone": "Europe/Berlin", "level": 3})
    schedule, level = spec_of(program)
    assert schedule is not None and orjson.loads(schedule) == {"every": "PT1S", "timezone": "Europe/Berlin"}
    assert level == 3
    assert spec_of(b"{}") == spec_of(b"no program") == spec_of(b"[]") == (None, None)


def test_request_ids_tell_what_they_are_for() -> None:
    schedule_id = bytes.fromhex("0199000000007000800000000000abcd")
    by_time = request_by_time("after", schedule_id, 1_760_000_000_500)
    assert by_time.startswith("~") and len(by_time) <= 128
    assert schedule_of(by_time) == schedule_id and scheduled_at(by_time) == moment(1_760_000_000_500)
    by_events = request_by_events(schedule_id, ["a", "b"])
    assert by_events != request_by_events(schedule_id, ["a"]) and scheduled_at(by_events) is None
    assert schedule_of(by_events) is None and schedule_of("mine") is None
    assert schedule_of(request_by_time("every", schedule_id, 5)) == schedule_id
    by_hand = request_by_trigger(schedule_id, "a/b")
    assert schedule_of(by_hand) is None and scheduled_at(by_hand) is None
