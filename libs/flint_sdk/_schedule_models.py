"""Schedules, calendars and backfills as the client hands them out, and from the contract's messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from flint_contracts.gen.flint.schedules.v1 import schedules_pb2 as pb
from flint_sdk._messages import decode_json, moment, timestamp


class ScheduleState(StrEnum):
    """Where a schedule is."""

    UNSPECIFIED = "UNSPECIFIED"
    ACTIVE = "ACTIVE"
    PAUSED = "PAUSED"
    ENDED = "ENDED"


class BackfillState(StrEnum):
    """Where a backfill is."""

    UNSPECIFIED = "UNSPECIFIED"
    RUNNING = "RUNNING"
    DONE = "DONE"
    CANCELLED = "CANCELLED"


@dataclass(frozen=True, slots=True)
class ScheduleSpec:
    """When a schedule starts runs: one of `every`, `cron` and `after` (durations in ISO 8601, such as PT5M).

    `overlap`: allow, skip, buffer, cancel or terminate. `catch_up`: last, all or none, within `catch_up_window`.
    `exclude`: rules with the members dates, weekdays, from, to, holidays, as in a definition. `calendars`: named ones.
    """

    every: str | None = None
    cron: str | None = None
    after: str | None = None
    timezone: str = ""
    overlap: str = "allow"
    catch_up: str = "last"
    catch_up_window: timedelta | None = None
    jitter: timedelta | None = None
    calendars: Sequence[str] = ()
    exclude: Sequence[Mapping[str, Any]] = ()
    start_time: datetime | None = None
    end_time: datetime | None = None
    max_runs: int = 0


@dataclass(frozen=True, slots=True)
class ScheduledRun:
    """A run that a schedule started. `run`: its name."""

    run: str
    schedule_time: datetime | None
    state: str


@dataclass(frozen=True, slots=True)
class ScheduledTime:
    """A time of a schedule, and when its run starts: later by the jitter."""

    time: datetime
    run_time: datetime


@dataclass(frozen=True, slots=True)
class Backfill:
    """Runs for the times of a past range."""

    name: str
    state: BackfillState
    start_time: datetime | None
    end_time: datetime | None
    concurrency: int
    total: int
    started: int
    present: int
    succeeded: int
    failed: int
    running: int
    create_time: datetime | None
    done_time: datetime | None
    created_by: str

    @property
    def id(self) -> str:
        """What commands take."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule and what it has done. `spec` is None for one that waits for events; `runs`, `backfills` and
    `input` are empty in lists.
    """

    name: str
    workflow: str
    version: str
    spec: ScheduleSpec | None
    input: Any
    level: int | None
    description: str
    state: ScheduleState
    from_definition: bool
    pause_note: str
    paused_by: str
    pause_time: datetime | None
    next_time: datetime | None
    last_time: datetime | None
    buffered_time: datetime | None
    started: int
    skipped: int
    missed: int
    excluded: int
    refused: int
    create_time: datetime | None
    revision: int
    last_error: str
    runs: tuple[ScheduledRun, ...] = ()
    backfills: tuple[Backfill, ...] = ()

    @property
    def id(self) -> str:
        """What commands take: its own id, or `workflow.` and the workflow's."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Calendar:
    """A named list of rules whose times do not count. `rules` are empty in lists."""

    name: str
    description: str
    rules: tuple[Mapping[str, Any], ...] = field(default=())
    update_time: datetime | None = None

    @property
    def id(self) -> str:
        """Its id."""
        return self.name.rpartition("/")[2]


def spec_message(spec: ScheduleSpec) -> pb.ScheduleSpec:
    """The contract's message. Raises ValueError for what it cannot say."""
    message = pb.ScheduleSpec(
        timezone=spec.timezone,
        overlap=_named(pb.ScheduleSpec.Overlap, "OVERLAP", spec.overlap, "overlap"),
        catch_up=_named(pb.ScheduleSpec.CatchUp, "CATCH_UP", spec.catch_up, "catch_up"),
        calendars=spec.calendars,
        exclude=[rule_message(rule) for rule in spec.exclude],
        start_time=timestamp(spec.start_time),
        end_time=timestamp(spec.end_time),
        max_runs=spec.max_runs,
    )
    for when in ("every", "cron", "after"):
        if (text := getattr(spec, when)) is not None:
            setattr(message, when, text)
    if spec.catch_up_window is not None:
        message.catch_up_window.FromTimedelta(spec.catch_up_window)
    if spec.jitter is not None:
        message.jitter.FromTimedelta(spec.jitter)
    return message


def rule_message(rule: Mapping[str, Any]) -> pb.CalendarRule:
    """A rule with the members that definitions have. Raises ValueError for another one."""
    unknown = rule.keys() - {"dates", "weekdays", "from", "to", "holidays"}
    if unknown:
        raise ValueError(f"a rule has no member {min(unknown)!r}: dates, weekdays, from, to and holidays are there")
    about = rule.get("holidays") or {}
    return pb.CalendarRule(
        dates=rule.get("dates", ()),
        weekdays=rule.get("weekdays", ()),
        from_time=rule.get("from", ""),
        to_time=rule.get("to", ""),
        country=about.get("country", ""),
        subdivision=about.get("subdivision", ""),
    )


def _rule_from(rule: pb.CalendarRule) -> dict[str, Any]:
    about = {name: text for name in ("country", "subdivision") if (text := getattr(rule, name))}
    members = {
        "dates": list(rule.dates),
        "weekdays": list(rule.weekdays),
        "from": rule.from_time,
        "to": rule.to_time,
        "holidays": about,
    }
    return {name: value for name, value in members.items() if value}


def _spec_from(message: pb.ScheduleSpec) -> ScheduleSpec:
    when = message.WhichOneof("when")
    return ScheduleSpec(
        **({when: getattr(message, when)} if when else {}),
        timezone=message.timezone,
        overlap=_name(pb.ScheduleSpec.Overlap, "OVERLAP", message.overlap),
        catch_up=_name(pb.ScheduleSpec.CatchUp, "CATCH_UP", message.catch_up),
        catch_up_window=message.catch_up_window.ToTimedelta() if message.HasField("catch_up_window") else None,
        jitter=message.jitter.ToTimedelta() if message.HasField("jitter") else None,
        calendars=tuple(message.calendars),
        exclude=tuple(map(_rule_from, message.exclude)),
        start_time=moment(message, "start_time"),
        end_time=moment(message, "end_time"),
        max_runs=message.max_runs,
    )


def schedule_from(message: pb.Schedule) -> Schedule:
    """As the client hands it out."""
    return Schedule(
        name=message.name,
        workflow=message.workflow_id,
        version=message.version,
        spec=_spec_from(message.spec) if message.HasField("spec") else None,
        input=decode_json(message.input),
        level=message.level if message.HasField("level") else None,
        description=message.description,
        state=ScheduleState(pb.Schedule.State.Name(message.state).removeprefix("STATE_")),
        from_definition=message.from_definition,
        pause_note=message.pause_note,
        paused_by=message.paused_by,
        pause_time=moment(message, "pause_time"),
        next_time=moment(message, "next_time"),
        last_time=moment(message, "last_time"),
        buffered_time=moment(message, "buffered_time"),
        started=message.counters.started,
        skipped=message.counters.skipped,
        missed=message.counters.missed,
        excluded=message.counters.excluded,
        refused=message.counters.refused,
        create_time=moment(message, "create_time"),
        revision=message.revision,
        last_error=message.last_error,
        runs=tuple(ScheduledRun(r.run, moment(r, "schedule_time"), r.state) for r in message.runs),
        backfills=tuple(map(backfill_from, message.backfills)),
    )


def backfill_from(message: pb.Backfill) -> Backfill:
    """As the client hands it out."""
    numbers = ("concurrency", "total", "started", "present", "succeeded", "failed", "running")
    return Backfill(
        name=message.name,
        state=BackfillState(pb.Backfill.State.Name(message.state).removeprefix("STATE_")),
        start_time=moment(message, "start_time"),
        end_time=moment(message, "end_time"),
        create_time=moment(message, "create_time"),
        done_time=moment(message, "done_time"),
        created_by=message.created_by,
        **{name: getattr(message, name) for name in numbers},
    )


def calendar_from(message: pb.Calendar) -> Calendar:
    """As the client hands it out."""
    rules = tuple(map(_rule_from, message.rules))
    return Calendar(message.name, message.description, rules, moment(message, "update_time"))


def times_from(message: pb.PreviewScheduleResponse) -> list[ScheduledTime]:
    """As the client hands them out."""
    found = ((moment(each, "time"), moment(each, "run_time")) for each in message.times)
    return [ScheduledTime(at, run) for at, run in found if at is not None and run is not None]


def _named(enum: Any, prefix: str, text: str, what: str) -> Any:
    try:
        return enum.Value(f"{prefix}_{text.upper()}")
    except ValueError:
        names = ", ".join(name.removeprefix(f"{prefix}_").lower() for name in enum.keys()[1:])
        raise ValueError(f"{what} {text!r}: expected one of {names}") from None


def _name(enum: Any, prefix: str, value: int) -> str:
    name: str = enum.Name(value)
    return name.removeprefix(f"{prefix}_").lower()
