"""wait, timeouts, fork, cancel."""

import pytest

from flint_core.durations import Duration, DurationError, parse_duration
from flint_core.effects import Call, CancelEffect, Timer, TimerKind
from flint_core.machine import Cancelled, Machine, Succeeded
from flint_core.problems import ProblemType


@pytest.mark.parametrize("duration", ["{seconds: 3}", "PT3S", "'${ {seconds: .s} }'", "'${ \"PT3S\" }'"])
def test_wait_in_every_way_to_write_a_duration(run, duration):
    driver = run(f"do: [{{w: {{wait: {duration}}}}}]", {"s": 3})
    assert (driver.now, driver.output) == (4_000, {"s": 3})
    assert driver.effects == [Timer(1, 4_000, TimerKind.WAIT)]
    assert driver.shown() == ["w:waiting", "w:succeeded"]


def test_a_wait_of_nothing_does_not_wait(run):
    assert run("do: [{w: {wait: PT0S}}]").effects == []


def test_an_expression_that_gives_no_duration_faults(run):
    assert run("do: [{w: {wait: '${ .s }'}}]", {"s": "soon"}).problem.type == ProblemType.EXPRESSION


@pytest.mark.parametrize(
    ("value", "duration"),
    [
        ({"days": 1, "hours": 2, "minutes": 3, "seconds": 4, "milliseconds": 5}, Duration(0, 93_784_005)),
        ("P1Y2M", Duration(14, 0)),
        ("P1W", Duration(0, 604_800_000)),
        ("P1DT0.5S", Duration(0, 86_400_500)),
        ({"seconds": 1.5}, Duration(0, 1_500)),
    ],
)
def test_durations(value, duration):
    assert parse_duration(value) == duration


@pytest.mark.parametrize(
    "value", ["", "P", "PT", "1S", "PT-1S", {}, {"weeks": 1}, {"seconds": -1}, {"seconds": True}, 5, None]
)
def test_what_is_no_duration(value):
    with pytest.raises(DurationError):
        parse_duration(value)


def test_calendar_units_follow_the_calendar():
    january_31 = 1_769_860_800_000  # 2026-01-31T12:00:00Z
    assert parse_duration("P1M").after(january_31) == 1_772_280_000_000  # 2026-02-28T12:00:00Z


def test_a_timeout_faults_its_task_and_is_caught_outside_of_it(run):
    driver = run(
        "do:\n"
        "  - t:\n"
        "      try:\n"
        "        - slow: {timeout: {after: PT5S}, do: [{w: {wait: PT1M}}]}\n"
        "      catch: {errors: {with: {type: 'https://serverlessworkflow.io/spec/1.0.0/errors/timeout', status: 408}},"
        " do: [{h: {set: {at: '${ $error.instance }'}}}]}\n"
    )
    assert driver.output == {"at": "/do/0/t/try/0/slow"}
    assert driver.now == 6_000
    assert driver.shown() == ["w:waiting", "w:cancelled", "slow:failed", "h:succeeded", "t:succeeded"]
    assert CancelEffect(2) in driver.effects


def test_a_try_does_not_catch_its_own_timeout(run):
    body = "do: [{t: {timeout: {after: PT1S}, try: [{w: {wait: PT1M}}], catch: {do: [{h: {set: {x: 1}}}]}}}]"
    assert run(body).problem.instance == "/do/0/t"


def test_a_deadline_that_is_not_needed_is_retracted(run):
    driver = run("use: {timeouts: {quick: {after: {seconds: 9}}}}\ndo: [{a: {call: noop, timeout: quick}}]")
    assert isinstance(driver.machine.end, Succeeded)
    assert driver.effects == [Timer(1, 10_000, TimerKind.DEADLINE), driver.calls[0], CancelEffect(1)]


def test_the_workflows_own_timeout_ends_the_run(run):
    driver = run("timeout: {after: PT2S}\ndo: [{w: {wait: PT1M}}]")
    assert (driver.problem.type, driver.problem.status, driver.now) == (ProblemType.TIMEOUT, 408, 3_000)


def test_fork_yields_outputs_in_declared_order(start):
    driver = start(
        "do:\n"
        "  - f:\n"
        "      fork:\n"
        "        branches:\n"
        "          - a: {call: noop, with: {output: a}}\n"
        "          - b: {do: [{w: {wait: PT1M}}, {c: {set: {r: b}}}]}\n"
        "          - d: {call: noop, with: {output: d}}\n"
    )
    driver.settle()
    assert [call.iteration for call in driver.calls] == ["0", "2"]
    driver.run()
    assert driver.output == ["a", {"r": "b"}, "d"]


def test_compete_takes_the_first_success_and_cancels_the_rest(run, down):
    driver = run(
        "do:\n"
        "  - f:\n"
        "      fork:\n"
        "        compete: true\n"
        "        branches: [{slow: {wait: PT1M}}, {bad: {call: noop}},"
        " {mid: {do: [{w: {wait: PT5S}}, {s: {set: {r: mid}}}]}}]\n",
        outcome=lambda call: down(),
    )
    assert driver.output == {"r": "mid"}
    assert "slow[0]:cancelled" in driver.shown()
    assert driver.now == 6_000


def test_compete_fails_when_all_branches_fail(run, down):
    body = "do: [{f: {fork: {compete: true, branches: [{a: {call: noop}}, {b: {call: noop}}]}}}]"
    assert run(body, outcome=lambda call: down(call.name)).problem.detail == "b"


def test_a_failing_branch_cancels_its_siblings_and_raises(run, down):
    driver = run(
        "do:\n"
        "  - t:\n"
        "      try: [{f: {fork: {branches: [{w: {wait: PT1M}}, {a: {call: noop}}]}}}]\n"
        "      catch: {do: [{h: {set: {at: '${ $error.instance }'}}}]}\n",
        outcome=lambda call: down(),
    )
    assert driver.output == {"at": "/do/0/t/try/0/f/fork/branches/1/a"}
    assert driver.shown()[:4] == ["w[0]:waiting", "a[1]:failed", "w[0]:cancelled", "f:failed"]
    assert driver.now == 1_010


def test_nested_forks_inside_loops_name_their_branches(run):
    driver = run(
        "do:\n"
        "  - l:\n"
        "      for: {in: '[7, 8]'}\n"
        "      do:\n"
        "        - f:\n"
        "            fork:\n"
        "              branches:\n"
        "                - x: {call: noop, with: {output: '${ $item }'}}\n"
        "                - y: {do: [{g: {fork: {branches: [{z: {call: noop, with: {output: '${ $index }'}}}]}}}]}\n"
    )
    assert sorted(call.iteration for call in driver.calls) == ["0.0", "0.1.0", "1.0", "1.1.0"]
    assert driver.output == [8, [1]]


def test_end_in_a_branch_finishes_the_run(run):
    driver = run(
        "output: {as: '{out: .}'}\n"
        "do:\n"
        "  - f: {fork: {branches: [{w: {wait: PT1M}}, {d: {do: [{a: {call: noop, with: {output: 1}, then: end}}]}}]}}\n"
        "  - never: {set: {x: 1}}\n"
    )
    assert driver.output == {"out": 1}
    assert driver.now == 1_010
    assert "w[0]:cancelled" in driver.shown()


def test_cancel_ends_everything(start):
    driver = start("timeout: {after: PT1H}\ndo: [{f: {fork: {branches: [{w: {wait: PT1M}}, {a: {call: noop}}]}}}]")
    driver.settle()
    driver.cancel()
    driver.settle()
    assert isinstance(driver.machine.end, Cancelled)
    asked = {effect.effect_id for effect in driver.effects if isinstance(effect, Call | Timer)}
    assert {effect.effect_id for effect in driver.effects if isinstance(effect, CancelEffect)} == asked
    assert sorted(driver.shown()) == ["a[1]:cancelled", "f:cancelled", "w[0]:cancelled", "w[0]:waiting"]
    assert driver.machine.pending() == []


def test_a_cancel_before_the_start_ends_the_run_at_its_first_wait(start):
    driver = start("do: [{a: {call: noop}}]")
    driver.cancel()
    driver.settle()
    assert isinstance(driver.machine.end, Cancelled)
    assert driver.calls == []


def deadlines(driver):
    return {call.name: call.deadline_ms for call in driver.calls}


def test_a_call_knows_the_first_timeout_around_it_and_none_of_its_siblings(start):
    driver = start(
        "timeout: {after: PT1H}\n"
        "do:\n"
        "  - f:\n"
        "      timeout: {after: PT10M}\n"
        "      fork:\n"
        "        branches:\n"
        "          - short: {call: noop, timeout: {after: PT1S}}\n"
        "          - long: {do: [{inner: {call: noop}}]}\n"
        "          - lasting: {call: noop, timeout: {after: PT2H}}\n"
        "          - tried:\n"
        "              try: [{risky: {call: noop, timeout: {after: PT20S}}}]\n"
        "              catch: {retry: {limit: {attempt: {count: 2, duration: PT5S}}}}\n"
    )
    driver.settle()
    assert deadlines(driver) == {"short": 2_000, "inner": 601_000, "lasting": 601_000, "risky": 6_000}
    kernel = driver.machine._kernel
    restored = Machine.restore(kernel.plan.program, kernel.facts, driver.machine.snapshot())
    again = {effect.name: effect.deadline_ms for effect in restored.pending() if isinstance(effect, Call)}
    assert again == deadlines(driver)


def test_a_call_with_no_timeout_around_it_has_no_deadline(start):
    driver = start("do: [{f: {fork: {branches: [{a: {call: noop, timeout: {after: PT1S}}}, {b: {call: noop}}]}}}]")
    driver.settle()
    assert deadlines(driver) == {"a": 2_000, "b": None}


def test_a_catch_is_not_bound_by_the_limit_of_the_attempt_that_failed(run, down):
    driver = run(
        "do:\n"
        "  - t:\n"
        "      try: [{a: {call: noop}}]\n"
        "      catch: {retry: {limit: {attempt: {count: 1, duration: PT5S}}}, do: [{h: {call: noop}}]}\n",
        None,
        lambda call: down() if call.name == "a" else "ok",
    )
    assert deadlines(driver) == {"a": 6_000, "h": None}
