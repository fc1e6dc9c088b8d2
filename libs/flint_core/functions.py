"""The built-in functions: what `call: http`, `sql`, `email` and `noop` take and give.

Each function has two JSON Schemas made from one: `schema` is for definitions, where any value may be a string with
`${ … }` instead; `resolved` is for the arguments once every expression has its value. Pure data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

__all__ = ["FUNCTIONS", "FunctionSpec"]

Schema = dict[str, Any]

_EXPRESSION: Final[Schema] = {"type": "string", "pattern": r"\$\{[\s\S]*\}"}


@dataclass(frozen=True, slots=True)
class FunctionSpec:
    """One function. `schema` and `resolved`: JSON Schema (2020-12) of `with`. `outputs`: JSON Schema of the result."""

    name: str
    schema: Schema
    resolved: Schema
    description: str
    outputs: Schema


def _or_expression(schema: Schema) -> Schema:
    """The same schema where every value may be an expression. A schema without a type takes anything already."""
    if schema.keys() <= {"description"}:
        return schema
    relaxed = dict(schema)
    for word in ("properties", "$defs"):
        if word in schema:
            relaxed[word] = {name: _or_expression(part) for name, part in schema[word].items()}
    for word in ("items", "additionalProperties"):
        if isinstance(schema.get(word), dict):
            relaxed[word] = _or_expression(schema[word])
    for word in ("oneOf", "anyOf"):
        if word in schema and "type" in schema[word][0]:
            relaxed[word] = [_members(part) for part in schema[word]]
    description = relaxed.pop("description", None)
    either: Schema = {"anyOf": [relaxed, _EXPRESSION]}
    return either if description is None else {"description": description, **either}


def _members(schema: Schema) -> Schema:
    """The same schema where the values inside may be expressions, but not the whole."""
    relaxed = _or_expression(schema)
    inner: Schema = relaxed["anyOf"][0]
    return inner


def _function(name: str, description: str, resolved: Schema, outputs: Schema) -> FunctionSpec:
    return FunctionSpec(name, _members(resolved), resolved, description, outputs)


def _object(required: list[str], properties: dict[str, Schema], **more: Any) -> Schema:
    return {
        "type": "object",
        "required": required,
        "properties": properties,
        "additionalProperties": False,
        **more,
    }


_SCALAR: Final[Schema] = {"type": ["string", "number", "boolean", "null"]}
_NAME: Final[Schema] = {"type": "string", "minLength": 1, "maxLength": 63}
_STATEMENT: Final[Schema] = {"type": "string", "minLength": 1, "maxLength": 100_000}
_PARAMETERS: Final[Schema] = {
    "type": "object",
    "description": "values of the statement's :named parameters; arrays expand in `IN :name`",
}
_PERSON: Final[Schema] = _object(
    ["username", "password"], {"username": {"type": "string"}, "password": {"type": "string"}}
)
_ADDRESSES: Final[Schema] = {
    "anyOf": [
        {"type": "string", "minLength": 1, "maxLength": 2000},
        {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 320}, "maxItems": 500},
    ]
}

_ENDPOINT: Final[Schema] = {
    "description": "the address: a URI, or an object with `uri` and `authentication`",
    "anyOf": [
        {"type": "string", "minLength": 1, "maxLength": 8192},
        _object(
            ["uri"],
            {
                "uri": {"type": "string", "minLength": 1, "maxLength": 8192},
                "authentication": _object(
                    [],
                    {
                        "basic": _PERSON,
                        "digest": _PERSON,
                        "bearer": _object(["token"], {"token": {"type": "string", "minLength": 1}}),
                    },
                    minProperties=1,
                    maxProperties=1,
                ),
            },
        ),
    ],
}

_HTTP: Final = _function(
    "http",
    "Calls an HTTP API. Sends an Idempotency-Key unless the headers hold one.",
    _object(
        ["method", "endpoint"],
        {
            "method": {"type": "string", "pattern": "^[A-Za-z]{1,20}$"},
            "endpoint": _ENDPOINT,
            "headers": {"type": "object", "additionalProperties": _SCALAR, "maxProperties": 100},
            "body": {"description": "a string is sent as it is, anything else as JSON"},
            "query": {
                "type": "object",
                "additionalProperties": {"anyOf": [_SCALAR, {"type": "array", "items": _SCALAR}]},
                "maxProperties": 200,
            },
            "output": {
                "type": "string",
                "enum": ["content", "response", "raw"],
                "description": "content: the body, parsed (default); response: request, status, headers and content; "
                "raw: the body's bytes in base64",
            },
            "redirect": {
                "type": "boolean",
                "description": "follow redirects; else (default) a 3xx answer is an error",
            },
        },
    ),
    {"description": "the answer as `output` asks for it; null when there is no content"},
)

_ONE_STATEMENT: Final[list[Schema]] = [
    _object(["query"], {"query": _STATEMENT, "parameters": _PARAMETERS}),
    _object(["execute"], {"execute": _STATEMENT, "parameters": _PARAMETERS}),
]

_SQL: Final = _function(
    "sql",
    "Runs SQL on a named connection: exactly one of query, execute, batch and transaction. Values are bound, never "
    "interpolated; a statement may use :idempotency_key, which is the step's own.",
    _object(
        ["connection"],
        {
            "connection": _NAME,
            "query": {**_STATEMENT, "description": "a statement that gives rows"},
            "execute": {**_STATEMENT, "description": "a statement that changes rows"},
            "parameters": _PARAMETERS,
            "batch": _object(
                ["statement", "parameters"],
                {"statement": _STATEMENT, "parameters": {"type": "array", "items": {"type": "object"}, "minItems": 1}},
                description="one statement for many sets of parameters, in one transaction",
            ),
            "transaction": {
                "type": "array",
                "items": {"anyOf": _ONE_STATEMENT},
                "minItems": 1,
                "maxItems": 100,
                "description": "statements that all take effect or none",
            },
            "max_rows": {"type": "integer", "minimum": 1, "description": "at most this many rows, else an error"},
        },
        oneOf=[{"required": [way]} for way in ("query", "execute", "batch", "transaction")],
    ),
    {
        "description": "query: array of row objects; execute and batch: {affected, rows}; "
        "transaction: the results of its statements in order"
    },
)

_ATTACHMENT: Final = _object(
    ["name"],
    {
        "name": {"type": "string", "minLength": 1, "maxLength": 255},
        "content_type": {"type": "string", "pattern": r"^[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+$"},
        "text": {"type": "string", "description": "the content as text"},
        "base64": {"type": "string", "description": "the content as bytes in base64"},
    },
    oneOf=[{"required": ["text"]}, {"required": ["base64"]}],
)

_EMAIL: Final = _function(
    "email",
    "Sends one email over a named SMTP connection. Its Message-ID is made from the step's idempotency key, so that a "
    "repeat is recognisable.",
    _object(
        ["connection", "to", "subject"],
        {
            "connection": _NAME,
            "from": {"type": "string", "minLength": 1, "maxLength": 320},
            "to": _ADDRESSES,
            "cc": _ADDRESSES,
            "bcc": _ADDRESSES,
            "reply_to": _ADDRESSES,
            "subject": {"type": "string", "maxLength": 998},
            "text": {"type": "string"},
            "html": {"type": "string"},
            "attachments": {"type": "array", "items": _ATTACHMENT, "maxItems": 50},
        },
        anyOf=[{"required": ["text"]}, {"required": ["html"]}],
    ),
    _object(
        ["message_id", "accepted", "refused"],
        {
            "message_id": {"type": "string"},
            "accepted": {"type": "array", "items": {"type": "string"}},
            "refused": {"type": "object", "description": "address to the server's reason"},
        },
    ),
)

_NOOP: Final = _function(
    "noop",
    "Does nothing, or waits, or fails on demand.",
    _object(
        [],
        {
            "output": {"description": "returned as it is"},
            "delay_ms": {"type": "number", "minimum": 0, "maximum": 3_600_000},
            "fail": {
                "type": "object",
                "properties": {
                    "type": {"type": "string"},
                    "status": {"type": "integer"},
                    "title": {"type": "string"},
                    "detail": {"type": "string"},
                },
            },
        },
    ),
    {"description": "the argument `output`"},
)

FUNCTIONS: Final[dict[str, FunctionSpec]] = {spec.name: spec for spec in (_HTTP, _SQL, _EMAIL, _NOOP)}
"""The functions by the name that `call` uses."""
