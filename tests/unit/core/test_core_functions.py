"""Functions of `use` that are tasks: inputs, steps of their own, circles, limits."""

from __future__ import annotations

import pytest

from flint_core.definition import DefinitionLimits, Severity, compile_definition
from flint_core.machine import Failed, Machine
from support.machines import HEAD, Driver, start


def errors(body, limits=None):
    compiled = compile_definition(HEAD + body, limits)
    assert compiled.program is None
    return [finding for finding in compiled.findings if finding.severity is Severity.ERROR]


GREET = """
use:
  functions:
    greet:
      input: {schema: {document: {type: object, required: [name]}}}
      do:
        - compose: {set: {text: 'Hello ${ .name }'}}
        - shout: {set: {text: '${ $steps.compose.text | ascii_upcase }'}}
      output: {as: .text}
do:
  - first: {call: greet, with: {name: '${ .a }'}}
  - second: {call: greet, with: {name: '${ $steps.first }'}, output: {as: {said: '${ . }'}}}
"""


def test_a_function_is_any_task_and_takes_with_as_its_input():
    run = start(GREET, {"a": "Ada"}).run()
    assert run.output == {"said": "HELLO HELLO ADA"}
    steps = [record.step for record in run.records]
    assert steps == [
        "/do/0/first/functions/greet/do/0/compose",
        "/do/0/first/functions/greet/do/1/shout",
        "/do/0/first/functions/greet",
        "/do/0/first",
        "/do/1/second/functions/greet/do/0/compose",
        "/do/1/second/functions/greet/do/1/shout",
        "/do/1/second/functions/greet",
        "/do/1/second",
    ]


def test_its_input_schema_holds():
    run = start(GREET.replace("{name: '${ .a }'}", "{}"), {}).run()
    assert isinstance(run.machine.end, Failed)
    assert run.problem.status == 400 and run.problem.instance == "/do/0/first/functions/greet"


def test_members_of_function_and_call_both_count_and_without_with_the_input_passes_on():
    run = start(
        "use: {functions: {f: {if: .go, set: {x: '${ .n + 1 }'}, export: {as: {seen: '${ .x }'}}}}}\n"
        "do:\n"
        "  - a: {call: f, input: {from: '{go: true, n: .n}'}}\n"
        "  - b: {call: f, output: {as: '{was: ., seen: $context.seen}'}}\n",
        {"n": 1},
    ).run()
    assert run.output == {"was": {"x": 2}, "seen": 2}
    assert "f:skipped" in run.shown()


def test_functions_call_functions_and_end_ends_the_run():
    run = start(
        "use: {functions: {outer: {do: [{in: {call: inner, with: {v: '${ .v * 2 }'}}}, {no: {set: {never: 1}}}]},"
        " inner: {set: {v: '${ .v + 1 }'}, then: end}}}\n"
        "do: [{a: {call: outer, with: {v: 20}}}, {b: {set: {never: 2}}}]\n"
    ).run()
    assert run.output == {"v": 41}
    assert run.records[0].step == "/do/0/a/functions/outer/do/0/in/functions/inner"


def test_calls_inside_have_keys_of_their_own_also_in_loops():
    run = start(
        "use: {functions: {f: {do: [{c: {call: noop, with: {output: '${ .v }'}}}]}}}\n"
        "do: [{l: {for: {each: v, in: '[1, 2]'}, do: [{a: {call: f, with: {v: '${ $v }'}}}]}},"
        " {b: {call: f, with: {v: 3}}}]\n",
        {},
    ).run()
    assert run.output == 3
    assert [call.idempotency_key for call in run.calls] == [
        "run-1/0/do/0/l/do/0/a/functions/f/do/0/c/0",
        "run-1/0/do/0/l/do/0/a/functions/f/do/0/c/1",
        "run-1/0/do/1/b/functions/f/do/0/c/",
    ]


def test_a_run_inside_a_function_resumes_from_its_snapshot():
    run = start(
        "use: {functions: {f: {do: [{w: {wait: PT1S}}, {s: {set: {got: '${ .v }'}}}]}}}\n"
        "do: [{l: {for: {each: v, in: '[7]'}, do: [{a: {call: f, with: {v: '${ $v }'}}}]}}]\n"
    )
    run.settle()
    program = run.machine._kernel.plan.program
    again = Driver(Machine.restore(program, run.machine._kernel.facts, run.machine.snapshot()))
    again.due = run.due
    assert again.run().output == {"got": 7}


@pytest.mark.parametrize("used", [True, False])
def test_circles_are_refused_with_their_path(used):
    call = "a" if used else "noop"
    found = errors(
        "use:\n  functions:\n    a: {do: [{x: {call: b}}]}\n    b: {try: [{y: {call: c}}], catch: {}}\n"
        "    c: {call: a}\n"
        f"do: [{{t: {{call: {call}}}}}]\n"
    )
    assert "functions may not call each other in a circle: a → b → c → a" in [finding.message for finding in found]


def test_a_mistake_in_a_function_is_told_once_where_it_stands():
    found = errors(
        "use:\n  functions:\n    f:\n      do:\n        - s: {set: {x: '${ $nope }'}}\n"
        "do: [{a: {call: f}}, {b: {call: f}}]\n"
    )
    assert [(finding.line, finding.column, finding.pointer) for finding in found] == [
        (6, 24, "/use/functions/f/do/0/s/set/x")
    ]


def test_loop_variables_and_steps_of_the_caller_are_not_seen_inside():
    found = errors(
        "use: {functions: {f: {set: {x: '${ $item }'}}}}\n"
        "do: [{l: {for: {in: '[1]'}, do: [{a: {call: f, with: {}}}]}}]\n"
    )
    assert "$item is not defined here" in found[0].message
    found = errors("use: {functions: {f: {set: {x: '${ $steps.outer }'}}}}\ndo: [{outer: {call: f, with: {}}}]\n")
    assert "$steps.outer names no task" in found[0].message
    found = errors(
        "use: {functions: {f: {do: [{i: {set: {x: 1}}}]}}}\ndo: [{a: {call: f}}, {b: {set: '${ $steps.i }'}}]\n"
    )
    assert "$steps.i names no task" in found[0].message


def test_expansion_is_bounded():
    functions = "".join(
        f"    f{n}: {{do: [{', '.join(f'{{x{k}: {{call: f{n + 1}}}}}' for k in range(10))}]}}\n" for n in range(8)
    )
    body = f"use:\n  functions:\n{functions}    f8: {{set: {{x: 1}}}}\ndo: [{{a: {{call: f0}}}}]\n"
    assert any(finding.rule == "limit" for finding in errors(body, DefinitionLimits(tasks=2_000)))


MISTAKES = {
    "own name": ("use: {functions: {http: {set: {}}}}\ndo: [{t: {call: noop}}]\n", "choose another name", 2),
    "mark": ("use: {functions: {a/b: {set: {}}}}\ndo: [{t: {call: noop}}]\n", "no @, / or :", 2),
    "no task": ("use: {functions: {f: 1}}\ndo: [{t: {call: noop}}]\n", "is a task", 2),
    "then": ("use: {functions: {f: {set: {x: 1}, then: t}}}\ndo: [{t: {call: f}}]\n", "not in this list", 2),
    "unused": ("use: {functions: {f: {sett: {x: 1}}}}\ndo: [{t: {call: noop}}]\n", "did you mean 'set'", 2),
    "near": ("use: {functions: {fetch: {set: {x: 1}}}}\ndo: [{t: {call: fetsh}}]\n", "did you mean 'fetch'", 3),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes(what):
    body, words, line = MISTAKES[what]
    found = errors(body)
    assert words in found[0].message and found[0].line == line, found
