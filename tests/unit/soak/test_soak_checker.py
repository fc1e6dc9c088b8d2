"""Each rule of the soak's judgement finds what it is there for, and has nothing to say of a right story."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from support.soak.checker import PROMISES, judge
from support.soak.evidence import Entry, Evidence, Row, Stall
from support.soak.history import History, Seen, Started
from support.soak.model import expect
from support.soak.workflows import BY_NAME, RATE
from support.soak.world import Arrival, World

RUN = "01a20500-0000-7000-8000-000000000001"
GIVEN = {"url": "http://world", "key": "soak-1", "n": 4, "shop": "a"}
T0 = 1_700_000_000.0
Break = Callable[[Evidence], object]


def story() -> Evidence:
    """A chain that was started, executed and recorded as it should be, and two fires."""
    started = Started(BY_NAME["chain"], "soak-1", GIVEN, {RUN})
    end = Seen(4, "SUCCEEDED", expect(started.kind, GIVEN).output, "")
    history = History({"soak-1": started}, {RUN: [Seen(1, "RUNNING", None, ""), end]}, [(RUN, [end])])
    world = World("http://world")
    entries = []
    for place, rest in enumerate(sorted(expect(started.kind, GIVEN).calls)):
        came_at = T0 + place
        step, iteration = "/" + rest.partition("/")[2].rpartition("/")[0], rest.rpartition("/")[2]
        world.arrivals.append(Arrival(f"{RUN}/{rest}", step.rpartition("/")[2], "", came_at, came_at + 0.02))
        entries.append(Entry(RUN, place + 1, 1, "w1", came_at + 0.1, ((step, iteration),)))
    return Evidence(
        history,
        world,
        [],
        rows={RUN: Row(RUN, RUN, "soak-1", 4, len(entries), False, T0, T0 + 4)},
        entries={RUN: entries},
        ends={RUN: end},
        read={RUN: end},
        left_over={"permit": 0},
        fired=[datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=n) for n in range(2)],
    )


def more_runs(evidence: Evidence, kind: str, count: int, apart_s: float) -> None:
    for n in range(count):
        run = f"{kind}-{n}"
        evidence.history.starts[run] = Started(BY_NAME[kind], run, GIVEN, {run})
        evidence.rows[run] = Row(run, run, run, 4, 0, False, T0 + n * apart_s, T0 + 9)


def again(evidence: Evidence, after_s: float) -> None:
    first = evidence.world.arrivals[0]
    evidence.world.arrivals.append(replace(first, came_at=T0 + after_s, left_at=T0 + after_s + 0.02))


def held_calls(evidence: Evidence) -> None:
    for n in range(3):
        evidence.world.arrivals.append(Arrival(f"{n}/0/do/0/hold/", "hold", "a", T0 + n * 0.01, T0 + 0.1))


def change(evidence: Evidence, field: str, **values: object) -> None:
    found = getattr(evidence, field)
    found[RUN] = replace(found[RUN], **values)


def test_a_right_story_is_right() -> None:
    assert judge(story()) == []


BREAKS: list[tuple[str, Break]] = [
    ("each_start_is_one_run", lambda e: e.history.starts["soak-1"].runs.add("another")),
    ("each_start_is_one_run", lambda e: e.history.starts.update(x=Started(BY_NAME["chain"], "x", GIVEN))),
    ("each_start_is_one_run", lambda e: change(e, "rows", request_id="soak-9")),
    ("every_run_ends", lambda e: change(e, "rows", state=2)),
    ("every_run_ends", lambda e: e.missing.append("lost")),
    ("ends_are_the_models", lambda e: change(e, "read", output={"n": 0})),
    ("ends_are_the_models", lambda e: change(e, "read", state="FAILED", error="x")),
    ("ends_are_the_models", lambda e: change(e, "read", state="CANCELLED")),
    ("ended_runs_stay", lambda e: e.history.reads[RUN].append(Seen(3, "RUNNING", None, ""))),
    ("ended_runs_stay", lambda e: e.history.watches.append((RUN, [Seen(3, "FAILED", None, "x")]))),
    ("ended_runs_stay", lambda e: change(e, "ends", change=2)),
    ("record_is_in_order", lambda e: e.entries[RUN].pop(1)),
    ("record_is_in_order", lambda e: e.entries[RUN].__setitem__(1, replace(e.entries[RUN][1], claimant="w2"))),
    ("record_is_in_order", lambda e: e.entries[RUN].__setitem__(0, replace(e.entries[RUN][0], leg=2))),
    ("nothing_is_left", lambda e: e.left_over.update(permit=1)),
    ("nothing_is_left", lambda e: change(e, "rows", leg_open=True)),
    ("nothing_recorded_is_executed_again", lambda e: again(e, 0.2)),
    ("everything_is_executed", lambda e: e.world.arrivals.pop()),
    ("everything_is_executed", lambda e: e.world.arrivals.append(Arrival(f"{RUN}/0/do/9/x/", "x", "", T0, T0))),
    ("permits_are_exact", lambda e: more_runs(e, "limited", 3, 0.1)),
    ("permits_are_exact", held_calls),
    ("rates_are_exact", lambda e: more_runs(e, "paced", RATE + 1, 0.9 / RATE)),
    ("schedules_fire_once", lambda e: e.fired.append(e.fired[0])),
    ("schedules_fire_once", lambda e: e.fired.append(e.fired[-1] + timedelta(seconds=2))),
    ("schedules_fire_once", lambda e: e.fired.clear()),
    ("answers_are_explained", lambda e: e.history.surprises.append("start: InternalError")),
]


@pytest.mark.parametrize(("rule", "broken"), BREAKS)
def test_what_breaks_a_promise_is_found(rule: str, broken: Break) -> None:
    evidence = story()
    broken(evidence)
    assert rule in {problem.partition(":")[0] for problem in judge(evidence)}


def test_every_rule_is_tried() -> None:
    assert {rule for rule, _ in BREAKS} == {promise.__name__ for promise in PROMISES}


def test_a_worker_that_was_held_sends_what_it_was_about_to_send_once() -> None:
    evidence = story()
    evidence.stalls = [Stall("worker-1", T0 + 5, T0 + 8)]
    again(evidence, 8.5)
    assert judge(evidence) == []
    again(evidence, 8.6)
    assert len(judge(evidence)) == 1


def test_before_the_outcome_is_recorded_a_step_may_be_executed_again() -> None:
    evidence = story()
    again(evidence, 0.05)
    assert judge(evidence) == []
