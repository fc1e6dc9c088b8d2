"""Calendars: the moments at which schedules do not fire. Pure.

A calendar is a list of rules; a moment is excluded when any rule matches. A rule matches when all that it names do:

    {dates: ["2026-12-24", "12-25", "12-24/01-02", "2026-12-24T12:00/2026-12-27T08:00"]}   any of these
    {weekdays: [sat, sun]}                    the local day of the week
    {from: "22:00", to: "06:00"}              the local time of day; may pass midnight; `to` is not part of it
    {holidays: {country: DE, subdivision: BY}}  public holidays, by the package `holidays`

A date without a year comes back each year; a range of dates holds its last day, one of moments ends before its end.
Times are those of the schedule's zone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from functools import lru_cache
from typing import Any, Final

__all__ = ["MAX_DATES", "MAX_RULES", "WEEKDAYS", "Calendar", "Problem", "check_rules"]

WEEKDAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MAX_RULES: Final = 100
"""Rules of one calendar."""
MAX_DATES: Final = 2_000
"""Dates and ranges of one calendar."""

_MEMBERS: Final = ("dates", "weekdays", "from", "to", "holidays")
_TIME: Final = re.compile(r"([01]\d|2[0-4]):([0-5]\d)")
_YEARLY: Final = re.compile(r"(\d\d)-(\d\d)")
_LEAP: Final = 2024  # a year with a 29 February, to check dates that come back

Problem = tuple[tuple[Any, ...], str]
_Span = tuple[datetime, datetime]
_Yearly = tuple[tuple[int, int], tuple[int, int]]


def check_rules(value: Any) -> list[Problem]:
    """What is wrong with a calendar's rules: the path within them, and a sentence. Nothing: they can be used."""
    if not isinstance(value, list):
        return [((), "must be a list of rules")]
    if len(value) > MAX_RULES:
        return [((), f"has {len(value)} rules; the limit is {MAX_RULES}")]
    problems: list[Problem] = []
    dates = 0
    for index, rule in enumerate(value):
        if not isinstance(rule, dict):
            problems.append(((index,), "must be an object with dates, weekdays, from and to, or holidays"))
            continue
        problems += [
            ((index, name), "is not part of a rule: dates, weekdays, from, to, holidays are")
            for name in rule
            if name not in _MEMBERS
        ]
        if not any(name in rule for name in _MEMBERS):
            problems.append(((index,), "names nothing: at least one of dates, weekdays, from, to, holidays is needed"))
        dates += len(rule["dates"]) if isinstance(rule.get("dates"), list) else 0
        for name, check in _CHECKS.items():
            if name in rule:
                problems += [((index, name, *path), message) for path, message in check(rule[name])]
        if "from" in rule and rule.get("from") == rule.get("to"):
            problems.append(((index, "to"), "must differ from 'from'"))
    if dates > MAX_DATES:
        problems.append(((), f"has {dates} dates; the limit is {MAX_DATES}"))
    return problems


class Calendar:
    """Checked rules, ready to be asked. Immutable; any thread."""

    def __init__(self, rules: Iterable[dict[str, Any]]) -> None:
        self._rules = [_Rule.of(rule) for rule in rules]

    def excludes(self, local: datetime) -> bool:
        """Whether no schedule fires at this moment, told in the schedule's zone."""
        return any(rule.matches(local) for rule in self._rules)

    def may_change_after(self, local: datetime) -> datetime:
        """A later local moment (naive) before which the answer for `local` cannot change: at most the next midnight."""
        naive = local.replace(tzinfo=None, fold=0)
        following = datetime.combine(naive.date() + timedelta(days=1), time())
        for rule in self._rules:
            for edge in rule.edges(naive):
                if naive < edge < following:
                    following = edge
        return following


@dataclass(frozen=True, slots=True)
class _Rule:
    spans: list[_Span] | None = None
    yearly: list[_Yearly] = field(default_factory=list)
    weekdays: frozenset[int] | None = None
    begin: int | None = None  # minutes of the day
    end: int | None = None
    country: str = ""
    subdivision: str = ""

    @classmethod
    def of(cls, rule: dict[str, Any]) -> _Rule:
        spans: list[_Span] | None = None
        yearly: list[_Yearly] = []
        if "dates" in rule:
            spans = []
            for text in rule["dates"]:
                found = _parse(text)
                if isinstance(found[0], datetime):
                    spans.append(found)
                else:
                    yearly.append(found)
        days = frozenset(WEEKDAYS.index(day) for day in rule["weekdays"]) if "weekdays" in rule else None
        timed = "from" in rule or "to" in rule
        about = rule.get("holidays") or {}
        return cls(
            spans,
            yearly,
            days,
            _minutes(rule.get("from", "00:00")) if timed else None,
            _minutes(rule.get("to", "24:00")) if timed else None,
            about.get("country", ""),
            about.get("subdivision", ""),
        )

    def matches(self, local: datetime) -> bool:
        naive = local.replace(tzinfo=None, fold=0)
        if self.weekdays is not None and naive.weekday() not in self.weekdays:
            return False
        if self.begin is not None and self.end is not None:
            at = naive.hour * 60 + naive.minute
            inside = self.begin <= at < self.end if self.begin < self.end else (at >= self.begin or at < self.end)
            if not inside:
                return False
        if self.spans is not None and not (self._dated(naive)):
            return False
        return not self.country or naive.date() in _holidays(self.country, self.subdivision, naive.year)

    def _dated(self, naive: datetime) -> bool:
        day = (naive.month, naive.day)
        return any(begin <= naive < end for begin, end in self.spans or ()) or any(
            first <= day <= last if first <= last else (day >= first or day <= last) for first, last in self.yearly
        )

    def edges(self, naive: datetime) -> list[datetime]:
        """Moments of this day at which the rule begins or ceases to match, beside midnight."""
        found = [edge for span in self.spans or () for edge in span]
        midnight = datetime.combine(naive.date(), time())
        found += [midnight + timedelta(minutes=at) for at in (self.begin, self.end) if at is not None]
        return found


@lru_cache(maxsize=512)
def _holidays(country: str, subdivision: str, year: int) -> frozenset[date]:
    """The days off of a year. Raises NotImplementedError for a country or subdivision that is not known."""
    import holidays  # noqa: PLC0415 - heavy, and few schedules ask for it

    return frozenset(holidays.country_holidays(country, subdiv=subdivision or None, years=year))


def _minutes(text: str) -> int:
    return int(text[:2]) * 60 + int(text[3:])


def _parse(text: str) -> _Span | _Yearly:
    """A date, or a range of dates or moments. Raises ValueError."""
    first, slash, last = text.partition("/")
    if not slash:
        last = first
    begin, end = _YEARLY.fullmatch(first), _YEARLY.fullmatch(last)
    if begin and end:
        days = [(int(found[1]), int(found[2])) for found in (begin, end)]
        for month, day in days:
            date(_LEAP, month, day)
        return days[0], days[1]
    if "T" in first:
        span = datetime.fromisoformat(first), datetime.fromisoformat(last)
        if span[0].tzinfo or span[1].tzinfo:
            raise ValueError("is told in the schedule's time zone: without an offset")
    else:
        span = (
            datetime.combine(date.fromisoformat(first), time()),
            datetime.combine(date.fromisoformat(last) + timedelta(days=1), time()),
        )
    if span[0] >= span[1]:
        raise ValueError("ends before it begins")
    return span


def _check_dates(value: Any) -> list[Problem]:
    if not isinstance(value, list) or not value:
        return [((), "must be a list of dates such as 2026-12-24, 12-25 or 2026-12-24/2027-01-02")]
    problems: list[Problem] = []
    for index, text in enumerate(value):
        try:
            if not isinstance(text, str) or len(text) > 60:
                raise TypeError
            _parse(text)
        except (TypeError, ValueError, OverflowError) as error:
            why = str(error) if "begins" in str(error) or "offset" in str(error) else "is no date and no range of dates"
            problems.append(((index,), f"'{str(text)[:60]}' {why}"))
    return problems


def _check_weekdays(value: Any) -> list[Problem]:
    if not isinstance(value, list) or not value or any(day not in WEEKDAYS for day in value):
        return [((), f"must be a list of {', '.join(WEEKDAYS)}")]
    return []


def _check_time(value: Any) -> list[Problem]:
    if not isinstance(value, str) or not _TIME.fullmatch(value) or _minutes(value) > 24 * 60:
        return [((), "must be a time of day such as 08:30, in quotes; 24:00 at the latest")]
    return []


def _check_holidays(value: Any) -> list[Problem]:
    if not isinstance(value, dict) or not isinstance(value.get("country"), str):
        return [((), "must be an object such as {country: DE, subdivision: BY}")]
    problems: list[Problem] = [
        ((name,), "is not part of it: country, subdivision are")
        for name in value
        if name not in ("country", "subdivision")
    ]
    subdivision = value.get("subdivision", "")
    if not isinstance(subdivision, str):
        return [*problems, (("subdivision",), "must be text, such as BY")]
    try:
        _holidays(value["country"], subdivision, _LEAP)
    except (NotImplementedError, ValueError):
        shown = f"{value['country'][:20]}{'-' if subdivision else ''}{subdivision[:20]}"
        problems.append(((), f"no public holidays are known of '{shown}': codes are those of ISO 3166"))
    return problems


_CHECKS: Final[dict[str, Callable[[Any], Sequence[Problem]]]] = {
    "dates": _check_dates,
    "weekdays": _check_weekdays,
    "from": _check_time,
    "to": _check_time,
    "holidays": _check_holidays,
}
