"""Data flow, order of tasks, switch, for, raise, functions of `use`."""

import pytest

from flint_core.machine import Failed, MachineLimits, StepState
from flint_core.problems import ProblemType


def test_tasks_run_in_order_and_hand_over_their_output(run):
    driver = run(
        "do:\n"
        "  - a: {set: {x: 1, y: '${ .n }'}}\n"
        "  - b: {call: noop, with: {output: '${ .x + .y }'}}\n"
        "  - c: {set: {r: '${ . }', s: '${ $steps.a.y }'}}\n",
        {"n": 5},
    )
    assert driver.output == {"r": 6, "s": 5}
    assert driver.shown() == ["a:succeeded", "b:succeeded", "c:succeeded"]
    assert driver.calls[0].idempotency_key == "run-1/0/do/1/b/"
    call = driver.records[1]
    assert (call.started_ms, call.ended_ms, call.kind, call.function) == (1_000, 1_010, "call", "noop")


def test_data_flow_of_a_task_in_the_order_of_the_specification(run):
    driver = run(
        "input: {from: .order, schema: {document: {type: object, required: [order]}}}\n"
        "output: {as: '{all: ., ctx: $context}'}\n"
        "do:\n"
        "  - t:\n"
        "      if: .id == 7\n"
        "      input: {from: '{id: .id}', schema: {document: {required: [id]}}}\n"
        "      set: {seen: '${ $input.id }', raw: '${ $task.input.extra }', name: '${ $task.name }'}\n"
        "      output: {as: '. + {more: $output.seen}', schema: {document: {required: [more]}}}\n"
        "      export: {as: '{last: .more, from: $input.id}', schema: {document: {required: [last]}}}\n",
        {"order": {"id": 7, "extra": "e"}},
    )
    assert driver.output == {
        "all": {"seen": 7, "raw": "e", "name": "t", "more": 7},
        "ctx": {"last": 7, "from": 7},
    }


def test_a_false_condition_skips_and_passes_the_input_on(run):
    driver = run("do:\n  - a: {if: .no, set: {x: 1}, then: end}\n  - b: {set: {got: '${ . }'}}\n", {"k": 1})
    assert driver.output == {"got": {"k": 1}}
    assert driver.records[0].state is StepState.SKIPPED


@pytest.mark.parametrize(
    ("part", "what"),
    [
        ("input: {schema: {document: {type: object, required: [no]}}}", "The input"),
        ("output: {schema: {document: {type: string}}}", "The output"),
        ("export: {as: '1', schema: {document: {type: string}}}", "The exported context"),
    ],
)
def test_values_that_do_not_match_their_schema_are_validation_problems(run, part, what):
    driver = run(f"do:\n  - a:\n      set: {{x: 1}}\n      {part}\n", {})
    assert driver.problem.type == ProblemType.VALIDATION
    assert driver.problem.instance == "/do/0/a"
    assert driver.problem.detail.startswith(what)


def test_the_workflows_input_is_checked_before_anything_runs(run):
    driver = run("input: {schema: {document: {type: object}}}\ndo:\n  - a: {call: noop}\n", 5)
    assert driver.problem.type == ProblemType.VALIDATION
    assert driver.calls == []


def test_switch_takes_the_first_case_that_matches_else_its_own_then(run):
    body = (
        "do:\n"
        "  - route:\n"
        "      switch:\n"
        "        - big: {when: .n > 10, then: large}\n"
        "        - small: {when: .n > 5, then: medium}\n"
        "      then: other\n"
        "  - large: {set: {r: large}, then: end}\n"
        "  - medium: {set: {r: medium}, then: end}\n"
        "  - other: {set: {r: other}}\n"
    )
    assert [run(body, {"n": n}).output["r"] for n in (11, 6, 1)] == ["large", "medium", "other"]


def test_jumping_back_loops_with_keys_of_its_own_for_each_round(run):
    driver = run(
        "do:\n"
        "  - add: {call: noop, with: {output: '${ . + 1 }'}}\n"
        "  - again: {switch: [{more: {when: . < 3, then: add}}]}\n",
        0,
    )
    assert driver.output == 3
    keys = [call.idempotency_key for call in driver.calls]
    assert keys == ["run-1/0/do/0/add/", "run-1/0/do/0/add/~1", "run-1/0/do/0/add/~2"]


def test_exit_leaves_the_scope_and_end_finishes_the_run(run):
    body = (
        "do:\n"
        "  - inner:\n"
        "      do:\n"
        "        - a: {{set: {{r: 1}}, then: {directive}}}\n"
        "        - b: {{set: {{r: 2}}}}\n"
        "  - after: {{set: {{after: '${{ .r }}'}}}}\n"
    )
    assert run(body.format(directive="exit")).output == {"after": 1}
    assert run(body.format(directive="end")).output == {"r": 1}
    assert run(body.format(directive="continue")).output == {"after": 2}


def test_for_feeds_each_iteration_the_output_of_the_one_before(run):
    driver = run(
        "do:\n"
        "  - sum:\n"
        "      for: {each: n, at: i, in: .list}\n"
        "      while: $i < 3\n"
        "      do:\n"
        "        - add: {call: noop, with: {output: {total: '${ (.total // 0) + $n }', at: '${ $i }'}}}\n",
        {"list": [1, 2, 3, 100]},
    )
    assert driver.output == {"total": 6, "at": 2}
    assert [call.iteration for call in driver.calls] == ["0", "1", "2"]


def test_nested_loops_name_their_iterations(run):
    driver = run(
        "do:\n"
        "  - o:\n"
        "      for: {each: x, in: '[1, 2]'}\n"
        "      do:\n"
        "        - i:\n"
        "            for: {each: y, in: '[10, 20]'}\n"
        "            do: [{leaf: {call: noop, with: {output: '${ $x * $y }'}}}]\n"
    )
    assert [call.iteration for call in driver.calls] == ["0.0", "0.1", "1.0", "1.1"]
    assert driver.output == 40


def test_a_for_over_nothing_passes_its_input_on(run):
    assert run("do: [{f: {for: {in: .l}, do: [{a: {set: {x: 1}}}]}}]", {"l": []}).output == {"l": []}


def test_a_for_over_no_array_is_an_expression_problem(run):
    problem = run("do: [{f: {for: {in: .l}, do: [{a: {set: {x: 1}}}]}}]", {"l": "text"}).problem
    assert problem.type == ProblemType.EXPRESSION
    assert "a string" in problem.detail


def test_raise_inline_and_by_name(run):
    inline = run(
        "do: [{r: {raise: {error: {type: 'https://e.x/no', status: 409, title: T, detail: '${ .why }'}}}}]",
        {"why": "w"},
    )
    assert inline.problem.to_json() == {
        "type": "https://e.x/no",
        "status": 409,
        "title": "T",
        "detail": "w",
        "instance": "/do/0/r",
    }
    named = run("use: {errors: {no: {type: 'https://e.x/no', status: 409}}}\ndo: [{r: {raise: {error: no}}}]")
    assert (named.problem.type, named.problem.status) == ("https://e.x/no", 409)


def test_a_function_of_use_sees_its_parameters_only(run):
    driver = run(
        "use: {functions: {twice: {call: noop, with: {output: '${ .n * 2 }'}}}}\n"
        "do:\n"
        "  - a: {call: twice, with: {n: '${ .x + 1 }'}}\n"
        "  - b: {call: twice, with: {n: '${ . }'}}\n",
        {"x": 1},
    )
    assert driver.output == 8
    assert [call.idempotency_key for call in driver.calls] == ["run-1/0/do/0/a/", "run-1/0/do/1/b/"]


def test_expressions_beyond_the_fast_path_are_asked_for(run):
    driver = run("do: [{a: {set: {s: '${ [limit(2; .l[])] | add }', t: '${ .l | @csv }'}}}]", {"l": [1, 2, 3]})
    assert driver.output == {"s": 3, "t": "1,2,3"}


def test_a_failing_guarded_expression_faults_its_step(run):
    driver = run("do: [{a: {set: {s: '${ .l | limit(1; error) }'}}}]", {"l": "x"})
    assert driver.problem.type == ProblemType.EXPRESSION
    assert driver.problem.instance == "/do/0/a"


def test_steps_names_the_nearest_of_two_tasks_with_one_name(run):
    driver = run(
        "do:\n"
        "  - x: {set: {v: outer}}\n"
        "  - in:\n"
        "      do:\n"
        "        - x: {set: {v: inner}}\n"
        "        - y: {set: {near: '${ $steps.x.v }'}}\n"
        "  - z: {set: {near: '${ $steps.in.near }', far: '${ $steps.x.v }'}}\n"
    )
    assert driver.output == {"near": "inner", "far": "outer"}


def test_workflow_and_runtime_variables(run):
    driver = run(
        "do: [{a: {set: {id: '${ $workflow.id }', v: '${ $workflow.definition.document.version }',"
        " in: '${ $workflow.input.k }', rt: '${ $runtime.name }', kind: '${ $task.definition | keys[0] }',"
        " at: '${ $workflow.startedAt.epoch.milliseconds }'}}}]",
        {"k": 1},
    )
    assert driver.output == {"id": "run-1", "v": "1.0.0", "in": 1, "rt": "Flint", "kind": "set", "at": 1000}


def test_secrets_stay_deferred(run):
    driver = run(
        "use: {secrets: [key]}\n"
        "do:\n"
        "  - a: {call: http, with: {method: get, endpoint: 'http://x', body: {plain: '${ .x }',"
        " auth: 'Bearer ${ $secrets.key }', one: '${ $secrets.key }'}}}\n",
        {"x": 1},
        lambda call: "ok",
    )
    output = driver.calls[0].arguments["body"]
    assert output["plain"] == 1
    assert (output["auth"].source, output["auth"].template) == ("Bearer ${ $secrets.key }", True)
    assert (output["one"].source, output["one"].template) == ("$secrets.key", False)
    assert output["one"].secrets == ("key",)


def test_payloads_beyond_the_limit_fail_their_step(run):
    limits = MachineLimits(payload_bytes=1_000, value_bytes=1_000)
    driver = run("do: [{a: {set: {big: '${ .s + .s }'}}}]", {"s": "x" * 800}, limits=limits)
    assert driver.problem.type == ProblemType.PAYLOAD_TOO_LARGE
    assert (driver.problem.status, driver.problem.instance) == (413, "/do/0/a")


def test_an_endless_loop_ends_at_the_step_limit(run):
    driver = run("do: [{a: {set: {x: 1}, then: a}}]", limits=MachineLimits(steps_per_run=100))
    assert isinstance(driver.machine.end, Failed)
    assert driver.problem.type == ProblemType.LIMIT_EXCEEDED


def test_the_step_limit_cannot_be_caught(run):
    body = "do: [{t: {try: [{a: {set: {x: 1}, then: a}}], catch: {do: [{b: {set: {y: 1}}}]}}}]"
    assert run(body, limits=MachineLimits(steps_per_run=50)).problem.type == ProblemType.LIMIT_EXCEEDED


def test_an_uncaught_call_failure_names_its_step(run, down):
    driver = run("do: [{d: {do: [{a: {call: noop}}]}}]", outcome=lambda call: down())
    assert driver.problem.instance == "/do/0/d/do/0/a"
    assert driver.shown() == ["a:failed", "d:failed"]
