"""When a workflow starts by itself: `schedule` of a definition, and the next moment it names. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Final

from cronsim import CronSim, CronSimError

from flint_core.durations import parse_duration

__all__ = ["CronInvalid", "Schedule", "check_cron", "latest_fire", "next_fire"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_CRON_CHARACTERS: Final = 200
_LATE_MS: Final = 1_000
_MACROS: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


class CronInvalid(ValueError):
    """The text is no cron expression; the message says why."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Exactly one of the first four is set.

    `every`: a duration between starts, counted from when the definition became the current one, however long runs take.
    `cron`: 5 fields, or 6 with seconds first. `after`: a duration between the end of a run and the next start. `on`: an
    event consumption strategy as the definition wrote it; what it consumed is the input. Durations are as written
    (object or ISO 8601 text), without expressions.

    `overlap`: "skip" leaves a time out while the run before has not ended; None allows any number at once.
    `catch_up_ms`: how late a missed time may still be made up for; None leaves that to the settings.
    """

    every: Any = None
    cron: str | None = None
    after: Any = None
    on: Any = None
    overlap: str | None = None
    catch_up_ms: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The schedule as JSON: the members that are set."""
        members = {name: getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in members.items() if value is not None}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Schedule:
        """The reverse of `to_json`."""
        return cls(**document)


def check_cron(text: str) -> None:
    """Raises CronInvalid unless the text is a cron expression that fires at least once."""
    _cron(text, datetime(2024, 1, 1, tzinfo=UTC))


def next_fire(schedule: Schedule, after_ms: int, zone: tzinfo = UTC, since_ms: int = 0) -> int | None:
    """The first moment later than `after_ms` at which the schedule starts a run; None when time does not tell it.

    All times are Unix epoch milliseconds. `every` fires at `since_ms` plus whole intervals (calendar intervals are
    added one after another in `zone`); `after` fires its duration after `after_ms`, which is then the end of a run;
    `on` never fires by time. `cron` follows `zone`: a local time that a change of the clock leaves out fires when the
    clock has changed, one that it repeats fires once (wildcards of minute or hour keep firing in elapsed time).
    """
    if schedule.cron is not None:
        start = (_EPOCH + timedelta(milliseconds=after_ms)).astimezone(zone if zone is not UTC else UTC)
        moment = next(_cron(schedule.cron, start), None)
        return None if moment is None else (moment.astimezone(UTC) - _EPOCH) // _MILLISECOND
    if schedule.after is not None:
        return parse_duration(schedule.after).after(after_ms, zone)
    if schedule.every is None:
        return None
    return _every(schedule.every, after_ms, zone, since_ms)


def latest_fire(
    schedule: Schedule, first_ms: int, now_ms: int, catch_up_ms: int, zone: tzinfo = UTC, since_ms: int = 0
) -> int | None:
    """The last moment to be served now, of those that `first_ms` (which was due) begins; None: all came too long ago.

    Moments older than `catch_up_ms` are left out, and of several the earlier ones. A moment that is at most one second
    late is never too late, nor is the one of `after`, since nothing else would go on. The cost does not grow with how
    many moments were missed.
    """
    if schedule.every is None and schedule.cron is None:
        return first_ms
    oldest = max(first_ms, now_ms - max(catch_up_ms, _LATE_MS))
    back = _LATE_MS
    while True:
        start = max(oldest, now_ms - back)
        found = next_fire(schedule, start - 1, zone, since_ms)
        if found is not None and found <= now_ms:
            break
        if start == oldest:
            return None
        back *= 2
    while (following := next_fire(schedule, found, zone, since_ms)) is not None and following <= now_ms:
        found = following
    return found


def _every(every: Any, after_ms: int, zone: tzinfo, since_ms: int) -> int:
    interval = parse_duration(every)
    if after_ms < since_ms:
        return since_ms
    if not interval.months:
        return since_ms + ((after_ms - since_ms) // interval.milliseconds + 1) * interval.milliseconds
    # Counted from the beginning, so that the 31st comes back after a short month.
    longest_ms = interval.months * 31 * 86_400_000 + interval.milliseconds
    count = max((after_ms - since_ms) // (longest_ms + 86_400_000), 0)
    while True:
        moment = interval.times(count).after(since_ms, zone)
        if moment > after_ms:
            return moment
        count += 1


def _cron(text: str, start: datetime) -> CronSim:
    if len(text) > _CRON_CHARACTERS:
        raise CronInvalid(f"a cron expression has at most {_CRON_CHARACTERS} characters")
    fields = _MACROS.get(text.strip().lower(), text)
    if len(fields.split()) not in (5, 6):
        raise CronInvalid(
            f"'{text[:60]}' has {len(fields.split())} fields; 5 are needed (minute hour day month weekday), "
            "or 6 with seconds first"
        )
    try:
        return CronSim(fields, start)
    except CronSimError as error:
        raise CronInvalid(f"'{text[:60]}': {str(error)[:1].lower()}{str(error)[1:]}") from None
