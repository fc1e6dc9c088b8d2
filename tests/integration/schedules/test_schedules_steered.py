"""Schedules that are objects: created, previewed, paused, triggered, backfilled; overlaps, calendars, limits."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from flint_sdk import (
    Backfill,
    BackfillState,
    CalendarInUse,
    CalendarNotFound,
    FlintError,
    InvalidArgument,
    Run,
    RunEnded,
    Schedule,
    ScheduleConflict,
    ScheduleNotFound,
    ScheduleSpec,
    ScheduleState,
    WorkflowNotFound,
)
from support.house import House, definition
from support.stack import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

NOTHING = "do: [{nothing: {set: {}}}]"
REST = "do: [{rest: {wait: PT30S}}]"


async def runs_of(house: House, name: str) -> list[Run]:
    return [run async for run in house.flint.list_runs(workflow=name)][::-1]


async def end_all(house: House, name: str) -> None:
    for run in await runs_of(house, name):
        if run.end_time is None:
            with contextlib.suppress(RunEnded):  # by itself, or because its schedule had asked for it
                await house.flint.cancel(run.id)


async def until(house: House, schedule: str, wanted: Any) -> Schedule:
    async def found() -> Schedule | None:
        schedule_now = await house.flint.schedules.get(schedule)
        return schedule_now if wanted(schedule_now) else None

    return await eventually(found, 60.0, interval_s=0.1)


async def done(house: House, schedule: str, backfill: Backfill) -> Backfill:
    found = await until(
        house, schedule, lambda s: any(b.id == backfill.id and b.state is BackfillState.DONE for b in s.backfills)
    )
    return next(b for b in found.backfills if b.id == backfill.id)


async def test_an_object_starts_a_workflow_with_its_input(house: House) -> None:
    schedules = house.flint.schedules
    name = await house.apply("do: [{echo: {set: '${ {got: .who} }'}}]")
    spec = ScheduleSpec(every="PT0.2S", timezone="Europe/Berlin", max_runs=5, catch_up="all")
    created = await schedules.create("greets", name, spec, input={"who": "Ada"}, level=3, description="says hello")
    again = await schedules.create("greets", name, spec, input={"who": "Ada"}, level=3, description="says hello")
    assert again.create_time == created.create_time
    with pytest.raises(ScheduleConflict):
        await schedules.create("greets", name, spec, input={"who": "Bob"})
    ended = await until(house, "greets", lambda s: s.state is ScheduleState.ENDED)
    assert (ended.started, ended.next_time, ended.level, ended.input) == (5, None, 3, {"who": "Ada"})
    runs = await runs_of(house, name)
    assert [r.run.rpartition("/")[2] for r in reversed(ended.runs)] == [run.id for run in runs]
    assert created.create_time is not None
    for number, run in enumerate(runs, 1):
        finished = await house.flint.wait(run.id)
        assert finished.output == {"got": "Ada"} and finished.level == 3
        assert run.schedule_time is not None
        assert round((run.schedule_time - created.create_time) / timedelta(milliseconds=1)) == 200 * number
    # Another spec: it goes on from now, under the same name and with its counters.
    with pytest.raises(ScheduleConflict):
        await schedules.update("greets", name, ScheduleSpec(every="PT1H"), revision=ended.revision + 1)
    updated = await schedules.update("greets", name, ScheduleSpec(every="PT1H"), revision=ended.revision)
    assert (updated.state, updated.started, updated.input) == (ScheduleState.ACTIVE, 5, {})
    await schedules.delete("greets")
    with pytest.raises(ScheduleNotFound):
        await schedules.get("greets")


async def test_pause_resume_trigger_and_list(house: House) -> None:
    schedules = house.flint.schedules
    name = await house.apply(f"schedule: {{every: PT0.2S}}\n{NOTHING}")
    own = f"workflow.{name}"
    await schedules.create("nightly", name, ScheduleSpec(cron="0 3 * * *"), paused=True)
    await until(house, own, lambda s: s.started >= 2)
    paused = await schedules.pause(own, "the bank is closed")
    assert (paused.state, paused.pause_note, paused.from_definition) == ("PAUSED", "the bank is closed", True)
    assert paused.paused_by and paused.next_time is None
    run = await schedules.trigger(own, request_id="by hand")
    assert await schedules.trigger(own, request_id="by hand") == run != await schedules.trigger(own)
    # A newer version stays paused; nothing fires while it is.
    await house.apply(f"schedule: {{every: PT0.3S}}\n{NOTHING}", name, "1.1.0")
    still = await schedules.get(own)
    assert (still.state, still.pause_note, still.started) == ("PAUSED", "the bank is closed", 0)
    listed = [s.id async for s in schedules.list(workflow=name, page_size=1)]
    assert listed == ["nightly", own]
    assert (await schedules.resume(own)).state is ScheduleState.ACTIVE
    await until(house, own, lambda s: s.started >= 2)
    with pytest.raises(InvalidArgument):
        await schedules.delete(own)
    with pytest.raises(ScheduleNotFound):
        await schedules.trigger("no-such")
    await schedules.delete("nightly")
    await house.apply(NOTHING, name, "2.0.0")
    with pytest.raises(ScheduleNotFound):
        await schedules.get(own)


async def test_preview_of_what_is_there_and_of_what_is_not(house: House) -> None:
    schedules = house.flint.schedules
    start = datetime(2026, 3, 27, 12, tzinfo=UTC)
    spec = ScheduleSpec(cron="30 2 * * *", timezone="Europe/Berlin")
    times = await schedules.preview(spec=spec, count=3, start_time=start)
    # 02:30 of the 29th is left out by the change of the clock: 03:00.
    assert [t.time.isoformat() for t in times] == [
        "2026-03-28T01:30:00+00:00",
        "2026-03-29T01:00:00+00:00",
        "2026-03-30T00:30:00+00:00",
    ]
    hints = "metadata: {flint: {schedule: {jitter: PT1M, exclude: [{weekdays: [sat, sun]}]}}}"
    head = f"document: {{dsl: 1.0.3, namespace: default, name: previewed, version: 1.0.0, {hints}}}"
    source = f"{head}\nschedule: {{cron: '0 12 * * *'}}\n{NOTHING}"
    times = await schedules.preview(source=source, count=3, start_time=start)
    assert [t.time.isoformat()[:10] for t in times] == ["2026-03-30", "2026-03-31", "2026-04-01"]
    assert all(timedelta() <= t.run_time - t.time < timedelta(minutes=1) for t in times)
    with pytest.raises(WorkflowNotFound):
        await house.flint.get_workflow("previewed")
    far = await schedules.preview(spec=ScheduleSpec(cron="0 0 29 2 *"), count=1000, start_time=start)
    assert [t.time.year for t in far[:3]] == [2028, 2032, 2036] and len(far) < 30
    with pytest.raises(InvalidArgument) as refused:
        await schedules.preview(spec=ScheduleSpec(cron="61 * * * *", overlap="skip", jitter=timedelta(days=3)))
    assert {v.field for v in refused.value.violations} == {"spec.cron", "spec.jitter"}


async def test_a_calendar_leaves_times_out(house: House) -> None:
    schedules = house.flint.schedules
    name = await house.apply(NOTHING)
    days = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
    with pytest.raises(CalendarNotFound):
        await schedules.create("shut", name, ScheduleSpec(every="PT0.2S", calendars=["closed"]))
    stored = await schedules.put_calendar("closed", [{"weekdays": days}], "always")
    assert [c.id async for c in schedules.list_calendars()] == ["closed"] and stored.rules == ({"weekdays": days},)
    await schedules.create("shut", name, ScheduleSpec(every="PT0.2S", calendars=["closed"]))
    with pytest.raises(CalendarInUse):
        await schedules.delete_calendar("closed")
    shut = await until(house, "shut", lambda s: s.excluded >= 3)
    assert shut.started == 0 and await schedules.preview("shut", count=2) == []
    # The calendar changes: the schedule follows.
    await schedules.put_calendar("closed", [{"dates": ["2001-01-01"]}])
    await until(house, "shut", lambda s: s.started >= 2)
    await schedules.delete("shut")
    await schedules.delete_calendar("closed")
    with pytest.raises(CalendarNotFound):
        await schedules.get_calendar("closed")
    with pytest.raises(InvalidArgument):
        await schedules.put_calendar("wrong", [{"holidays": {"country": "ZZ"}}])
    with pytest.raises(CalendarNotFound):
        await house.flint.apply(
            definition(f"schedule: {{every: PT1H}}\n{NOTHING}", "names-none").replace(
                "version: 1.0.0", "version: 1.0.0, metadata: {flint: {schedule: {exclude: [no-such]}}}"
            )
        )


async def test_overlaps(house: House) -> None:
    """Times of every 200 ms meet a run that rests for 30 s."""
    schedules = house.flint.schedules
    name = await house.apply(REST)
    policies = ("skip", "buffer", "cancel", "terminate")
    for policy in policies:
        await schedules.create(f"over-{policy}", name, ScheduleSpec(every="PT0.2S", overlap=policy))
    skips = await until(house, "over-skip", lambda s: s.skipped >= 3)
    assert (skips.started, skips.buffered_time) == (1, None)
    buffers = await until(house, "over-buffer", lambda s: s.skipped >= 3)
    assert buffers.started == 1 and buffers.buffered_time is not None
    waiting = buffers.buffered_time
    await house.flint.cancel(buffers.runs[0].run)
    followed = await until(house, "over-buffer", lambda s: s.started == 2)
    assert followed.runs[0].schedule_time == waiting
    for policy in ("cancel", "terminate"):
        stops = await until(house, f"over-{policy}", lambda s: s.started >= 3)
        assert [r.state for r in stops.runs].count("RUNNING") + [r.state for r in stops.runs].count("WAITING") <= 1
        assert all(r.state == "CANCELLED" for r in stops.runs[1:]), stops.runs
    for policy in policies:
        await schedules.delete(f"over-{policy}")
    await end_all(house, name)


async def test_a_backfill_fills_in_what_has_no_run(house: House) -> None:
    schedules = house.flint.schedules
    name = await house.apply(NOTHING)
    rests = await house.apply(REST)
    end = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    begin = end - timedelta(hours=10)
    await schedules.create("hourly", name, ScheduleSpec(cron="0 * * * *"))
    some = await schedules.backfill("hourly", begin, begin + timedelta(hours=3), concurrency=2, request_id="first")
    first = await done(house, "hourly", some)
    assert (first.total, first.started, first.present, first.succeeded, first.running) == (4, 4, 0, 4, 0)
    again = await schedules.backfill("hourly", begin, begin + timedelta(hours=3), concurrency=2, request_id="first")
    assert again.id == some.id
    with pytest.raises(ScheduleConflict):
        await schedules.backfill("hourly", begin, end, request_id="first")
    rest = await done(house, "hourly", await schedules.backfill("hourly", begin, end, concurrency=100))
    assert (rest.total, rest.started, rest.present) == (11, 7, 4)
    runs = await runs_of(house, name)
    assert sorted(run.schedule_time for run in runs if run.schedule_time) == [
        begin + timedelta(hours=n) for n in range(11)
    ]
    # At most as many at once as asked for, and it can be ended.
    await schedules.create("slow", rests, ScheduleSpec(every="PT1H"))
    slow = await schedules.backfill("slow", begin, end, concurrency=3)
    full = await until(house, "slow", lambda s: s.backfills[0].running == 3)
    assert full.backfills[0].started == 3 and full.started == 0
    await house.flint.cancel(full.runs[0].run)
    more = await until(house, "slow", lambda s: s.backfills[0].started == 4 and s.backfills[0].running == 3)
    assert more.backfills[0].failed == 1
    cancelled = await schedules.cancel_backfill("slow", slow.id)
    assert cancelled.state is BackfillState.CANCELLED
    for bad in ({"start_time": end, "end_time": begin}, {"start_time": begin, "end_time": end + timedelta(days=9)}):
        with pytest.raises(InvalidArgument):
            await schedules.backfill("slow", **bad)
    await end_all(house, rests)
    for schedule in ("slow", "hourly"):
        await schedules.delete(schedule)
    assert await house.record.number("SELECT count(*) FROM schedule_backfill") == 0


async def test_a_role_that_may_only_look(house: House) -> None:
    key = await house.flint.create_key("looks", "viewer")
    name = await house.apply(NOTHING)
    stubs = house.as_key(key.secret)
    from flint_contracts.gen.flint.schedules.v1 import schedules_pb2 as pb
    from flint_contracts.gen.flint.schedules.v1.schedules_pb2_grpc import ScheduleServiceStub
    from support.house import refusal

    service: Any = ScheduleServiceStub(stubs.channel)
    request = pb.CreateScheduleRequest(
        parent="namespaces/default", schedule_id="x", schedule=pb.Schedule(workflow_id=name, spec={"every": "PT1H"})
    )
    refused: FlintError = await refusal(service.CreateSchedule(request, metadata=stubs.metadata))
    assert "operator" in str(refused)
    await service.ListSchedules(pb.ListSchedulesRequest(parent="namespaces/default"), metadata=stubs.metadata)
