"""`listen`: which events are taken, in what form, until when; correlation, iteration, room."""

import pytest

from flint_core.definition import compile_definition
from flint_core.effects import CancelEffect
from flint_core.events import Received
from flint_core.machine import Failed, Machine, MachineLimits, StepState
from flint_core.patterns import PatternError, check_pattern, matches
from flint_core.problems import ProblemType
from support.machines import FACTS, HEAD, start


def event(kind="t.a", data=None, **more):
    event.count += 1
    return {"specversion": "1.0", "id": str(event.count), "source": "s", "type": kind, "data": data, **more}


event.count = 0


def heard(to, events, data=None, more="", **options):
    driver = start(f"do: [{{l: {{listen: {{to: {to}{more}}}}}}}]", data, **options)
    driver.mail = lambda _: events
    return driver.run().output


def test_one_takes_the_first_that_matches_and_gives_an_array():
    events = [event("t.b", 1), event("t.a", 2), event("t.a", 3)]
    assert heard("{one: {with: {type: t.a}}}", events) == [2]


@pytest.mark.parametrize(
    ("with_", "fits", "not_"),
    [
        ("type: 't[.]a'", event("t.a"), event("txa")),
        ("type: t.a", event("t.a"), event("txa")),
        ("source: 'http://x/.*', type: t.a", event(source="http://x/7"), event(source="http://y/7")),
        ("urgent: true", event(urgent=True), event(urgent=1)),
        ("subject: '${ .subject | test(\"^o-\") }'", event(subject="o-1"), event(subject=7)),
        ("subject: '${ $input.who }'", event(subject="me"), event(subject="you")),
        ("data: '${ .n > 2 }'", event(data={"n": 3}), event(data={"n": 1})),
        ("data: {n: '${ .n > 2 }', k: 'a|b'}", event(data={"n": 3, "k": "b", "z": 1}), event(data={"n": 3, "k": "ab"})),
        ("data: {n: '${ [limit(1; 3)] | .[0] }'}", event(data={"n": 3}), event(data={"n": 4})),
        ("data: [1, {a: 2}]", event(data=[1, {"a": 2}]), event(data=[1, {"a": 2, "b": 3}])),
        ("subject: '${ true }'", event(subject="x"), event()),
    ],
)
def test_what_a_filter_lets_pass(with_, fits, not_):
    to = f"{{one: {{with: {{{with_}}}}}}}"
    assert heard(to, [not_, fits], {"who": "me"}, ", read: envelope") == [fits]


def test_an_expression_that_fails_on_an_event_lets_it_pass_by():
    to = "{one: {with: {data: '${ .text | test(\"x\") }'}}}"
    assert heard(to, [event(data=7), event(data={"text": 1}), event(data={"text": "xy"})]) == [{"text": "xy"}]


@pytest.mark.parametrize(("read", "given"), [("data", {"n": 1}), ("envelope", "all"), ("raw", '{"n":1}')])
def test_ways_to_read_an_event(read, given):
    what = event(data={"n": 1})
    assert heard("{one: {with: {type: t.a}}}", [what], more=f", read: {read}") == [what if given == "all" else given]


def test_binary_data_is_read_as_base64():
    what = {name: value for name, value in event().items() if name != "data"} | {"data_base64": "eA=="}
    assert heard("{one: {with: {type: t.a}}}", [what]) == ["eA=="]


def test_any_takes_the_first_of_several_filters():
    assert heard("{any: [{with: {type: t.a}}, {with: {type: t.b}}]}", [event("t.c"), event("t.b", 2)]) == [2]


def test_any_until_an_expression_holds():
    to = "{any: [{with: {type: t.a}}], until: '(map(.n) | add) > 5'}"
    assert heard(to, [event(data={"n": n}) for n in (1, 2, 3, 4)]) == [{"n": 1}, {"n": 2}, {"n": 3}]


def test_any_of_all_events():
    assert heard("{any: [], until: 'length == 3'}", [event("x", 1), event("y", 2), event("z", 3), event("w", 4)]) == [
        1,
        2,
        3,
    ]


def test_any_of_all_events_without_until_is_the_first():
    assert heard("{any: []}", [event("x", 1), event("y", 2)]) == [1]


def test_any_until_other_events_come():
    until = "{all: [{with: {type: stop}}, {with: {type: really}}]}"
    events = [event("t.a", 1), event("stop"), event("t.a", 2), event("really"), event("t.a", 3)]
    assert heard(f"{{any: [{{with: {{type: t.a}}}}], until: {until}}}", events) == [1, 2]


def test_an_event_may_be_taken_and_end_it():
    to = "{any: [{with: {type: 't.*'}}], until: {one: {with: {type: t.z}}}}"
    assert heard(to, [event("t.a", 1), event("t.z", 2), event("t.a", 3)]) == [1, 2]


def test_all_takes_one_event_for_each_filter_in_the_order_of_arrival():
    to = "{all: [{with: {type: t.a}}, {with: {type: 't.*'}}]}"
    assert heard(to, [event("t.b", 1), event("t.b", 2), event("t.a", 3)]) == [1, 3]


def test_the_first_event_decides_what_correlates():
    part = "correlate: {order: {from: .data.o}}"
    to = f"{{all: [{{with: {{type: t.a}}, {part}}}, {{with: {{type: t.b}}, {part}}}]}}"
    events = [event("t.b", {}), event("t.a", {"o": 1}), event("t.b", {"o": 2}), event("t.b", {"o": 1, "x": 1})]
    assert heard(to, events) == [{"o": 1}, {"o": 1, "x": 1}]


def test_what_is_expected_is_part_of_the_request():
    driver = start(
        "do: [{l: {listen: {to: {one: {with: {type: t.a, source: 'a.*', data: {k: 1}, subject: '${ true }'},"
        " correlate: {order: {from: .data.o, expect: '${ .id }'}}}}}}}]",
        {"id": 7},
    )
    driver.mail = lambda _: [event(data={"o": 8, "k": 1}), event(source="ab", subject="s", data={"o": 7, "k": 1})]
    assert driver.run().output == [{"o": 7, "k": 1}]
    assert driver.awaits[0].request == {
        "filters": [
            {"with": {"type": "t.a", "source": "a.*"}, "correlate": {"order": {"from": ".data.o", "expect": 7}}}
        ]
    }
    assert driver.effects[-1] == CancelEffect(driver.awaits[0].effect_id)


EACH = """do:
  - l:
      listen: {to: {any: [{with: {type: 't.*'}}], until: '$e.last == true'}}
      foreach:
        item: e
        at: i
        do:
          - look: {call: noop, with: {output: '${ [$e.n, $i] }'}}
          - more: {set: {got: '${ . }', before: '${ $context.seen }'}}
        output: {as: '${ .got }'}
        export: {as: {seen: '${ $i }'}}
  - done: {set: {all: '${ . }', context: '${ $context }', look: '${ $steps.look }'}}
"""


def test_each_event_runs_the_tasks_of_foreach():
    driver = start(EACH)
    driver.mail = lambda _: [event(data={"n": n, "last": n == 3}) for n in (1, 2, 3, 4)]
    assert driver.run().output == {"all": [[1, 0], [2, 1], [3, 2]], "context": {"seen": 2}, "look": [3, 2]}
    assert driver.shown() == [
        "l:waiting",
        *(f"{name}[{place}]:succeeded" for place in range(3) for name in ("look", "more")),
        "l:succeeded",
        "done:succeeded",
    ]
    assert [call.iteration for call in driver.calls] == ["0", "1", "2"]


def test_an_event_that_comes_again_is_the_same_event():
    driver = start("do: [{l: {listen: {to: {any: [], until: 'length == 2'}}}}]")
    driver.settle()
    for key, data in (("a", 1), ("a", 1), ("b", 2)):
        driver.feed(Received(driver.awaits[0].effect_id, key, event(data=data), 2_000))
        driver.settle()
    assert driver.output == [1, 2]


def test_what_is_no_event_is_passed_by():
    assert heard("{any: [], until: 'length == 1'}", [7, None, event(data=1)]) == [1]


def test_a_timeout_ends_it_and_an_error_in_foreach_is_the_steps_own():
    driver = start("do: [{l: {listen: {to: {one: {with: {type: t.a}}}}, timeout: {after: PT1S}}}]").run()
    assert (driver.problem.status, driver.problem.instance) == (408, "/do/0/l")
    driver = start(
        "do: [{t: {try: [{l: {listen: {to: {one: {with: {type: t.a}}}}, foreach: {do: [{r: {raise: {error:"
        " {type: 'https://e.x/no', status: 418}}}}]}}}],"
        " catch: {as: why, do: [{s: {set: {at: '${ $why.instance }'}}}]}}}]"
    )
    driver.mail = lambda _: [event()]
    assert driver.run().output == {"at": "/do/0/t/try/0/l/foreach/do/0/r"}
    assert CancelEffect(driver.awaits[0].effect_id) in driver.effects


@pytest.mark.parametrize("each", ["", ", foreach: {do: [{w: {wait: PT1H}}]}"])
def test_events_that_do_not_fit_into_the_state_fail_the_step(each):
    driver = start(
        f"do: [{{l: {{listen: {{to: {{any: [], until: 'false'}}}}{each}}}}}]",
        limits=MachineLimits(payload_bytes=1_000, state_bytes=2_000),
    )
    driver.mail = lambda _: [event(data="x" * 300) for _ in range(20)]
    driver.run()
    assert isinstance(driver.machine.end, Failed)
    assert (driver.problem.type, driver.problem.instance) == (ProblemType.PAYLOAD_TOO_LARGE, "/do/0/l")
    assert driver.records[-1].state is StepState.FAILED


def test_what_cannot_match_is_not_kept_while_an_event_is_worked_on():
    driver = start(
        "do: [{l: {listen: {to: {any: [{with: {type: t.a}}], until: 'false'}}, foreach: {do: [{w: {wait: PT1H}}]}}}]"
    )
    driver.settle()
    for number in range(20):
        driver.feed(Received(1, f"k{number}", event("t.b" if number else "t.a", "x" * 100), 2_000))
        driver.settle()
    assert driver.machine.snapshot().count(b"xxxxx" * 20) == 2  # the event, and what the tasks have of it


def test_a_listening_run_is_the_same_after_a_restore():
    program = compile_definition(HEAD + EACH).program
    machine = Machine.start(program, FACTS, {}, 1_000)
    while machine.advance(100):
        pass
    (effect,) = machine.take_effects()
    for number in range(3):
        machine.apply(Received(effect.effect_id, f"k{number}", event(data={"n": number}), 2_000))
    while machine.advance(3):
        again = Machine.restore(program, FACTS, machine.snapshot())
        assert again.snapshot() == machine.snapshot()
        machine = again


def test_patterns_take_linear_time_and_are_compared_as_a_whole():
    assert not matches("(a+)+b", "a" * 100_000)
    assert matches("a.c", "a.c") and not matches("a.c", "abc") and matches("a[.]c", "a.c")
    assert matches(1, 1.0) and not matches(1, True) and not matches("1", 1)
    for text in ("(a", "(?=x)a", "a{1000}{1000}{1000}", "(a" * 600):
        with pytest.raises(PatternError):
            check_pattern(text)
        assert not matches(text, "a")


MISTAKES = {
    "to": ("listen: {too: {}}", "did you mean 'to'?"),
    "strategies": ("listen: {to: {one: {with: {type: x}}, all: []}}", "'to' is one of one, any and all"),
    "none": ("listen: {to: {}}", "'to' is one of one, any and all"),
    "until misspelt": ("listen: {to: {any: [], unti: 'true'}}", "did you mean 'until'?"),
    "until of one": ("listen: {to: {one: {with: {type: x}}, until: 'true'}}", "belongs to 'any'"),
    "until of until": (
        "listen: {to: {any: [], until: {any: [], until: 'true'}}}",
        "'until' is not a member of 'until'",
    ),
    "empty until": ("listen: {to: {any: [], until: {any: []}}}", "at least one filter"),
    "empty all": ("listen: {to: {all: []}}", "at least one filter"),
    "no list": ("listen: {to: {all: {with: {type: x}}}}", "must be a list of filters"),
    "with": ("listen: {to: {one: {wth: {type: x}}}}", "did you mean 'with'?"),
    "empty with": ("listen: {to: {one: {with: {}}}}", "'with' must be an object of attributes"),
    "attribute": ("listen: {to: {one: {with: {Type: x}}}}", "'Type' is no attribute"),
    "pattern": ("listen: {to: {one: {with: {type: '(x'}}}}", "not a regular expression"),
    "list": ("listen: {to: {one: {with: {data: ['${ .x }']}}}}", "compared as a whole"),
    "correlate": ("listen: {to: {one: {with: {type: x}, correlate: {a: {form: .x}}}}}", "did you mean 'from'?"),
    "variable": ("listen: {to: {one: {with: {type: '${ $nope }'}}}}", "$nope"),
    "secret": ("listen: {to: {one: {with: {type: '${ $secrets.k }'}}}}", "$secrets may be used"),
    "read": ("listen: {to: {one: {with: {type: x}}}, read: envelop}", "did you mean 'envelope'?"),
    "foreach": ("listen: {to: {one: {with: {type: x}}}}, foreach: {itm: a, do: []}", "did you mean 'item'?"),
    "empty foreach": ("listen: {to: {one: {with: {type: x}}}}, foreach: {}", "'foreach' needs 'do'"),
    "names": ("listen: {to: {one: {with: {type: x}}}}, foreach: {item: a, at: a, output: {as: .}}", "are both 'a'"),
    "item outside": ("listen: {to: {any: [], until: '$item == 1'}}", "$item"),
    "steps": ("listen: {to: {any: [], until: '$steps.nobody == 1'}}", "$steps.nobody names no task"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes_are_refused_with_line_and_column(what):
    task, message = MISTAKES[what]
    compiled = compile_definition(f"{HEAD}do:\n  - t: {{{task}}}\n")
    assert compiled.program is None
    errors = [finding for finding in compiled.findings if finding.severity == "error"]
    found = [finding for finding in errors if message in finding.message]
    assert found, errors
    assert found[0].line == 3
    assert found[0].column >= 9


def test_listening_for_ever_is_a_warning():
    compiled = compile_definition(f"{HEAD}do: [{{t: {{listen: {{to: {{any: [], until: false}}}}}}}}]")
    assert compiled.program is not None
    assert ["listens for ever" in finding.message for finding in compiled.findings] == [True]


def test_what_is_never_reached_in_foreach_is_found():
    foreach = "foreach: {do: [{a: {set: {x: 1}, then: exit}}, {b: {set: {x: 2}}}]}"
    compiled = compile_definition(f"{HEAD}do: [{{t: {{listen: {{to: {{one: {{with: {{type: x}}}}}}}}, {foreach}}}}}]")
    assert [finding.message for finding in compiled.findings if finding.rule == "unreachable"] == [
        "'b' is never reached"
    ]
