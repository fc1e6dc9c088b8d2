"""Compensation: what a failing or cancelled run undoes, and in which order."""

from __future__ import annotations

import pytest

from flint_core.definition import Severity, compile_definition
from flint_core.effects import Call
from flint_core.events import CancelRequested, decode_event, encode_event
from flint_core.machine import Cancelled, Failed, Machine, MachineLimits, Succeeded
from support.machines import HEAD, Driver, down, start

UNDO = "metadata: {flint: {compensate: undo}}"
USE = """
use:
  functions:
    undo:
      call: noop
      with: {output: 'undo ${ .output } of ${ .input.n }', delay_ms: 0}
"""
TRIP = (
    USE
    + f"""
do:
  - flight: {{call: noop, with: {{output: flight}}, {UNDO}, input: {{from: '{{n: 1}}'}}}}
  - hotel: {{call: noop, with: {{output: hotel}}, {UNDO}, input: {{from: '{{n: 2}}'}}}}
  - car: {{call: noop, with: {{output: car, fail: {{status: 503}}}}, {UNDO}}}
"""
)
CAR = "call: noop, with: {output: car, fail: {status: 503}}"


def outcome(call):
    if call.arguments.get("fail"):
        return down("no " + call.name)
    return call.arguments.get("output")


def undone(run):
    return [call.arguments["output"] for call in run.calls if "/compensate" in call.step]


def waiting_trip():
    """A trip of which two parts are booked and the third waits."""
    run = start(TRIP.replace(CAR, "wait: PT1H"), {}, outcome)
    run.settle()
    while len(run.calls) < 2 or isinstance(run.due[0][2], Call):
        run.next()
        run.settle()
    return run


def test_completed_tasks_are_undone_newest_first_and_the_run_ends_as_it_would():
    run = start(TRIP, {}, outcome).run()
    assert undone(run) == ["undo hotel of 2", "undo flight of 1"]
    assert isinstance(run.machine.end, Failed)
    assert run.problem.detail == "no car" and run.problem.instance == "/do/2/car"
    step = "/do/1/hotel/metadata/flint/compensate"
    assert [(call.step, call.idempotency_key) for call in run.calls if "/hotel/" in call.step] == [
        (step, f"run-1/0{step}/")
    ]
    assert [record.kind for record in run.records if record.step == step] == ["call"]


def test_nothing_is_undone_when_the_run_succeeds_or_a_try_catches():
    body = TRIP.replace("- car: {", "- car: {if: 'false', ")
    assert undone(start(body, {}, outcome).run()) == []
    run = start(
        USE
        + f"do: [{{t: {{try: [{{a: {{call: noop, {UNDO}}}}}, {{b: {{call: noop, with: {{output: x}}}}}}],"
        + " catch: {}}}, {c: {set: {ok: true}}}]\n",
        {},
        lambda call: down() if call.name == "b" else 1,
    ).run()
    assert isinstance(run.machine.end, Succeeded) and undone(run) == []


def test_iterations_are_undone_each_with_a_key_of_its_own_and_what_was_retried_once():
    body = (
        USE
        + "do: [{l: {for: {each: n, in: '[1, 2]'}, do: [{a: {input: {from: '{n: $n}'}, call: noop,"
        + f" with: {{output: '${{ $n }}'}}, {UNDO}}}}}]}}}},"
        + f" {{t: {{try: [{{b: {{call: noop, with: {{output: b}}, input: {{from: '{{n: 9}}'}}, {UNDO}}}}},"
        + " {c: {call: noop}}], catch: {retry: {delay: PT0S, limit: {attempt: {count: 3}}}}}}]\n"
    )
    run = start(body, {}, lambda call: down() if call.name == "c" else call.arguments.get("output")).run()
    assert undone(run) == ["undo b of 9", "undo 2 of 2", "undo 1 of 1"]
    assert [call.iteration for call in run.calls if "/compensate" in call.step] == ["", "1", "0"]
    assert len([call for call in run.calls if call.name == "b"]) == 3


def test_a_failing_compensation_does_not_stop_the_others_and_is_told():
    run = start(TRIP, {}, lambda call: down("jam") if "hotel/" in call.step else outcome(call)).run()
    assert undone(run) == ["undo hotel of 2", "undo flight of 1"]
    assert run.problem.detail == (
        "no car\nThe compensation /do/1/hotel/metadata/flint/compensate failed: Communication failed (jam)"
    )
    assert run.problem.instance == "/do/2/car"


def test_a_compensation_is_any_task_with_retries_and_forks():
    body = (
        "use: {functions: {undo: {try: [{f: {fork: {branches: [{x: {call: noop, with: {output: '${ .output }'}}},"
        " {y: {wait: PT1S}}]}}}], catch: {retry: {delay: PT5S}}}}}\n"
        f"do: [{{a: {{call: noop, with: {{output: a}}, {UNDO}}}}},"
        " {b: {raise: {error: {type: x, status: 400}}}}]\n"
    )
    tries = []

    def flaky(call):
        if call.name != "x":
            return outcome(call)
        tries.append(call.attempt)
        return down() if len(tries) < 3 else 1

    run = start(body, {}, flaky).run()
    assert tries == [1, 2, 3]
    assert run.problem.type == "x" and "compensation" not in run.problem.detail


def test_inline_compensation_and_nested_tasks():
    body = (
        "do:\n"
        "  - outer:\n"
        "      do:\n"
        "        - inner:\n"
        "            call: noop\n"
        "            with: {output: 7}\n"
        "            metadata: {flint: {compensate: {call: noop, with: {output: 'inner ${ .output }'}}}}\n"
        "      metadata: {flint: {compensate: {call: noop, with: {output: 'outer ${ .output } ${ $context.c }'}}}}\n"
        "      export: {as: {c: 5}}\n"
        "  - bad: {raise: {error: {type: x, status: 400}}}\n"
    )
    assert undone(start(body, {}).run()) == ["outer 7 5", "inner 7"]


def test_end_within_a_compensation_ends_that_alone():
    body = (
        "use: {functions: {undo: {do: [{u: {call: noop, with: {output: '${ .output }'}, then: end}},"
        " {never: {call: noop, with: {output: never}}}]}}}\n"
        f"do: [{{a: {{call: noop, with: {{output: a}}, {UNDO}}}}}, {{b: {{call: noop, with: {{output: b}}, {UNDO}}}}},"
        " {c: {raise: {error: {type: x, status: 400}}}}]\n"
    )
    run = start(body, {}).run()
    assert undone(run) == ["b", "a"] and run.problem.type == "x"


def test_a_cancelled_run_is_undone_and_further_cancels_change_nothing_but_at_once():
    run = waiting_trip()
    assert run.machine.compensates
    run.cancel()
    run.settle()
    assert run.machine.end is None and run.machine.compensates
    run.cancel()
    run.settle()
    assert run.machine.end is None
    kernel = run.machine._kernel
    hurried = Machine.restore(kernel.plan.program, kernel.facts, run.machine.snapshot())
    assert undone(run.run()) == ["undo hotel of 2", "undo flight of 1"]
    assert isinstance(run.machine.end, Cancelled) and not run.machine.compensates
    hurried.apply(decode_event(encode_event(CancelRequested(run.now, at_once=True))))
    while hurried.advance(100):
        pass
    assert isinstance(hurried.end, Cancelled)


def test_the_timeout_of_the_workflow_is_undone_without_it():
    run = start("timeout: {after: PT1M}\n" + TRIP.replace(CAR, "wait: PT1H"), {}, outcome).run()
    assert undone(run) == ["undo hotel of 2", "undo flight of 1"] and run.problem.status == 408


def test_the_limit_on_steps_leaves_room_to_undo():
    body = USE + f"do: [{{a: {{call: noop, with: {{output: a}}, {UNDO}}}}}, {{l: {{wait: PT0S, then: l}}}}]\n"
    run = start(body, {"n": 1}, outcome, MachineLimits(steps_per_run=50)).run()
    assert undone(run) == ["undo a of 1"] and run.problem.status == 429


def test_every_moment_can_be_resumed_and_replayed():
    whole = start(TRIP, {}, outcome).run()
    run = start(TRIP, {}, outcome)
    program, facts = run.machine._kernel.plan.program, run.machine._kernel.facts
    run.settle()
    while run.machine.end is None:
        again = Machine.restore(program, facts, run.machine.snapshot())
        run = Driver(again, outcome, run.now, due=run.due, gone=run.gone, calls=run.calls, records=run.records)
        run.next()
        run.settle()
    assert run.problem == whole.problem
    assert list(dict.fromkeys(call.step for call in run.calls)) == [call.step for call in whole.calls]
    assert [record.step for record in run.records] == [record.step for record in whole.records]
    replay = Machine.start(program, facts, {}, 1_000)
    for event in whole.events:
        replay.apply(event)
    while replay.advance(100):
        pass
    assert replay.end == whole.machine.end
    assert [record.step for record in replay.take_records()] == [record.step for record in whole.records]


def test_a_cancelled_runs_whole_story_is_replayed():
    run = waiting_trip()
    run.cancel()
    run.run()
    kernel = run.machine._kernel
    replay = Machine.start(kernel.plan.program, kernel.facts, {}, 1_000)
    for event in run.events:
        replay.apply(event)
    while replay.advance(100):
        pass
    assert replay.end == Cancelled()


def test_what_is_kept_to_undo_counts_as_state():
    body = USE + f"do: [{{a: {{call: noop, with: {{output: '${{ .big }}'}}, {UNDO}}}}}]\n"
    run = start(body, {"big": "x" * 3_000}, outcome, MachineLimits(payload_bytes=4_000, state_bytes=4_000)).run()
    assert run.problem.status == 413 and run.problem.instance == "/do/0/a"


MISTAKES = {
    "name": ("compensate: undoo", "did you mean 'undo'"),
    "number": ("compensate: 1", "must be an object"),
    "member": ("compensate: {calls: x}", "did you mean 'call'"),
    "task": ("compensate: {call: htp}", "did you mean 'http'"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes(what):
    hint, words = MISTAKES[what]
    compiled = compile_definition(HEAD + USE + f"do:\n  - a: {{call: noop, metadata: {{flint: {{{hint}}}}}}}\n")
    errors = [finding for finding in compiled.findings if finding.severity is Severity.ERROR]
    assert any(words in finding.message and finding.line == 9 for finding in errors), errors


def test_a_compensation_is_not_compensated():
    compiled = compile_definition(
        HEAD + f"use: {{functions: {{undo: {{call: noop, {UNDO}}}}}}}\ndo: [{{a: {{call: noop, {UNDO}}}}}]\n"
    )
    assert "what compensates is not compensated itself" in [finding.message for finding in compiled.findings]
