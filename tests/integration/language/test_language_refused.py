"""What apply refuses, by the engine and by the workflow test kit alike: with rule, place and reason."""

# ruff: noqa: E501 - a table: one definition a line, as far as it goes

from __future__ import annotations

import pytest

from flint_core.definition.unsupported import FLINT_HINTS
from flint_core.functions.asyncapi import REFUSED_PROTOCOLS
from support.house import House
from support.language import Refused, check_refused

HEAD = "dsl: 1.0.3, namespace: default, name: refused, version: 1.0.0"
T = "/do/0/t"


def task(text: str, rule: str, place: str, message: str, more: str = "") -> Refused:
    return Refused(f"{more}do: [{{t: {text}}}]", rule, f"{T}{place}", message)


def document(head: str, rule: str, place: str, message: str) -> Refused:
    return Refused(
        "", rule, f"/document{place}", message, document=f"document: {{{head}}}\ndo: [{{t: {{set: {{n: 1}}}}}}]"
    )


CASES = {
    # --- the document
    "dsl-2": document(
        "dsl: 2.0.0, namespace: default, name: refused, version: 1.0.0",
        "unsupported",
        "/dsl",
        "version 2.0.0 of the DSL",
    ),
    "namespace-missing": document("dsl: 1.0.3, name: refused, version: 1.0.0", "missing-field", "", "'namespace'"),
    "name-invalid": document(
        "dsl: 1.0.3, namespace: default, name: Refused_, version: 1.0.0", "invalid-value", "/name", "'name' must be"
    ),
    "version-invalid": document(
        "dsl: 1.0.3, namespace: default, name: refused, version: one", "invalid-value", "/version", "semantic version"
    ),
    "tags-list": document(f"{HEAD}, tags: [a]", "wrong-type", "/tags", "'tags' must be an object"),
    "document-unknown": document(f"{HEAD}, titel: x", "unknown-field", "/titel", "did you mean"),
    "evaluate-language": Refused(
        "evaluate: {language: javascript}\ndo: [{t: {set: {n: 1}}}]",
        "unsupported",
        "/evaluate/language",
        "expression language",
    ),
    "evaluate-loose": Refused(
        "evaluate: {mode: loose}\ndo: [{t: {set: {n: 1}}}]", "unsupported", "/evaluate/mode", "evaluation mode"
    ),
    "top-level-unknown": Refused("outputs: {}\ndo: [{t: {set: {n: 1}}}]", "unknown-field", "/outputs", "did you mean"),
    "duplicate-key": Refused("do: [{t: {set: {n: 1}, set: {n: 2}}}]", "duplicate-key", "/", "stands here twice"),
    # --- tasks
    "task-unknown": task("{sett: {n: 1}}", "missing-field", "", "no kind"),
    "task-two-kinds": task("{set: {n: 1}, wait: PT1S}", "invalid-value", "/wait", "of one kind"),
    "member-unknown": task("{set: {n: 1}, iff: true}", "unknown-field", "/iff", "did you mean"),
    "then-elsewhere": task("{set: {n: 1}, then: nowhere}", "reference", "/then", "'nowhere'"),
    "then-in-a-branch": Refused(
        "do: [{t: {fork: {branches: [{a: {set: {n: 1}, then: b}}, {b: {set: {n: 1}}}]}}}]",
        "reference",
        "/do/0/t/fork/branches/0/a/then",
        "side by side",
    ),
    "expression-wrong": task("{set: {n: '${ .a + }'}}", "expression", "/set/n", "jq refuses"),
    "expression-environment": task("{set: {n: '${ $ENV }'}}", "expression", "/set/n", "environment"),
    "expression-unknown-variable": task("{set: {n: '${ $nothing }'}}", "expression", "/set/n", "nothing"),
    "expression-authorization": task("{set: {n: '${ $authorization }'}}", "expression", "/set/n", "authorization"),
    "steps-unknown": task("{set: {n: '${ $steps.nobody }'}}", "reference", "/set/n", "nobody"),
    "secret-in-the-state": task("{set: {n: '${ $secrets.s }'}}", "secret", "/set/n", "calls", "use: {secrets: [s]}\n"),
    "secret-not-declared": task(
        "{call: http, with: {method: get, endpoint: '${ $secrets.s }'}, timeout: {after: PT1S}}",
        "secret",
        "/with/endpoint",
        "'s' is not declared",
    ),
    "schema-format": task(
        "{set: {n: 1}, output: {schema: {format: avro, document: {}}}}", "unsupported", "/output/schema/format", "avro"
    ),
    "schema-invalid": task(
        "{set: {n: 1}, output: {schema: {document: {type: nothing}}}}",
        "schema",
        "/output/schema/document",
        "JSON schema",
    ),
    "duration-invalid": task("{wait: {fortnights: 1}}", "invalid-value", "/wait", "'wait'"),
    "timeout-unknown": task("{wait: PT1S, timeout: short}", "reference", "/timeout", "short"),
    "switch-two-defaults": task(
        "{switch: [{a: {then: end}}, {b: {then: end}}]}", "invalid-value", "/switch/1/b", "second one"
    ),
    "try-without-catch": task("{try: [{a: {set: {n: 1}}}]}", "missing-field", "", "needs 'catch'"),
    "catch-expression": task(
        "{try: [{a: {set: {n: 1}}}], catch: {errors: {with: {title: '${ .x }'}}}}",
        "invalid-value",
        "/catch/errors/with/title",
        "fixed values",
    ),
    "retry-unknown": task("{try: [{a: {set: {n: 1}}}], catch: {retry: nobody}}", "reference", "/catch/retry", "nobody"),
    "backoff-two": task(
        "{try: [{a: {set: {n: 1}}}], catch: {retry: {backoff: {linear: {}, constant: {}}}}}",
        "invalid-value",
        "/catch/retry/backoff",
        "one of",
    ),
    "error-unknown": task("{raise: {error: nobody}}", "reference", "/raise/error", "nobody"),
    "call-unknown": task("{call: htp}", "reference", "/call", "did you mean"),
    "call-shell": task("{call: shell}", "reference", "/call", "run: shell"),
    "arguments-wrong": task(
        "{call: http, with: {method: get}, timeout: {after: PT1S}}", "arguments", "/with", "endpoint"
    ),
    "for-while-parallel": task(
        "{for: {in: '[1]'}, while: 'true', metadata: {flint: {parallel: 2}}, do: [{a: {set: {n: 1}}}]}",
        "invalid-value",
        "/while",
        "parallel",
    ),
    "emit-without-type": task("{emit: {event: {with: {source: /s}}}}", "missing-field", "/emit/event/with", "'type'"),
    "listen-until-of-one": task(
        "{listen: {to: {one: {with: {type: a}}, until: 'true'}}, timeout: {after: PT1S}}",
        "invalid-value",
        "/listen/to/until",
        "belongs to 'any'",
    ),
    "endpoint-of-a-file": task(
        "{call: openapi, with: {document: {endpoint: 'file:///a.json'}, operationId: o}, timeout: {after: PT1S}}",
        "invalid-value",
        "/with/document/endpoint",
        "http:// or https://",
    ),
    "listen-read": task(
        "{listen: {to: {one: {with: {type: a}}}, read: body}, timeout: {after: PT1S}}",
        "invalid-value",
        "/listen/read",
        "'body'",
    ),
    "run-two": task(
        "{run: {shell: {command: a}, script: {language: js, code: a}}, timeout: {after: PT1S}}",
        "invalid-value",
        "/run/script",
        "one of",
    ),
    "run-source-expression": task(
        "{run: {script: {language: js, source: {endpoint: '${ .n }'}}}, timeout: {after: PT1S}}",
        "expression",
        "/run/script/source/endpoint",
        "as it is written",
    ),
    "run-workflow-namespace": task(
        "{run: {workflow: {name: w, namespace: other}}, timeout: {after: PT1S}}",
        "reference",
        "/run/workflow/namespace",
        "own namespace",
    ),
    "run-workflow-return": task(
        "{run: {workflow: {name: w}, return: code}, timeout: {after: PT1S}}",
        "invalid-value",
        "/run/return",
        "'return' of a workflow is stdout",
    ),
    "run-return": task(
        "{run: {shell: {command: a}, return: output}, timeout: {after: PT1S}}",
        "invalid-value",
        "/run/return",
        "'output'",
    ),
    "script-language": task(
        "{run: {script: {language: ruby, code: a}}, timeout: {after: PT1S}}",
        "arguments",
        "/run/script/language",
        "ruby",
    ),
    # --- calls
    "asyncapi-foreach": task(
        "{call: asyncapi, with: {document: {endpoint: 'https://x.test'}, operation: o, subscription: {consume: {amount: 1}, foreach: {item: x}}}, timeout: {after: PT1S}}",
        "unsupported",
        "/with/subscription/foreach",
        "loop over the call's output",
    ),
    **{
        f"asyncapi-{protocol}": task(
            f"{{call: asyncapi, with: {{document: {{endpoint: 'https://x.test'}}, operation: o, protocol: {protocol}, message: {{payload: 1}}}}, timeout: {{after: PT1S}}}}",
            "unsupported",
            "/with/protocol",
            f"'{protocol}'",
        )
        for protocol in REFUSED_PROTOCOLS
    },
    "authentication-certificate": task(
        "{call: http, with: {method: get, endpoint: {uri: 'https://x.test', authentication: {certificate: {}}}}, timeout: {after: PT1S}}",
        "unsupported",
        "/with/endpoint/authentication/certificate",
        "certificate",
    ),
    "authentication-unknown": task(
        "{call: http, with: {method: get, endpoint: {uri: 'https://x.test', authentication: {use: nobody}}}, timeout: {after: PT1S}}",
        "reference",
        "/with/endpoint/authentication/use",
        "nobody",
    ),
    "authorization-code": task(
        "{call: http, with: {method: get, endpoint: {uri: 'https://x.test', authentication: {oauth2: {authority: 'https://x.test', grant: authorization_code}}}}, timeout: {after: PT1S}}",
        "arguments",
        "/with/endpoint/authentication/oauth2/grant",
        "authorization_code",
    ),
    # --- use
    "catalog-secret": Refused(
        "use: {secrets: [s], catalogs: {c: {endpoint: {uri: 'https://x.test', authentication: {basic: {use: s}}}}}}\ndo: [{t: {call: 'f:1.0.0@c'}}]",
        "unsupported",
        "/use/catalogs/c/endpoint/authentication",
        "read at apply",
    ),
    "catalog-unknown": task("{call: 'f:1.0.0@nobody'}", "reference", "/call", "nobody"),
    "function-circle": Refused(
        "use: {functions: {f: {call: f}}}\ndo: [{t: {call: f}}]", "reference", "/use/functions/f/call", "circle"
    ),
    "extension-extend": Refused(
        "use: {extensions: [{e: {extend: sett, before: [{a: {set: {n: 1}}}]}}]}\ndo: [{t: {set: {n: 1}}}]",
        "invalid-value",
        "/use/extensions/0/e/extend",
        "sett",
    ),
    # --- hints
    **{
        f"hint-{name}": task(
            f"{{set: {{n: 1}}, metadata: {{flint: {{{name}: x}}}}}}",
            "unsupported",
            f"/metadata/flint/{name}",
            f"'{name}'",
        )
        for name in FLINT_HINTS
    },
    "hint-unknown": task(
        "{set: {n: 1}, metadata: {flint: {paralel: 2}}}", "unknown-field", "/metadata/flint/paralel", "did you mean"
    ),
    "hint-elsewhere": task(
        "{set: {n: 1}, metadata: {flint: {timezone: UTC}}}",
        "unknown-field",
        "/metadata/flint/timezone",
        "document's metadata",
    ),
    "hint-of-another-kind": task(
        "{set: {n: 1}, metadata: {flint: {cache: {key: '${ .n }', ttl: PT1S}}}}",
        "invalid-value",
        "/metadata/flint/cache",
        "call or run",
    ),
    "hint-key-for-all": task(
        "{call: noop, metadata: {flint: {idempotencyKey: same}}}",
        "invalid-value",
        "/metadata/flint/idempotencyKey",
        "same for every run",
    ),
    "hint-timezone": Refused(
        "do: [{t: {set: {n: 1}}}]",
        "invalid-value",
        "/document/metadata/flint/timezone",
        "time zone",
        head="metadata: {flint: {timezone: Mars/Base}}",
    ),
}


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("name", CASES)
async def test_refused(name: str, house: House) -> None:
    await check_refused(house, CASES[name], "refused")
