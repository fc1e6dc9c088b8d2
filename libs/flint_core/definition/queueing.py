"""`metadata.flint` of a document and of tasks, as far as it says how runs queue and where steps are executed."""

from __future__ import annotations

import re
from typing import Any, Final

from flint_core.bindings import Binding
from flint_core.definition.context import Context, kind_of
from flint_core.definition.findings import Rule
from flint_core.definition.permits import concurrency_hint, rate_hint
from flint_core.definition.reader import join_pointer
from flint_core.durations import DurationError, parse_duration
from flint_core.expressions import TemplateSyntaxError
from flint_core.queue_hints import KEY_VARIABLES
from flint_core.windows import DAYS, Window, WindowInvalid, minute_of_day
from flint_core.zones import UTC_NAME

__all__ = ["DOCUMENT_QUEUE_HINTS", "PLACE_HINTS", "document_queue", "level_of", "task_place"]

PLACE_HINTS: Final = ("pool", "region", "level")
DOCUMENT_QUEUE_HINTS: Final = (
    *("pool", "region", "fairness", "sticky", "offPeak", "window", "sla"),
    *("concurrency", "rate"),
)
_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_LEVEL_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_LEAST_URGENT: Final = 9
_LONGEST_MS: Final = 366 * 86_400_000


def document_queue(context: Context, hints: dict[str, Any], place: str) -> dict[str, Any]:
    """The members of the program's `queue`. `place`: pointer of `metadata.flint`."""
    queue: dict[str, Any] = {}
    for name in ("pool", "region"):
        if name in hints:
            label = _label(context, hints[name], join_pointer(place, name), name)
            if label:
                queue[name] = label
    for name in ("fairness", "sticky"):
        if name in hints:
            key = _key(context, hints[name], join_pointer(place, name))
            if key is not None:
                queue[name] = key
    if "offPeak" in hints:
        queue |= _off_peak(context, hints["offPeak"], join_pointer(place, "offPeak"))
    if "window" in hints:
        queue |= _window(context, hints["window"], join_pointer(place, "window"))
    if "sla" in hints:
        queue |= _sla(context, hints["sla"], join_pointer(place, "sla"))
    for name, member, compile_hint in (
        ("concurrency", "concurrency", concurrency_hint),
        ("rate", "rates", rate_hint),
    ):
        if name in hints:
            spot = join_pointer(place, name)
            queue[member] = compile_hint(context, hints[name], spot, lambda v, p: _key(context, v, p))
    return queue


def level_of(context: Context, value: Any, place: str) -> int | str | None:
    """A level: a number, or a name that the namespace gave to one."""
    if isinstance(value, str) and _LEVEL_NAME.fullmatch(value):
        return value
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LEAST_URGENT:
        message = f"'level' must be a number from 0 (most urgent) to {_LEAST_URGENT}, or the name of a level"
        context.error(Rule.INVALID_VALUE, message, place)
        return None
    return value


def task_place(
    context: Context, hints: dict[str, Any], place: str, around: tuple[str, str, str] | None
) -> tuple[str, str, str] | None:
    """Pool, region and level of a task and of those within it; `around`: of the task around it."""
    pool, region, level = around or ("", "", "")
    if "pool" in hints:
        pool = _label(context, hints["pool"], join_pointer(place, "pool"), "pool")
    if "region" in hints:
        region = _label(context, hints["region"], join_pointer(place, "region"), "region")
    if "level" in hints:
        found = level_of(context, hints["level"], join_pointer(place, "level"))
        level = "" if found is None else str(found)
    return (pool, region, level) if pool or region or level else None


def _label(context: Context, value: Any, place: str, name: str) -> str:
    if not isinstance(value, str) or not _LABEL.fullmatch(value):
        message = f"'{name}' must be 1 to 63 lower-case letters, digits and hyphens, not {_shown(value)}"
        context.error(Rule.INVALID_VALUE, message, place)
        return ""
    return value


def _shown(value: Any) -> str:
    return f"'{value[:80]}'" if isinstance(value, str) else kind_of(value)


def _key(context: Context, value: Any, place: str) -> str | None:
    """Text with expressions over the input, which are evaluated when the run is accepted: there is no jq then."""
    if not isinstance(value, str) or not value.strip():
        context.error(Rule.WRONG_TYPE, f"a key is text, such as ${{ .customer }}, not {kind_of(value)}", place)
        return None
    try:
        binding = Binding(value, KEY_VARIABLES)
    except TemplateSyntaxError as error:
        context.error(Rule.EXPRESSION, str(error), place)
        return None
    if binding.deferred:
        context.error(Rule.INVALID_VALUE, "a key cannot hold a secret: it stands in the record", place)
        return None
    if binding.externals:
        message = f"'{binding.externals[0][:80]}' needs jq; a key is made of paths, text and comparisons of the input"
        context.error(Rule.INVALID_VALUE, message, place)
        return None
    return value


def _off_peak(context: Context, value: Any, place: str) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"off_peak": True} if value else {}
    members = context.mapping(value, place, "'offPeak' (true, or latestStart)", frozenset({"latestStart"}))
    found: dict[str, Any] = {"off_peak": True}
    if "latestStart" in members:
        found |= _duration(context, members["latestStart"], join_pointer(place, "latestStart"), "latest_start_ms")
    return found


def _window(context: Context, value: Any, place: str) -> dict[str, Any]:
    names = frozenset({"from", "to", "days", "zone", "cron", "for", "latestStart"})
    members = context.mapping(value, place, "'window'", names)
    if not members:
        return {}
    found: dict[str, Any] = {}
    if "latestStart" in members:
        found |= _duration(context, members["latestStart"], join_pointer(place, "latestStart"), "latest_start_ms")
    by_cron = "cron" in members or "for" in members
    for name in ("from", "to", "days") if by_cron else ("cron", "for"):
        if name in members:
            context.error(Rule.INVALID_VALUE, "a window has from and to, or cron and for", join_pointer(place, name))
            return found
    for name in ("cron", "for") if by_cron else ("from", "to"):
        if name not in members:
            context.error(Rule.MISSING_FIELD, f"'window' needs '{name}'", place)
            return found
    zone = members.get("zone", UTC_NAME)
    if not isinstance(zone, str):
        context.error(Rule.WRONG_TYPE, f"'zone' must be text, not {kind_of(zone)}", join_pointer(place, "zone"))
        return found
    try:
        if by_cron:
            spot = join_pointer(place, "for")
            open_ms = _duration(context, members["for"], spot, "open_ms").get("open_ms", 0)
            window = Window(zone=zone, cron=str(members["cron"]), open_ms=open_ms)
            if not open_ms:
                return found
        else:
            days = tuple(sorted({_day(day) for day in _list(members.get("days", []))}))
            window = Window(minute_of_day(str(members["from"])), minute_of_day(str(members["to"])), days, zone)
        found["window"] = window.check().to_document()
    except WindowInvalid as error:
        context.error(Rule.INVALID_VALUE, f"'window': {error}", place)
    return found


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _day(value: Any) -> int:
    if value not in DAYS:
        raise WindowInvalid(f"the days of a week are {', '.join(DAYS)}")
    return DAYS.index(value)


def _sla(context: Context, value: Any, place: str) -> dict[str, Any]:
    members = context.mapping(value, place, "'sla'", frozenset({"start", "finish"}))
    found: dict[str, Any] = {}
    for name in ("start", "finish"):
        if name in members:
            found |= _duration(context, members[name], join_pointer(place, name), f"{name}_ms")
    if not members and isinstance(value, dict):
        context.error(Rule.MISSING_FIELD, "'sla' needs 'start' or 'finish'", place)
    return found


def _duration(context: Context, value: Any, place: str, member: str) -> dict[str, Any]:
    try:
        length_ms = parse_duration(value).length_ms(0)
    except DurationError as error:
        context.error(Rule.INVALID_VALUE, str(error), place)
        return {}
    if not 1 <= length_ms <= _LONGEST_MS:
        context.error(Rule.INVALID_VALUE, "a duration here is from a millisecond to 366 days", place)
        return {}
    return {member: length_ms}
