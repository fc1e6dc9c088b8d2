"""try, catch, retry."""

import pytest

from flint_core.effects import Timer, TimerKind
from flint_core.problems import Problem, ProblemType, canonical_type


def delays(driver):
    """Pauses before retries, in ms, measured from the failure before."""
    return [
        effect.until_ms for effect in driver.effects if isinstance(effect, Timer) and effect.kind is TimerKind.RETRY
    ]


def test_a_caught_error_is_bound_and_the_catch_gives_the_output(run, down):
    driver = run(
        "do:\n"
        "  - t:\n"
        "      try: [{a: {call: noop}}]\n"
        "      catch: {as: err, do: [{h: {set: {status: '${ $err.status }',"
        " was: '${ .k }', at: '${ $err.instance }'}}}]}\n",
        {"k": 1},
        lambda call: down(),
    )
    assert driver.output == {"status": 503, "was": 1, "at": "/do/0/t/try/0/a"}
    assert driver.shown() == ["a:failed", "h:succeeded", "t:succeeded"]


def test_a_catch_without_tasks_passes_the_input_of_the_try_on(run, down):
    assert run("do: [{t: {try: [{a: {call: noop}}], catch: {}}}]", {"k": 1}, lambda call: down()).output == {"k": 1}


@pytest.mark.parametrize(
    ("condition", "caught"),
    [
        ("errors: {with: {status: 503}}", True),
        ("errors: {with: {status: 500}}", False),
        ("errors: {with: {type: 'https://serverlessworkflow.io/dsl/errors/types/communication'}}", True),
        ("errors: {with: {type: 'https://open-workflow-specification.org/spec/1.0.0/errors/communication'}}", True),
        ("errors: {with: {type: 'https://serverlessworkflow.io/spec/1.0.0/errors/timeout'}}", False),
        ("errors: {with: {instance: /do/0/t/try/0/a, detail: down}}", True),
        ("when: $error.status >= 500", True),
        ("when: $error.status >= 504", False),
        ("exceptWhen: $error.status == 503", False),
        ("when: '$error.detail | test(\"^do\")'", True),
    ],
)
def test_what_a_catch_catches(run, down, condition, caught):
    driver = run(
        f"do: [{{t: {{try: [{{a: {{call: noop}}}}], catch: {{{condition}, do: [{{h: {{set: {{r: 1}}}}}}]}}}}}}]",
        outcome=lambda call: down(),
    )
    assert hasattr(driver.machine.end, "output") is caught


def test_a_nested_catch_that_does_not_match_leaves_it_to_the_outer_one(run, down):
    driver = run(
        "do:\n"
        "  - outer:\n"
        "      try:\n"
        "        - inner:\n"
        "            try: [{a: {call: noop}}]\n"
        "            catch: {errors: {with: {status: 404}}}\n"
        "      catch: {do: [{h: {set: {r: outer}}}]}\n",
        outcome=lambda call: down(),
    )
    assert driver.output == {"r": "outer"}
    assert driver.shown() == ["a:failed", "inner:failed", "h:succeeded", "outer:succeeded"]


def retrying(policy, catch="", task="a: {call: noop, with: {output: '${ .k }'}}"):
    return f"do: [{{t: {{try: [{{{task}}}], catch: {{retry: {policy}{catch}}}}}}}]"


def failing(times, problem):
    left = [times]

    def outcome(call):
        left[0] -= 1
        return problem if left[0] >= 0 else "ok"

    return outcome


def test_a_retry_repeats_with_the_same_key_and_the_next_attempt(run, down):
    driver = run(retrying("{delay: {seconds: 1}}"), {"k": 1}, failing(2, down()))
    assert driver.output == "ok"
    assert [call.attempt for call in driver.calls] == [1, 2, 3]
    assert len({call.idempotency_key for call in driver.calls}) == 1
    assert driver.shown() == ["a:failed", "t:waiting", "a#2:failed", "t#2:waiting", "a#3:succeeded", "t#3:succeeded"]


@pytest.mark.parametrize(
    ("policy", "pauses"),
    [
        ("{delay: {seconds: 2}, limit: {attempt: {count: 4}}}", [2000, 2000, 2000]),
        ("{delay: PT1S, backoff: {linear: {}}, limit: {attempt: {count: 4}}}", [1000, 2000, 3000]),
        ("{delay: PT1S, backoff: {linear: {increment: PT5S}}, limit: {attempt: {count: 4}}}", [1000, 6000, 11000]),
        ("{delay: PT1S, backoff: {exponential: {}}, limit: {attempt: {count: 5}}}", [1000, 2000, 4000, 8000]),
        (
            "{delay: PT4M, backoff: {exponential: {factor: 3}}, limit: {attempt: {count: 4}}}",
            [240_000, 600_000, 600_000],
        ),
        ("{delay: PT1S, backoff: {exponential: {maxDelay: PT3S}}, limit: {attempt: {count: 4}}}", [1000, 2000, 3000]),
        ("{delay: '${ {seconds: $error.status - 500} }', limit: {attempt: {count: 2}}}", [3000]),
        ("{limit: {attempt: {count: 1}}}", []),
        ("{delay: PT10S, limit: {duration: PT25S}}", [10_000, 10_000]),
        ("{delay: PT20M}", [1_200_000, 1_200_000]),
        ("{delay: PT1S}", [1000] * 4),
        ("{delay: PT1S, when: $error.status == 404}", []),
        ("{delay: PT1S, exceptWhen: $error.status == 503}", []),
    ],
)
def test_backoff_and_limits(run, down, policy, pauses):
    driver = run(retrying(policy), {"k": 1}, lambda call: down())
    assert driver.problem.detail == "down"
    failed = [record.ended_ms for record in driver.records if record.step.endswith("/a")]
    assert [until - at for until, at in zip(delays(driver), failed, strict=False)] == pauses


def test_jitter_adds_from_to_and_is_the_same_on_every_run(run, down):
    policy = "{delay: PT1S, jitter: {from: {milliseconds: 100}, to: {milliseconds: 900}}}"
    first, second = (delays(run(retrying(policy), {"k": 1}, lambda call: down())) for _ in range(2))
    assert first == second
    pauses = [until - at for until, at in zip(first, [1010, *(at + 10 for at in first)], strict=False)]
    assert all(1100 <= pause <= 1900 for pause in pauses)
    assert len(set(pauses)) > 1


def test_the_other_sides_wish_is_honoured(run, down):
    driver = run(retrying("{delay: PT1S, limit: {attempt: {count: 2}}}"), {"k": 1}, lambda call: (down(), 7_000))
    assert delays(driver) == [1_010 + 7_000]


def test_a_policy_by_name_and_a_catch_after_the_last_attempt(run, down):
    driver = run(
        "use: {retries: {twice: {delay: PT1S, limit: {attempt: {count: 2}}}}}\n"
        + retrying("twice", ", do: [{h: {set: {gave: up}}}]"),
        {"k": 1},
        lambda call: down(),
    )
    assert driver.output == {"gave": "up"}
    assert len(driver.calls) == 2


def test_attempts_of_nested_retries_never_repeat_a_number(run, down):
    inner = "i: {try: [{a: {call: noop}}], catch: {retry: {delay: PT1S, limit: {attempt: {count: 2}}}}}"
    driver = run(retrying("{delay: PT1S, limit: {attempt: {count: 2}}}", task=inner), {}, lambda call: down())
    assert [call.attempt for call in driver.calls] == [1, 2, 3, 4]


def test_arguments_are_evaluated_again_for_each_attempt(run, down):
    body = (
        "do:\n"
        "  - t:\n"
        "      try:\n"
        "        - n: {set: {n: '${ ($context.n // 0) + 1 }'}, export: {as: '{n: .n}'}}\n"
        "        - a: {call: noop, with: {output: '${ .n }'}}\n"
        "      catch: {retry: {delay: PT1S}}\n"
    )
    driver = run(body, {}, lambda call: down() if call.arguments["output"] < 3 else "ok")
    assert [call.arguments["output"] for call in driver.calls] == [1, 2, 3]


def test_an_attempt_that_takes_too_long_is_repeated(run):
    body = (
        "do:\n"
        "  - t:\n"
        "      try: [{w: {wait: PT10S}}]\n"
        "      catch: {errors: {with: {status: 408}},"
        " retry: {delay: PT1S, limit: {attempt: {count: 2, duration: PT5S}}}}\n"
    )
    driver = run(body, {})
    assert driver.problem.type == ProblemType.TIMEOUT
    assert driver.now == 1_000 + 5_000 + 1_000 + 5_000
    assert driver.shown() == ["w:waiting", "w:failed", "t:waiting", "w#2:waiting", "w#2:failed", "t#2:failed"]


def test_an_error_in_the_catch_is_not_caught_by_its_own_try(run, down):
    body = "do: [{t: {try: [{a: {call: noop}}], catch: {do: [{b: {raise: {error: {type: 'x:y', status: 418}}}}]}}}]"
    assert run(body, {}, lambda call: down()).problem.status == 418


def test_canonical_types():
    base = "https://serverlessworkflow.io/spec/1.0.0/errors/"
    assert canonical_type("https://open-workflow-specification.org/dsl/errors/types/timeout") == base + "timeout"
    assert canonical_type("https://example.com/spec/1.0.0/errors/timeout").startswith("https://example.com")
    assert Problem.from_json(Problem("t", 1, "x", "d", "i").to_json()) == Problem("t", 1, "x", "d", "i")
