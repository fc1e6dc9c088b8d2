"""When a workflow starts by itself: `schedule` of a definition, and the next moment it names. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final

from cronsim import CronSim, CronSimError

from flint_core.calendars import Calendar
from flint_core.durations import parse_duration

__all__ = [
    "CronInvalid",
    "Schedule",
    "check_cron",
    "due_fires",
    "jittered",
    "latest_fire",
    "local_moment",
    "next_fire",
    "past_fires",
    "upcoming",
]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_CRON_CHARACTERS: Final = 200
_LATE_MS: Final = 1_000
_FAR_MS: Final = 4 * 366 * 86_400_000  # how far a moment that is not excluded is looked for
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

    `overlap`: what becomes of a time while the run before has not ended. None: it starts a run as well. "skip": it is
    left out. "buffer": the first such time waits for the end of the run, others are left out. "cancel", "terminate":
    the run is cancelled or terminated, and the latest such time starts when it has ended.
    `catch_up`: of missed times, None makes up for the last, "all" for each in order, "none" for none.
    `catch_up_ms`: how late a missed time may still be made up for; None leaves that to the settings.
    `jitter_ms`: each start is late by up to this, by an amount that belongs to the schedule and the time (`jittered`).
    `exclude`: rules of a calendar (`flint_core.calendars`) whose moments do not count as times. `calendars`: names of
    calendars that are looked at when a time has come. `start_ms`, `end_ms`: no time before the one and none after the
    other. `max_runs`: runs that time starts in all.
    """

    every: Any = None
    cron: str | None = None
    after: Any = None
    on: Any = None
    overlap: str | None = None
    catch_up_ms: int | None = None
    catch_up: str | None = None
    jitter_ms: int | None = None
    exclude: tuple[Any, ...] | None = None
    calendars: tuple[str, ...] | None = None
    start_ms: int | None = None
    end_ms: int | None = None
    max_runs: int | None = None

    @property
    def kind(self) -> str:
        """every, cron, after or on."""
        return next(name for name in ("every", "cron", "after", "on") if getattr(self, name) is not None)

    def to_json(self) -> dict[str, Any]:
        """The schedule as JSON: the members that are set."""
        members = {name: getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in members.items() if value is not None}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Schedule:
        """The reverse of `to_json`."""
        lists: dict[str, Any] = {name: tuple(document[name]) for name in ("exclude", "calendars") if name in document}
        return cls(**{**document, **lists})


def check_cron(text: str) -> None:
    """Raises CronInvalid unless the text is a cron expression that fires at least once."""
    _cron(text, datetime(2024, 1, 1, tzinfo=UTC))


def next_fire(schedule: Schedule, after_ms: int, zone: tzinfo = UTC, since_ms: int = 0) -> int | None:
    """The first moment later than `after_ms` at which the schedule starts a run; None when time does not tell it.

    All times are Unix epoch milliseconds. `every` fires at `since_ms` (or `start_ms`) plus whole intervals (calendar
    intervals are added one after another in `zone`); `after` fires its duration after `after_ms`, which is then the end
    of a run; `on` never fires by time. `cron` follows `zone`: a local time that a change of the clock leaves out fires
    when the clock has changed, one that it repeats fires once (wildcards of minute or hour keep firing in elapsed
    time). Moments that `exclude` names are passed over; None when there is no other within four years.
    """
    if schedule.start_ms is not None:
        since_ms = schedule.start_ms
        after_ms = max(after_ms, since_ms - 1)
    if schedule.every is not None:
        after_ms = max(after_ms, since_ms - 1)
    found = _next(schedule, after_ms, zone, since_ms)
    if schedule.exclude and found is not None:
        found = _not_excluded(schedule, found, zone, since_ms)
    if found is None or (schedule.end_ms is not None and found > schedule.end_ms):
        return None
    return found


def upcoming(
    schedule: Schedule,
    after_ms: int,
    zone: tzinfo = UTC,
    since_ms: int = 0,
    calendars: tuple[Calendar, ...] = (),
    passes: int = 100_000,
) -> Iterator[int]:
    """The moments later than `after_ms`, in order; without those of `calendars`, of which at most `passes` are met."""
    moment: int | None = after_ms
    while passes > 0:
        moment = next_fire(schedule, moment, zone, since_ms) if moment is not None else None
        if moment is None:
            return
        if calendars and any(calendar.excludes(local_moment(moment, zone)) for calendar in calendars):
            passes -= 1
            continue
        yield moment


def jittered(schedule: Schedule, key: str, moment_ms: int, following_ms: int | None) -> int:
    """When the run of a moment starts: the same for the same `key` and moment, never behind the following moment."""
    most = schedule.jitter_ms or 0
    if following_ms is not None:
        most = min(most, following_ms - moment_ms)
    if most <= 0:
        return moment_ms
    draw = int.from_bytes(blake2b(f"{key}/{moment_ms}".encode(), digest_size=8).digest())
    return moment_ms + draw % most


def due_fires(
    schedule: Schedule,
    first_ms: int,
    now_ms: int,
    catch_up_ms: int,
    zone: tzinfo = UTC,
    since_ms: int = 0,
    *,
    most: int = 1,
) -> list[int]:
    """The moments to be served now, of those that `first_ms` (which was due) begins: one, or with `catch_up` "all" up
    to `most` of them in order. Empty: all came too long ago.
    """
    if schedule.catch_up != "all" or (schedule.every is None and schedule.cron is None):
        window = _LATE_MS if schedule.catch_up == "none" else catch_up_ms
        last = latest_fire(schedule, first_ms, now_ms, window, zone, since_ms)
        return [] if last is None else [last]
    found: list[int] = []
    moment: int | None = first_ms
    oldest = now_ms - max(catch_up_ms, _LATE_MS)
    if first_ms < oldest:
        moment = next_fire(schedule, oldest - 1, zone, since_ms)
    while moment is not None and moment <= now_ms and len(found) < most:
        found.append(moment)
        moment = next_fire(schedule, moment, zone, since_ms)
    return found


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


def local_moment(moment_ms: int, zone: tzinfo) -> datetime:
    """A moment as a zone shows it."""
    return (_EPOCH + timedelta(milliseconds=moment_ms)).astimezone(zone)


def _not_excluded(schedule: Schedule, found: int, zone: tzinfo, since_ms: int) -> int | None:
    calendar = _calendar(json.dumps(schedule.exclude))
    last = min(found + _FAR_MS, schedule.end_ms if schedule.end_ms is not None else found + _FAR_MS)
    moment: int | None = found
    while moment is not None and moment <= last:
        local = local_moment(moment, zone)
        if not calendar.excludes(local):
            return moment
        # Not before the answer can change: a schedule of every second does not count through a weekend.
        edge = calendar.may_change_after(local).replace(tzinfo=zone)
        edge_ms = (edge.astimezone(UTC) - _EPOCH) // _MILLISECOND
        moment = _next(schedule, max(moment, edge_ms - 1), zone, since_ms)
    return None


@lru_cache(maxsize=1024)
def _calendar(rules: str) -> Calendar:
    return Calendar(json.loads(rules))


def _next(schedule: Schedule, after_ms: int, zone: tzinfo, since_ms: int) -> int | None:
    if schedule.cron is not None:
        start = (_EPOCH + timedelta(milliseconds=after_ms)).astimezone(zone if zone is not UTC else UTC)
        moment = next(_cron(schedule.cron, start), None)
        return None if moment is None else (moment.astimezone(UTC) - _EPOCH) // _MILLISECOND
    if schedule.after is not None:
        return parse_duration(schedule.after).after(after_ms, zone)
    if schedule.every is None:
        return None
    return _every(schedule.every, after_ms, zone, since_ms)


def past_fires(schedule: Schedule, from_ms: int, until_ms: int, zone: tzinfo = UTC, since_ms: int = 0) -> Iterator[int]:
    """The moments from `from_ms` to `until_ms`, both included, whenever the schedule began or ended.

    `every` is counted back from `since_ms`. Calendars that it names are not looked at; `exclude` is.
    """
    anchor = schedule.start_ms if schedule.start_ms is not None else since_ms
    bare = replace(schedule, start_ms=None, end_ms=until_ms)
    moment = from_ms - 1
    while True:
        found = _next(bare, moment, zone, anchor)
        if found is not None and bare.exclude:
            found = _not_excluded(bare, found, zone, anchor)
        if found is None or found > until_ms:
            return
        yield found
        moment = found


def _every(every: Any, after_ms: int, zone: tzinfo, since_ms: int) -> int:
    interval = parse_duration(every)
    if not interval.months:
        return since_ms + ((after_ms - since_ms) // interval.milliseconds + 1) * interval.milliseconds
    # Counted from the beginning, so that the 31st comes back after a short month.
    days = 32 if after_ms >= since_ms else 27
    count = (after_ms - since_ms) // (interval.months * days * 86_400_000 + interval.milliseconds)
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
