"""The workflow test kit: what it runs, and what it says when something is missing or differs."""

from __future__ import annotations

from pathlib import Path

import pytest

from flint_sdk.testing import Approval, DefinitionRefused, Event, Failure, SimulationError, simulate
from flint_sdk.testing._spec import SpecError, load_spec, run_case

HERE = Path(__file__).parent
ORDER = HERE / "order.yaml"
HEAD = "document: {dsl: 1.0.3, namespace: default, name: demo, version: 1.0.0}\n"


def test_the_whole_way_of_an_order():
    result = simulate(
        ORDER,
        {"orderId": "A-1"},
        stubs={
            "fetch": {"price": 3},
            "pay": [Failure(503), Failure(503), lambda call: {"paid": call["body"]["amount"]}],
        },
        secrets={"token": "t"},
    )
    assert result.state == "succeeded"
    assert result.output["paid"] is True
    assert result.attempts("pay") == 3
    assert result.elapsed_s == pytest.approx(30 * 86_400 + 10)
    assert result.calls_of("fetch")[0].arguments["endpoint"]["authentication"] == {"bearer": {"token": "t"}}
    keys = {call.idempotency_key for call in result.calls_of("pay")}
    assert len(keys) == 1
    assert result.events[0]["data"] == {"paid": 3}


def test_a_step_without_a_stub_is_named():
    with pytest.raises(SimulationError, match="/do/0/fetch calls 'http' and has no stub"):
        simulate(ORDER, {"orderId": "A"}, secrets={"token": "t"})
    with pytest.raises(SimulationError, match="secret 'token'"):
        simulate(ORDER, {"orderId": "A"}, stubs={"fetch": 1})


def test_a_definition_with_errors_names_line_and_column():
    with pytest.raises(DefinitionRefused, match=r"definition:3:\d+: .*did you mean"):
        simulate(HEAD + "do:\n  - a: {sett: {x: 1}}\n")


def test_an_expression_that_jq_refuses_is_found_before_the_run():
    with pytest.raises(DefinitionRefused, match=r"definition:2:\d+: jq refuses"):
        simulate(HEAD + "do: [{a: {set: {x: '${ [.[] | foo(1)] }'}}}]")


def test_the_speed_of_a_list_without_failures_is_its_value():
    assert simulate(
        HEAD + "do: [{a: {call: http, with: {method: get, endpoint: 'http://x.test'}}}]", stubs={"a": [1, 2]}
    ).output == [1, 2]


def test_listeners_hear_events_from_outside_and_from_the_run_itself():
    definition = (
        HEAD + "do:\n"
        "  - tell: {emit: {event: {with: {type: early}}}}\n"
        "  - hear: {listen: {to: {all: [{with: {type: paid}}, {with: {type: shipped}}]}}}\n"
    )
    events = [Event("shipped", {"n": 2}, after="P2D"), Event("paid", {"n": 1}, after="PT1H"), Event("other")]
    result = simulate(definition, events=events)
    assert result.state == "succeeded"
    assert result.output == [{"n": 1}, {"n": 2}]
    assert result.elapsed_s == 2 * 86_400
    waiting = simulate(definition, events=events[:1])
    assert (waiting.state, waiting.waits_for) == ("waiting", ("hear",))


def test_people_decide_or_do_not():
    definition = HEAD + (
        "do:\n"
        "  - ask: {call: approval, with: {title: May we?, deadline: PT2H}}\n"
        "  - say: {set: {was: '${ .decision }', by: '${ .by }'}}\n"
    )
    assert simulate(definition, stubs={"ask": Approval("rejected", by="ada")}).output == {
        "was": "rejected",
        "by": "ada",
    }
    assert simulate(definition, stubs={"ask": Approval(after="PT3H")}).error["status"] == 408
    assert simulate(definition).elapsed_s == 7_200


def test_sub_workflows_run_here_or_are_stubbed():
    parent = HEAD + "do: [{kid: {run: {workflow: {namespace: default, name: child, version: 1.0.0, input: {n: 2}}}}}]"
    child = HEAD + "do: [{rest: {wait: PT10M}}, {double: {set: {n: '${ $workflow.input.n * 2 }'}}}]"
    result = simulate(parent, workflows={"child": child})
    assert (result.output, result.elapsed_s) == ({"n": 4}, 600)
    assert simulate(parent, stubs={"kid": {"n": 9}}).output == {"n": 9}
    assert simulate(parent, stubs={"kid": Failure(418, "Teapot")}).error["status"] == 418
    with pytest.raises(SimulationError, match="workflows="):
        simulate(parent)


def test_files_of_tests_pass_and_say_what_differs(tmp_path):
    tests = load_spec(HERE / "order.test.yaml")
    assert [run_case(test) for test in tests] == [[], []]
    broken = (
        (HERE / "order.test.yaml")
        .read_text()
        .replace("lines: A-B", "lines: B-A")
        .replace("pay: 2, fetch", "pay: 1, fetch")
    )
    (tmp_path / "order.yaml").write_text(ORDER.read_text())
    file = tmp_path / "order.test.yaml"
    file.write_text(broken)
    differences = run_case(load_spec(file)[0])
    assert len(differences) == 2
    assert differences[0].startswith("output: expected")
    assert differences[1] == "attempts of pay: expected 1, but there were 2"


def test_a_file_that_is_none_names_the_field(tmp_path):
    file = tmp_path / "x.test.yaml"
    file.write_text("workflow: x.yaml\ntests: [{name: a, expects: {}}]\n")
    with pytest.raises(SpecError, match=r"tests.0.expect: Field required"):
        load_spec(file)


def test_the_plug_in_collects_files(pytester: pytest.Pytester):
    pytester.makefile(".yaml", order=ORDER.read_text())
    pytester.makefile(".test.yaml", order=(HERE / "order.test.yaml").read_text())
    pytester.makepyfile("def test_it(workflow): assert workflow('order.yaml', stubs={}, secrets={'token': 'x'})")
    result = pytester.runpytest_subprocess("-q", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*has no stub*"])


def test_large_values_are_seen_whole():
    definition = HEAD + (
        "do:\n"
        "  - fetch: {call: http, with: {method: get, endpoint: 'http://x.test'}}\n"
        "  - send: {call: http, with: {method: post, endpoint: 'http://x.test', body: '${ .rows }'}}\n"
        "  - count: {set: {n: '${ $steps.fetch.rows | length }', rows: '${ $steps.fetch.rows }'}}\n"
    )
    rows = [f"row {number}" for number in range(100_000)]
    result = simulate(definition, stubs={"fetch": {"rows": rows}, "send": None})
    assert result.output == {"n": len(rows), "rows": rows}
    assert result.calls_of("send")[0].arguments["body"] == rows
