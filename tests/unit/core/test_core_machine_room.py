"""Limits on payloads and on what a run holds: the step whose result is too much fails, and it can be caught."""

import pytest

from flint_core.machine import Failed, Machine, MachineLimits, Succeeded
from flint_core.problems import ProblemType

SMALL = MachineLimits(payload_bytes=1_000, state_bytes=2_000, value_bytes=1_000)
TEXT = "x" * 600


def too_large(driver, step):
    assert isinstance(driver.machine.end, Failed), driver.machine.end
    assert (driver.problem.type, driver.problem.status) == (ProblemType.PAYLOAD_TOO_LARGE, 413)
    assert driver.problem.instance == step


OVER = {
    "fork": (
        "do: [{f: {fork: {branches: [{a: {set: {v: '${ .s }'}}}, {b: {set: {v: '${ .s }'}}}]}}}]",
        "/do/0/f",
    ),
    "constant": (f"do: [{{a: {{set: {{v: '{'y' * 1_000}'}}}}}}]", "/do/0/a"),
    "call": ("do: [{a: {call: noop, with: {output: big}}}]", "/do/0/a"),
    "fork that ends the run": (
        "do: [{f: {fork: {branches: [{a: {set: {v: '${ .s }'}}}, {b: {set: {v: '${ .s }'}}}]}, then: end}}]",
        "/do/0/f",
    ),
    "output.as of the workflow": ("do: [{a: {set: {v: '${ .s }'}}}]\noutput: {as: {a: '${ .v }', b: '${ .v }'}}", "/"),
    "output of the workflow after an end": (
        "do: [{a: {set: {v: '${ .s }'}, then: end}}]\noutput: {as: {a: '${ .v }', b: '${ .v }'}}",
        "/",
    ),
}


@pytest.mark.parametrize("what", OVER)
def test_an_output_beyond_the_limit_fails_its_step_whatever_makes_it(run, what):
    body, step = OVER[what]
    driver = run(body, {"s": TEXT}, lambda call: "z" * 1_000, SMALL)
    too_large(driver, "" if step == "/" else step)


def test_an_input_beyond_the_limit_does_not_pass_as_output(run):
    too_large(run("do: [{w: {wait: PT1S}}]", "x" * 1_200, limits=SMALL), "/do/0/w")


def test_what_is_too_large_can_be_caught(run):
    driver = run(
        "do:\n"
        "  - t:\n"
        "      try: [{f: {fork: {branches: [{a: {set: {v: '${ .s }'}}}, {b: {set: {v: '${ .s }'}}}]}}}]\n"
        "      catch: {errors: {with: {type: 'https://flint.dev/errors/payload-too-large'}},"
        " do: [{h: {set: {at: '${ $error.instance }'}}}]}\n",
        {"s": TEXT},
        limits=SMALL,
    )
    assert driver.output == {"at": "/do/0/t/try/0/f"}


KEEPING = (
    "do:\n"
    "  - a: {set: {v: '${ .s }'}, output: {as: '${ $input }'}}\n"
    "  - b: {set: {s: '${ .s }'}}\n"
    "  - c: {set: {s: '${ .s }'}}\n"
    "  - d: {set: {s: '${ .s }'}}\n"
    "  - e: {call: noop, with: {output: '${ [$steps.a, $steps.b, $steps.c, $steps.d] | length }'}}\n"
)


def test_the_step_whose_output_is_kept_beyond_the_states_limit_fails(run):
    too_large(run(KEEPING, {"s": TEXT}, limits=SMALL), "/do/3/d")
    assert run(KEEPING, {"s": "x" * 300}, limits=SMALL).output == 4


def test_what_nothing_reads_is_not_kept(run):
    body = KEEPING.replace("$steps.", ".")
    assert run(body, {"s": TEXT}, limits=SMALL).output == 4


def test_a_kept_output_that_is_replaced_counts_once(run):
    driver = run(
        "do:\n"
        "  - l: {for: {in: '${ .items }'}, do: [{a: {set: {s: '${ $workflow.input.s }'}}}]}\n"
        "  - e: {set: {n: '${ $steps.a.s | length }'}}\n",
        {"s": "x" * 500, "items": list(range(20))},
        limits=SMALL,
    )
    assert driver.output == {"n": 500}


def test_branches_results_are_held_until_the_fork_ends(run):
    branches = ", ".join(f"{{b{n}: {{call: noop}}}}" for n in range(4))
    body = f"do: [{{f: {{fork: {{branches: [{branches}]}}, output: {{as: '${{ length }}'}}}}}}]"
    limits = MachineLimits(payload_bytes=10_000, state_bytes=2_000)
    too_large(run(body, {}, lambda call: TEXT, limits), "/do/0/f/fork/branches/3/b3")
    assert run(body, {}, lambda call: TEXT, MachineLimits(payload_bytes=10_000, state_bytes=3_000)).output == 4


def test_a_context_that_grows_fails_the_step_that_exports_it(run):
    body = (
        "do:\n"
        "  - l:\n"
        "      for: {in: '${ .items }'}\n"
        "      do: [{a: {call: noop, with: {output: '${ $item }'},"
        " export: {as: '${ {all: ($context.all // []) + [$workflow.input.s]} }'}}}]\n"
    )
    limits = MachineLimits(payload_bytes=10_000, state_bytes=2_000)
    driver = run(body, {"s": TEXT, "items": [1, 2, 3, 4, 5]}, limits=limits)
    too_large(driver, "/do/0/l/do/0/a")
    assert len(driver.calls) == 4


def test_whole_payloads_can_be_handed_on_while_nothing_is_kept(run):
    text = "x" * 9_900
    limits = MachineLimits(payload_bytes=10_000, state_bytes=1_024)
    body = "do: [{a: {call: noop, with: {output: '${ . }'}}}, {b: {do: [{c: {call: noop, with: {output: '${ . }'}}}]}}]"
    assert run(body, text, limits=limits).output == text


def test_what_flows_in_many_branches_is_bounded_too(run):
    branches = ", ".join(f"{{b{n}: {{call: noop, with: {{output: '${{ [., {n}] }}'}}}}}}" for n in range(9))
    limits = MachineLimits(payload_bytes=10_000, state_bytes=1_024)
    body = f"do: [{{f: {{fork: {{branches: [{branches}]}}}}}}]"
    driver = run(body, "x" * 9_000, lambda call: 1, limits)
    too_large(driver, "/do/0/f/fork/branches/3/b3")


@pytest.mark.parametrize("size", [100, 2_000, 7_000])
def test_a_run_within_its_limits_can_always_be_written_down(start, size):
    limits = MachineLimits(payload_bytes=10_000, state_bytes=20_000)
    driver = start(
        "do:\n"
        "  - a: {call: noop, with: {output: '${ . }'}}\n"
        "  - f:\n"
        "      fork:\n"
        "        branches:\n"
        "          - b: {for: {in: '${ [.s, .s] }'}, do: [{c: {call: noop, with: {output: {s: '${ $item }'}}}}]}\n"
        "          - d: {try: [{e: {call: noop, with: {output: {s: '${ .s }'}}}}], catch: {}}\n"
        "  - g: {set: {n: '${ [$steps.a, $steps.c, .] | length }'}}\n",
        {"s": "x" * size},
        limits=limits,
    )
    while driver.machine.end is None and driver.next():
        again = Machine.restore(
            driver.machine._kernel.plan.program, driver.machine._kernel.facts, driver.machine.snapshot(), limits
        )
        assert again._kernel.kept == driver.machine._kernel.kept
    driver.settle()
    assert isinstance(driver.machine.end, Succeeded | Failed)
