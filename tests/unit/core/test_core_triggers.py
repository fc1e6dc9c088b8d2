"""Starts by events: which of them start a run, alone or together; and which missed moment is made up for."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest

from flint_core.definition import Severity, compile_definition
from flint_core.program import Program
from flint_core.schedule import Schedule, latest_fire, next_fire
from flint_core.triggers import Trigger
from flint_core.zones import zone_named
from support.machines import HEAD

NOW = 1_795_000_000_000


def event(kind, **data):
    return {"type": kind, "source": "/s", "id": "1", "data": data}


def kinds(*names, correlate=None):
    more = {"correlate": correlate} if correlate else {}
    return [{"with": {"type": name}, **more} for name in names]


def test_one_and_any_start_a_run_for_each_event():
    events = [event("x"), event("y"), event("x"), event("z")]
    assert Trigger({"one": kinds("x")[0]}).choose(events, NOW) == ([(0,), (2,)], [1, 3])
    assert Trigger({"any": kinds("x", "y")}).choose(events, NOW) == ([(0,), (1,), (2,)], [3])
    assert Trigger({"any": []}).choose(events, NOW) == ([(0,), (1,), (2,), (3,)], [])


def test_filters_look_at_patterns_and_expressions():
    trigger = Trigger({"one": {"with": {"type": "com[.]x[.].*", "data": "${ .total > 10 }", "subject": "${ .id }"}}})
    good = {**event("com.x.y", total=11), "subject": "1"}
    others = [{**good, "subject": "2"}, {**good, "type": "com.y"}, {**good, "data": {"total": 3}}, event("com.x.y")]
    assert trigger.choose([good, *others], NOW).runs == [(0,)]
    assert trigger.choose([{**good, "data": "no object"}], NOW).dropped == [0]


def test_all_waits_for_one_of_each():
    trigger = Trigger({"all": kinds("a", "b")})
    assert trigger.choose([event("a"), event("a"), event("c")], NOW) == ([], [2])
    assert trigger.choose([event("a"), event("a"), event("b")], NOW).runs == [(0, 2)]
    assert trigger.choose([event(k) for k in "abba"], NOW).runs == [(0, 1), (2, 3)]
    assert Trigger({"all": kinds("a")}).choose([event("a"), event("a")], NOW).runs == [(0,), (1,)]
    # One filter that both pass: two different events.
    assert Trigger({"all": kinds("a", "a")}).choose([event("a"), event("a"), event("a")], NOW).runs == [(0, 1)]


def test_correlations_tell_sets_apart():
    trigger = Trigger({"all": kinds("a", "b", correlate={"order": {"from": ".data.order"}})})
    events = [event("a", order=1), event("a", order=2), event("b", order=3), event("b", order=2), event("b", order=1)]
    assert trigger.choose(events, NOW).runs == [(1, 3), (0, 4)]
    assert trigger.choose([event("a"), event("b", order=None)], NOW).dropped == [0, 1]
    expecting = Trigger({"one": {"with": {"type": "a"}, "correlate": {"o": {"from": "${ .data.o }", "expect": 7}}}})
    assert expecting.choose([event("a", o=7), event("a", o=8)], NOW) == ([(0,)], [1])
    assert expecting.request() == {
        "filters": [{"with": {"type": "a"}, "correlate": {"o": {"from": ".data.o", "expect": 7}}}]
    }


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_nothing_is_used_twice(seed):
    chance = random.Random(seed)
    trigger = Trigger({"all": kinds("a", "b", "c", correlate={"o": {"from": ".data.o"}})})
    events = [event(chance.choice("abcd"), o=chance.randrange(4)) for _ in range(80)]
    choice = trigger.choose(events, NOW)
    used = [index for run in choice.runs for index in run]
    assert len(used) == len(set(used)) and not set(used) & set(choice.dropped)
    for run in choice.runs:
        assert sorted(events[i]["type"] for i in run) == ["a", "b", "c"]
        assert len({events[i]["data"]["o"] for i in run}) == 1
    # What is left makes no set, and what more events bring does not undo what was chosen.
    assert trigger.choose([e for i, e in enumerate(events) if i not in used], NOW).runs == []
    assert set(choice.runs) == set(trigger.choose([*events, event("a", o=1)], NOW).runs[: len(choice.runs)])


def ms(*moment):
    return int(datetime(*moment, tzinfo=UTC).timestamp() * 1000)


def test_of_missed_moments_the_last_is_made_up_for():
    hourly = Schedule(cron="0 * * * *")
    first, now = ms(2026, 1, 1, 5), ms(2026, 1, 1, 9, 10)
    assert latest_fire(hourly, first, now, 3_600_000) == ms(2026, 1, 1, 9)
    assert latest_fire(hourly, first, now, 60_000) is None
    assert latest_fire(hourly, first, first + 900, 0) == first  # a little late is not missed
    assert latest_fire(hourly, first, first, 0) == first
    second = Schedule(every="PT1S")
    assert latest_fire(second, NOW + 1000, NOW + 10**10 + 500, 300_000, since_ms=NOW) == NOW + 10**10
    assert latest_fire(Schedule(after="PT1S"), NOW, NOW + 10**10, 0) == NOW  # nothing else would go on


@pytest.mark.parametrize("cron", ["*/7 * * * *", "* * * * * *", "30 2 * * *", "0 0 1 * *"])
def test_the_last_missed_moment_is_what_counting_finds(cron):
    schedule, zone, chance = Schedule(cron=cron), zone_named("Europe/Berlin"), random.Random(cron)
    for _ in range(20):
        now = ms(2026, 3, 28) + chance.randrange(3 * 86_400_000)
        first = next_fire(schedule, now - chance.randrange(1, 7_200_000), zone)
        window = chance.choice([0, 1_000, 60_000, 3_600_000])
        expected, at = None, first
        while at <= now:
            expected = at if at >= now - max(window, 1_000) else expected
            at = next_fire(schedule, at, zone)
        if first <= now:
            assert latest_fire(schedule, first, now, window, zone) == expected


def program(schedule, hints="", body="do: [{t: {call: noop}}]\n"):
    head = HEAD
    if hints:
        head = (
            f"document: {{dsl: 1.0.3, namespace: default, name: w, version: 1.0.0, metadata: {{flint: {{{hints}}}}}}}\n"
        )
    return compile_definition(head + (f"schedule: {schedule}\n" if schedule else "") + body)


def test_hints_of_a_schedule_and_the_level_are_part_of_the_program():
    found = program("{cron: '0 3 * * *'}", "schedule: {overlap: skip, catchUp: PT1H}, level: 2").program
    assert found.schedule == Schedule(cron="0 3 * * *", overlap="skip", catch_up_ms=3_600_000)
    assert found.level == 2
    again = Program.decode(found.encode())
    assert (again.schedule, again.level) == (found.schedule, 2)
    assert program("{every: PT1M}", "schedule: {overlap: allow, catchUp: PT0S}").program.schedule.catch_up_ms == 0
    assert program("").program.level is None


MISTAKES = [
    ("{every: PT1M}", "schedule: {overlap: no}", "'overlap' is allow"),
    ("{every: PT1M}", "schedule: {catchUp: soon}", "'catchUp'"),
    ("{every: PT1M}", "schedule: {catchup: PT1M}", "did you mean 'catchUp'"),
    ("", "schedule: {overlap: skip}", "there is no 'schedule'"),
    ("{after: PT1M}", "schedule: {overlap: skip}", "every and cron"),
    ("{on: {any: []}}", "schedule: {catchUp: PT1M}", "every and cron"),
    ("", "level: 12", "from 0"),
    ("", "level: true", "from 0"),
    ("{on: {one: {with: {type: x, data: '${ .n | test(\"a\") }'}}}}", "", "before there is a run"),
    ("{on: {one: {with: {type: x, data: '${ $workflow.id }'}}}}", "", "before there is a run"),
    ("{on: {one: {with: {type: x, data: '${ .n'}}}}", "", "before there is a run"),
    ("{on: {one: {with: {type: '(x'}}}}", "", "regular expression"),
    ("{on: {one: {with: {data: {a: ['${ .x }']}}}}}", "", "compared as a whole"),
    ("{on: {one: {with: {type: x}, correlate: {a: {from: 5}}}}}", "", "'from' must be"),
    ("{on: {one: {with: {type: x}, correlate: {a: {from: .b, expect: '${ .c }'}}}}}", "", "must be a constant"),
]


@pytest.mark.parametrize(("schedule", "hints", "words"), MISTAKES)
def test_mistakes(schedule, hints, words):
    compiled = program(schedule, hints)
    assert compiled.program is None
    found = [finding for finding in compiled.findings if finding.severity is Severity.ERROR]
    assert any(words in finding.message for finding in found), found


def test_a_filter_that_builds_without_bound_lets_nothing_pass():
    growing = "${ " + " | ".join([". + ."] * 60) + " | length > 0 }"
    trigger = Trigger({"one": {"with": {"type": "x", "source": growing.replace(". + .", "[., .]"), "data": growing}}})
    assert trigger.choose([event("x", text="x" * 1_000)] * 2, NOW) == ([], [0, 1])
