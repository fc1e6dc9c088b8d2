"""`$context` before anything was exported, and what of a definition has no effect or cannot be reached."""

import pytest

from flint_core.definition import compile_definition
from flint_core.machine import Machine
from support.machines import FACTS, HEAD, program_of, start


def test_the_context_is_the_workflows_transformed_input_until_something_is_exported():
    body = (
        "input: {from: '{n: .n}'}\ndo: [{a: {set: {seen: '${ $context }'}}},"
        " {b: {set: {n: '${ $context.n + 1 }'}, export: {as: '{m: .n}'}}},"
        " {c: {set: {before: '${ $steps.a.seen }', after: '${ $context }'}}}]"
    )
    driver = start(body, {"n": 1, "rest": 2}).run()
    assert driver.output == {"before": {"n": 1}, "after": {"m": 2}}


def test_the_first_context_is_the_same_after_a_restore_and_is_not_kept_twice():
    body = "do: [{w: {wait: PT1H}}, {a: {set: {seen: '${ $context.text }'}}}]"
    driver = start(body, {"text": "x" * 1_000})
    driver.settle()
    snapshot = driver.machine.snapshot()
    assert snapshot.count(b"x" * 1_000) == 1
    again = Machine.restore(program_of(body), FACTS, snapshot)
    assert again.snapshot() == snapshot
    assert driver.run().output == {"seen": "x" * 1_000}


def test_null_may_be_exported():
    body = "do: [{a: {set: {n: 1}, export: {as: 'null'}}}, {w: {wait: PT1H}}, {b: {set: {seen: '${ $context }'}}}]"
    driver = start(body, {"n": 1})
    driver.settle()
    again = Machine.restore(program_of(body), FACTS, driver.machine.snapshot())
    assert again.snapshot() == driver.machine.snapshot()
    assert driver.run().output == {"seen": None}


ENDPOINTS = {
    "openapi": (
        "call: openapi, with: {document: {endpoint: 'file:///a'}, operationId: o}",
        "/with/document/endpoint",
        "",
    ),
    "grpc": (
        "call: grpc, with: {proto: {endpoint: {uri: 'file:///a.proto'}}, service: {name: s, host: h}, method: m}",
        "/with/proto/endpoint/uri",
        "`proto.content`",
    ),
    "script": (
        "run: {script: {language: js, source: {endpoint: 'file:///a.js'}}}",
        "/run/script/source/endpoint",
        "`code`",
    ),
}


@pytest.mark.parametrize("what", ENDPOINTS)
def test_an_address_that_no_worker_reads_is_refused(what):
    task, place, hint = ENDPOINTS[what]
    findings = compile_definition(HEAD + f"do: [{{t: {{{task}, timeout: {{after: PT1S}}}}}}]").findings
    (found,) = [finding for finding in findings if "http:// or https://" in finding.message]
    assert (found.pointer, found.severity) == (f"/do/0/t{place}", "error")
    assert hint in found.message


WITHOUT_EFFECT = {
    "mcp": (
        "call: mcp, with: {method: tools/list, transport: {http: {endpoint: 'http://x'}, options: {a: b}}}",
        "options",
    ),
    "a2a": (
        "call: a2a, with: {method: tasks/list, agentCard: {endpoint: 'http://x'}, server: 'http://x'}",
        "server",
    ),
    "oauth2": (
        "call: http, with: {method: get, endpoint: {uri: 'http://x', authentication: {oauth2: {authority: 'http://a',"
        " grant: client_credentials, client: {id: a, secret: b}, endpoints: {revocation: /r}}}}}",
        "revocation",
    ),
}


@pytest.mark.parametrize("what", WITHOUT_EFFECT)
def test_what_has_no_effect_is_told(what):
    task, name = WITHOUT_EFFECT[what]
    compiled = compile_definition(HEAD + f"do: [{{t: {{{task}, timeout: {{after: PT1S}}}}}}]")
    assert compiled.program is not None
    (found,) = [finding for finding in compiled.findings if finding.rule == "no-effect"]
    assert found.pointer.endswith(f"/{name}")
