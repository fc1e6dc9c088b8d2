"""Extensions: tasks before and after others."""

from __future__ import annotations

import pytest

from flint_core.definition import Severity, compile_definition
from flint_core.machine import Failed, Machine
from support.machines import HEAD, Driver, down, start


def errors(body):
    compiled = compile_definition(HEAD + body)
    assert compiled.program is None
    return [finding for finding in compiled.findings if finding.severity is Severity.ERROR]


LOG = """
use:
  extensions:
    - logging:
        extend: all
        when: .quiet != true
        before:
          - note: {call: noop, with: {output: 'before ${ $task.reference } ${ .n }'}}
        after:
          - note: {call: noop, with: {output: 'after ${ $task.name } ${ .n }'}}
"""


def said(run):
    return [call.arguments["output"] for call in run.calls]


def test_tasks_run_before_and_after_and_leave_the_data_alone():
    run = start(
        LOG + "do:\n  - one: {set: {n: 2}}\n  - two: {set: {n: '${ .n + 1 + $steps.one.n }'}}\n", {"n": 1}
    ).run()
    assert run.output == {"n": 5}
    assert said(run) == ["before /do/0/one 1", "after one 2", "before /do/1/two 2", "after two 5"]
    assert [record.step for record in run.records] == [
        "/do/0/one/extensions/logging/before/0/note",
        "/do/0/one/extensions/logging/before",
        "/do/0/one",
        "/do/0/one/extensions/logging/after/0/note",
        "/do/0/one/extensions/logging/after",
        "/do/1/two/extensions/logging/before/0/note",
        "/do/1/two/extensions/logging/before",
        "/do/1/two",
        "/do/1/two/extensions/logging/after/0/note",
        "/do/1/two/extensions/logging/after",
    ]
    assert [record.kind for record in run.records if record.step == "/do/0/one"] == ["set"]


def test_when_decides_once_for_both_sides():
    run = start(LOG + "do:\n  - one: {set: {n: 2}}\n", {"n": 1, "quiet": True}).run()
    assert run.output == {"n": 2} and said(run) == []
    run = start(LOG + "do:\n  - one: {set: {n: 2, quiet: true}}\n", {"n": 1}).run()
    assert said(run) == ["before /do/0/one 1", "after one 2"]


def test_a_skipped_task_is_not_extended():
    run = start(LOG + "do:\n  - one: {if: .n > 5, set: {n: 2}, then: end}\n  - two: {set: {n: 3}}\n", {"n": 1}).run()
    assert run.output == {"n": 3}
    assert said(run) == ["before /do/1/two 1", "after two 3"]
    assert "one:skipped" in run.shown()


def test_then_and_switch_of_the_extended_task_count_after_the_extension():
    run = start(
        LOG
        + "do:\n  - add: {set: {n: '${ .n + 1 }'}}\n"
        + "  - enough: {switch: [{no: {when: .n < 3, then: add}}, {yes: {then: end}}]}\n"
        + "  - never: {set: {n: 0}}\n",
        {"n": 1},
    ).run()
    assert run.output == {"n": 3}
    assert said(run)[:4] == ["before /do/0/add 1", "after add 2", "before /do/1/enough 2", "after enough 2"]
    assert said(run)[-1] == "after enough 3"
    assert run.calls[4].iteration == "~1"


MOCK = """
use:
  extensions:
    - mock:
        extend: call
        when: $task.call == "http" and ($task.with.endpoint | startswith("https://mocked."))
        before:
          - intercept: {set: {status: 200, was: '${ .n }'}, then: exit}
        after:
          - never: {set: {}}
    - second:
        extend: call
        before: [{log: {call: noop, with: {output: second}}}]
timeout: {after: PT1H}
do:
  - ask: {call: http, with: {method: get, endpoint: 'https://mocked.example/x'}, output: {as: .body}, then: tell}
  - skipped: {set: {no: 1}}
  - tell: {set: {got: '${ . }', steps: '${ $steps.ask }'}}
"""


def test_exit_before_bypasses_the_task_and_gives_its_output():
    run = start(MOCK, {"n": 1}).run()
    given = {"status": 200, "was": 1}
    assert run.output == {"got": given, "steps": given}
    assert run.calls == []
    assert run.shown()[-2:] == ["ask:succeeded", "tell:succeeded"]
    other = start(MOCK.replace("endpoint: 'https://mocked", "endpoint: 'https://real"), {}, lambda call: {"body": 5})
    assert other.run().output == {"got": 5, "steps": 5}
    assert [call.step for call in other.calls] == ["/do/0/ask/extensions/second/before/0/log", "/do/0/ask"]


def test_extensions_nest_in_declared_order():
    each = "{call: noop, with: {output: %s}}"
    body = "use: {extensions: ["
    body += ", ".join(
        f"{{{name}: {{extend: set, before: [{{n: {each % (name + '-before')}}}],"
        f" after: [{{n: {each % (name + '-after')}}}]}}}}"
        for name in ("outer", "inner")
    )
    run = start(body + "]}\ndo: [{s: {set: {x: 1}}}]\n").run()
    assert said(run) == ["outer-before", "inner-before", "inner-after", "outer-after"]
    assert run.output == {"x": 1}


@pytest.mark.parametrize(
    ("extend", "extended"),
    [
        ("set", {"s", "i"}),
        ("composite", {"d", "f"}),
        ("for", {"l"}),
        ("try", {"t"}),
        ("all", {"s", "i", "d", "f", "l", "t", "r"}),
        ("raise", {"r"}),
    ],
)
def test_what_is_extended(extend, extended):
    run = start(
        f"use: {{extensions: [{{e: {{extend: {extend},"
        " before: [{b: {call: noop, with: {output: '${ $task.name }'}}}]}}]}\n"
        "do:\n"
        "  - d: {do: [{s: {set: {x: 1}}}]}\n"
        "  - f: {fork: {branches: [{i: {set: {x: 1}}}]}}\n"
        "  - l: {for: {in: '[1]'}, do: [{s: {set: {x: 1}}}]}\n"
        "  - t: {try: [{r: {raise: {error: {type: x, status: 400}}}}], catch: {}}\n",
        {},
    ).run()
    assert set(said(run)) == extended


def test_extensions_apply_in_functions_and_to_other_extensions_when_they_say_so():
    body = (
        "use:\n"
        "  functions: {f: {set: {x: 1}}}\n"
        "  extensions:\n"
        "    - a: {extend: set, before: [{b: {call: noop, with: {output: '${ $task.reference }'}}}]}\n"
        "    - z: {extend: extension, before: [{c: {call: noop, with: {output: 'z ${ $task.name }'}}}]}\n"
        "do: [{t: {call: f}}]\n"
    )
    assert said(start(body).run()) == ["z b", "/do/0/t/functions/f"]


def test_a_failing_extension_fails_the_task():
    body = (
        "use: {extensions: [{e: {extend: set, before: [{b: {call: noop}}]}}]}\n"
        "do: [{t: {try: [{s: {set: {x: 1}}}],"
        " catch: {as: why, do: [{c: {wait: PT0S, output: {as: $why.instance}}}]}}}]\n"
    )
    run = start(body, {}, lambda call: down()).run()
    assert run.output == "/do/0/t/try/0/s/extensions/e/before/0/b"
    assert "s:failed" in run.shown()


def test_an_error_of_the_task_passes_the_extension():
    run = start(LOG + "do:\n  - r: {raise: {error: {type: x, status: 400}}}\n", {"n": 1}).run()
    assert isinstance(run.machine.end, Failed) and run.problem.instance == "/do/0/r"
    assert said(run) == ["before /do/0/r 1"]
    assert run.shown().count("r:failed") == 1


def test_every_moment_can_be_resumed():
    body = LOG + "do:\n  - one: {call: noop, with: {output: {n: 2}}}\n  - two: {set: {n: '${ .n * 2 }'}}\n"
    whole = start(body, {"n": 1}).run()
    run = start(body, {"n": 1})
    program, facts = run.machine._kernel.plan.program, run.machine._kernel.facts
    moments = 0
    run.settle()
    while run.machine.end is None:
        again = Machine.restore(program, facts, run.machine.snapshot())
        run = Driver(again, run.outcome, run.now, due=run.due, gone=run.gone, calls=run.calls, records=run.records)
        moments += 1
        run.next()
        run.settle()
    assert moments >= 5
    assert run.output == whole.output
    made = dict.fromkeys(call.idempotency_key for call in run.calls)  # what was in progress is asked for again
    assert list(made) == [call.idempotency_key for call in whole.calls]
    assert [record.step for record in run.records] == [record.step for record in whole.records]


MISTAKES = {
    "no list": ("{a: {extend: all}}", "must be a list"),
    "kind": ("[{a: {extend: cal, before: [{b: {set: {}}}]}}]", "did you mean 'call'"),
    "nothing": ("[{a: {extend: all}}]", "'before', 'after' or both"),
    "member": ("[{a: {extend: all, befor: []}}]", "did you mean 'before'"),
    "twice": (
        "[{a: {extend: set, before: [{b: {set: {}}}]}}, {a: {extend: set, before: [{b: {set: {}}}]}}]",
        "another",
    ),
    "task": ("[{a: {extend: wait, before: [{b: {sett: {}}}]}}]", "did you mean 'set'"),
    "when": ("[{a: {extend: wait, when: $nope, before: [{b: {set: {}}}]}}]", "$nope is not defined here"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes_are_told_with_their_place(what):
    extensions, words = MISTAKES[what]
    found = errors(f"use: {{extensions: {extensions}}}\ndo: [{{t: {{wait: PT1S}}}}]\n")
    assert any(words in finding.message for finding in found), found
    assert {finding.line for finding in found} == {2}


def test_the_default_of_a_switch_is_asked_last():
    body = "do:\n  - s: {switch: [{any: {then: a}}, {big: {when: .n > 1, then: end}}]}\n  - a: {set: {a: 1}}\n"
    assert start(body, {"n": 2}).run().output == {"n": 2}
