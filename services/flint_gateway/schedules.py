"""ScheduleService: schedules, calendars and backfills. Checks what is sent; schedulers store and serve it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import grpc
import orjson

from flint_contracts.gen.flint.schedules.v1 import schedules_pb2 as pb
from flint_contracts.gen.flint.schedules.v1.schedules_pb2_grpc import ScheduleServiceServicer
from flint_contracts.gen.flint.scheduling.v1 import schedules_pb2 as inner_pb
from flint_contracts.schedules import FIELDS, policy_members, rule_members
from flint_core.calendars import check_rules
from flint_core.durations import DurationError, parse_duration
from flint_core.schedule import CronInvalid, Schedule, check_cron
from flint_core.schedule_policy import SHORTEST_MS, check_moments, read_policy
from flint_core.zones import UTC_NAME, ZoneUnknown, zone_named
from flint_gateway.auth import current_principal
from flint_gateway.definitions import DefinitionChecker
from flint_gateway.run_control import own_request_id
from flint_gateway.validation import check_json, namespace_of_parent
from flint_ops.config import LimitSettings
from flint_rpc.errors import FieldViolation, field_invalid
from flint_rpc.names import is_label, is_version, parse_backfill, parse_calendar, parse_schedule
from flint_rpc.paging import PageBinding, page_size
from flint_rpc.upstream import Client

if TYPE_CHECKING:
    from flint_contracts.gen.flint.scheduling.v1.schedules_pb2_grpc import ScheduleStoreServiceAsyncStub

__all__ = ["ScheduleServicer"]

_TIMEOUT_S: Final = 15.0
_TEXT: Final = 512
_PREVIEWED: Final = 1_000
_CONCURRENCY: Final = 100
_DURATION_CHARACTERS: Final = 60

Context = grpc.aio.ServicerContext[Any, Any]


class ScheduleServicer(ScheduleServiceServicer):
    """See the module. Callers are authenticated and authorised by the interceptor."""

    def __init__(
        self, client: Client[ScheduleStoreServiceAsyncStub], checker: DefinitionChecker, limits: LimitSettings
    ) -> None:
        self._client = client
        self._checker = checker
        self._limits = limits

    async def _ask(self, request: inner_pb.ServeScheduleRequest) -> inner_pb.ServeScheduleResponse:
        return await self._client.call(lambda stub: stub.ServeSchedule, request, _TIMEOUT_S)

    # -- schedules -----------------------------------------------------------------------------------------------------

    async def CreateSchedule(self, request: pb.CreateScheduleRequest, context: Context) -> pb.CreateScheduleResponse:
        """Answers when it is stored."""
        namespace = namespace_of_parent(request.parent)
        violations: list[FieldViolation] = []
        if not is_label(request.schedule_id):
            violations.append(FieldViolation("schedule_id", "is required, a DNS label of at most 63 characters"))
        spec = self._content(request.schedule, violations)
        inner = inner_pb.ServeScheduleRequest(
            namespace=namespace, id=request.schedule_id, by=_caller(), spec=spec, create=request
        )
        answer = await self._ask(inner)
        return pb.CreateScheduleResponse(schedule=answer.schedules[0], created=answer.created)

    async def UpdateSchedule(self, request: pb.UpdateScheduleRequest, context: Context) -> pb.UpdateScheduleResponse:
        """Replaces all that it says."""
        namespace, schedule_id = _own(request.schedule.name, "schedule.name")
        spec = self._content(request.schedule, [])
        inner = inner_pb.ServeScheduleRequest(
            namespace=namespace, id=schedule_id, by=_caller(), spec=spec, update=request
        )
        return pb.UpdateScheduleResponse(schedule=(await self._ask(inner)).schedules[0])

    async def DeleteSchedule(self, request: pb.DeleteScheduleRequest, context: Context) -> pb.DeleteScheduleResponse:
        """Ends it."""
        namespace, schedule_id = _own(request.name, "name")
        await self._ask(inner_pb.ServeScheduleRequest(namespace=namespace, id=schedule_id, delete=request))
        return pb.DeleteScheduleResponse()

    async def GetSchedule(self, request: pb.GetScheduleRequest, context: Context) -> pb.GetScheduleResponse:
        """One, with its last runs and backfills."""
        namespace, schedule_id = parse_schedule(request.name)
        answer = await self._ask(inner_pb.ServeScheduleRequest(namespace=namespace, id=schedule_id, get=request))
        return pb.GetScheduleResponse(schedule=answer.schedules[0])

    async def ListSchedules(self, request: pb.ListSchedulesRequest, context: Context) -> pb.ListSchedulesResponse:
        """A page, by id."""
        namespace = namespace_of_parent(request.parent)
        size = page_size(request.page_size, default=50, most=500)
        if request.workflow_id and not is_label(request.workflow_id):
            raise field_invalid(("workflow_id", "must be a DNS label of at most 63 characters, or empty"))
        binding = PageBinding("schedules", namespace, request.workflow_id)
        after = binding.decode(request.page_token)
        inner = inner_pb.ServeScheduleRequest(namespace=namespace, limit=size + 1, after=after, list=request)
        found = (await self._ask(inner)).schedules
        token = binding.encode(found[size - 1].name.rpartition("/")[2]) if len(found) > size else ""
        return pb.ListSchedulesResponse(schedules=found[:size], next_page_token=token)

    async def PauseSchedule(self, request: pb.PauseScheduleRequest, context: Context) -> pb.PauseScheduleResponse:
        """Stops it until it is resumed."""
        namespace, schedule_id = parse_schedule(request.name)
        if len(request.note) > _TEXT or "\0" in request.note:
            raise field_invalid(("note", f"must have at most {_TEXT} characters, none of them NUL"))
        inner = inner_pb.ServeScheduleRequest(namespace=namespace, id=schedule_id, by=_caller(), pause=request)
        return pb.PauseScheduleResponse(schedule=(await self._ask(inner)).schedules[0])

    async def ResumeSchedule(self, request: pb.ResumeScheduleRequest, context: Context) -> pb.ResumeScheduleResponse:
        """Lets it go on from now."""
        namespace, schedule_id = parse_schedule(request.name)
        inner = inner_pb.ServeScheduleRequest(namespace=namespace, id=schedule_id, resume=request)
        return pb.ResumeScheduleResponse(schedule=(await self._ask(inner)).schedules[0])

    async def TriggerSchedule(self, request: pb.TriggerScheduleRequest, context: Context) -> pb.TriggerScheduleResponse:
        """Answers when the run is stored."""
        namespace, schedule_id = parse_schedule(request.name)
        request.request_id = own_request_id(request.request_id)
        inner = inner_pb.ServeScheduleRequest(namespace=namespace, id=schedule_id, trigger=request)
        return (await self._ask(inner)).trigger

    async def BackfillSchedule(
        self, request: pb.BackfillScheduleRequest, context: Context
    ) -> pb.BackfillScheduleResponse:
        """Answers when it is stored; its runs follow."""
        namespace, schedule_id = parse_schedule(request.name)
        violations = [
            FieldViolation(field, "is required") for field in ("start_time", "end_time") if not request.HasField(field)
        ]
        if not violations and request.start_time.ToMilliseconds() > request.end_time.ToMilliseconds():
            violations.append(FieldViolation("end_time", "must not be earlier than start_time"))
        if not 0 <= request.concurrency <= _CONCURRENCY:
            violations.append(FieldViolation("concurrency", f"must be 1 to {_CONCURRENCY}"))
        if violations:
            raise field_invalid(*violations)
        request.request_id = own_request_id(request.request_id)
        inner = inner_pb.ServeScheduleRequest(namespace=namespace, id=schedule_id, by=_caller(), backfill=request)
        return pb.BackfillScheduleResponse(backfill=(await self._ask(inner)).backfill)

    async def CancelBackfill(self, request: pb.CancelBackfillRequest, context: Context) -> pb.CancelBackfillResponse:
        """Ends it; its runs go on."""
        name = parse_backfill(request.name)
        inner = inner_pb.ServeScheduleRequest(
            namespace=name.namespace, id=name.schedule_id, backfill_id=name.backfill_id, cancel_backfill=request
        )
        return pb.CancelBackfillResponse(backfill=(await self._ask(inner)).backfill)

    async def PreviewSchedule(self, request: pb.PreviewScheduleRequest, context: Context) -> pb.PreviewScheduleResponse:
        """The next times, of what is there or of what would be."""
        namespace = namespace_of_parent(request.parent)
        count = min(page_size(request.count, default=10, most=_PREVIEWED, field="count"), _PREVIEWED)
        inner = inner_pb.ServeScheduleRequest(namespace=namespace, limit=count, preview=request)
        match request.WhichOneof("of"):
            case "schedule_id":
                inner.id = parse_schedule(f"namespaces/{namespace}/schedules/{request.schedule_id}", "schedule_id")[1]
            case "source":
                if len(request.source.encode()) > self._limits.definition_bytes:
                    raise field_invalid(("source", f"has more than {self._limits.definition_bytes} bytes"))
                program = (await self._checker.check(request.source, namespace)).program
                if program.schedule is None:
                    raise field_invalid(("source", "the definition has no schedule"))
                inner.id = program.workflow_id  # jitter belongs to the workflow
                inner.spec = orjson.dumps({**program.schedule.to_json(), "timezone": program.timezone})
                inner.preview.ClearField("source")
            case "spec":
                violations: list[FieldViolation] = []
                inner.spec = _spec(request.spec, "spec.", violations) or b""
                if violations:
                    raise field_invalid(*violations)
            case _:
                raise field_invalid(("of", "is required: schedule_id, source or spec"))
        return (await self._ask(inner)).preview

    def _content(self, schedule: pb.Schedule, violations: list[FieldViolation]) -> bytes:
        """Its spec as it is stored. Raises `Refused` that names every wrong field."""
        if not is_label(schedule.workflow_id):
            violations.append(
                FieldViolation("schedule.workflow_id", "is required, a DNS label of at most 63 characters")
            )
        if schedule.version and not is_version(schedule.version):
            violations.append(FieldViolation("schedule.version", "must be a semantic version such as 1.0.0, or empty"))
        if schedule.HasField("level") and not 0 <= schedule.level <= 9:
            violations.append(FieldViolation("schedule.level", "must be between 0 (most urgent) and 9"))
        if len(schedule.description) > _TEXT or "\0" in schedule.description:
            violations.append(FieldViolation("schedule.description", f"must have at most {_TEXT} characters, no NUL"))
        if len(schedule.input) > self._limits.payload_bytes:
            violations.append(FieldViolation("schedule.input", f"has more than {self._limits.payload_bytes} bytes"))
        elif schedule.input and (problem := check_json(schedule.input)) is not None:
            violations.append(FieldViolation("schedule.input", problem))
        spec = _spec(schedule.spec, "schedule.spec.", violations)
        if violations or spec is None:
            raise field_invalid(*violations)
        return spec

    # -- calendars -----------------------------------------------------------------------------------------------------

    async def PutCalendar(self, request: pb.PutCalendarRequest, context: Context) -> pb.PutCalendarResponse:
        """Creates or replaces it."""
        calendar = request.calendar
        namespace, calendar_id = parse_calendar(calendar.name, "calendar.name")
        members = rule_members(calendar.rules)
        violations = [FieldViolation(_path("calendar.rules", path), message) for path, message in check_rules(members)]
        if not members:
            violations.append(FieldViolation("calendar.rules", "are required: at least one"))
        if len(calendar.description) > _TEXT or "\0" in calendar.description:
            violations.append(FieldViolation("calendar.description", f"must have at most {_TEXT} characters, no NUL"))
        if violations:
            raise field_invalid(*violations)
        inner = inner_pb.ServeScheduleRequest(
            namespace=namespace, id=calendar_id, rules=orjson.dumps(members), put_calendar=request
        )
        return pb.PutCalendarResponse(calendar=(await self._ask(inner)).calendars[0])

    async def GetCalendar(self, request: pb.GetCalendarRequest, context: Context) -> pb.GetCalendarResponse:
        """One, with its rules."""
        namespace, calendar_id = parse_calendar(request.name)
        inner = inner_pb.ServeScheduleRequest(namespace=namespace, id=calendar_id, get_calendar=request)
        return pb.GetCalendarResponse(calendar=(await self._ask(inner)).calendars[0])

    async def ListCalendars(self, request: pb.ListCalendarsRequest, context: Context) -> pb.ListCalendarsResponse:
        """A page, by id."""
        namespace = namespace_of_parent(request.parent)
        size = page_size(request.page_size, default=50, most=500)
        binding = PageBinding("calendars", namespace)
        after = binding.decode(request.page_token)
        inner = inner_pb.ServeScheduleRequest(namespace=namespace, limit=size + 1, after=after, list_calendars=request)
        found = (await self._ask(inner)).calendars
        token = binding.encode(found[size - 1].name.rpartition("/")[2]) if len(found) > size else ""
        return pb.ListCalendarsResponse(calendars=found[:size], next_page_token=token)

    async def DeleteCalendar(self, request: pb.DeleteCalendarRequest, context: Context) -> pb.DeleteCalendarResponse:
        """Deletes one that no schedule names."""
        namespace, calendar_id = parse_calendar(request.name)
        await self._ask(inner_pb.ServeScheduleRequest(namespace=namespace, id=calendar_id, delete_calendar=request))
        return pb.DeleteCalendarResponse()


def _own(name: str, field: str) -> tuple[str, str]:
    namespace, schedule_id = parse_schedule(name, field)
    if "." in schedule_id:
        raise field_invalid((field, "is the schedule of a definition: apply another version to change or end it"))
    return namespace, schedule_id


def _caller() -> str:
    key = current_principal().key
    return key.display_name or key.name.rpartition("/")[2]


def _spec(spec: pb.ScheduleSpec, prefix: str, violations: list[FieldViolation]) -> bytes | None:
    """flint_core's Schedule as JSON with `timezone`; None after violations."""
    before = len(violations)
    when = spec.WhichOneof("when")
    if when is None:
        violations.append(FieldViolation(f"{prefix}when", "is required: every, cron or after"))
        return None
    text = getattr(spec, when)
    try:
        if when == "cron":
            check_cron(text)
        elif len(text) > _DURATION_CHARACTERS:
            raise DurationError(f"a duration has at most {_DURATION_CHARACTERS} characters")
        elif parse_duration(text).length_ms(0) < SHORTEST_MS and when == "every":
            raise DurationError("must be at least 100 milliseconds")
    except (CronInvalid, DurationError) as error:
        violations.append(FieldViolation(prefix + when, str(error)))
    try:
        zone = zone_named(spec.timezone or UTC_NAME)
    except ZoneUnknown as error:
        violations.append(FieldViolation(f"{prefix}timezone", f"{error}: it is an IANA name such as Europe/Berlin"))
        return None
    members = policy_members(spec)
    policy, problems = read_policy(members)
    for path, message in problems:
        violations.append(FieldViolation(_path(prefix + FIELDS.get(str(path[0]), str(path[0])), path[1:]), message))
    if when == "after" and members.keys() & {"overlap", "catchUp", "exclude", "maxRuns", "jitter"}:
        violations.append(
            FieldViolation(f"{prefix}after", "goes without overlap, catch_up, jitter, exclusions and max_runs")
        )
    if len(violations) > before:
        return None
    schedule = Schedule(**{when: text}, **policy)
    never = check_moments(schedule, zone)
    if never is not None:
        violations.append(FieldViolation(f"{prefix}exclude", never))
        return None
    return orjson.dumps({**schedule.to_json(), "timezone": spec.timezone}, option=orjson.OPT_SORT_KEYS)


def _path(field: str, path: tuple[Any, ...]) -> str:
    for part in path:
        field += f"[{part}]" if isinstance(part, int) else f".{part}"
    return field
