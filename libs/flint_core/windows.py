"""Windows: stretches of time that come again, such as every night from 22:00 to 06:00 in Berlin. Pure.

A window opens either at a time of the day on some days of the week, or at the moments of a cron expression; it stays
open until another time of the day, or for a duration. All moments are Unix epoch milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cronsim import CronSim, CronSimError

from flint_core.zones import UTC_NAME, ZoneUnknown, zone_named

__all__ = ["DAYS", "Window", "WindowInvalid", "minute_of_day", "parse_window"]

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_DAY_MS: Final = 86_400_000
_LONGEST_MS: Final = 31 * _DAY_MS
_CRON_CHARACTERS: Final = 200


class WindowInvalid(ValueError):
    """It is no window; the message says why."""


@dataclass(frozen=True, slots=True)
class Window:
    """Either `start` and `end` (minutes of the local day, 0 to 1439; an end that is not later is the next day's) with
    `days` (0 is Monday; empty: all; the day on which it opens), or `cron` with `open_ms`, how long it stays open.
    """

    start: int = 0
    end: int = 0
    days: tuple[int, ...] = ()
    zone: str = UTC_NAME
    cron: str = ""
    open_ms: int = 0

    def to_document(self) -> dict[str, Any]:
        """As JSON: the members that are set."""
        members = {name: getattr(self, name) for name in self.__slots__}
        return {n: list(v) if n == "days" else v for n, v in members.items() if v or n in ("start", "end", "zone")}

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Window:
        """The reverse of `to_document`."""
        return cls(**{**document, "days": tuple(document.get("days", ()))})

    def check(self) -> Window:
        """The window itself. Raises WindowInvalid when it never opens, or is open always."""
        try:
            zone_named(self.zone)
        except ZoneUnknown as error:
            raise WindowInvalid(str(error)) from None
        if not self.cron:
            if not (0 <= self.start < 1440 and 0 <= self.end < 1440):
                raise WindowInvalid("a time of the day is 00:00 to 23:59")
            if self.start == self.end:
                raise WindowInvalid("a window that ends when it begins is open always; leave it out")
            if any(day not in range(7) for day in self.days):
                raise WindowInvalid(f"the days of a week are {', '.join(DAYS)}")
            return self
        if not 60_000 <= self.open_ms <= _LONGEST_MS:
            raise WindowInvalid("a window with `cron` stays open for one minute to 31 days (`for`)")
        if len(self.cron) > _CRON_CHARACTERS or len(self.cron.split()) != 5:
            raise WindowInvalid(f"a cron expression here has 5 fields and at most {_CRON_CHARACTERS} characters")
        try:
            CronSim(self.cron, datetime(2024, 1, 1, tzinfo=UTC))
        except CronSimError as error:
            raise WindowInvalid(f"'{self.cron[:60]}': {str(error)[:1].lower()}{str(error)[1:]}") from None
        return self

    def opening(self, now_ms: int) -> tuple[int, int] | None:
        """When it is open: (from, until) of the stretch that holds `now_ms`, else of the next one. None: never again.

        A local time that a change of the clock leaves out counts as the moment of the change.
        """
        zone = zone_named(self.zone)
        if self.cron:
            begin = (_EPOCH + timedelta(milliseconds=now_ms - self.open_ms)).astimezone(zone)
            for moment in CronSim(self.cron, begin):
                opened = _ms(moment)
                if opened + self.open_ms > now_ms:
                    return opened, opened + self.open_ms
            return None
        local = (_EPOCH + timedelta(milliseconds=now_ms)).astimezone(zone)
        for back in range(-1, 9):
            day = (local + timedelta(days=back)).date()
            if self.days and day.weekday() not in self.days:
                continue
            until_day = day if self.end > self.start else day + timedelta(days=1)
            opened = _ms(datetime(day.year, day.month, day.day, self.start // 60, self.start % 60, tzinfo=zone))
            until = _ms(
                datetime(until_day.year, until_day.month, until_day.day, self.end // 60, self.end % 60, tzinfo=zone)
            )
            if until > now_ms and until > opened:
                return opened, until
        return None


def minute_of_day(text: str) -> int:
    """Minutes from 00:00 of a time such as 22:30. Raises WindowInvalid."""
    hours, colon, minutes = text.partition(":")
    if colon and len(hours) == len(minutes) == 2 and hours.isdecimal() and minutes.isdecimal():
        minute = int(hours) * 60 + int(minutes)
        if int(hours) < 24 and int(minutes) < 60:
            return minute
    raise WindowInvalid(f"'{text[:20]}' is no time of the day such as 22:30")


def parse_window(text: str) -> Window:
    """A window such as `22:00-06:00` or `22:00-06:00 Europe/Berlin`; UTC when no zone follows. Raises WindowInvalid."""
    times, _, zone = text.strip().partition(" ")
    start, _, end = times.partition("-")
    return Window(minute_of_day(start), minute_of_day(end), zone=zone.strip() or UTC_NAME).check()


def _ms(moment: datetime) -> int:
    return (moment.astimezone(UTC) - _EPOCH) // _MILLISECOND
