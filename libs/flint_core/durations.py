"""Durations as the definition language writes them: an object, an ISO 8601 string, or the value of an expression.

Years and months are calendar units: they are added on the run's calendar (its time zone, UTC unless told), the rest is
exact milliseconds.
"""

from __future__ import annotations

import calendar
import difflib
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Final

__all__ = ["Duration", "DurationError", "parse_duration"]

_UNITS_MS: Final = {"days": 86_400_000, "hours": 3_600_000, "minutes": 60_000, "seconds": 1_000, "milliseconds": 1}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LONGEST_MS: Final = 100 * 366 * 86_400_000
_LONGEST_MONTHS: Final = 1200
_ISO: Final = re.compile(
    r"P(?=[\dT])(?:(?P<years>\d{1,4})Y)?(?:(?P<months>\d{1,5})M)?(?:(?P<weeks>\d{1,6})W)?(?:(?P<days>\d{1,9}(?:[.,]\d{1,9})?)D)?"
    r"(?:T(?=\d)(?:(?P<hours>\d{1,9}(?:[.,]\d{1,9})?)H)?(?:(?P<minutes>\d{1,9}(?:[.,]\d{1,9})?)M)?"
    r"(?:(?P<seconds>\d{1,12}(?:[.,]\d{1,9})?)S)?)?",
    re.ASCII,
)


class DurationError(ValueError):
    """The value is not a duration; the message says why."""


@dataclass(frozen=True, slots=True)
class Duration:
    """Calendar months plus exact milliseconds, neither negative, together at most some hundred years."""

    months: int
    milliseconds: int

    def after(self, now_ms: int, zone: tzinfo = UTC) -> int:
        """The moment this long after `now_ms` (Unix epoch, ms). Months keep the time of day that `zone` shows."""
        if not self.months:
            return now_ms + self.milliseconds
        start = (_EPOCH + timedelta(milliseconds=now_ms)).astimezone(zone)
        index = start.year * 12 + start.month - 1 + self.months
        year, month = divmod(index, 12)
        day = min(start.day, calendar.monthrange(year, month + 1)[1])
        moved = start.replace(year=year, month=month + 1, day=day, fold=0).astimezone(UTC)
        return (moved - _EPOCH) // timedelta(milliseconds=1) + self.milliseconds

    def length_ms(self, now_ms: int, zone: tzinfo = UTC) -> int:
        """Its length when it begins at `now_ms`."""
        return self.after(now_ms, zone) - now_ms

    def times(self, count: int) -> Duration:
        """This duration `count` times."""
        return Duration(self.months * count, self.milliseconds * count)


def _near(unit: Any) -> str:
    close = difflib.get_close_matches(str(unit), _UNITS_MS, n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def parse_duration(value: Any) -> Duration:
    """The duration that a JSON value writes. Raises DurationError with a message for the author."""
    if isinstance(value, str):
        return _parse_iso(value)
    if not isinstance(value, dict):
        raise DurationError("a duration is an object such as {seconds: 30} or an ISO 8601 text such as PT30S")
    if not value:
        raise DurationError("an empty object is no duration: name at least one of " + ", ".join(_UNITS_MS))
    total = 0.0
    for unit, amount in value.items():
        factor = _UNITS_MS.get(unit)
        if factor is None:
            raise DurationError(
                f"'{unit}' is not a unit of a duration: days, hours, minutes, seconds, milliseconds are{_near(unit)}"
            )
        if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 <= amount <= _LONGEST_MS:
            raise DurationError(f"{unit} of a duration must be a number of 0 or more")
        total += amount * factor
    return _checked(0, round(total))


def _parse_iso(text: str) -> Duration:
    match = _ISO.fullmatch(text.strip())
    if match is None:
        raise DurationError(f"'{text[:60]}' is not an ISO 8601 duration such as PT30S, PT5M or P1DT12H")
    parts = {unit: float(amount.replace(",", ".")) for unit, amount in match.groupdict().items() if amount}
    months = int(parts.pop("years", 0) * 12 + parts.pop("months", 0))
    exact = parts.pop("weeks", 0.0) * 7 * _UNITS_MS["days"]
    exact += sum(amount * _UNITS_MS[unit] for unit, amount in parts.items())
    return _checked(months, round(exact))


def _checked(months: int, milliseconds: int) -> Duration:
    if months > _LONGEST_MONTHS or milliseconds > _LONGEST_MS:
        raise DurationError("a duration of more than 100 years is not a duration")
    return Duration(months, milliseconds)
