"""`for` with `metadata.flint.parallel`: order, bounds, failures, and that thousands of items are no trouble."""

import time

import pytest

from flint_core.definition import compile_definition
from flint_core.effects import Call, CancelEffect
from flint_core.machine import Machine, MachineLimits
from flint_core.problems import ProblemType
from support.machines import FACTS, HEAD, down, start

LOOP = (
    "do: [{{l: {{metadata: {{flint: {{parallel: {count}}}}}, for: {{each: x, in: '.'}},"
    " do: [{{a: {{call: noop, with: {{output: '${{ [$x, $index] }}'}}}}}}, {{b: {{set: {{v: '${{ . }}'}}}}}}]}}}}]"
)


def test_outputs_stand_in_the_order_of_the_collection():
    driver = start(LOOP.format(count=2), ["p", "q", "r"]).run()
    assert driver.output == [{"v": ["p", 0]}, {"v": ["q", 1]}, {"v": ["r", 2]}]
    assert [call.iteration for call in driver.calls] == ["0", "1", "2"]
    assert [call.idempotency_key for call in driver.calls] == [f"run-1/0/do/0/l/do/0/a/{place}" for place in range(3)]
    assert "a[2]:succeeded" in driver.shown()
    assert driver.shown()[-1] == "l:succeeded"
    assert len(driver.shown()) == 7  # nothing is shown of how it is done


def test_no_more_than_so_many_at_once():
    driver = start(LOOP.format(count=3), list(range(7)))
    driver.settle()
    most = 0
    while driver.machine.end is None:
        open_calls = [effect for effect in driver.machine.pending() if isinstance(effect, Call)]
        most = max(most, len(open_calls))
        driver.next()
        driver.settle()
    assert most == 3
    driver = start(LOOP.format(count=3), list(range(7)), limits=MachineLimits(parallel=2))
    driver.settle()
    assert len(driver.calls) == 2


@pytest.mark.parametrize("items", [[], [1]])
def test_short_collections(items):
    assert len(start(LOOP.format(count=9), items).run().output) == len(items)


def test_each_iteration_begins_with_the_input_of_the_loop():
    body = "do: [{l: {metadata: {flint: {parallel: 2}}, for: {in: .l}, do: [{a: {set: {n: '${ .n + $item }'}}}]}}]"
    assert start(body, {"n": 10, "l": [1, 2, 3]}).run().output == [{"n": 11}, {"n": 12}, {"n": 13}]


def test_one_that_fails_cancels_the_others_and_can_be_caught():
    body = (
        "do: [{t: {try: [" + LOOP.format(count=3)[5:-1] + "],"
        " catch: {do: [{s: {set: {why: '${ $error.detail }', at: '${ $error.instance }'}}}]}}}]"
    )
    driver = start(body, list(range(5)), lambda call: down("bad") if call.iteration == "1" else 1).run()
    assert driver.output == {"why": "bad", "at": "/do/0/t/try/0/l/do/0/a"}
    gone = [effect.effect_id for effect in driver.effects if isinstance(effect, CancelEffect)]
    assert len(gone) == 2  # the one of iteration 2, and that of 3 which began when 0 had ended
    assert "a[2]:cancelled" in driver.shown()


def test_exit_leaves_an_iteration_and_end_the_run():
    body = (
        "do: [{{l: {{metadata: {{flint: {{parallel: 2}}}}, for: {{in: '[1, 2, 3]'}},"
        " do: [{{a: {{set: {{x: '${{ $item }}'}}, then: {then}}}}}, {{b: {{set: {{x: 0}}}}}}]}}}},"
        " {{z: {{set: {{y: '${{ . }}'}}}}}}]"
    )
    assert start(body.format(then="exit")).run().output == {"y": [{"x": 1}, {"x": 2}, {"x": 3}]}
    assert start(body.format(then="end")).run().output == {"x": 1}


def test_loops_within_loops_and_jumps_have_labels_of_their_own():
    inner = (
        "{i: {metadata: {flint: {parallel: 2}}, for: {each: y, in: '[7, 8]'},"
        " do: [{a: {call: noop, with: {output: '${ $x + $y }'}}}]}}"
    )
    body = f"do: [{{o: {{metadata: {{flint: {{parallel: 2}}}}, for: {{each: x, in: '[10, 20]'}}, do: [{inner}]}}}}]"
    driver = start(body).run()
    assert driver.output == [[17, 18], [27, 28]]
    assert sorted(call.iteration for call in driver.calls) == ["0.0", "0.1", "1.0", "1.1"]


STEPS = (
    "do: [{l: {metadata: {flint: {parallel: 3}}, for: {each: x, in: '[1, 2, 3]'}, do: ["
    "{before: {set: '${ $steps.a }'}}, {a: {call: noop, with: {output: '${ $x }'}}}, {w: {wait: PT1S}},"
    " {b: {set: '${ [$steps.before, $steps.a, $x] }'}}]}}]"
)


def test_an_iteration_sees_the_outputs_of_its_own_steps():
    """All of them are between `a` and `b` when the first comes to `b`."""
    assert start(STEPS).run().output == [[None, 1, 1], [None, 2, 2], [None, 3, 3]]
    twice = "do: [{o: {for: {each: y, in: '[1, 2]'}, do: [" + STEPS[5:-1] + "]}}]"
    assert start(twice).run().output == [[None, 1, 1], [None, 2, 2], [None, 3, 3]]  # the second round, as the first


def test_a_branch_sees_nothing_of_the_branches_beside_it():
    body = (
        "do: [{z: {set: '${ 7 }'}}, {f: {fork: {branches: ["
        "{p: {do: [{a: {set: '${ 1 }'}}, {w: {wait: PT1S}}, {b: {set: '${ [$steps.a, $steps.c, $steps.z] }'}}]}},"
        " {q: {do: [{c: {set: '${ 2 }'}}, {v: {wait: PT1S}}, {d: {set: '${ [$steps.a, $steps.c, $steps.z] }'}}]}}]}}}]"
    )
    assert start(body).run().output == [[1, None, 7], [None, 2, 7]]


def test_who_is_outside_sees_the_last_output_of_any_branch():
    body = STEPS[:-1] + ", {after: {set: '${ [$steps.a, $steps.b] }'}}]"
    assert start(body).run().output == [3, [None, 3, 3]]
    nested = (
        "do: [{f: {fork: {branches: [{p: {do: [{i: {metadata: {flint: {parallel: 2}}, for: {in: '[5, 6]'},"
        " do: [{a: {set: '${ $item }'}}]}}, {s: {set: '${ $steps.a }'}}]}}, {q: {set: '${ 0 }'}}]}}},"
        " {t: {set: '${ [., $steps.a] }'}}]"
    )
    assert start(nested).run().output == [[6, 0], 6]


def test_outputs_of_branches_survive_a_restore_and_are_given_back_at_their_end():
    driver = start(STEPS)
    program = compile_definition(HEAD + STEPS).program
    while driver.machine.end is None:
        driver.settle()
        if driver.machine.end is None:
            snapshot = driver.machine.snapshot()
            driver.machine = Machine.restore(program, FACTS, snapshot)
            assert driver.machine.snapshot() == snapshot
            driver.machine.pending()
            driver.next()
    assert driver.output == [[None, 1, 1], [None, 2, 2], [None, 3, 3]]
    large = STEPS.replace("'${ $x }'", "'${ \"x\" * 3000 }'").replace("[$steps.before, $steps.a, $x]", "$x")
    rounds = f"do: [{{o: {{for: {{each: y, in: '[range(20)]'}}, do: [{large[5:-1]}]}}}}]"
    assert start(rounds, limits=MachineLimits(state_bytes=40_000)).run().output == [1, 2, 3]
    beyond = start(large, limits=MachineLimits(state_bytes=5_000)).run()
    assert beyond.problem.type == ProblemType.PAYLOAD_TOO_LARGE


def test_results_count_against_the_state():
    driver = start(
        LOOP.format(count=2),
        list(range(50)),
        lambda _: "x" * 100,
        limits=MachineLimits(payload_bytes=2_000, state_bytes=2_000),
    ).run()
    assert driver.problem.type == ProblemType.PAYLOAD_TOO_LARGE


def test_a_restored_loop_goes_on_with_its_variables():
    program = compile_definition(HEAD + LOOP.format(count=2)).program
    driver = start(LOOP.format(count=2), ["p", "q", "r"])
    while driver.machine.end is None:
        driver.settle()
        if driver.machine.end is None:
            snapshot = driver.machine.snapshot()
            driver.machine = Machine.restore(program, FACTS, snapshot)
            assert driver.machine.snapshot() == snapshot
            driver.machine.pending()
            driver.next()
    assert driver.output == [{"v": ["p", 0]}, {"v": ["q", 1]}, {"v": ["r", 2]}]


def test_time_grows_with_the_collection_alone():
    def took(count):
        driver = start(
            LOOP.format(count=100), list(range(count)), limits=MachineLimits(state_bytes=2**22, payload_bytes=2**22)
        )
        begun = time.process_time()
        driver.run()
        return time.process_time() - begun

    took(100)
    assert took(8_000) < 40 * max(took(1_000), 0.02)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("metadata: {flint: {parallel: 0}}, for: {in: .}, do: [{a: {set: {x: 1}}}]", "from 1 to 1000"),
        ("metadata: {flint: {parallel: 1001}}, for: {in: .}, do: [{a: {set: {x: 1}}}]", "from 1 to 1000"),
        ("metadata: {flint: {parallel: 2}}, for: {in: .}, while: 'true', do: [{a: {set: {x: 1}}}]", "'while'"),
        ("metadata: {flint: {parallel: 2}}, set: {x: 1}", "parallel"),
    ],
)
def test_mistakes(task, message):
    compiled = compile_definition(f"{HEAD}do:\n  - t: {{{task}}}\n")
    errors = [finding for finding in compiled.findings if finding.severity == "error"]
    assert compiled.program is None
    assert any(message in finding.message and finding.line == 3 for finding in errors), errors
