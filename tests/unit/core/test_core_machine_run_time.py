"""`limits.run_s`: the time of a whole run, which nothing in the run catches."""

from __future__ import annotations

import pytest

from flint_core.events import TimerFired
from flint_core.machine import Failed, Machine, MachineLimits
from flint_core.problems import Problem, ProblemType
from support.machines import Driver, start

LIMITS = MachineLimits(run_ms=60_000)
CATCHES_ALL = "{t: {try: [{w: {wait: PT1H}}], catch: {do: [{c: {set: {caught: true}}}]}}}"
TRIP = (
    "use: {functions: {undo: {call: noop, with: {output: undone}}}}\n"
    "do: [{a: {call: noop, with: {output: a}, metadata: {flint: {compensate: undo}}}}, %s]"
)


def resumed(run: Driver, limits: MachineLimits | None = LIMITS) -> Driver:
    """The same run on another worker: from its snapshot, with what is pending set anew."""
    kernel = run.machine._kernel
    machine = Machine.restore(kernel.plan.program, kernel.facts, run.machine.snapshot(), limits)
    return Driver(machine, run.outcome, run.now, calls=run.calls, records=run.records)


def is_overdue(problem: Problem) -> bool:
    return (problem.type, problem.status) == (ProblemType.TIMEOUT, 408) and "limits.run_s" in (problem.detail or "")


@pytest.mark.parametrize(
    "task",
    [
        "{w: {wait: PT1H}}",
        CATCHES_ALL,
        "{l: {wait: PT1S, then: l}}",
        "{f: {fork: {branches: [{a: {wait: PT1H}}, {b: {wait: PT2H}}]}}}",
        "{x: {listen: {to: {any: []}}}}",
    ],
)
def test_a_run_ends_when_its_time_is_over(task: str) -> None:
    run = start(f"do: [{task}]", {}, limits=LIMITS).run()
    assert isinstance(run.machine.end, Failed)
    assert is_overdue(run.problem)
    assert run.now == 61_000
    assert run.machine.pending() == []


def test_a_shorter_timeout_of_the_workflow_comes_first_and_a_longer_one_never() -> None:
    body = "timeout: {after: %s}\ndo: [{w: {wait: PT1H}}]"
    run = start(body % "PT5S", {}, limits=LIMITS).run()
    assert run.now == 6_000 and "limits.run_s" not in str(run.problem.detail)
    assert is_overdue(start(body % "PT30M", {}, limits=LIMITS).run().problem)


def test_without_a_limit_or_within_it_nothing_changes() -> None:
    body = "do: [{w: {wait: PT30S}}, {a: {call: noop, with: {output: 1}}}]"
    free, bound = start(body, {}).run(), start(body, {}, limits=LIMITS).run()
    assert free.output == bound.output == 1
    assert [call.effect_id for call in free.calls] == [call.effect_id for call in bound.calls]
    assert free.records == bound.records


def test_what_was_done_is_undone_and_that_is_not_cut_off() -> None:
    slow = "{w: {wait: PT1H}}"
    run = start(TRIP % slow, {}, limits=LIMITS)
    run.duration = lambda driver, call: 10 if call.arguments.get("output") == "a" else 300_000
    run.run()
    assert [call.arguments["output"] for call in run.calls] == ["a", "undone"]
    assert is_overdue(run.problem)


def test_the_time_goes_on_over_restores() -> None:
    run = start("do: [{l: {wait: PT10S, then: l}}]", {}, limits=LIMITS)
    while run.machine.end is None:
        run.settle()
        run = resumed(run)
        for effect in run.machine.pending():
            run.due.append((effect.until_ms, effect.effect_id, effect))  # type: ignore[union-attr]
        run.due.sort(key=lambda entry: entry[:2])
        run.next()
        run.settle()
    assert is_overdue(run.problem) and run.now == 61_000


def test_its_end_is_recorded_whatever_the_limit_of_the_worker_that_reads_it() -> None:
    run = start("do: [{w: {wait: PT1H}}]", {}, limits=LIMITS)
    run.settle()
    for limits in (LIMITS, MachineLimits(), MachineLimits(run_ms=3_600_000)):
        again = resumed(run, limits)
        again.machine.apply(TimerFired(0, 61_000))
        again.machine.advance(10)
        assert isinstance(again.machine.end, Failed) and is_overdue(again.machine.end.problem)
