"""Schedules between the contract and the core: what a client sends as the members that definitions have, and back."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from flint_contracts.gen.flint.schedules.v1 import schedules_pb2 as pb
from flint_core.schedule import Schedule

__all__ = ["FIELDS", "policy_members", "rule_members", "rule_message", "spec_message"]

_SPEC = pb.ScheduleSpec
_OVERLAPS: Final = {
    _SPEC.OVERLAP_ALLOW: "allow",
    _SPEC.OVERLAP_SKIP: "skip",
    _SPEC.OVERLAP_BUFFER: "buffer",
    _SPEC.OVERLAP_CANCEL: "cancel",
    _SPEC.OVERLAP_TERMINATE: "terminate",
}
_CATCH_UPS: Final = {_SPEC.CATCH_UP_LAST: "last", _SPEC.CATCH_UP_ALL: "all", _SPEC.CATCH_UP_NONE: "none"}

FIELDS: Final = {
    "overlap": "overlap",
    "catchUp": "catch_up_window",
    "jitter": "jitter",
    "exclude": "exclude",
    "startAt": "start_time",
    "endAt": "end_time",
    "maxRuns": "max_runs",
}
"""Field of ScheduleSpec for each member of `policy_members`."""


def policy_members(spec: pb.ScheduleSpec) -> dict[str, Any]:
    """The members of `metadata.flint.schedule` that say the same; values that are none of the language's stay wrong."""
    members: dict[str, Any] = {}
    if spec.overlap:
        members["overlap"] = _OVERLAPS.get(spec.overlap, spec.overlap)
    catch_up: dict[str, Any] = {}
    if spec.catch_up:
        catch_up["policy"] = _CATCH_UPS.get(spec.catch_up, spec.catch_up)
    if spec.HasField("catch_up_window"):
        catch_up["window"] = _duration(spec.catch_up_window)
    if catch_up:
        members["catchUp"] = catch_up
    if spec.HasField("jitter"):
        members["jitter"] = _duration(spec.jitter)
    if spec.calendars or spec.exclude:
        members["exclude"] = [*spec.calendars, *rule_members(spec.exclude)]
    if spec.HasField("start_time"):
        members["startAt"] = _moment(spec.start_time)
    if spec.HasField("end_time"):
        members["endAt"] = _moment(spec.end_time)
    if spec.max_runs:
        members["maxRuns"] = spec.max_runs
    return members


def rule_members(rules: Sequence[pb.CalendarRule]) -> list[dict[str, Any]]:
    """Rules as definitions write them."""
    found = []
    for rule in rules:
        members: dict[str, Any] = {}
        if rule.dates:
            members["dates"] = list(rule.dates)
        if rule.weekdays:
            members["weekdays"] = list(rule.weekdays)
        if rule.from_time:
            members["from"] = rule.from_time
        if rule.to_time:
            members["to"] = rule.to_time
        if rule.country or rule.subdivision:
            members["holidays"] = {"country": rule.country}
            if rule.subdivision:
                members["holidays"]["subdivision"] = rule.subdivision
        found.append(members)
    return found


def rule_message(rule: dict[str, Any]) -> pb.CalendarRule:
    """A rule as clients see it."""
    about = rule.get("holidays", {})
    return pb.CalendarRule(
        dates=rule.get("dates", ()),
        weekdays=rule.get("weekdays", ()),
        from_time=rule.get("from", ""),
        to_time=rule.get("to", ""),
        country=about.get("country", ""),
        subdivision=about.get("subdivision", ""),
    )


def spec_message(schedule: Schedule, timezone: str) -> pb.ScheduleSpec:
    """A schedule by time as clients see it."""
    spec = pb.ScheduleSpec(
        timezone=timezone,
        overlap=_named(_OVERLAPS, schedule.overlap or "allow"),
        catch_up=_named(_CATCH_UPS, schedule.catch_up or "last"),
        calendars=schedule.calendars or (),
        exclude=map(rule_message, schedule.exclude or ()),
        max_runs=schedule.max_runs or 0,
    )
    if schedule.cron is not None:
        spec.cron = schedule.cron
    elif schedule.every is not None:
        spec.every = _text(schedule.every)
    elif schedule.after is not None:
        spec.after = _text(schedule.after)
    if schedule.catch_up_ms is not None:
        spec.catch_up_window.FromMilliseconds(schedule.catch_up_ms)
    if schedule.jitter_ms is not None:
        spec.jitter.FromMilliseconds(schedule.jitter_ms)
    if schedule.start_ms is not None:
        spec.start_time.FromMilliseconds(schedule.start_ms)
    if schedule.end_ms is not None:
        spec.end_time.FromMilliseconds(schedule.end_ms)
    return spec


def _named(names: dict[Any, str], name: str) -> Any:
    return next(value for value, known in names.items() if known == name)


def _text(duration: Any) -> str:
    """A duration of a definition as ISO 8601."""
    if isinstance(duration, str):
        return duration
    units = (("days", 86_400), ("hours", 3_600), ("minutes", 60), ("seconds", 1), ("milliseconds", 0.001))
    seconds = sum(duration.get(unit, 0) * factor for unit, factor in units)
    return f"PT{seconds:.3f}".rstrip("0").rstrip(".") + "S"


def _duration(value: Duration) -> Any:
    milliseconds = value.ToMilliseconds()
    return {"milliseconds": milliseconds}


def _moment(value: Timestamp) -> str:
    try:
        return datetime.fromtimestamp(value.ToMilliseconds() / 1000, UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        return "out of range"
