"""What may be said about a schedule beside its times: read from JSON, with what is wrong told by path. Pure.

`metadata.flint.schedule` of a definition and schedules that are objects of their own are read here alike.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Final

from flint_core.calendars import Problem, check_rules
from flint_core.durations import DurationError, parse_duration
from flint_core.schedule import Schedule, next_fire

__all__ = ["CATCH_UPS", "OVERLAPS", "POLICY_MEMBERS", "SHORTEST_MS", "check_moments", "read_policy"]

SHORTEST_MS: Final = 100
"""The shortest interval of `every`."""

OVERLAPS: Final = ("allow", "skip", "buffer", "cancel", "terminate")
CATCH_UPS: Final = ("last", "all", "none")
POLICY_MEMBERS: Final = ("overlap", "catchUp", "jitter", "exclude", "startAt", "endAt", "maxRuns")

_CALENDARS: Final = 10
_LONGEST_JITTER_MS: Final = 86_400_000
_LONGEST_CATCH_UP_MS: Final = 366 * 86_400_000
_MOST_RUNS: Final = 10**9
_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class _Wrong(ValueError):
    pass


def read_policy(members: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """Members of a `Schedule` for those of POLICY_MEMBERS that are set, and what is wrong with them."""
    found: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, read in _READERS.items():
        if name in members:
            try:
                found |= read(members[name])
            except _Wrong as error:
                problems.append(((name,), str(error)))
    if "exclude" in members:
        problems += [(("exclude", *path), message) for path, message in _exclude(members["exclude"], found)]
    if found.get("start_ms", 0) >= found.get("end_ms", 10**15):
        problems.append((("endAt",), "must be later than startAt"))
    return found, problems


def check_moments(schedule: Schedule, zone: tzinfo = UTC) -> str | None:
    """Why a schedule of the kinds `every` and `cron` never fires; None when it does."""
    if schedule.exclude and next_fire(replace(schedule, end_ms=None), 1_704_067_200_000, zone) is None:
        return "excludes every time of the schedule"
    if schedule.start_ms is not None and next_fire(schedule, schedule.start_ms - 1, zone) is None:
        return "leaves no time between startAt and endAt"
    return None


def _overlap(value: Any) -> dict[str, Any]:
    if value not in OVERLAPS:
        raise _Wrong(
            "'overlap' is allow (any number of runs at once), skip (none while the one before goes on), buffer (one "
            "waits for the end of the one before), cancel or terminate (the one before makes room)"
        )
    return {} if value == "allow" else {"overlap": value}


def _catch_up(value: Any) -> dict[str, Any]:
    """A duration, the name of a policy, or both in an object."""
    if isinstance(value, str) and value in CATCH_UPS:
        value = {"policy": value}
    if not isinstance(value, dict) or not value or not value.keys() <= {"policy", "window"}:
        return {"catch_up_ms": _duration("'catchUp'", value, _LONGEST_CATCH_UP_MS)}
    found: dict[str, Any] = {}
    if "window" in value:
        found["catch_up_ms"] = _duration("'catchUp.window'", value["window"], _LONGEST_CATCH_UP_MS)
    if "policy" in value:
        if value["policy"] not in CATCH_UPS:
            raise _Wrong("'catchUp.policy' is last (of the times that were missed), all or none")
        if value["policy"] != "last":
            found["catch_up"] = value["policy"]
    return found


def _jitter(value: Any) -> dict[str, Any]:
    return {"jitter_ms": _duration("'jitter'", value, _LONGEST_JITTER_MS)}


def _moment(name: str, member: str) -> Callable[[Any], dict[str, Any]]:
    def read(value: Any) -> dict[str, Any]:
        try:
            moment = datetime.fromisoformat(value) if isinstance(value, str) else None
        except ValueError:
            moment = None
        if moment is None or moment.tzinfo is None or not 1970 <= moment.year <= 9000:
            raise _Wrong(f"'{name}' must be a moment with its offset, such as 2026-12-01T00:00:00Z")
        return {member: (moment - _EPOCH) // timedelta(milliseconds=1)}

    return read


def _max_runs(value: Any) -> dict[str, Any]:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST_RUNS:
        raise _Wrong("'maxRuns' must be a number of 1 or more")
    return {"max_runs": value}


def _exclude(value: Any, found: dict[str, Any]) -> list[Problem]:
    """Names of calendars, and rules, in one list."""
    if not isinstance(value, list):
        return [((), "'exclude' must be a list of names of calendars, and of rules")]
    names = [item for item in value if isinstance(item, str)]
    wrong: list[Problem] = [
        ((index,), f"'{item[:80]}' is not the name of a calendar")
        for index, item in enumerate(value)
        if isinstance(item, str) and not _LABEL.fullmatch(item)
    ]
    if len(names) > _CALENDARS:
        wrong.append(((), f"'exclude' names {len(names)} calendars; the limit is {_CALENDARS}"))
    places = [index for index, item in enumerate(value) if not isinstance(item, str)]
    rules = [value[index] for index in places]
    for path, message in check_rules(rules):
        wrong.append(((places[path[0]], *path[1:]) if path else (), message))
    if not wrong:
        found |= {"calendars": tuple(dict.fromkeys(names))} if names else {}
        found |= {"exclude": tuple(rules)} if rules else {}
    return wrong


def _duration(what: str, value: Any, longest_ms: int) -> int:
    try:
        length = parse_duration(value).length_ms(0)
    except DurationError as error:
        raise _Wrong(f"{what}: {error}") from None
    if length > longest_ms:
        raise _Wrong(f"{what} must be at most {longest_ms // 86_400_000} days")
    return length


_READERS: Final[dict[str, Callable[[Any], dict[str, Any]]]] = {
    "overlap": _overlap,
    "catchUp": _catch_up,
    "jitter": _jitter,
    "startAt": _moment("startAt", "start_ms"),
    "endAt": _moment("endAt", "end_ms"),
    "maxRuns": _max_runs,
}
