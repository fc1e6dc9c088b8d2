"""Conditions about messages in `call: asyncapi`, and what is refused of it."""

from __future__ import annotations

from typing import Any

import pytest

from flint_core.definition import Severity, compile_definition

HEAD = "document: {dsl: 1.0.3, namespace: default, name: hear, version: 1.0.0}\ntimeout: {after: PT1M}\n"


def hear(subscription: str, more: str = "") -> str:
    return f"""{HEAD}use: {{secrets: [token]}}
do:
  - first: {{set: {{wanted: 7}}}}
  - second:
      call: asyncapi
      with:
        document: {{endpoint: "https://example.com/a.json"}}
        operation: talk
        subscription: {subscription}
        {more}
"""


def arguments_of(source: str) -> Any:
    compiled = compile_definition(source)
    assert compiled.program is not None, compiled.findings
    return next(task.arguments for task in compiled.program.tasks if task.function == "asyncapi")


def errors_of(source: str) -> list[str]:
    return [finding.message for finding in compile_definition(source).findings if finding.severity is Severity.ERROR]


def test_a_condition_is_kept_as_text_with_the_values_of_what_it_names() -> None:
    condition = ".payload.order == $workflow.input.order and .payload.n > $steps.first.wanted"
    subscription = f'{{filter: "${{ {condition} }}", consume: {{until: "($messages | length) == 2"}}}}'
    compiled = arguments_of(hear(subscription))["subscription"]
    assert compiled["filter"] == {
        "expression": condition,
        "variables": {"workflow": "${ $workflow }", "steps": {"first": "${ $steps.first }"}},
    }
    assert compiled["consume"] == {"until": {"expression": "($messages | length) == 2", "variables": {}}}


@pytest.mark.parametrize(
    ("subscription", "more", "said"),
    [
        ("{consume: {amount: 1}, foreach: {do: []}}", "", "'foreach' of a subscription"),
        ("{consume: {amount: 1}}", "protocol: kafka", "the protocol 'kafka'"),
        ("{consume: {amount: 1}}", "protocol: carrier-pigeon", "the arguments of 'asyncapi'"),
        ('{filter: "${ .a == $secrets.token }", consume: {amount: 1}}', "", "$secrets"),
        ('{filter: "${ .a == $nothing }", consume: {amount: 1}}', "", "nothing"),
        ('{filter: "a ${ .a } b", consume: {amount: 1}}', "", "must be one expression"),
        ("{consume: {}}", "", "the arguments of 'asyncapi'"),
        ("{filter: '.a'}", "", "the arguments of 'asyncapi'"),
        ("{consume: {amount: 1}}", "message: {payload: 1}", "the arguments of 'asyncapi'"),
    ],
)
def test_what_is_refused(subscription: str, more: str, said: str) -> None:
    errors = errors_of(hear(subscription, more))
    assert any(said in error for error in errors), errors
