"""Times of schedules: exclusions, changes of the clock, leap days, jitter, catching up, refused policies."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice, pairwise
from typing import Any

import pytest

from flint_core.calendars import Calendar, check_rules
from flint_core.schedule import Schedule, due_fires, jittered, next_fire, past_fires, upcoming
from flint_core.schedule_policy import check_moments, read_policy
from flint_core.zones import zone_named

BERLIN, NEW_YORK = zone_named("Europe/Berlin"), zone_named("America/New_York")
MINUTE, DAY = 60_000, 86_400_000


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def shown(moments: Any, zone: Any = UTC) -> list[str]:
    return [datetime.fromtimestamp(at / 1000, UTC).astimezone(zone).isoformat(timespec="minutes") for at in moments]


@pytest.mark.parametrize(
    ("zone", "cron", "after", "expected"),
    [
        # The hour that is left out: at the end of the gap. The hour that is repeated: once.
        (BERLIN, "30 2 * * *", "2026-03-28T12:00+01:00", ["2026-03-29T03:00+02:00", "2026-03-30T02:30+02:00"]),
        (BERLIN, "30 2 * * *", "2026-10-24T12:00+02:00", ["2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"]),
        (NEW_YORK, "30 2 * * *", "2026-03-07T12:00-05:00", ["2026-03-08T03:00-04:00", "2026-03-09T02:30-04:00"]),
        (NEW_YORK, "30 1 * * *", "2026-10-31T12:00-04:00", ["2026-11-01T01:30-04:00", "2026-11-02T01:30-05:00"]),
        # With a wildcard of the hour it goes on in elapsed time: none is lost, none comes twice.
        (BERLIN, "0 * * * *", "2026-03-29T00:30+01:00",
         ["2026-03-29T01:00+01:00", "2026-03-29T03:00+02:00", "2026-03-29T04:00+02:00"]),
        (BERLIN, "0 * * * *", "2026-10-25T01:30+02:00",
         ["2026-10-25T02:00+02:00", "2026-10-25T02:00+01:00", "2026-10-25T03:00+01:00"]),
        (UTC, "0 0 29 2 *", "2026-01-01T00:00Z", ["2028-02-29T00:00+00:00", "2032-02-29T00:00+00:00"]),
        # 2100 has no 29 February.
        (UTC, "0 0 29 2 *", "2096-03-01T00:00Z", ["2104-02-29T00:00+00:00"]),
    ],
)  # fmt: skip
def test_changes_of_the_clock_and_leap_days(zone: Any, cron: str, after: str, expected: list[str]) -> None:
    schedule = Schedule(cron=cron)
    found = list(islice(upcoming(schedule, ms(after), zone), len(expected)))
    assert shown(found, zone) == expected
    assert list(past_fires(schedule, ms(after) + 1, found[-1], zone)) == found


def test_intervals_are_counted_back_before_their_beginning() -> None:
    since = ms("2026-05-31T00:00Z")
    back = past_fires(Schedule(every="P1M"), ms("2026-01-01T00:00Z"), since, UTC, since)
    assert [text[:10] for text in shown(back)] == ["2026-01-31", "2026-02-28", "2026-03-31", "2026-04-30", "2026-05-31"]
    seconds = list(past_fires(Schedule(every="PT7S"), since - 21_000, since + 7_000, UTC, since))
    assert seconds == [since + 7_000 * n for n in range(-3, 2)]
    assert next_fire(Schedule(every="PT7S"), since - DAY, UTC, since) == since
    assert next_fire(Schedule(every="PT7S", start_ms=since + DAY, end_ms=since + DAY + 7_000), 0, UTC, 5) == since + DAY
    assert next_fire(Schedule(every="PT7S", end_ms=since + 6_000), since, UTC, since) is None


@pytest.mark.parametrize(
    ("rules", "moment", "excluded"),
    [
        ([{"weekdays": ["sat", "sun"]}], "2026-11-21T12:00", True),
        ([{"weekdays": ["sat", "sun"]}], "2026-11-20T23:59", False),
        ([{"from": "22:00", "to": "06:00"}], "2026-11-20T23:00", True),
        ([{"from": "22:00", "to": "06:00"}], "2026-11-20T06:00", False),
        ([{"weekdays": ["fri"], "from": "18:00"}], "2026-11-20T18:00", True),
        ([{"weekdays": ["fri"], "from": "18:00"}], "2026-11-21T18:00", False),
        ([{"dates": ["12-24/01-02"]}], "2027-01-02T23:59", True),
        ([{"dates": ["12-24/01-02"]}], "2027-01-03T00:00", False),
        ([{"dates": ["2026-12-24T12:00/2026-12-27T08:00"]}], "2026-12-27T08:00", False),
        ([{"dates": ["2026-12-24", "02-29"]}], "2028-02-29T01:00", True),
        ([{"holidays": {"country": "DE", "subdivision": "BY"}}], "2026-01-06T09:00", True),
        ([{"holidays": {"country": "DE", "subdivision": "BE"}}], "2026-01-06T09:00", False),
        ([{"holidays": {"country": "US"}}], "2026-07-03T09:00", True),  # the 4th is a Saturday
    ],
)
def test_rules_of_calendars(rules: list[dict[str, Any]], moment: str, excluded: bool) -> None:
    assert check_rules(rules) == []
    assert Calendar(rules).excludes(datetime.fromisoformat(moment)) is excluded


def test_excluded_moments_are_no_times() -> None:
    schedule = Schedule(every={"seconds": 1}, exclude=({"weekdays": ["sat", "sun"]}, {"from": "20:00", "to": "07:00"}))
    since = ms("2026-11-20T10:00Z")  # a Friday
    friday, monday = ms("2026-11-20T18:59:59Z"), ms("2026-11-23T06:00:00Z")
    assert next_fire(schedule, friday, BERLIN, since) == monday
    assert list(islice(upcoming(schedule, friday - 1_000, BERLIN, since), 3)) == [friday, monday, monday + 1_000]
    assert list(past_fires(schedule, friday, monday, BERLIN, since)) == [friday, monday]
    named = Calendar([{"weekdays": ["mon"]}])
    tuesday = ms("2026-11-24T06:00:00Z")
    assert next(upcoming(schedule, friday, BERLIN, since, (named,))) == tuesday
    everything = Calendar([{"weekdays": ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]}])
    assert list(upcoming(schedule, friday, BERLIN, since, (everything,), passes=50)) == []
    always = Schedule(cron="0 3 * * *", exclude=({"from": "02:00", "to": "04:00"},))
    assert next_fire(always, friday, BERLIN) is None
    assert check_moments(always, BERLIN) == "excludes every time of the schedule"
    # The excluded hours are those of the local day also when the clock changes in them.
    night = Schedule(every="PT30M", exclude=({"from": "00:00", "to": "02:30"},))
    doubled = list(past_fires(night, ms("2026-10-24T22:00Z"), ms("2026-10-25T02:00Z"), BERLIN, ms("2026-10-24T22:00Z")))
    assert shown(doubled, BERLIN)[0] >= "2026-10-25T02:30+02:00"


def test_jitter_belongs_to_the_schedule_and_the_moment() -> None:
    schedule = Schedule(cron="* * * * *", jitter_ms=10 * MINUTE)
    moments = list(islice(upcoming(schedule, 0), 500))
    late = [jittered(schedule, "default/a", a, b) for a, b in pairwise(moments)]
    assert late == [jittered(schedule, "default/a", a, b) for a, b in pairwise(moments)]
    assert late != [jittered(schedule, "default/b", a, b) for a, b in pairwise(moments)]
    assert all(a <= at < b for at, (a, b) in zip(late, pairwise(moments), strict=True))
    spread = [at - a for at, a in zip(late, moments, strict=False)]
    assert 20_000 < sum(spread) / len(spread) < 40_000
    assert jittered(Schedule(cron="* * * * *"), "x", 5, 10) == 5
    assert 0 <= jittered(schedule, "x", 0, None) < 10 * MINUTE


@pytest.mark.parametrize(
    ("policy", "window", "expected"),
    [(None, 60_000, [100]), (None, 1_000, [100]), ("all", 60_000, [*range(41, 101)]), ("all", 10**9, [*range(1, 101)]),
     ("none", 60_000, [100])],
)  # fmt: skip
def test_which_missed_moments_are_made_up_for(policy: str | None, window: int, expected: list[int]) -> None:
    schedule = Schedule(every="PT1S", catch_up=policy)
    found = due_fires(schedule, 1_000, 100_500, window, UTC, 0, most=500)
    assert found == [at * 1000 for at in expected]
    assert due_fires(schedule, 1_000, 100_500, window, UTC, 0) == [expected[0] * 1000]
    hourly = Schedule(every="PT1H", catch_up=policy)
    late = due_fires(hourly, 3_600_000, 3_610_000, window, UTC, 0)
    assert late == ([] if policy == "none" or window < 10_000 else [3_600_000])


@pytest.mark.parametrize(
    ("members", "path", "message"),
    [
        ({"overlap": "wait"}, ("overlap",), "buffer"),
        ({"catchUp": "some"}, ("catchUp",), "ISO 8601"),
        ({"catchUp": {"policy": "x"}}, ("catchUp",), "last"),
        ({"jitter": "P2D"}, ("jitter",), "at most 1 days"),
        ({"startAt": "2026-01-01"}, ("startAt",), "offset"),
        ({"startAt": "2026-01-02T00:00:00Z", "endAt": "2026-01-01T00:00:00Z"}, ("endAt",), "later"),
        ({"maxRuns": 0}, ("maxRuns",), "1 or more"),
        ({"exclude": ["Not A Name"]}, ("exclude", 0), "not the name"),
        ({"exclude": ["ok", {"from": "8:00"}]}, ("exclude", 1, "from"), "time of day"),
        ({"exclude": [{}]}, ("exclude", 0), "names nothing"),
        ({"exclude": [{"dates": ["2026-02-30"]}]}, ("exclude", 0, "dates", 0), "no date"),
        ({"exclude": [{"holidays": {"country": "ZZ"}}]}, ("exclude", 0, "holidays"), "ISO 3166"),
        ({"exclude": [{"weekdays": ["monday"]}]}, ("exclude", 0, "weekdays"), "mon"),
        ({"exclude": [{"day": 1}]}, ("exclude", 0, "day"), "not part"),
    ],
)
def test_a_policy_that_is_wrong_is_told_by_its_place(members: dict[str, Any], path: Any, message: str) -> None:
    _, problems = read_policy(members)
    assert problems[0][0] == path and message in problems[0][1], problems


def test_a_policy_is_read() -> None:
    found, problems = read_policy(
        {
            "overlap": "buffer",
            "catchUp": {"policy": "all", "window": "PT1H"},
            "jitter": {"seconds": 30},
            "exclude": ["bank-holidays", {"weekdays": ["sun"]}],
            "startAt": "2026-12-01T00:00:00+01:00",
            "endAt": "2027-12-01T00:00:00Z",
            "maxRuns": 5,
        }
    )
    assert problems == []
    schedule = Schedule(cron="@daily", **found)
    assert (schedule.overlap, schedule.catch_up, schedule.catch_up_ms, schedule.jitter_ms) == (
        "buffer", "all", 3_600_000, 30_000,
    )  # fmt: skip
    assert (schedule.calendars, schedule.exclude, schedule.max_runs) == (
        ("bank-holidays",), ({"weekdays": ["sun"]},), 5,
    )  # fmt: skip
    assert schedule.start_ms == ms("2026-11-30T23:00Z")
    assert Schedule.from_json(schedule.to_json()) == schedule
