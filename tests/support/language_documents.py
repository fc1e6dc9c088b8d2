"""What the outside world of the language's tests publishes: described APIs, schemas, functions, scripts."""

from __future__ import annotations

from typing import Any, Final

__all__ = ["DOCUMENTS", "PROTO", "TEXTS"]

PROTO: Final = """
syntax = "proto3";
package shop.v1;

service Shop {
  rpc Order(OrderRequest) returns (OrderResponse);
  rpc Watch(OrderRequest) returns (stream OrderResponse);
  rpc Sum(stream OrderRequest) returns (OrderResponse);
}

message OrderRequest { string sku = 1; int32 amount = 2; }
message OrderResponse { string text = 1; int32 total = 2; }
"""

_ORDER: Final[dict[str, Any]] = {"type": "object", "required": ["sku"], "properties": {"sku": {"type": "string"}}}


def _api(version: str) -> dict[str, Any]:
    answer = {"200": {"description": "what came"}}
    sku = {"name": "sku", "in": "path", "required": True}
    tag = {"name": "tag", "in": "query"}
    trace = {"name": "X-Trace", "in": "header"}
    if version == "2.0":
        plain = {"type": "string"}
        tags = {"type": "array", "items": plain, "collectionFormat": "csv"}
        return {
            "swagger": "2.0",
            "info": {"title": "Shop", "version": "1"},
            "host": "127.0.0.1:<port>",
            "basePath": "/echo",
            "schemes": ["http"],
            "paths": {
                "/pets/{sku}": {
                    "get": {
                        "operationId": "find",
                        "parameters": [sku | plain, tag | tags, trace | plain],
                        "responses": answer,
                    }
                }
            },
        }
    schema = {"schema": {"type": "string"}}
    body = {"content": {"application/json": {"schema": _ORDER}}}
    return {
        "openapi": "3.0.3",
        "info": {"title": "Shop", "version": "1"},
        "servers": [{"url": "<http>/{stage}", "variables": {"stage": {"default": "echo"}}}],
        "paths": {
            "/pets/{sku}": {
                "get": {
                    "operationId": "find",
                    "parameters": [
                        sku | schema,
                        tag | {"schema": {"type": "array", "items": {"type": "string"}}},
                        trace | schema,
                    ],
                    "responses": answer,
                }
            },
            "/pets": {"post": {"operationId": "create", "requestBody": body, "responses": answer}},
            "/moved": {"get": {"operationId": "moved", "servers": [{"url": "<http>"}], "responses": answer}},
        },
    }


def _asyncapi(protocol: str, host: str, address: str, **channel: Any) -> dict[str, Any]:
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "Shop", "version": "1"},
        "defaultContentType": "application/json",
        "servers": {"main": {"host": host, "protocol": protocol, **channel.pop("server", {})}},
        "channels": {"orders": {"address": address, **channel}},
        "operations": {
            "say": {"action": "send", "channel": {"$ref": "#/channels/orders"}},
            "hear": {"action": "receive", "channel": {"$ref": "#/channels/orders"}},
        },
    }


DOCUMENTS: Final[dict[str, Any]] = {
    "api3.json": _api("3.0.3"),
    "api2.json": _api("2.0"),
    "nats.json": _asyncapi("nats", "127.0.0.1:<nats>", "orders.new"),
    "nats-amount.json": _asyncapi("nats", "127.0.0.1:<nats>", "orders.amount"),
    "nats-while.json": _asyncapi("nats", "127.0.0.1:<nats>", "orders.while"),
    "nats-until.json": _asyncapi("nats", "127.0.0.1:<nats>", "orders.until"),
    "nats-filter.json": _asyncapi("nats", "127.0.0.1:<nats>", "orders.filter"),
    "nats-none.json": _asyncapi("nats", "127.0.0.1:<nats>", "orders.none"),
    "mqtt.json": _asyncapi("mqtt", "127.0.0.1:<mqtt>", "orders/new", server={"protocolVersion": "5"}),
    "amqp.json": _asyncapi(
        "amqp", "127.0.0.1:<amqp>", "orders", bindings={"amqp": {"is": "queue", "queue": {"name": "orders"}}}
    ),
    "web.json": _asyncapi("http", "127.0.0.1:<port>", "/echo/channel"),
    "nats2.json": {
        "asyncapi": "2.6.0",
        "info": {"title": "Shop", "version": "1"},
        "servers": {
            "main": {
                "url": "{host}:<nats>",
                "protocol": "nats",
                "variables": {"host": {"default": "127.0.0.1", "enum": ["127.0.0.1", "localhost"]}},
            },
        },
        "channels": {"orders.two": {"publish": {"operationId": "say"}, "subscribe": {"operationId": "hear"}}},
    },
    "schemas/order.json": _ORDER,
}

TEXTS: Final[dict[str, str]] = {
    "shop.proto": PROTO,
    "catalog/functions/hello/1.0.0/function.yaml": "set: { said: 'hello ${ .name }' }\n",
    "functions/bye.yaml": "set: { said: 'bye ${ .name }' }\n",
    "script.py": "import sys\nprint('from afar', *sys.argv[1:])\n",
    "script.js": "console.log('from afar', ...process.argv.slice(2))\n",
}
