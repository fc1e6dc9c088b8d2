"""Calls over HTTP: call http and call openapi with each of their arguments, endpoints, URI templates."""

# ruff: noqa: E501 - a table: one definition a line, as far as it goes

from __future__ import annotations

from typing import Any

import pytest
import pytest_asyncio

from flint_sdk.testing import Failure
from support.house import House
from support.language import ANY, Case, Outcome, check, check_kit, run_cases
from support.language_world import World

COMMUNICATION = "https://serverlessworkflow.io/spec/1.0.0/errors/communication"
VALIDATION = "https://serverlessworkflow.io/spec/1.0.0/errors/validation"


def http(arguments: str, output: Any, given: str = "", input: Any = None, **more: Any) -> Case:
    """A call of the tests' server, and what `given` makes of its answer."""
    shape = f", output: {{as: '{given}'}}" if given else ""
    return Case(
        f"timeout: {{after: PT20S}}\ndo: [{{a: {{call: http, with: {{{arguments}}}{shape}}}}}]",
        output,
        input=input,
        **{"stubs": None, **more},
    )


def openapi(arguments: str, output: Any, given: str = "", **more: Any) -> Case:
    document = more.pop("document", "api3.json")
    shape = f", output: {{as: '{given}'}}" if given else ""
    return Case(
        f"timeout: {{after: PT20S}}\ndo: [{{a: {{call: openapi, with: {{document: {{endpoint: '<http>/documents/{document}'}}, {arguments}}}{shape}}}}}]",
        output,
        **{"stubs": None, **more},
    )


ECHO = "method: get, endpoint: '<http>/echo/x'"
POST = "method: post, endpoint: '<http>/echo/x'"

CASES = {
    # --- call http
    "http-get": http(ECHO, ["GET", "/echo/x"], "${ [.method, .path] }"),
    "http-post": http(f"{POST}, body: {{n: 1}}", {"n": 1}, "${ .body | fromjson }"),
    "http-put": http("method: PUT, endpoint: '<http>/echo/x', body: [1, 2]", [1, 2], "${ .body | fromjson }"),
    "http-patch": http("method: patch, endpoint: '<http>/echo/x', body: {}", "PATCH", ".method"),
    "http-delete": http("method: delete, endpoint: '<http>/echo/x'", "DELETE", ".method"),
    "http-head": http("method: head, endpoint: '<http>/echo/x'", None),
    "http-method-expression": http("method: '${ .m }', endpoint: '<http>/echo/x'", "PUT", ".method", {"m": "put"}),
    "http-endpoint-object": http("method: get, endpoint: {uri: '<http>/echo/x'}", "/echo/x", ".path"),
    "http-endpoint-expression": http("method: get, endpoint: '<http>/echo/${ .p }'", "/echo/y", ".path", {"p": "y"}),
    "http-uri-template": http("method: get, endpoint: '<http>/echo/{sku}'", "/echo/a b", ".path", {"sku": "a b"}),
    "http-uri-template-query": http("method: get, endpoint: '<http>/echo/x{?a,b}'", [["a", "1"]], ".query", {"a": 1}),
    "http-uri-template-missing": http(
        "method: get, endpoint: '<http>/echo/{sku}'", None, "", {"n": 1}, error={"status": 400, "instance": "/do/0/a"}
    ),
    "http-endpoint-variables": http(
        "method: get, endpoint: {uri: '<http>/echo/{sku}', variables: {sku: '${ .deep.sku }'}}",
        "/echo/chair",
        ".path",
        {"deep": {"sku": "chair"}},
    ),
    "http-headers": http(
        f"{ECHO}, headers: {{X-One: one, X-Two: [a, b], X-None: null, X-Number: 5}}",
        ["one", "a, b", None, "5"],
        '${ [.headers["x-one"], .headers["x-two"], .headers["x-none"], .headers["x-number"]] }',
    ),
    "http-headers-expression": http(
        f"{ECHO}, headers: {{X-One: '${{ .one }}'}}", "1", '${ .headers["x-one"] }', {"one": 1}
    ),
    "http-query": http(f"{ECHO}, query: {{a: 1, b: [x, y], c: null}}", [["a", "1"], ["b", "x"], ["b", "y"]], ".query"),
    "http-body-text": http(f"{POST}, body: 'plain ${{ .n }}'", "plain 1", ".body", {"n": 1}),
    "http-body-null": http(f"{POST}, body: null", ANY, ".body"),
    "http-body-form": http(
        f"{POST}, headers: {{Content-Type: application/x-www-form-urlencoded}}, body: {{a: 1, b: x y}}",
        "a=1&b=x+y",
        ".body",
    ),
    "http-body-multipart": http(
        f"{POST}, headers: {{Content-Type: multipart/form-data}}, body: {{title: A note, file: {{text: Hello, filename: note.txt, content_type: text/plain}}}}",
        {"title": "A note", "file": {"filename": "note.txt", "type": "text/plain", "text": "Hello"}},
        ".form",
    ),
    "http-body-bytes": http(
        f"{POST}, headers: {{Content-Type: application/octet-stream}}, body: {{base64: aGFsbG8=}}", "hallo", ".body"
    ),
    "http-output-content": http(f"{ECHO}, output: content", "GET", ".method"),
    "http-output-response": http(
        f"{ECHO}, output: response",
        [200, "GET", "get", True],
        "${ [.statusCode, .content.method, (.request.method | ascii_downcase), (.headers | length > 0)] }",
    ),
    "http-output-raw": http("method: get, endpoint: '<http>/bytes', output: raw", "AAH/"),
    "http-content-bytes": http("method: get, endpoint: '<http>/bytes'", "AAH/"),
    "http-content-empty": http("method: get, endpoint: '<http>/empty'", None),
    "http-redirect": http("method: get, endpoint: '<http>/moved', redirect: true", "/echo/moved", ".path"),
    "http-redirect-refused": http(
        "method: get, endpoint: '<http>/moved', redirect: false", None, error={"type": COMMUNICATION, "status": 302}
    ),
    "http-redirect-default": http("method: get, endpoint: '<http>/moved'", None, error={"status": 302}),
    "http-status": http(
        "method: get, endpoint: '<http>/status/404'",
        None,
        error={"type": COMMUNICATION, "status": 404, "instance": "/do/0/a"},
        stubs={"a": Failure(404)},
    ),
    "http-timeout": Case(
        "do: [{a: {call: http, with: {method: get, endpoint: '<http>/slow'}, timeout: {after: PT0.2S}}}]",
        error={"type": "https://serverlessworkflow.io/spec/1.0.0/errors/timeout", "status": 408},
        stubs=None,
    ),
    "http-unreachable": http("method: get, endpoint: 'http://127.0.0.1:1/'", None, error={"type": COMMUNICATION}),
    "http-stubbed": http(
        "method: get, endpoint: '<http>/documents/schemas/order.json'",
        "object",
        ".type",
        stubs={"a": {"type": "object"}},
    ),
    "http-idempotency-key": http(f"{POST}", True, '${ .headers["idempotency-key"] | length > 10 }'),
    "http-idempotency-key-of-ones-own": http(
        f"{POST}, headers: {{Idempotency-Key: mine}}", "mine", '${ .headers["idempotency-key"] }'
    ),
    "http-traceparent": http(ECHO, True, '${ .headers.traceparent | startswith("00-") }'),
    "http-secret": Case(
        f"use: {{secrets: [token]}}\ntimeout: {{after: PT20S}}\ndo: [{{a: {{call: http, with: {{{ECHO}, headers: {{X-Key: '${{ $secrets.token }}'}}}}, output: {{as: '${{ .headers[\"x-key\"] }}'}}}}}}]",
        "***",
        stubs=None,
    ),
    "http-bad-argument": http(
        "method: get, endpoint: '<http>/echo/x', headers: '${ .n }'", None, "", {"n": 1}, error={"status": 400}
    ),
    # --- call openapi
    "openapi-parameters": openapi(
        "operationId: find, parameters: {sku: chair, tag: [new, small], X-Trace: t1}",
        ["/echo/pets/chair", [["tag", "new"], ["tag", "small"]], "t1"],
        '${ [.path, .query, .headers["x-trace"]] }',
    ),
    "openapi-parameters-expression": openapi(
        "operationId: find, parameters: {sku: '${ .sku }'}", "/echo/pets/bed", ".path", input={"sku": "bed"}
    ),
    "openapi-body": openapi(
        "operationId: create, parameters: {body: {sku: chair}}", {"sku": "chair"}, "${ .body | fromjson }"
    ),
    "openapi-body-invalid": openapi(
        "operationId: create, parameters: {body: {n: 1}}", None, error={"type": VALIDATION, "status": 400}
    ),
    "openapi-parameter-missing": openapi(
        "operationId: find, parameters: {tag: [x]}", None, error={"type": VALIDATION, "status": 400}
    ),
    "openapi-operation-unknown": openapi("operationId: nothing", None, error={"status": 400}),
    "openapi-swagger-2": openapi(
        "operationId: find, parameters: {sku: chair, tag: [a, b]}",
        ["/echo/pets/chair", [["tag", "a,b"]]],
        "${ [.path, .query] }",
        document="api2.json",
    ),
    "openapi-document-name": Case(
        "timeout: {after: PT20S}\ndo: [{a: {call: openapi, with: {document: {name: shop, endpoint: {uri: '<http>/documents/api3.json'}}, operationId: find, parameters: {sku: x}}, output: {as: .path}}}]",
        "/echo/pets/x",
        stubs=None,
    ),
    "openapi-document-authentication": Case(
        "timeout: {after: PT20S}\ndo: [{a: {call: openapi, with: {document: {endpoint: {uri: '<http>/documents/guarded/api3.json', authentication: {basic: {username: ada, password: x}}}}, operationId: find, parameters: {sku: x}}, output: {as: .path}}}]",
        "/echo/pets/x",
        stubs=None,
    ),
    "openapi-document-missing": openapi("operationId: find", None, document="none.json", error={"status": 404}),
    "openapi-authentication": openapi(
        "operationId: find, parameters: {sku: x}, authentication: {bearer: {token: abcdef}}",
        "***",
        '${ .headers.authorization | sub("Bearer "; "") }',
    ),
    "openapi-output-response": openapi("operationId: find, parameters: {sku: x}, output: response", 200, ".statusCode"),
    "openapi-output-raw": openapi("operationId: find, parameters: {sku: x}, output: raw", "string", "${ type }"),
    "openapi-output-content": openapi("operationId: find, parameters: {sku: x}, output: content", "GET", ".method"),
    "openapi-redirect": openapi("operationId: moved, redirect: true", "/echo/moved", ".path"),
    "openapi-redirect-refused": openapi("operationId: moved", None, error={"status": 302}),
    "openapi-server-variables": openapi(
        "operationId: find, parameters: {sku: x}, server: {variables: {stage: echo/live}}", "/echo/live/pets/x", ".path"
    ),
    "openapi-server-url": openapi(
        "operationId: find, parameters: {sku: x}, server: {url: '<http>/echo/other'}", "/echo/other/pets/x", ".path"
    ),
}
LOCAL = {name: case for name, case in CASES.items() if case.stubs is not None}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def outcomes(house: House, world: World) -> dict[str, Outcome]:
    return await run_cases(house, world, CASES, "http")


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("name", CASES)
async def test_engine(name: str, outcomes: dict[str, Outcome]) -> None:
    check(CASES[name], outcomes[name])


@pytest.mark.parametrize("name", LOCAL)
def test_kit(name: str) -> None:
    check_kit(CASES[name], f"http-{name}")
