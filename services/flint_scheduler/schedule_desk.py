"""ScheduleStoreService: what gateways ask of a scheduler about schedules, calendars and backfills. Any replica answers.

What changes a schedule is committed here; its owner is nudged and goes by the row.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from itertools import islice, pairwise
from typing import Any, Final

import grpc
import orjson
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_bus import Bus
from flint_bus.subjects import owner_subject
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_contracts.gen.flint.schedules.v1 import schedules_pb2
from flint_contracts.gen.flint.scheduling.v1 import schedules_pb2 as pb
from flint_contracts.gen.flint.scheduling.v1 import schedules_pb2_grpc
from flint_core.calendars import Calendar
from flint_core.ids import run_id_text
from flint_core.schedule import Schedule, jittered, local_moment, past_fires, upcoming
from flint_ops.config import Settings
from flint_rpc.errors import ErrorReason, Refused, component_unavailable, field_invalid
from flint_scheduler.accept import Acceptor
from flint_scheduler.clock import RecordClock
from flint_scheduler.lane import LaneClosed
from flint_scheduler.record import Record, RecordUnavailable
from flint_scheduler.refusals import store_refusals
from flint_scheduler.schedule_starts import ScheduleStarts, StartImpossible
from flint_store import schedule_backfills as backfills
from flint_store import schedule_calendars as calendars
from flint_store import schedule_objects as store
from flint_store.errors import ScheduleConflict, ScheduleNotFound
from flint_store.schedule_names import request_by_trigger
from flint_store.schedules import decode_spec, moment_ms, read_schedules

__all__ = ["ScheduleDesk"]

_LAST_BACKFILLS: Final = 10
_FAR_MS: Final = 100 * 366 * 86_400_000

Context = grpc.aio.ServicerContext[Any, Any]
Answer = pb.ServeScheduleResponse


class ScheduleDesk(schedules_pb2_grpc.ScheduleStoreServiceServicer):
    """See the module."""

    def __init__(
        self,
        settings: Settings,
        engine: AsyncEngine,
        record: Record,
        acceptor: Acceptor,
        bus: Bus,
        clock: RecordClock,
        make: ScheduleStarts,
    ) -> None:
        self._engine = engine
        self._record = record
        self._acceptor = acceptor
        self._bus = bus
        self._clock = clock
        self._make = make
        self._most_times = settings.scheduler.backfill_times
        self._serve: dict[str, Callable[[pb.ServeScheduleRequest], Awaitable[Answer]]] = {
            "create": self._create,
            "update": self._update,
            "delete": self._delete,
            "get": self._get,
            "list": self._list,
            "pause": self._pause,
            "resume": self._resume,
            "trigger": self._trigger,
            "backfill": self._backfill,
            "cancel_backfill": self._cancel_backfill,
            "preview": self._preview,
            "put_calendar": self._put_calendar,
            "get_calendar": self._get_calendar,
            "list_calendars": self._list_calendars,
            "delete_calendar": self._delete_calendar,
        }

    async def ServeSchedule(self, request: pb.ServeScheduleRequest, context: Context) -> Answer:
        """One request that a gateway has checked."""
        serve = self._serve.get(request.WhichOneof("request") or "")
        if serve is None:
            raise field_invalid(("request", "is required"))
        with store_refusals():
            return await serve(request)

    # -- objects -------------------------------------------------------------------------------------------------------

    async def _create(self, request: pb.ServeScheduleRequest) -> Answer:
        row, created = await store.create_schedule(
            self._engine, _new(request, request.create.schedule), paused=request.create.paused, by=request.by
        )
        self._nudge(row)
        return Answer(schedules=[store.message_of(row)], created=created)

    async def _update(self, request: pb.ServeScheduleRequest) -> Answer:
        new = _new(request, request.update.schedule)
        row = await store.update_schedule(self._engine, new, request.update.revision)
        self._nudge(row)
        return Answer(schedules=[store.message_of(row)])

    async def _delete(self, request: pb.ServeScheduleRequest) -> Answer:
        await store.delete_schedule(self._engine, request.namespace, request.id)
        return Answer()

    async def _get(self, request: pb.ServeScheduleRequest) -> Answer:
        row = await store.read_schedule(self._engine, request.namespace, request.id)
        message = store.message_of(row)
        message.runs.extend(await store.last_runs(self._engine, row))
        found = await backfills.list_backfills(self._engine, row.schedule_id.bytes, _LAST_BACKFILLS)
        message.backfills.extend(backfills.backfill_message(each, message.name) for each in found)
        return Answer(schedules=[message])

    async def _list(self, request: pb.ServeScheduleRequest) -> Answer:
        rows = await store.list_schedules(
            self._engine,
            request.namespace,
            workflow=request.list.workflow_id,
            after=request.after,
            limit=request.limit,
        )
        return Answer(schedules=[store.message_of(row, with_input=False) for row in rows])

    async def _pause(self, request: pb.ServeScheduleRequest) -> Answer:
        row = await store.pause_schedule(self._engine, request.namespace, request.id, request.pause.note, request.by)
        return Answer(schedules=[store.message_of(row)])

    async def _resume(self, request: pb.ServeScheduleRequest) -> Answer:
        row = await store.resume_schedule(self._engine, request.namespace, request.id)
        self._nudge(row)
        return Answer(schedules=[store.message_of(row)])

    def _nudge(self, row: Row[Any]) -> None:
        """Let the owner look at it. When it is lost, the sweep finds it."""
        nudge = dispatch_pb2.OwnerNudge(schedules=[row.schedule_id.bytes])
        self._bus.publish_now(owner_subject(row.group_id), nudge.SerializeToString())

    # -- runs ----------------------------------------------------------------------------------------------------------

    async def _trigger(self, request: pb.ServeScheduleRequest) -> Answer:
        found = await store.read_schedule(self._engine, request.namespace, request.id)
        if found.kind == "on":
            raise ScheduleConflict(f"schedule {request.id} waits for events: start its workflow instead")
        try:
            rows = await self._record.read(lambda c: read_schedules(c, [found.schedule_id.bytes]))
            if not rows:
                raise ScheduleNotFound(f"there is no schedule {request.id}")
            (row,) = rows
            request_id = request_by_trigger(row.schedule_id, request.trigger.request_id or os.urandom(16).hex())
            (answer,) = await self._acceptor.accept(
                [self._make.of(row, request_id, row.input, self._clock.now_ms())], ""
            )
        except StartImpossible as error:
            raise ScheduleConflict(str(error)) from error
        except RecordUnavailable as error:
            raise component_unavailable("PostgreSQL", str(error)) from error
        except LaneClosed as error:
            raise component_unavailable("this scheduler", "it is stopping") from error
        run = f"namespaces/{request.namespace}/runs/{run_id_text(answer.run_id)}"
        return Answer(trigger=schedules_pb2.TriggerScheduleResponse(run=run, created=answer.created))

    async def _backfill(self, request: pb.ServeScheduleRequest) -> Answer:
        asked = request.backfill
        from_ms, until_ms = asked.start_time.ToMilliseconds(), asked.end_time.ToMilliseconds()
        if until_ms > self._clock.now_ms():
            raise field_invalid(("end_time", "must not be in the future"))
        row = await store.read_schedule(self._engine, request.namespace, request.id)
        if row.kind not in ("every", "cron"):
            raise ScheduleConflict(f"schedule {request.id} is of the kind {row.kind}: it has no times of its own")
        schedule, zone = decode_spec(bytes(row.schedule))
        named = await self._calendars(request.namespace, schedule)
        most, since_ms = self._most_times, moment_ms(row.since)

        def count() -> list[int]:
            times = past_fires(schedule, from_ms, until_ms, zone, since_ms)
            return [at for at in islice(times, most + 1) if not _excluded(named, at, zone)]

        moments = await asyncio.to_thread(count)
        if len(moments) > most:
            raise field_invalid(("end_time", f"the range holds more than {most} times (scheduler.backfill_times)"))
        stored = await backfills.create_backfill(
            self._engine,
            row,
            asked.request_id or os.urandom(16).hex(),
            moments,
            from_ms,
            until_ms,
            asked.concurrency or 1,
            request.by,
        )
        self._nudge(row)
        return Answer(backfill=backfills.backfill_message(stored, store.message_of(row).name))

    async def _cancel_backfill(self, request: pb.ServeScheduleRequest) -> Answer:
        row = await store.read_schedule(self._engine, request.namespace, request.id)
        stored = await backfills.cancel_backfill(self._engine, row.schedule_id.bytes, request.backfill_id)
        return Answer(backfill=backfills.backfill_message(stored, store.message_of(row).name))

    async def _preview(self, request: pb.ServeScheduleRequest) -> Answer:
        now_ms = self._clock.now_ms()
        since_ms, key = now_ms, f"{request.namespace}/{request.id}"
        if request.spec:
            schedule, zone = decode_spec(request.spec)
        else:
            row = await store.read_schedule(self._engine, request.namespace, request.id)
            schedule, zone = decode_spec(bytes(row.schedule))
            since_ms, key = moment_ms(row.since), f"{request.namespace}/{row.workflow_id}"
        asked = request.preview
        after_ms = asked.start_time.ToMilliseconds() if asked.HasField("start_time") else now_ms
        if schedule.every is None and schedule.cron is None:
            raise ScheduleConflict(f"the times of a schedule of the kind {schedule.kind} depend on what happens")
        named = tuple(await self._calendars(request.namespace, schedule))

        def tell() -> list[int]:
            # One more than asked: jitter never passes the following time.
            times = islice(upcoming(schedule, after_ms, zone, since_ms, named), request.limit + 1)
            return [at for at in times if at <= after_ms + _FAR_MS]

        times: list[int | None] = list(await asyncio.to_thread(tell))
        response = schedules_pb2.PreviewScheduleResponse(timezone=str(zone))
        for at, following in pairwise([*times, None]):
            if at is not None and len(response.times) < request.limit:
                runs_ms = jittered(schedule, key, at, following)
                response.times.add(time=_timestamp(at), run_time=_timestamp(runs_ms))
        return Answer(preview=response)

    async def _calendars(self, namespace: str, schedule: Schedule) -> list[Calendar]:
        names = [(namespace, name) for name in schedule.calendars or ()]
        if not names:
            return []
        try:
            found = await self._record.read(lambda c: calendars.calendar_rules(c, names))
        except RecordUnavailable as error:
            raise component_unavailable("PostgreSQL", str(error)) from error
        for _, name in names:
            if (namespace, name) not in found:
                raise Refused(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    ErrorReason.ERROR_REASON_CALENDAR_NOT_FOUND,
                    f"there is no calendar {name!r}, which the schedule excludes",
                )
        return list(found.values())

    # -- calendars -----------------------------------------------------------------------------------------------------

    async def _put_calendar(self, request: pb.ServeScheduleRequest) -> Answer:
        description = request.put_calendar.calendar.description
        await calendars.put_calendar(self._engine, request.namespace, request.id, description, request.rules)
        return await self._get_calendar(request)

    async def _get_calendar(self, request: pb.ServeScheduleRequest) -> Answer:
        found = await calendars.read_calendars(self._engine, request.namespace, [request.id])
        if not found:
            raise Refused(
                grpc.StatusCode.NOT_FOUND,
                ErrorReason.ERROR_REASON_CALENDAR_NOT_FOUND,
                f"there is no calendar {request.id}",
            )
        return Answer(calendars=found)

    async def _list_calendars(self, request: pb.ServeScheduleRequest) -> Answer:
        found = await calendars.list_calendars(
            self._engine, request.namespace, after=request.after, limit=request.limit
        )
        return Answer(calendars=found)

    async def _delete_calendar(self, request: pb.ServeScheduleRequest) -> Answer:
        await calendars.delete_calendar(self._engine, request.namespace, request.id)
        return Answer()


def _new(request: pb.ServeScheduleRequest, schedule: schedules_pb2.Schedule) -> store.NewSchedule:
    return store.NewSchedule(
        namespace=request.namespace,
        name=request.id,
        workflow_id=schedule.workflow_id,
        version=schedule.version,
        spec=orjson.dumps(orjson.loads(request.spec), option=orjson.OPT_SORT_KEYS),
        input=schedule.input or b"{}",
        level=schedule.level if schedule.HasField("level") else None,
        description=schedule.description,
    )


def _excluded(named: list[Calendar], moment_ms: int, zone: Any) -> bool:
    return any(calendar.excludes(local_moment(moment_ms, zone)) for calendar in named)


def _timestamp(at_ms: int) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(datetime.fromtimestamp(at_ms / 1000, UTC))
    return stamp
