"""Advice at apply: each piece with a definition that earns it, and one that does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from flint_core.definition import Finding, Rule, Severity, compile_definition

HEAD = "document: {dsl: 1.0.3, namespace: default, name: demo, version: 1.0.0}\n"
TIMED = HEAD + "timeout: {after: PT1H}\n"
ROOT = Path(__file__).resolve().parents[3]


def found(source: str) -> list[Finding]:
    compiled = compile_definition(source)
    assert compiled.program is not None, compiled.findings
    assert all(finding.severity is Severity.WARNING for finding in compiled.findings)
    return compiled.findings


def retried(call: str, catch: str = "errors: {with: {status: 500}}", use: str = "") -> str:
    return f"{TIMED}{use}do:\n  - a:\n      try:\n        - t: {{{call}}}\n      catch: {{{catch}, retry: {{}}}}\n"


GET = "call: http, with: {method: get, endpoint: 'http://x'}"
SQL = "call: sql, with: {connection: c, execute: %s}"
POST = "call: http, with: {method: post, endpoint: 'http://x'}"
FETCH = "{call: http, with: {method: get, endpoint: 'http://x'%s}}"
KEY = "use: {secrets: [k]}\n"


def call(function: str, arguments: str) -> str:
    return f"{TIMED}{KEY}do:\n  - t: {{call: {function}, with: {arguments}}}\n"


def run(process: str) -> str:
    return f"{TIMED}{KEY}do:\n  - t: {{run: {process}}}\n"


def asks(name: str, query: str) -> str:
    return f"{name}: {{call: http, with: {{method: get, endpoint: 'http://x', query: {{q: '${{ {query} }}'}}}}}}"


def steps(*entries: str) -> str:
    return TIMED + "do:\n" + "".join(f"  - {entry}\n" for entry in entries)


EARNED = {
    "post": (Rule.RETRY_NOT_IDEMPOTENT, retried(POST), 6, 11),
    "insert": (Rule.RETRY_NOT_IDEMPOTENT, retried(SQL % "INSERT INTO t VALUES (1)"), 6, 11),
    "relative update": (Rule.RETRY_NOT_IDEMPOTENT, retried(SQL % "UPDATE t SET n = n + 1"), 6, 11),
    "transaction": (
        Rule.RETRY_NOT_IDEMPOTENT,
        retried("call: sql, with: {connection: c, transaction: [{execute: insert into t values (1)}]}"),
        6,
        11,
    ),
    "script": (Rule.RETRY_NOT_IDEMPOTENT, retried("run: {script: {language: python, code: 'print(1)'}}"), 6, 11),
    "shell": (Rule.RETRY_NOT_IDEMPOTENT, retried("run: {shell: {command: make}}"), 6, 11),
    "retries all": (Rule.RETRY_EVERYTHING, retried(GET, "as: error"), 7, 7),
    "wait first": (
        Rule.WAIT_IN_RETRY,
        steps("a: {try: [{p: {wait: PT1S}}, {b: {set: {}}}], catch: {errors: {with: {status: 500}}, retry: {}}}"),
        4,
        16,
    ),
    "swallowed": (Rule.SWALLOWED_ERROR, steps("a: {try: [{b: {set: {}}}], catch: {}}"), 4, 32),
    "discarded": (
        Rule.DISCARDED_ERROR,
        steps("a: {try: [{b: {set: {}}}], catch: {do: [{c: {set: {x: 1}}}]}}"),
        4,
        32,
    ),
    "secret in a query": (
        Rule.EXPOSED_SECRET,
        call("http", "{method: get, endpoint: 'http://x', query: {key: '${ $secrets.k }'}}"),
        5,
        71,
    ),
    "secret in an address": (
        Rule.EXPOSED_SECRET,
        call("http", "{method: get, endpoint: 'http://x/${ $secrets.k }'}"),
        5,
        41,
    ),
    "secret on a command line": (
        Rule.EXPOSED_SECRET,
        run("{shell: {command: 'login $1', arguments: ['${ $secrets.k }']}}"),
        5,
        56,
    ),
    "two reads": (Rule.COULD_FORK, steps(f"a: {FETCH % ''}", f"b: {FETCH % ''}"), 5, 5),
    "a read of the workflow's input": (
        Rule.COULD_FORK,
        steps(
            f"a: {FETCH % ''}",
            asks("b", "$workflow.input.q"),
        ),
        5,
        5,
    ),
    "a loop of calls": (
        Rule.COULD_BE_PARALLEL,
        steps("a: {for: {in: .l}, do: [{b: {call: http, with: {method: get, endpoint: 'http://${ $item }'}}}]}"),
        4,
        5,
    ),
    "endless": (Rule.ENDLESS_LOOP, steps("a: {set: {x: 1}}", "b: {set: {y: 1}, then: a}"), 5, 5),
    "endless by switch": (
        Rule.ENDLESS_LOOP,
        steps("a: {switch: [{one: {when: .x, then: b}}, {two: {then: a}}]}", "b: {set: {}, then: a}"),
        5,
        5,
    ),
    "wait beyond the timeout": (Rule.TIMEOUT_TOO_SHORT, steps("a: {wait: PT2H}"), 4, 5),
    "wait beyond its own": (Rule.TIMEOUT_TOO_SHORT, steps("a: {wait: PT2S, timeout: {after: PT1S}}"), 4, 5),
    "loop variable": (
        Rule.SHADOWED_NAME,
        steps("a: {for: {in: .l}, do: [{b: {for: {in: .m, at: n}, do: [{c: {set: {x: 1}}}]}}]}"),
        4,
        30,
    ),
    "step": (
        Rule.SHADOWED_NAME,
        steps("a: {set: {x: 1}}", "b: {do: [{a: {set: {x: 2}}}, {c: {set: '${ $steps.a }'}}]}"),
        5,
        15,
    ),
    "large": (Rule.LARGE_CONSTANT, steps(f"a: {{set: {{x: {'y' * 20_000}}}}}"), 4, 5),
    **{
        f"unused {kind}": (
            Rule.UNUSED,
            f"{HEAD}use: {{{kind}: {{name: {body}}}}}\ndo: [{{t: {{set: {{}}}}}}]\n",
            2,
            None,
        )
        for kind, body in {
            "functions": "{call: noop}",
            "retries": "{delay: PT1S}",
            "errors": "{type: 'http://x', status: 500}",
            "timeouts": "{after: PT1S}",
            "authentications": "{bearer: {token: x}}",
            "catalogs": "{endpoint: 'http://x'}",
        }.items()
    },
    "unused secret": (Rule.UNUSED, f"{HEAD}use: {{secrets: [name]}}\ndo: [{{t: {{set: {{}}}}}}]\n", 2, 17),
}

SILENT = {
    "put": retried("call: http, with: {method: put, endpoint: 'http://x'}"),
    "post turned away": retried(POST, "errors: {with: {status: 503}}"),
    "post with a key": retried(POST + ", metadata: {flint: {idempotencyKey: '${ .id }'}}"),
    "post with a header": retried(
        "call: http, with: {method: post, endpoint: 'http://x', headers: {Idempotency-Key: '${ .id }'}}"
    ),
    "post without a retry": steps(f"a: {{{POST}}}"),
    "insert with a key": retried(SQL % "'INSERT INTO t VALUES (:idempotency_key)'"),
    "insert on conflict": retried(SQL % "INSERT INTO t VALUES (1) ON CONFLICT DO NOTHING"),
    "update to a value": retried(SQL % "'UPDATE t SET n = :n'"),
    "script that looks": retried(
        "run: {script: {language: python, code: 'import os; os.environ[\"FLINT_IDEMPOTENCY_KEY\"]'}}"
    ),
    "chosen by the policy": retried(GET, "as: e").replace("retry: {}", "retry: {when: '$e.status >= 500'}"),
    "wait between": steps(
        "a: {try: [{b: {set: {}}}, {p: {wait: PT1S}}, {c: {set: {}}}],"
        " catch: {errors: {with: {status: 500}}, retry: {}}}"
    ),
    "ignored by name": steps("a: {try: [{b: {set: {}}}], catch: {errors: {with: {status: 404}}}}"),
    "kept": steps("a: {try: [{b: {set: {}}}], catch: {do: [{c: {set: {x: '${ $error.title }'}}}]}}"),
    "raised anew": steps(
        "a: {try: [{b: {set: {}}}], catch: {do: [{c: {raise: {error: {type: 'http://x', status: 500}}}}]}}"
    ),
    "secret in a header": call("http", "{method: get, endpoint: 'http://x', headers: {x: '${ $secrets.k }'}}"),
    "secret in an authentication": call(
        "http", "{method: get, endpoint: {uri: 'http://x', authentication: {bearer: {token: '${ $secrets.k }'}}}}"
    ),
    "secret in the environment": run("{shell: {command: 'login', environment: {K: '${ $secrets.k }'}}}"),
    "secret as a script's variable": run(
        "{script: {language: python, code: 'pass', arguments: {k: '${ $secrets.k }'}}}"
    ),
    "reads what the one before gave": steps(f"a: {FETCH % ''}", asks("b", ".id")),
    "reads a step": steps(f"a: {FETCH % ''}", asks("b", "$steps.a.id")),
    "writes": steps(f"a: {{{POST}}}", f"b: {{{POST}}}"),
    "loop that carries on": steps(
        "a: {for: {in: .l}, do: [{b: {call: http, with: {method: get, endpoint: '${ .next }'}}}]}"
    ),
    "loop in parallel": steps(
        "a: {metadata: {flint: {parallel: 5}}, for: {in: .l},"
        " do: [{b: {call: http, with: {method: get, endpoint: 'http://${ $item }'}}}]}"
    ),
    "loop that ends": steps(
        "a: {set: {x: 1}}", "b: {switch: [{more: {when: .x < 3, then: a}}, {enough: {then: end}}]}"
    ),
    "loop that ends from within": steps("a: {do: [{b: {if: .x, set: {}, then: end}}]}", "c: {set: {}, then: a}"),
    "loop that fails": steps(
        "a: {do: [{b: {if: .x, raise: {error: {type: 'http://x', status: 500}}}}]}", "c: {set: {}, then: a}"
    ),
    "loop that waits": steps("a: {set: {x: 1}}", "b: {wait: PT1S, then: a}"),
    "loop that listens": steps("a: {listen: {to: {one: {with: {type: x}}}}}", "b: {set: {}, then: a}"),
    "wait within": steps("a: {wait: PT2S, timeout: {after: PT3S}}"),
    "loop variables by name": steps(
        "a: {for: {each: x, in: .l}, do: [{b: {for: {each: y, in: .m}, do: [{c: {set: {x: '${ $x + $y }'}}}]}}]}"
    ),
    "a name that nobody reads": steps("a: {set: {x: 1}}", "b: {do: [{a: {set: {x: 2}}}]}"),
    "code": run(f"{{script: {{language: python, code: {'#' + 'y' * 20_000!r}}}}}"),
}


@pytest.mark.parametrize("what", EARNED)
def test_advice_that_is_earned_names_its_place_and_what_to_do(what: str) -> None:
    rule, source, line, column = EARNED[what]
    given = [finding for finding in found(source) if finding.rule == rule]
    assert len(given) == 1, found(source)
    assert given[0].line == line
    assert column is None or given[0].column == column
    assert any(mark in given[0].message for mark in (":", ",", ";", "."))


@pytest.mark.parametrize("what", SILENT)
def test_advice_is_silent_where_it_would_be_wrong(what: str) -> None:
    source = SILENT[what]
    silent = [finding for finding in found(source) if finding.rule != Rule.UNUSED]
    assert silent == []


def test_what_is_used_is_not_called_unused() -> None:
    source = TIMED + (
        "use:\n"
        "  secrets: [k]\n"
        "  functions: {f: {call: noop}}\n"
        "  retries: {r: {delay: PT1S}}\n"
        "  errors: {e: {type: 'http://x', status: 500}}\n"
        "  timeouts: {t: {after: PT1S}}\n"
        "  authentications: {a: {bearer: {token: '${ $secrets.k }'}}}\n"
        "do:\n"
        "  - b:\n"
        "      timeout: t\n"
        "      try:\n"
        "        - c: {call: f}\n"
        "        - d: {call: http, with: {method: get, endpoint: {uri: 'http://x', authentication: {use: a}}}}\n"
        "        - g: {raise: {error: e}}\n"
        "      catch: {errors: {with: {status: 500}}, retry: r}\n"
    )
    assert found(source) == []


def test_the_examples_earn_the_advice_that_is_known() -> None:
    given = {
        (path.parent.name, finding.rule)
        for path in sorted((ROOT / "examples").rglob("workflow.yaml"))
        for finding in found(path.read_text(encoding="utf-8"))
        if finding.rule != Rule.NO_TIMEOUT
    }
    # One picture after the other, so that its test can tell what comes when.
    assert given == {("functions-python", Rule.COULD_BE_PARALLEL)}
