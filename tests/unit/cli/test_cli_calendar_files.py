"""Calendars from files: what the events of an iCalendar file become, as a calendar that leaves times out."""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from flint_cli.calendar_files import read_rules
from flint_cli.exits import CommandFailed
from flint_core.calendars import Calendar, check_rules

BERLIN = ZoneInfo("Europe/Berlin")
TODAY = date(2026, 3, 1)
EVENTS = """
DTSTART;VALUE=DATE:20260406|SUMMARY:Easter Monday
DTSTART;VALUE=DATE:20260720|DTEND;VALUE=DATE:20260725|SUMMARY:Works holidays
DTSTART;VALUE=DATE:20201224|RRULE:FREQ=YEARLY|EXDATE;VALUE=DATE:20271224|SUMMARY:Christmas Eve
DTSTART;TZID=Europe/Berlin:20260327T080000|DURATION:PT90M|RRULE:FREQ=WEEKLY;COUNT=2|SUMMARY:Across the change
DTSTART:20260501T100000Z|DTEND:20260501T120000Z|SUMMARY:A moment elsewhere
DTSTART;VALUE=DATE:20260101|SUMMARY:Over
DTSTART:20260601T100000Z|SUMMARY:Takes no time
"""
EXPECTED = [
    "2026-03-27T08:00:00/2026-03-27T09:30:00",
    "2026-04-03T08:00:00/2026-04-03T09:30:00",
    "2026-04-06",
    "2026-05-01T12:00:00/2026-05-01T14:00:00",
    "2026-07-20/2026-07-24",
    "2026-12-24",
    "2028-12-24",
]


def written(folder: Path, events: str, name: str = "closed.ics") -> Path:
    lines = ["BEGIN:VCALENDAR", "VERSION:2.0", "PRODID:-//test//test//EN"]
    for number, event in enumerate(events.strip().splitlines()):
        stamp = ["BEGIN:VEVENT", f"UID:{number}@test", "DTSTAMP:20260101T000000Z"]
        lines += [*stamp, *event.split("|"), "END:VEVENT"]
    path = folder / name
    path.write_bytes("\r\n".join([*lines, "END:VCALENDAR", ""]).encode())
    return path


def test_events_become_dates_that_are_left_out(tmp_path: Path) -> None:
    rules = read_rules(written(tmp_path, EVENTS), 3, BERLIN, TODAY)
    assert rules == [{"dates": EXPECTED}]
    assert check_rules(rules) == []
    calendar = Calendar(rules)
    for moment, out in (
        ("2026-04-06T00:00:00", True),
        ("2026-04-07T00:00:00", False),
        ("2026-07-24T23:59:59", True),
        ("2026-07-25T00:00:00", False),
        ("2026-04-03T09:29:59", True),
        ("2026-04-03T09:31:00", False),
        ("2026-05-01T13:00:00", True),
        ("2027-12-24T12:00:00", False),
    ):
        assert calendar.excludes(datetime.fromisoformat(moment)) is out, moment


def test_rules_are_taken_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text("description: the bank\nrules:\n  - weekdays: [sat, sun]\n  - dates: ['2026-12-24']\n")
    assert read_rules(path, 3, BERLIN, TODAY) == [{"weekdays": ["sat", "sun"]}, {"dates": ["2026-12-24"]}]


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("empty.ics", b"BEGIN:VCALENDAR\r\nEND:VCALENDAR\r\n", "has no events until"),
        ("torn.ics", b"BEGIN:VCALENDAR\r\nBEGIN:VEVENT\r\n:::\r\nEND:VCALENDAR\r\n", "torn.ics"),
        ("rules.yaml", b"weekdays: [sat", "rules.yaml"),
        ("rules.json", b'{"weekdays": ["sat"]}', "expected a list of rules"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, name: str, content: bytes, why: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CommandFailed, match=why):
        read_rules(path, 3, BERLIN, TODAY)


def test_a_calendar_holds_so_many_dates(tmp_path: Path) -> None:
    daily = written(tmp_path, "DTSTART;VALUE=DATE:20260301|RRULE:FREQ=DAILY|SUMMARY:Every day")
    with pytest.raises(CommandFailed, match="try --years"):
        read_rules(daily, 10, BERLIN, TODAY)
    assert len(read_rules(daily, 1, BERLIN, TODAY)[0]["dates"]) == 366
