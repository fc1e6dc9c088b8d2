"""Errors: caught, filtered, retried, given up."""

# ruff: noqa: E501 - a table: one definition a line, as far as it goes

from __future__ import annotations

import pytest
import pytest_asyncio

from support.house import House
from support.language import Case, Outcome, check, check_kit, run_cases
from support.language_world import World

ODD = "https://x.test/odd"
FAIL = "{x: {call: noop, with: {fail: {type: 'https://x.test/odd', status: 418, title: Odd, detail: Very}}}}"
CAUGHT = "do: [{c: {set: {caught: true}}}]"


def filtered(filters: str, caught: bool = True) -> Case:
    """A failure with all members, and a catch with this filter."""
    body = f"do: [{{t: {{try: [{FAIL}], catch: {{errors: {{with: {filters}}}, {CAUGHT}}}}}}}]"
    return Case(body, {"caught": True}) if caught else Case(body, error={"type": ODD, "status": 418})


def conditioned(conditions: str, caught: bool = True) -> Case:
    body = f"do: [{{t: {{try: [{FAIL}], catch: {{{conditions}, {CAUGHT}}}}}}}]"
    return Case(body, {"caught": True}, input={"n": 1}) if caught else Case(body, error={"status": 418}, input={"n": 1})


def retried(policy: str, attempts: int, least_s: float = 0.0) -> Case:
    """A step that always fails; how often it is tried under a policy."""
    return Case(
        f"do: [{{t: {{try: [{FAIL}], catch: {{retry: {policy}, {CAUGHT}}}}}}}]",
        {"caught": True},
        attempts={"x": attempts},
        least_s=least_s,
    )


MS = "{milliseconds: 10}"
THREE = "limit: {attempt: {count: 3}}"

CASES = {
    "try-succeeds": Case(
        "do: [{t: {try: [{a: {set: {n: 1}}}, {b: {set: {n: '${ .n + 1 }'}}}], catch: {do: [{c: {set: {n: 9}}}]}}}]",
        {"n": 2},
    ),
    "catch-all": conditioned("as: e"),
    "catch-empty-swallows": Case(f"do: [{{t: {{try: [{FAIL}], catch: {{}}}}}}]", {"n": 1}, input={"n": 1}),
    "catch-as": Case(
        f"do: [{{t: {{try: [{FAIL}], catch: {{as: oops, do: [{{c: {{set: '${{ $oops }}'}}}}]}}}}}}]",
        {"type": ODD, "status": 418, "title": "Odd", "detail": "Very", "instance": "/do/0/t/try/0/x"},
    ),
    "catch-as-default": Case(
        f"do: [{{t: {{try: [{FAIL}], catch: {{do: [{{c: {{set: {{s: '${{ $error.status }}'}}}}}}]}}}}}}]", {"s": 418}
    ),
    "catch-do-on-the-trys-input": Case(
        f"do: [{{t: {{try: [{{a: {{set: {{n: 9}}}}}}, {FAIL}], catch: {{do: [{{c: {{set: {{n: '${{ .n + 1 }}'}}}}}}]}}}}}}]",
        {"n": 2},
        input={"n": 1},
    ),
    "catch-do-fails": Case(
        f"do: [{{t: {{try: [{FAIL}], catch: {{do: [{{c: {{raise: {{error: {{type: 'https://x.test/second', status: 419}}}}}}}}]}}}}}}]",
        error={"type": "https://x.test/second", "status": 419, "instance": "/do/0/t/catch/do/0/c"},
    ),
    "try-nested": Case(
        f"do: [{{t: {{try: [{{u: {{try: [{FAIL}], catch: {{errors: {{with: {{status: 500}}}}}}}}}}], catch: {{{CAUGHT}}}}}}}]",
        {"caught": True},
    ),
    "try-does-not-catch-its-timeout": Case(
        f"do: [{{t: {{try: [{{w: {{wait: PT1H}}}}], catch: {{{CAUGHT}}}, timeout: {{after: PT0.05S}}}}}}]",
        error={"status": 408, "instance": "/do/0/t"},
    ),
    "with-type": filtered("{type: 'https://x.test/odd'}"),
    "with-type-other": filtered("{type: 'https://x.test/even'}", caught=False),
    "with-status": filtered("{status: 418}"),
    "with-status-other": filtered("{status: 500}", caught=False),
    "with-title": filtered("{title: Odd}"),
    "with-title-other": filtered("{title: Even}", caught=False),
    "with-detail": filtered("{detail: Very}"),
    "with-detail-other": filtered("{detail: Hardly}", caught=False),
    "with-details": filtered("{details: Very}"),
    "with-instance": filtered("{instance: /do/0/t/try/0/x}"),
    "with-instance-other": filtered("{instance: /do/1/t}", caught=False),
    "with-several": filtered("{type: 'https://x.test/odd', status: 418, title: Odd, detail: Very}"),
    "with-several-one-differs": filtered("{type: 'https://x.test/odd', status: 419}", caught=False),
    "with-standard-type-of-the-other-spelling": Case(
        "do: [{t: {try: [{x: {set: {n: '${ error }'}}}], catch: {errors: {with: {type: 'https://serverlessworkflow.io/dsl/errors/types/expression'}}, do: [{c: {set: {caught: true}}}]}}}]",
        {"caught": True},
    ),
    "when": conditioned("when: $error.status == 418"),
    "when-false": conditioned("when: $error.status == 500", caught=False),
    "when-sees-the-input": conditioned("when: .n == 1"),
    "when-with-as": conditioned('as: e, when: $e.title == "Odd"'),
    "except-when": conditioned("exceptWhen: $error.status == 418", caught=False),
    "except-when-false": conditioned("exceptWhen: $error.status == 500"),
    "catches-validation": Case(
        "do: [{t: {try: [{x: {set: {n: 1}, output: {schema: {document: {type: string}}}}}], catch: {errors: {with: {type: 'https://serverlessworkflow.io/spec/1.0.0/errors/validation'}}, do: [{c: {set: {caught: true}}}]}}}]",
        {"caught": True},
    ),
    # --- retry
    "retry-count": retried(f"{{delay: {MS}, {THREE}}}", 3),
    "retry-named": Case(
        f"use: {{retries: {{quick: {{delay: {MS}, {THREE}}}}}}}\ndo: [{{t: {{try: [{FAIL}], catch: {{retry: quick, {CAUGHT}}}}}}}]",
        {"caught": True},
        attempts={"x": 3},
    ),
    "retry-without-do-raises": Case(
        f"do: [{{t: {{try: [{FAIL}], catch: {{retry: {{delay: {MS}, {THREE}}}}}}}}}]",
        error={"status": 418},
        attempts={"x": 3},
    ),
    "retry-not-what-does-not-match": Case(
        f"do: [{{t: {{try: [{FAIL}], catch: {{errors: {{with: {{status: 500}}}}, retry: {{delay: {MS}, {THREE}}}}}}}}}]",
        error={"status": 418},
        attempts={"x": 1},
    ),
    "retry-until-it-works": Case(
        f"do: [{{t: {{try: [{{x: {{call: http, with: {{method: post, endpoint: '<http>/flaky/works/2'}}}}}}], catch: {{errors: {{with: {{status: 503}}}}, retry: {{delay: {MS}, limit: {{attempt: {{count: 5}}}}}}}}}}}}]\noutput: {{as: .calls}}",
        3,
        attempts={"x": 3},
        stubs=None,
    ),
    "retry-delay-object": retried(f"{{delay: {{milliseconds: 60}}, {THREE}}}", 3, 0.12),
    "retry-delay-iso": retried(f"{{delay: PT0.06S, {THREE}}}", 3, 0.12),
    "retry-delay-expression": retried(f"{{delay: '${{ {{milliseconds: 60}} }}', {THREE}}}", 3, 0.12),
    "retry-backoff-constant": retried(f"{{delay: PT0.06S, backoff: {{constant: {{}}}}, {THREE}}}", 3, 0.12),
    "retry-backoff-linear": retried(f"{{delay: PT0.05S, backoff: {{linear: {{}}}}, {THREE}}}", 3, 0.15),
    "retry-backoff-linear-increment": retried(
        f"{{delay: PT0.05S, backoff: {{linear: {{increment: PT0.1S}}}}, {THREE}}}", 3, 0.2
    ),
    "retry-backoff-exponential": retried(f"{{delay: PT0.05S, backoff: {{exponential: {{}}}}, {THREE}}}", 3, 0.15),
    "retry-backoff-exponential-factor": retried(
        f"{{delay: PT0.05S, backoff: {{exponential: {{factor: 4}}}}, {THREE}}}", 3, 0.25
    ),
    "retry-backoff-exponential-multiplier": retried(
        f"{{delay: PT0.05S, backoff: {{exponential: {{multiplier: 4}}}}, {THREE}}}", 3, 0.25
    ),
    "retry-backoff-exponential-max-delay": retried(
        f"{{delay: PT0.01S, backoff: {{exponential: {{factor: 100, maxDelay: PT0.05S}}}}, {THREE}}}", 3, 0.06
    ),
    "retry-backoff-linear-max-delay": retried(
        f"{{delay: PT0.01S, backoff: {{linear: {{increment: PT1H, maxDelay: PT0.05S}}}}, {THREE}}}", 3, 0.06
    ),
    "retry-jitter": retried(f"{{delay: PT0.01S, jitter: {{from: PT0.04S, to: PT0.05S}}, {THREE}}}", 3, 0.1),
    "retry-limit-duration": retried("{delay: PT5S, limit: {duration: PT9S}}", 2, 5),
    "retry-limit-attempt-duration": Case(
        f"do: [{{t: {{try: [{{x: {{call: noop, with: {{delay_ms: 60000}}}}}}], catch: {{retry: {{delay: {MS}, limit: {{attempt: {{count: 2, duration: PT0.05S}}}}}}, do: [{{c: {{set: {{status: '${{ $error.status }}'}}}}}}]}}}}}}]",
        {"status": 408},
    ),
    "retry-when": retried(f"{{delay: {MS}, when: $error.status == 418, {THREE}}}", 3),
    "retry-when-false": retried(f"{{delay: {MS}, when: $error.status == 500, {THREE}}}", 1),
    "retry-except-when": retried(f"{{delay: {MS}, exceptWhen: $error.status == 418, {THREE}}}", 1),
    "retry-count-of-one": retried("{limit: {attempt: {count: 1}}}", 1),
    "retry-same-key": Case(
        f"do: [{{t: {{try: [{{x: {{call: http, with: {{method: post, endpoint: '<http>/flaky/key/1'}}}}}}], catch: {{retry: {{delay: {MS}, {THREE}}}}}}}}}]\noutput: {{as: '${{ .key | length > 10 }}'}}",
        True,
        attempts={"x": 2},
        stubs=None,
    ),
    "retry-arguments-anew": Case(
        f"do: [{{t: {{try: [{{a: {{set: {{n: '${{ ($context.n // 0) + 1 }}'}}, export: {{as: '{{n: .n}}'}}}}}}, {{x: {{if: .n < 3, raise: {{error: {{type: 'https://x.test/few', status: 400}}}}}}}}], catch: {{retry: {{delay: {MS}, limit: {{attempt: {{count: 5}}}}}}}}}}}}]",
        {"n": 3},
        attempts={"a": 3},
    ),
    # --- the standard errors, where they come from
    "error-configuration": Case(
        "do: [{m: {call: email, with: {connection: nowhere, to: a@example.com, subject: S, text: T}, timeout: {after: PT10S}}}]",
        error={"type": "https://serverlessworkflow.io/spec/1.0.0/errors/configuration", "status": 400},
        stubs=None,
    ),
    "error-communication": Case(
        "do: [{m: {call: http, with: {method: get, endpoint: '<http>/status/502'}}}]",
        error={
            "type": "https://serverlessworkflow.io/spec/1.0.0/errors/communication",
            "status": 502,
            "instance": "/do/0/m",
        },
        stubs=None,
    ),
    "error-authentication": Case(
        "do: [{m: {call: http, with: {method: get, endpoint: '<http>/status/401'}}}]", error={"status": 401}, stubs=None
    ),
    "error-authorization": Case(
        "do: [{m: {call: http, with: {method: get, endpoint: '<http>/status/403'}}}]", error={"status": 403}, stubs=None
    ),
}
LOCAL = {name: case for name, case in CASES.items() if case.stubs is not None}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def outcomes(house: House, world: World) -> dict[str, Outcome]:
    return await run_cases(house, world, CASES, "errors")


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("name", CASES)
async def test_engine(name: str, outcomes: dict[str, Outcome]) -> None:
    check(CASES[name], outcomes[name])


@pytest.mark.parametrize("name", LOCAL)
def test_kit(name: str) -> None:
    check_kit(CASES[name], f"errors-{name}")
