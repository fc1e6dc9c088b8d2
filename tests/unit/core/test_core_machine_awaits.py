"""Runs that start runs, approvals, custom functions, emitted events, processes: what is asked and what comes of it."""

import json

import pytest

from flint_core.definition import compile_definition
from flint_core.effects import Await, AwaitKind, CancelEffect
from flint_core.events import CancelRequested, Received
from flint_core.machine import Cancelled, Failed, Machine, StepState, Succeeded
from flint_core.problems import ProblemType
from support.machines import FACTS, HEAD, start

CHILD = "run: {workflow: {name: child, version: latest, input: {a: '${ .n }'}}}"


def with_mail(body, mail, data=None, **options):
    driver = start(body, data, **options)
    driver.mail = mail
    return driver.run()


def test_a_child_run_is_asked_for_and_gives_its_output():
    driver = with_mail(
        f"do: [{{c: {{{CHILD}}}}}]", lambda _: [{"state": "succeeded", "run": "r", "output": 5}], {"n": 1}
    )
    (effect,) = driver.awaits
    assert (effect.kind, effect.step, effect.attempt) == (AwaitKind.RUN, "/do/0/c", 1)
    assert effect.request == {
        "namespace": "default",
        "workflow": "child",
        "version": "",
        "input": {"a": 1},
        "detached": False,
        "key": "run-1/0/do/0/c/",
    }
    assert driver.machine.end == Succeeded(5)
    assert CancelEffect(effect.effect_id) in driver.effects
    assert driver.shown() == ["c:waiting", "c:succeeded"]


def test_a_detached_run_passes_its_input_on_once_it_was_started():
    body = "do: [{c: {input: {from: '{n: .n}'}, run: {workflow: {name: child}, await: false}}}]"
    driver = with_mail(body, lambda _: [{"state": "started", "run": "r"}], {"n": 1, "m": 2})
    assert driver.awaits[0].request["detached"] is True
    assert driver.awaits[0].request["input"] == {}
    assert driver.output == {"n": 1}


ERROR = {"type": "https://e.x/no", "status": 418, "title": "No", "detail": "d", "instance": "/do/7/z"}


@pytest.mark.parametrize(
    ("answer", "type_", "status"),
    [
        ({"state": "failed", "run": "r", "error": ERROR}, "https://e.x/no", 418),
        ({"state": "refused", "run": "", "error": ERROR}, "https://e.x/no", 418),
        ({"state": "cancelled", "run": "r"}, ProblemType.CANCELLED, 499),
        ({"state": "odd"}, ProblemType.RUNTIME, 500),
    ],
)
@pytest.mark.parametrize("detached", [False, True])
def test_what_becomes_of_a_child_run_is_raised_at_its_step(answer, type_, status, detached):
    body = f"do: [{{c: {{run: {{workflow: {{name: child}}, await: {str(not detached).lower()}}}}}}}]"
    driver = with_mail(body, lambda _: [answer], {})
    assert isinstance(driver.machine.end, Failed)
    assert (driver.problem.type, driver.problem.status, driver.problem.instance) == (type_, status, "/do/0/c")


def test_a_repeat_asks_for_another_run_and_can_catch_by_type():
    body = (
        f"do: [{{t: {{try: [{{c: {{{CHILD}}}}}], catch: {{errors: {{with: {{type: 'https://e.x/no'}}}},"
        " retry: {delay: PT1S, limit: {attempt: {count: 2}}}}}}]"
    )
    answers = iter([{"state": "failed", "error": ERROR}, {"state": "succeeded", "output": "ok"}])
    driver = with_mail(body, lambda _: [next(answers)], {"n": 1})
    assert driver.output == "ok"
    assert [effect.request["key"] for effect in driver.awaits] == [
        "run-1/0/do/0/t/try/0/c/",
        "run-1/0/do/0/t/try/0/c/#2",
    ]


def test_another_namespace_is_refused_when_it_is_known():
    driver = start("do: [{c: {run: {workflow: {name: child, namespace: '${ .where }'}}}}]", {"where": "other"}).run()
    assert (driver.problem.type, driver.problem.status) == (ProblemType.AUTHORIZATION, 403)
    assert driver.awaits == []


@pytest.mark.parametrize("name", ["7", "''", "null"])
def test_a_name_of_no_workflow_fails_the_step(name):
    driver = start("do: [{c: {run: {workflow: {name: '${ .n }'}}}}]", {"n": name and eval(name, {"null": None})})
    assert driver.run().problem.type == ProblemType.EXPRESSION


def test_a_cancelled_run_and_a_timeout_take_the_await_back():
    driver = start(f"do: [{{c: {{{CHILD}}}}}]", {})
    driver.settle()
    driver.feed(CancelRequested(2_000))
    driver.settle()
    assert driver.machine.end == Cancelled()
    assert driver.effects[-1] == CancelEffect(driver.awaits[0].effect_id)
    driver = start(f"do: [{{c: {{{CHILD}, timeout: {{after: PT1S}}}}}}]", {}).run()
    assert driver.problem.status == 408
    assert CancelEffect(driver.awaits[0].effect_id) in driver.effects


APPROVAL = (
    "do: [{ok: {call: approval, with: {title: 'Pay ${ .n }?', assignees: [ada], deadline: PT1H,"
    " form: {type: object}, escalation: {after: {minutes: 5}, assignees: ['${ .boss }']}}}}]"
)
DECISION = {"decision": "rejected", "by": "ada", "comment": "no", "fields": {}, "at": "2026-01-01T00:00:00Z"}


def test_an_approval_gives_what_was_decided():
    driver = with_mail(APPROVAL, lambda _: [DECISION], {"n": 3, "boss": "bo"})
    assert driver.awaits[0].request == {
        "title": "Pay 3?",
        "description": "",
        "assignees": ["ada"],
        "form": {"type": "object"},
        "deadline_ms": 1_000 + 3_600_000,
        "escalation": {"at_ms": 301_000, "assignees": ["bo"]},
    }
    assert driver.output == DECISION
    assert len([effect for effect in driver.effects if isinstance(effect, CancelEffect)]) == 2  # await and timer


def test_nobody_decides():
    body = APPROVAL.replace("do: [{ok", "do: [{t: {try: [{ok") + ""
    body = (
        body[:-1]
        + "], catch: {errors: {with: {type: "
        + ProblemType.TIMEOUT
        + "}}, do: [{late: {set: {late: true}}}]}}}]"
    )
    driver = start(body, {"n": 3, "boss": "bo"}).run()
    assert driver.output == {"late": True}
    assert driver.now == 3_601_000
    assert CancelEffect(driver.awaits[0].effect_id) in driver.effects
    assert [record.state for record in driver.records if record.function == "approval"] == [
        StepState.WAITING,
        StepState.FAILED,
    ]


def test_what_an_approval_is_given_is_checked():
    driver = start("do: [{ok: {call: approval, with: {title: '${ .t }', deadline: '${ .d }'}}}]", {"t": 7, "d": "PT1S"})
    assert driver.run().problem.type == ProblemType.VALIDATION
    driver = start("do: [{ok: {call: approval, with: {title: x, deadline: '${ .d }'}}}]", {"d": "soon"})
    assert "soon" in driver.run().problem.detail


def test_a_late_or_repeated_answer_changes_nothing():
    driver = start(f"do: [{{c: {{{CHILD}}}}}, {{w: {{wait: PT1M}}}}]", {})
    driver.settle()
    effect = driver.awaits[0]
    for number in range(3):
        driver.feed(Received(effect.effect_id, "k", {"state": "succeeded", "output": number}, 2_000 + number))
    driver.settle()
    assert driver.machine.now_ms == 2_000
    assert driver.run().output == 0


def test_an_open_approval_is_the_same_after_a_restore():
    driver = start(APPROVAL, {"n": 3, "boss": "bo"})
    driver.settle()
    program = compile_definition(HEAD + APPROVAL).program
    again = Machine.restore(program, FACTS, driver.machine.snapshot())
    assert again.pending() == [effect for effect in driver.effects if not isinstance(effect, CancelEffect)]
    assert isinstance(again.pending()[0], Await)


def test_custom_functions_are_calls_of_function():
    driver = start(
        "do: [{a: {call: 'myteam/resize:1.2.0', with: {w: '${ .n }'}}}, {b: {call: myteam/img/crop}}]",
        {"n": 1},
        outcome=lambda call: call.arguments,
    ).run()
    assert [call.function for call in driver.calls] == ["function", "function"]
    assert driver.calls[0].arguments == {"name": "myteam/resize", "version": "1.2.0", "arguments": {"w": 1}}
    assert driver.calls[1].arguments == {"name": "myteam/img/crop", "version": "", "arguments": {}}


def test_emit_asks_for_its_event_to_be_published():
    body = "do: [{e: {emit: {event: {with: {type: a.b, subject: '${ .n | tostring }', data: {n: '${ .n }'}}}}}}]"
    driver = start(body, {"n": 1}, outcome=lambda call: call.arguments["event"] | {"id": "x"}).run()
    assert driver.calls[0].function == "emit"
    assert driver.output == {"type": "a.b", "subject": "1", "data": {"n": 1}, "id": "x"}


def test_processes_are_calls_with_return_and_await():
    body = (
        "use: {secrets: [k]}\ndo: [{s: {run: {shell: {command: 'echo $1', arguments: ['${ .n }'],"
        " environment: {K: '${ $secrets.k }'}}, return: all, await: false}}}]"
    )
    driver = start(body, {"n": 1}, outcome=lambda _: None).run()
    arguments = driver.calls[0].arguments
    assert (driver.calls[0].function, arguments["arguments"], arguments["return"]) == ("shell", [1], "all")
    assert arguments["await"] is False
    assert arguments["environment"]["K"].secrets == ("k",)
    assert driver.output == {"n": 1}  # nobody waited for it


CODE = [
    "echo ${HOME} ${1:-none} ${name#*.} $${x} ${#list[@]} $",
    'console.log(`${name}: ${item.total} \\(1) "q" ${`${a}`} ${`)',
    "an open ${",
    "${ .x } $secrets.none $steps.nobody ${ $secrets.none } ${ $workflow.definition }",
    "${x}" * 5_000,
    "\n\t}é\U0001f600${\r",
]


@pytest.mark.parametrize("code", CODE)
@pytest.mark.parametrize(
    "kind", ["shell: {command: %}", "script: {language: js, code: %}", "container: {image: a, command: [sh, %]}"]
)
def test_what_is_executed_is_passed_on_as_it_is_written(code, kind):
    body = (
        f"do: [{{s: {{run: {{{kind.replace('%', json.dumps(code, ensure_ascii=False))}}}, timeout: {{after: PT1S}}}}}}]"
    )
    driver = start(body, {"x": 1}, outcome=lambda _: None).run()
    arguments = driver.calls[0].arguments
    assert arguments.get("code", arguments.get("command")) in (code, ["sh", code])


@pytest.mark.parametrize(
    ("code", "warned"),
    [
        ("echo ${ .x }", True),
        ("echo ${ $context.x }", True),
        ("echo ${ [.x] | length }", True),
        ("echo ${HOME} ${1:-none} ${a.b} ${#x} ${x#*.}", False),
    ],
)
def test_a_warning_where_an_expression_seems_to_be_meant(code, warned):
    body = f"do: [{{s: {{run: {{shell: {{command: '{code}'}}}}, timeout: {{after: PT1S}}}}}}]"
    findings = compile_definition(HEAD + body).findings
    assert [finding.pointer for finding in findings] == ["/do/0/s/run/shell/command"] * warned
    assert all("not interpolated" in finding.message for finding in findings)


@pytest.mark.parametrize(("returns", "output"), [("stdout", 5), ("none", None)])
def test_what_a_child_run_gives_may_be_left(returns, output):
    body = f"do: [{{c: {{run: {{workflow: {{name: child}}, return: {returns}}}}}}}]"
    driver = with_mail(body, lambda _: [{"state": "succeeded", "run": "r", "output": 5}], {})
    assert driver.machine.end == Succeeded(output)


MISTAKES = {
    "two kinds": ("run: {shell: {command: x}, workflow: {name: x}}", "is one of container, script, shell and workflow"),
    "no kind": ("run: {await: true}", "is one of container"),
    "kind misspelt": ("run: {shel: {command: x}}", "did you mean 'shell'?"),
    "return of a workflow": ("run: {workflow: {name: x}, return: code}", "'return' of a workflow is stdout"),
    "return misspelt": ("run: {shell: {command: x}, return: stdot}", "did you mean 'stdout'?"),
    "await": ("run: {workflow: {name: x}, await: 1}", "'await' must be true or false"),
    "name": ("run: {workflow: {name: No}}", "lower-case"),
    "namespace": ("run: {workflow: {name: x, namespace: b}}", "in its own namespace alone, which is 'default'"),
    "version": ("run: {workflow: {name: x, version: one}}", "semantic version"),
    "expression in a source": (
        "run: {script: {language: js, source: {endpoint: {uri: 'http://x/${ .x }'}}}}",
        "taken as it is written",
    ),
    "expression for a language": ("run: {script: {language: '${ .x }', code: x}}", "taken as it is written"),
    "arguments of a shell": ("run: {shell: {command: 7}}", "the arguments of 'shell'"),
    "secret of a child": ("run: {workflow: {name: x, input: '${ $secrets.k }'}}", "$secrets may be used"),
    "secret of an event": ("emit: {event: {with: {type: x, data: '${ $secrets.k }'}}}", "$secrets may be used"),
    "secret of an approval": ("call: approval, with: {title: '${ $secrets.k }'}", "$secrets may be used"),
    "no type": ("emit: {event: {with: {typo: x}}}", "did you mean 'type'?"),
    "attribute": ("emit: {event: {with: {type: x, contentType: y}}}", "'contentType' is no attribute"),
    "both data": ("emit: {event: {with: {type: x, data: 1, data_base64: eA==}}}", "not both"),
    "event misspelt": ("emit: {evnt: {}}", "did you mean 'event'?"),
    "deadline": ("call: approval, with: {title: x, deadline: soon}", "'deadline': 'soon'"),
    "form": ("call: approval, with: {title: x, form: {type: objekt}}", "not a usable JSON schema"),
    "title": ("call: approval, with: {}", "'title' is required"),
    "custom function": ("call: MyTeam/resize", "such as myteam/resize or myteam/resize:1.2.0"),
    "called process": ("call: shell", "`run: shell`"),
    "called emit": ("call: emit", "a task of its own"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes_are_refused_with_line_and_column(what):
    task, message = MISTAKES[what]
    source = f"{HEAD}use: {{secrets: [k]}}\ndo:\n  - t: {{{task}}}\n"
    compiled = compile_definition(source)
    assert compiled.program is None
    errors = [finding for finding in compiled.findings if finding.severity == "error"]
    found = [finding for finding in errors if message in finding.message]
    assert found, errors
    assert found[0].line == 4
    assert found[0].column >= 9


@pytest.mark.parametrize(
    "task", ["listen: {to: {one: {with: {type: t.a}}}}", "call: approval, with: {title: Pay}", CHILD]
)
def test_an_await_that_cannot_be_served_fails_its_step(task):
    caught = "catch: {as: why, do: [{s: {set: '${ $why }'}}]}"
    driver = start(f"do: [{{t: {{try: [{{w: {{{task}}}}}], {caught}}}}}]", {"n": 1})
    driver.settle()
    problem = {"type": ProblemType.RUNTIME, "status": 500, "title": "Await refused", "detail": "odd", "instance": ""}
    answer = {"state": "refused", "error": problem}
    (effect,) = driver.awaits
    driver.feed(Received(effect.effect_id, f"refused/{effect.effect_id}", answer, 2_000))
    driver.settle()
    assert (driver.output["title"], driver.output["instance"]) == ("Await refused", "/do/0/t/try/0/w")
    assert CancelEffect(effect.effect_id) in driver.effects
