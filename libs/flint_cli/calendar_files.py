"""Calendars from files: rules in YAML or JSON, or the events of an iCalendar file as dates."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, time, timedelta, tzinfo
from pathlib import Path
from typing import Any, Final

from flint_cli.exits import CommandFailed

__all__ = ["read_rules"]

_LARGEST: Final = 4 * 2**20
_MOST_DATES: Final = 2_000
_DAY: Final = timedelta(days=1)


def read_rules(path: Path, years: int, zone: tzinfo, today: date) -> list[dict[str, Any]]:
    """The rules in a file; of an iCalendar file the times of its events, those that recur for some years from today.

    Moments with a zone of their own are told in `zone`. Raises CommandFailed.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CommandFailed(f"{path}: {error.strerror}") from None
    if len(data) > _LARGEST:
        raise CommandFailed(f"{path}: has more than {_LARGEST} bytes")
    if path.suffix.lower() in (".ics", ".ical", ".icalendar"):
        return [{"dates": _events(path, data, years, zone, today)}]
    from ruamel.yaml import YAML  # noqa: PLC0415 - slow to import
    from ruamel.yaml.error import MarkedYAMLError  # noqa: PLC0415

    try:
        rules = YAML(typ="safe", pure=True).load(data)
    except MarkedYAMLError as error:
        raise CommandFailed(f"{path}: {error}") from None
    if isinstance(rules, dict) and set(rules) <= {"rules", "description"}:
        rules = rules.get("rules")
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        raise CommandFailed(f"{path}: expected a list of rules")
    return rules


def _events(path: Path, data: bytes, years: int, zone: tzinfo, today: date) -> list[str]:
    from icalendar import Calendar  # noqa: PLC0415 - slow to import

    until = today.replace(year=today.year + years, day=min(today.day, 28))
    try:
        calendar = Calendar.from_ical(data)
        found = sorted({text for event in calendar.walk("VEVENT") for text in _dates(event, zone, today, until)})
    except (ValueError, TypeError) as error:
        raise CommandFailed(f"{path}: is no iCalendar file that can be read: {error}") from None
    if not found:
        raise CommandFailed(f"{path}: has no events until {until}")
    if len(found) > _MOST_DATES:
        raise CommandFailed(
            f"{path}: has {len(found)} dates until {until}; a calendar holds {_MOST_DATES}: try --years"
        )
    return found


def _dates(event: Any, zone: tzinfo, today: date, until: date) -> Iterator[str]:
    """What an event covers, from today on, as dates and ranges of a rule."""
    begin = event.decoded("dtstart")
    whole = not isinstance(begin, datetime)
    length = event.decoded("dtend") - begin if "dtend" in event else event.decoded("duration", _DAY if whole else None)
    if length is None or length <= timedelta():
        return
    for first in _occurrences(event, begin, until):
        last = first + length
        if (last if whole else last.date()) < today:
            continue
        if whole:
            end = last - _DAY
            yield str(first) if end == first else f"{first}/{end}"
        else:
            yield f"{_local(first, zone)}/{_local(last, zone)}"


def _occurrences(event: Any, begin: Any, until: date) -> Iterator[Any]:
    if "rrule" not in event:
        yield begin
        return
    from dateutil.rrule import rrulestr  # type: ignore[import-untyped]  # noqa: PLC0415 - only for what recurs

    whole = not isinstance(begin, datetime)
    start = datetime.combine(begin, time()) if whole else begin
    rule = event["rrule"].to_ical().decode()
    excluded = event.get("exdate", [])
    left_out = {each.dt for part in (excluded if isinstance(excluded, list) else [excluded]) for each in part.dts}
    for number, moment in enumerate(rrulestr(rule, dtstart=start)):
        if moment.date() > until or number >= 100 * _MOST_DATES:
            return
        found = moment.date() if whole else moment
        if found not in left_out:
            yield found


def _local(moment: datetime, zone: tzinfo) -> str:
    local = moment.astimezone(zone) if moment.tzinfo is not None else moment
    return local.replace(tzinfo=None).isoformat(timespec="seconds")
