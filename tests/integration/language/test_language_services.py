"""Calls of services: gRPC, AsyncAPI, MCP, A2A, SQL, email, custom functions, with each of their arguments."""

# ruff: noqa: E501 - a table: one definition a line, as far as it goes

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

import support.mcp_server as mcp_script
from flint_sdk import FunctionError, FunctionWorker, Run, function
from support.house import House
from support.language import ANY, Case, Outcome, check, check_kit, run_cases
from support.language_world import World
from support.nats_server import NatsServer

RUNTIME = "https://serverlessworkflow.io/spec/1.0.0/errors/runtime"
TIMED = "timeout: {after: PT20S}\n"


def call(function: str, arguments: str, output: Any, given: str = "", **more: Any) -> Case:
    """A call, and what `given` makes of its answer."""
    shape = f", output: {{as: '{given}'}}" if given else ""
    return Case(
        f"{TIMED}do: [{{a: {{call: {function}, with: {{{arguments}}}{shape}}}}}]", output, **{"stubs": None, **more}
    )


def grpc(arguments: str, output: Any, given: str = "", service: str = "", **more: Any) -> Case:
    place = f"service: {{name: shop.v1.Shop, host: 127.0.0.1, port: <grpc>{service}}}"
    return call("grpc", f"{place}, {arguments}", output, given, **more)


def mcp(
    method: str, output: Any, given: str, arguments: str = "", transport: str = "http: {endpoint: '<mcp>'}", **more: Any
) -> Case:
    return call("mcp", f"method: {method}, transport: {{{transport}}}{arguments}", output, given, **more)


def a2a(
    method: str, output: Any, given: str, arguments: str = "", agent: str = "server: '<http>/agent'", **more: Any
) -> Case:
    return call("a2a", f"method: {method}, {agent}{arguments}", output, given, **more)


def sql(arguments: str, output: Any, given: str = "", **more: Any) -> Case:
    return call("sql", f"connection: orders, {arguments}", output, given, **more)


def mailed(subject: str, **wanted: Any) -> Any:
    """One mail with this subject came, with these headers; `parts` and `to` are looked at too."""

    async def look(house: House, world: World, run: Run) -> None:
        mail = world.mail(subject)
        for name, value in wanted.items():
            if name == "text":
                body = mail.get_body(("plain",))
                assert body is not None and body.get_content().strip() == value
            elif name == "html":
                body = mail.get_body(("html",))
                assert body is not None and body.get_content().strip() == value
            elif name == "attachments":
                found = [(part.get_filename(), part.get_content_type()) for part in mail.iter_attachments()]
                assert found == value
            else:
                assert mail[name.replace("_", "-")] == value

    return look


def email(arguments: str, output: Any, look: Any = None, **more: Any) -> Case:
    return call("email", f"connection: mail, {arguments}", output, "${ .accepted }", check=look, **more)


def pair(document: str, consume: str, output: Any, filter: str = "", more: str = "", broker: str = "") -> Case:
    """Subscribes in one branch, publishes in a loop in the other; the subscriber's end wins."""
    place = f"document: {{endpoint: '<http>/documents/{document}.json'}}{broker}"
    picked = f"filter: '{filter}', " if filter else ""
    return Case(
        f"""
timeout: {{after: PT30S}}
do:
  - talk:
      fork:
        compete: true
        branches:
          - hear:
              call: asyncapi
              with: {{{place}, operation: hear, subscription: {{{picked}consume: {{{consume}}}}}}}
          - say:
              for: {{in: '[range(2000)]'}}
              do:
                - publish: {{call: asyncapi, with: {{{place}, operation: say, message: {{payload: {{n: '${{ $index % 5 }}'}}{more}}}}}}}
                - pause: {{wait: {{milliseconds: 10}}}}
      output: {{as: '${{ map(.payload.n) }}'}}
""",
        output,
        stubs=None,
    )


CASES = {
    # --- call grpc
    "grpc-proto": grpc(
        "proto: {endpoint: '<http>/documents/shop.proto'}, method: Order, arguments: {sku: chair, amount: 2}",
        {"text": "chair x2", "total": 2},
    ),
    "grpc-proto-object": grpc(
        "proto: {name: shop, endpoint: {uri: '<http>/documents/shop.proto'}}, method: Order, arguments: {sku: bed}",
        "bed x0",
        ".text",
    ),
    "grpc-proto-content": grpc(
        "proto: {content: 'syntax = \"proto3\"; package shop.v1; message OrderRequest { string sku = 1; } message OrderResponse { string text = 1; } service Shop { rpc Order(OrderRequest) returns (OrderResponse); }'}, method: Order, arguments: {sku: bed}",
        "bed x0",
        ".text",
    ),
    "grpc-reflection": grpc("method: Order, arguments: {sku: lamp, amount: 1}", "lamp x1", ".text"),
    "grpc-arguments-expression": grpc(
        "method: Order, arguments: {sku: '${ .sku }', amount: '${ .n }'}",
        "lamp x3",
        ".text",
        input={"sku": "lamp", "n": 3},
    ),
    "grpc-server-stream": grpc("method: Watch, arguments: {sku: lamp, amount: 3}", [0, 1, 2], "${ map(.total // 0) }"),
    "grpc-client-stream": grpc("method: Sum, arguments: [{amount: 1}, {amount: 5}]", 6, ".total"),
    "grpc-metadata": grpc("method: Order, arguments: {sku: a}, metadata: {x-shop: north}", "a x0 north", ".text"),
    "grpc-authentication": grpc(
        "method: Order, arguments: {sku: a}",
        True,
        '${ .text | startswith("a x0 ") }',
        ", authentication: {bearer: {token: abcdef}}",
    ),
    "grpc-tls-false": grpc("method: Order, arguments: {sku: a}", "a x0", ".text", ", tls: false"),
    "grpc-not-found": grpc("method: Order, arguments: {sku: none}", None, error={"status": 404, "instance": "/do/0/a"}),
    "grpc-unknown-method": grpc("method: Nothing, arguments: {}", None, error={"status": 400}),
    "grpc-unreachable": call(
        "grpc",
        "service: {name: shop.v1.Shop, host: 127.0.0.1, port: 1}, method: Order",
        None,
        error={"type": "https://serverlessworkflow.io/spec/1.0.0/errors/communication"},
    ),
    # --- call mcp
    "mcp-tools-call": mcp(
        "tools/call",
        5,
        "${ .structuredContent.result }",
        ", parameters: {name: add, arguments: {a: 2, b: '${ .b }'}}",
        input={"b": 3},
    ),
    "mcp-tools-list": mcp("tools/list", True, '${ [.tools[].name] | contains(["add"]) }'),
    "mcp-prompts-list": mcp("prompts/list", "greet", "${ .prompts[0].name }"),
    "mcp-prompts-get": mcp(
        "prompts/get",
        "Greet Ada",
        "${ .messages[0].content.text }",
        ", parameters: {name: greet, arguments: {name: Ada}}",
    ),
    "mcp-resources-list": mcp("resources/list", "shop://opening-hours", "${ .resources[0].uri }"),
    "mcp-resources-read": mcp(
        "resources/read", "always", "${ .contents[0].text }", ", parameters: {uri: 'shop://opening-hours'}"
    ),
    "mcp-resources-templates-list": mcp("resources/templates/list", [], ".resourceTemplates"),
    "mcp-protocol-version": mcp("tools/list", "object", "${ type }", ", protocolVersion: '2025-03-26'"),
    "mcp-client": mcp("tools/list", "object", "${ type }", ", client: {name: shop, version: 1.0.0}"),
    "mcp-timeout": mcp("tools/call", None, "", ", timeout: PT0.3S, parameters: {name: slow}", error={"status": 408}),
    "mcp-timeout-object": mcp(
        "tools/call", None, "", ", timeout: {milliseconds: 300}, parameters: {name: slow}", error={"status": 408}
    ),
    "mcp-fails": mcp(
        "tools/call", None, "", ", parameters: {name: fail, arguments: {text: no}}", error={"type": RUNTIME}
    ),
    "mcp-http-headers": mcp(
        "tools/list",
        "object",
        "${ type }",
        transport="http: {endpoint: {uri: '<mcp>', authentication: {bearer: {token: abcdef}}}, headers: {X-Shop: north}}",
    ),
    "mcp-options": mcp("tools/list", "object", "${ type }", transport="http: {endpoint: '<mcp>'}, options: {}"),
    "mcp-stdio": mcp(
        "tools/call",
        5,
        "${ .structuredContent.result }",
        ", parameters: {name: add, arguments: {a: 2, b: 3}}",
        transport="stdio: {command: '<python>', arguments: ['<mcp-script>'], environment: {SHOP: north}}",
    ),
    "mcp-stdio-not-allowed": mcp(
        "tools/list", None, "", transport="stdio: {command: /bin/not-there}", error={"status": 403}
    ),
    # --- call a2a
    "a2a-send": a2a(
        "message/send",
        ["user", True, "hi"],
        "${ .params.message | [.role, (.messageId | length > 10), .parts[0].text] }",
        ", parameters: {message: {parts: [{kind: text, text: hi}]}}",
    ),
    "a2a-stream": a2a(
        "message/stream", [0, 1], "${ map(.n) }", ", parameters: {message: {parts: [{kind: text, text: hi}]}}"
    ),
    "a2a-agent-card": a2a(
        "tasks/get",
        "t1",
        "${ .params.id }",
        ", parameters: {id: t1}",
        agent="agentCard: {name: echo, endpoint: '<http>/agent-card.json'}",
    ),
    "a2a-server-object": a2a(
        "tasks/get",
        "t1",
        "${ .params.id }",
        ", parameters: {id: '${ .id }'}",
        agent="server: {uri: '<http>/agent', authentication: {bearer: {token: abcdef}}}",
        input={"id": "t1"},
    ),
    "a2a-tasks-list": a2a("tasks/list", "tasks/list", ".method"),
    "a2a-tasks-cancel": a2a("tasks/cancel", "tasks/cancel", ".method", ", parameters: {id: t1}"),
    "a2a-resubscribe": a2a("tasks/resubscribe", 2, "${ length }", ", parameters: {id: t1}"),
    "a2a-push-set": a2a(
        "tasks/pushNotificationConfig/set", "tasks/pushNotificationConfig/set", ".method", ", parameters: {id: t1}"
    ),
    "a2a-push-get": a2a(
        "tasks/pushNotificationConfig/get", "tasks/pushNotificationConfig/get", ".method", ", parameters: {id: t1}"
    ),
    "a2a-push-list": a2a(
        "tasks/pushNotificationConfig/list", "tasks/pushNotificationConfig/list", ".method", ", parameters: {id: t1}"
    ),
    "a2a-push-delete": a2a(
        "tasks/pushNotificationConfig/delete",
        "tasks/pushNotificationConfig/delete",
        ".method",
        ", parameters: {id: t1}",
    ),
    "a2a-extended-card": a2a("agent/getAuthenticatedExtendedCard", "agent/getAuthenticatedExtendedCard", ".method"),
    "a2a-fails": a2a("tasks/get", None, "", ", parameters: {id: nothing}", error={"type": RUNTIME}),
    # --- call sql
    "sql-query": sql(
        "query: 'SELECT 1 AS one, :n AS n', parameters: {n: '${ .n }'}", [{"one": 1, "n": 5}], input={"n": 5}
    ),
    "sql-query-list": sql("query: 'SELECT 1 AS one WHERE 2 IN :list', parameters: {list: [1, 2]}", [{"one": 1}]),
    "sql-execute": sql(
        "execute: 'CREATE TABLE IF NOT EXISTS executed (id INTEGER PRIMARY KEY)'", "number", "${ .affected | type }"
    ),
    "sql-batch": Case(
        TIMED
        + "do: [{c: {call: sql, with: {connection: orders, execute: 'CREATE TABLE IF NOT EXISTS batched (n INTEGER)'}}}, {a: {call: sql, with: {connection: orders, batch: {statement: 'INSERT INTO batched (n) VALUES (:n)', parameters: [{n: 1}, {n: 2}]}}, output: {as: .affected}}}]",
        2,
        stubs=None,
    ),
    "sql-transaction": sql(
        "transaction: [{execute: 'CREATE TABLE IF NOT EXISTS moved (n INTEGER)'}, {execute: 'INSERT INTO moved (n) VALUES (:n)', parameters: {n: 7}}, {query: 'SELECT max(n) AS n FROM moved'}]",
        [{"n": 7}],
        "${ .[2] }",
    ),
    "sql-isolation": sql("query: 'SELECT 1 AS one', isolation: serializable", [{"one": 1}]),
    "sql-read-only": sql(
        "execute: 'CREATE TABLE never (n INTEGER)', read_only: true", None, error={"instance": "/do/0/a"}
    ),
    "sql-max-rows": sql("query: 'SELECT 1 AS n UNION SELECT 2', max_rows: 1", None, error={"instance": "/do/0/a"}),
    "sql-idempotency-key": sql("query: 'SELECT length(:idempotency_key) > 10 AS long'", [{"long": 1}]),
    "sql-wrong": sql("query: 'SELECT nothing FROM nowhere'", None, error={"instance": "/do/0/a"}),
    "sql-conflict": sql(
        "transaction: [{execute: 'CREATE TABLE IF NOT EXISTS once (n INTEGER PRIMARY KEY)'}, {execute: 'INSERT INTO once VALUES (1)'}, {execute: 'INSERT INTO once VALUES (1)'}]",
        None,
        error={"status": 409},
    ),
    # --- call email
    "email-text": email(
        "to: Ada <ada@example.com>, subject: S-text, text: 'Hello ${ .who }'",
        ["ada@example.com"],
        mailed("S-text", text="Hello Ada", From="Shop <shop@example.com>"),
        input={"who": "Ada"},
    ),
    "email-html": email(
        "to: ada@example.com, subject: S-html, html: <p>Hi</p>", ["ada@example.com"], mailed("S-html", html="<p>Hi</p>")
    ),
    "email-both": email(
        "to: ada@example.com, subject: S-both, text: Hi, html: <p>Hi</p>",
        ["ada@example.com"],
        mailed("S-both", text="Hi", html="<p>Hi</p>"),
    ),
    "email-many": email(
        "to: [ada@example.com, bob@example.com], cc: carl@example.com, bcc: [dora@example.com], reply_to: desk@example.com, subject: S-many, text: Hi",
        ["ada@example.com", "bob@example.com", "carl@example.com", "dora@example.com"],
        mailed("S-many", Cc="carl@example.com", Bcc=None, Reply_To="desk@example.com"),
    ),
    "email-from": email(
        "to: ada@example.com, from: desk@example.com, subject: S-from, text: Hi",
        ["ada@example.com"],
        mailed("S-from", From="desk@example.com"),
    ),
    "email-attachments": email(
        "to: ada@example.com, subject: S-files, text: Hi, attachments: [{name: note.txt, content_type: text/plain, text: A note}, {name: b.bin, content_type: application/octet-stream, base64: AAH/}]",
        ["ada@example.com"],
        mailed("S-files", attachments=[("note.txt", "text/plain"), ("b.bin", "application/octet-stream")]),
    ),
    "email-inline": email(
        "to: ada@example.com, subject: S-inline, html: '<img src=\"cid:logo\">', attachments: [{name: logo.png, content_type: image/png, inline: logo, base64: AAH/}]",
        ["ada@example.com"],
        mailed("S-inline", html='<img src="cid:logo">'),
    ),
    "email-refused": call(
        "email",
        "connection: mail, to: nobody@example.com, subject: S-no, text: Hi",
        None,
        error={"instance": "/do/0/a"},
    ),
    # --- call asyncapi
    "asyncapi-publish": call(
        "asyncapi",
        "document: {endpoint: '<http>/documents/nats.json'}, operation: say, message: {payload: {n: 1}, headers: {shop: north}}",
        {"protocol": "nats", "address": "orders.new"},
    ),
    "asyncapi-version-2-channel": call(
        "asyncapi",
        "document: {endpoint: '<http>/documents/nats2.json'}, channel: orders.two, message: {payload: hi}",
        {"protocol": "nats", "address": "orders.two"},
    ),
    "asyncapi-version-2-operation": call(
        "asyncapi",
        "document: {endpoint: '<http>/documents/nats2.json'}, operation: say, message: {payload: hi}",
        "orders.two",
        ".address",
    ),
    "asyncapi-server": call(
        "asyncapi",
        "document: {endpoint: '<http>/documents/nats2.json'}, channel: orders.two, message: {payload: hi}, server: {name: main, variables: {host: localhost}}",
        "orders.two",
        ".address",
    ),
    "asyncapi-protocol": call(
        "asyncapi",
        "document: {endpoint: '<http>/documents/nats.json'}, operation: say, protocol: nats, message: {payload: 1}",
        "nats",
        ".protocol",
    ),
    "asyncapi-protocol-missing": call(
        "asyncapi",
        "document: {endpoint: '<http>/documents/nats.json'}, operation: say, protocol: amqp, message: {payload: 1}",
        None,
        error={"status": 400},
    ),
    "asyncapi-http": call(
        "asyncapi",
        "document: {endpoint: '<http>/documents/web.json'}, operation: say, message: {payload: {n: 1}}",
        "http",
        ".protocol",
    ),
    "asyncapi-http-authentication": call(
        "asyncapi",
        "document: {endpoint: '<http>/documents/web.json'}, operation: say, message: {payload: {n: 1}}, authentication: {bearer: {token: abcdef}}",
        "http",
        ".protocol",
    ),
    "asyncapi-consume-amount": pair("nats-amount", "amount: 2", ANY),
    "asyncapi-consume-filter": pair("nats-filter", "amount: 2", [3, 3], "${ .payload.n == 3 }"),
    "asyncapi-consume-while": pair("nats-while", "while: .payload.n != 3", ANY),
    "asyncapi-consume-until": pair("nats-until", "until: '${ ($messages | length) == 3 }'", ANY),
    "asyncapi-consume-for": call(
        "asyncapi",
        "document: {endpoint: '<http>/documents/nats-none.json'}, operation: hear, subscription: {consume: {for: {milliseconds: 200}}}",
        [],
    ),
    "asyncapi-consume-amount-for": call(
        "asyncapi",
        "document: {endpoint: '<http>/documents/nats-none.json'}, operation: hear, subscription: {consume: {amount: 5, for: PT0.2S}}",
        [],
    ),
    # --- custom functions
    "function": call("tests/greet:1.0.0", "name: '${ .who }'", {"greeting": "Hello Ada"}, input={"who": "Ada"}),
    "function-latest": call("tests/greet", "name: Bob", {"greeting": "Hello Bob"}),
    "function-fails": call("tests/refuse:1.0.0", "", None, error={"type": "https://x.test/refused", "status": 422}),
    # --- call noop
    "noop": call("noop", "output: {n: '${ .n }'}", {"n": 1}, input={"n": 1}, stubs={}),
    "noop-nothing": Case("do: [{a: {call: noop}}]", None, input={"n": 1}),
    "noop-delay": call("noop", "delay_ms: 50, output: 1", 1, stubs={}, least_s=0.05),
    "noop-fail": call(
        "noop",
        "fail: {type: 'https://x.test/a', status: 418, title: T, detail: D}",
        None,
        error={"type": "https://x.test/a", "status": 418, "title": "T", "detail": "D", "instance": "/do/0/a"},
        stubs={},
    ),
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def workers(house: House, world: World, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[None]:
    """A broker of NATS and a function worker, beside the outside world."""
    broker = NatsServer(tmp_path_factory.mktemp("nats"))
    broker.start()
    world.places |= {"nats": str(broker.port), "mcp-script": str(Path(mcp_script.__file__))}

    @function(name="tests/greet", version="1.0.0")
    async def greet(name: str) -> dict[str, str]:
        return {"greeting": f"Hello {name}"}

    @function(name="tests/refuse", version="1.0.0")
    async def refuse() -> None:
        raise FunctionError("Refused", type="https://x.test/refused", status=422)

    worker = FunctionWorker([greet, refuse], address=house.stack.gateway, key=house.stack.admin_key, name="language")
    serving = asyncio.create_task(worker.serve())
    try:
        await asyncio.wait_for(worker.connected(), 15)
        yield
        worker.stop()
        await asyncio.wait_for(serving, 30)
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        broker.kill()


LOCAL = {name: case for name, case in CASES.items() if case.stubs is not None}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def outcomes(house: House, world: World, workers: None) -> dict[str, Outcome]:
    return await run_cases(house, world, CASES, "service")


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("name", CASES)
async def test_engine(name: str, outcomes: dict[str, Outcome]) -> None:
    check(CASES[name], outcomes[name])


@pytest.mark.parametrize("name", LOCAL)
def test_kit(name: str) -> None:
    check_kit(CASES[name], f"service-{name}")
