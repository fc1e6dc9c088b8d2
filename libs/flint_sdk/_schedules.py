"""`client.schedules`: schedules, calendars and backfills of the client's namespace."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from flint_contracts.gen.flint.schedules.v1 import schedules_pb2 as pb
from flint_sdk._control import own_id
from flint_sdk._errors import FieldViolation, InvalidArgument
from flint_sdk._messages import encode_json, timestamp
from flint_sdk._schedule_models import (
    Backfill,
    Calendar,
    Schedule,
    ScheduledTime,
    ScheduleSpec,
    backfill_from,
    calendar_from,
    rule_message,
    schedule_from,
    spec_message,
    times_from,
)
from flint_sdk._transport import Transport

if TYPE_CHECKING:
    from flint_sdk._sync import _LoopThread

__all__ = ["AsyncSchedules", "Schedules"]


class AsyncSchedules:
    """Calls take a schedule's id: its own, or `workflow.` and a workflow's id for the one of a definition.

    They raise ScheduleNotFound, ScheduleConflict, CalendarNotFound, CalendarInUse and InvalidArgument where they apply.
    """

    def __init__(self, transport: Transport, namespace: str) -> None:
        self._transport = transport
        self._namespace = namespace
        self._parent = f"namespaces/{namespace}"

    def _name(self, schedule: str) -> str:
        return schedule if schedule.startswith("namespaces/") else f"{self._parent}/schedules/{schedule}"

    async def create(
        self,
        schedule: str,
        workflow: str,
        spec: ScheduleSpec,
        *,
        input: Any = None,
        version: str = "",
        level: int | None = None,
        description: str = "",
        paused: bool = False,
    ) -> Schedule:
        """Creates a schedule for a workflow. The same content again answers it as it is."""
        message = _message("", workflow, spec, input, version, level, description)
        request = pb.CreateScheduleRequest(parent=self._parent, schedule_id=schedule, schedule=message, paused=paused)
        return schedule_from((await self._transport.call(lambda g: g.schedules.CreateSchedule, request)).schedule)

    async def update(
        self,
        schedule: str,
        workflow: str,
        spec: ScheduleSpec,
        *,
        input: Any = None,
        version: str = "",
        level: int | None = None,
        description: str = "",
        revision: int = 0,
    ) -> Schedule:
        """Replaces all that a schedule says; it goes on from now. `revision`: only if it still has this one."""
        message = _message(self._name(schedule), workflow, spec, input, version, level, description)
        request = pb.UpdateScheduleRequest(schedule=message, revision=revision)
        return schedule_from((await self._transport.call(lambda g: g.schedules.UpdateSchedule, request)).schedule)

    async def delete(self, schedule: str) -> None:
        """Ends a schedule and its backfills. Runs that it started go on."""
        request = pb.DeleteScheduleRequest(name=self._name(schedule))
        await self._transport.call(lambda g: g.schedules.DeleteSchedule, request)

    async def get(self, schedule: str) -> Schedule:
        """One schedule with its last runs and backfills."""
        request = pb.GetScheduleRequest(name=self._name(schedule))
        return schedule_from((await self._transport.call(lambda g: g.schedules.GetSchedule, request)).schedule)

    async def list(self, *, workflow: str = "", page_size: int = 0) -> AsyncIterator[Schedule]:
        """Schedules by id, those of definitions too. Fetches page by page."""
        request = pb.ListSchedulesRequest(parent=self._parent, workflow_id=workflow, page_size=page_size)
        while True:
            answer = await self._transport.call(lambda g: g.schedules.ListSchedules, request)
            for found in answer.schedules:
                yield schedule_from(found)
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    async def pause(self, schedule: str, note: str = "") -> Schedule:
        """Stops a schedule until it is resumed; backfills go on. Events that come meanwhile are dropped."""
        request = pb.PauseScheduleRequest(name=self._name(schedule), note=note)
        return schedule_from((await self._transport.call(lambda g: g.schedules.PauseSchedule, request)).schedule)

    async def resume(self, schedule: str) -> Schedule:
        """Lets a schedule go on from now."""
        request = pb.ResumeScheduleRequest(name=self._name(schedule))
        return schedule_from((await self._transport.call(lambda g: g.schedules.ResumeSchedule, request)).schedule)

    async def trigger(self, schedule: str, *, request_id: str = "") -> str:
        """Starts a run of the schedule now; answers its name. The same request_id again answers the same run."""
        request = pb.TriggerScheduleRequest(name=self._name(schedule), request_id=own_id(request_id))
        return (await self._transport.call(lambda g: g.schedules.TriggerSchedule, request)).run

    async def backfill(
        self, schedule: str, start_time: datetime, end_time: datetime, *, concurrency: int = 1, request_id: str = ""
    ) -> Backfill:
        """Starts the runs of the times from one moment to another, both included, that have none yet."""
        request = pb.BackfillScheduleRequest(
            name=self._name(schedule),
            start_time=timestamp(start_time),
            end_time=timestamp(end_time),
            concurrency=concurrency,
            request_id=own_id(request_id),
        )
        return backfill_from((await self._transport.call(lambda g: g.schedules.BackfillSchedule, request)).backfill)

    async def cancel_backfill(self, schedule: str, backfill: str) -> Backfill:
        """Ends a backfill; runs that it started go on."""
        request = pb.CancelBackfillRequest(name=f"{self._name(schedule)}/backfills/{backfill}")
        return backfill_from((await self._transport.call(lambda g: g.schedules.CancelBackfill, request)).backfill)

    async def preview(
        self,
        schedule: str = "",
        *,
        source: str = "",
        spec: ScheduleSpec | None = None,
        count: int = 10,
        start_time: datetime | None = None,
    ) -> Sequence[ScheduledTime]:
        """The next times of a schedule, of a definition (`source`) that was not applied, or of a `spec`."""
        request = pb.PreviewScheduleRequest(parent=self._parent, count=count, start_time=timestamp(start_time))
        if spec is not None:
            request.spec.CopyFrom(_spec(spec))
        elif source:
            request.source = source
        else:
            request.schedule_id = schedule
        return times_from(await self._transport.call(lambda g: g.schedules.PreviewSchedule, request))

    # Calendars

    async def put_calendar(self, calendar: str, rules: Iterable[Mapping[str, Any]], description: str = "") -> Calendar:
        """Creates or replaces a calendar; schedules that name it follow at once."""
        try:
            message = pb.Calendar(
                name=f"{self._parent}/calendars/{calendar}",
                description=description,
                rules=[rule_message(rule) for rule in rules],
            )
        except (TypeError, ValueError) as error:
            raise _invalid("rules", error) from error
        request = pb.PutCalendarRequest(calendar=message)
        return calendar_from((await self._transport.call(lambda g: g.schedules.PutCalendar, request)).calendar)

    async def get_calendar(self, calendar: str) -> Calendar:
        """One calendar with its rules."""
        request = pb.GetCalendarRequest(name=f"{self._parent}/calendars/{calendar}")
        return calendar_from((await self._transport.call(lambda g: g.schedules.GetCalendar, request)).calendar)

    async def list_calendars(self, *, page_size: int = 0) -> AsyncIterator[Calendar]:
        """Calendars by id, without rules. Fetches page by page."""
        request = pb.ListCalendarsRequest(parent=self._parent, page_size=page_size)
        while True:
            answer = await self._transport.call(lambda g: g.schedules.ListCalendars, request)
            for found in answer.calendars:
                yield calendar_from(found)
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    async def delete_calendar(self, calendar: str) -> None:
        """Deletes a calendar that no schedule names."""
        request = pb.DeleteCalendarRequest(name=f"{self._parent}/calendars/{calendar}")
        await self._transport.call(lambda g: g.schedules.DeleteCalendar, request)


class Schedules:
    """The same for the blocking client: every call of `AsyncSchedules`, with lists as iterators."""

    def __init__(self, thread: _LoopThread, schedules: AsyncSchedules) -> None:
        self._thread = thread
        self._schedules = schedules

    def create(self, schedule: str, workflow: str, spec: ScheduleSpec, **content: Any) -> Schedule:
        """Creates a schedule for a workflow; `content` as in `AsyncSchedules.create`."""
        return self._thread.run(self._schedules.create(schedule, workflow, spec, **content))

    def update(self, schedule: str, workflow: str, spec: ScheduleSpec, **content: Any) -> Schedule:
        """Replaces all that a schedule says; `content` as in `AsyncSchedules.update`."""
        return self._thread.run(self._schedules.update(schedule, workflow, spec, **content))

    def delete(self, schedule: str) -> None:
        """Ends a schedule and its backfills."""
        self._thread.run(self._schedules.delete(schedule))

    def get(self, schedule: str) -> Schedule:
        """One schedule with its last runs and backfills."""
        return self._thread.run(self._schedules.get(schedule))

    def list(self, *, workflow: str = "", page_size: int = 0) -> Iterator[Schedule]:
        """Schedules by id, those of definitions too."""
        return self._thread.iterate(self._schedules.list(workflow=workflow, page_size=page_size))

    def pause(self, schedule: str, note: str = "") -> Schedule:
        """Stops a schedule until it is resumed."""
        return self._thread.run(self._schedules.pause(schedule, note))

    def resume(self, schedule: str) -> Schedule:
        """Lets a schedule go on from now."""
        return self._thread.run(self._schedules.resume(schedule))

    def trigger(self, schedule: str, *, request_id: str = "") -> str:
        """Starts a run of the schedule now; answers its name."""
        return self._thread.run(self._schedules.trigger(schedule, request_id=request_id))

    def backfill(
        self, schedule: str, start_time: datetime, end_time: datetime, *, concurrency: int = 1, request_id: str = ""
    ) -> Backfill:
        """Starts the runs of past times that have none yet."""
        return self._thread.run(
            self._schedules.backfill(schedule, start_time, end_time, concurrency=concurrency, request_id=request_id)
        )

    def cancel_backfill(self, schedule: str, backfill: str) -> Backfill:
        """Ends a backfill."""
        return self._thread.run(self._schedules.cancel_backfill(schedule, backfill))

    def preview(self, schedule: str = "", **of: Any) -> Sequence[ScheduledTime]:
        """The next times; `of` as in `AsyncSchedules.preview`."""
        return self._thread.run(self._schedules.preview(schedule, **of))

    def put_calendar(self, calendar: str, rules: Iterable[Mapping[str, Any]], description: str = "") -> Calendar:
        """Creates or replaces a calendar."""
        return self._thread.run(self._schedules.put_calendar(calendar, rules, description))

    def get_calendar(self, calendar: str) -> Calendar:
        """One calendar with its rules."""
        return self._thread.run(self._schedules.get_calendar(calendar))

    def list_calendars(self, *, page_size: int = 0) -> Iterator[Calendar]:
        """Calendars by id, without rules."""
        return self._thread.iterate(self._schedules.list_calendars(page_size=page_size))

    def delete_calendar(self, calendar: str) -> None:
        """Deletes a calendar that no schedule names."""
        self._thread.run(self._schedules.delete_calendar(calendar))


def _message(
    name: str, workflow: str, spec: ScheduleSpec, input: Any, version: str, level: int | None, description: str
) -> pb.Schedule:
    try:
        payload = b"" if input is None else encode_json(input)
    except TypeError as error:
        raise _invalid("input", error) from error
    return pb.Schedule(
        name=name,
        workflow_id=workflow,
        version=version,
        spec=_spec(spec),
        input=payload,
        level=level,
        description=description,
    )


def _spec(spec: ScheduleSpec) -> pb.ScheduleSpec:
    try:
        return spec_message(spec)
    except (TypeError, ValueError) as error:
        raise _invalid("spec", error) from error


def _invalid(field: str, error: Exception) -> InvalidArgument:
    return InvalidArgument(f"{field}: {error}", violations=[FieldViolation(field, str(error))])
