"""`call: sql`."""

from __future__ import annotations

from typing import Final

from flint_core.functions.schemas import NAME, Schema, function, object_of

__all__ = ["SPEC"]

_STATEMENT: Final[Schema] = {"type": "string", "minLength": 1, "maxLength": 100_000}
_PARAMETERS: Final[Schema] = {
    "type": "object",
    "description": "values of the statement's :named parameters; arrays expand in `IN :name`",
}

_ONE_STATEMENT: Final[list[Schema]] = [
    object_of(["query"], {"query": _STATEMENT, "parameters": _PARAMETERS}),
    object_of(["execute"], {"execute": _STATEMENT, "parameters": _PARAMETERS}),
]

SPEC: Final = function(
    "sql",
    "Runs SQL on a named connection: exactly one of query, execute, batch and transaction. Values are bound, never "
    "interpolated; a statement may use :idempotency_key, which is the step's own.",
    object_of(
        ["connection"],
        {
            "connection": NAME,
            "query": {**_STATEMENT, "description": "a statement that gives rows"},
            "execute": {**_STATEMENT, "description": "a statement that changes rows"},
            "parameters": _PARAMETERS,
            "batch": object_of(
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
            "isolation": {
                "type": "string",
                "enum": ["read uncommitted", "read committed", "repeatable read", "serializable"],
                "description": "isolation level of the call's transaction; the database's own unless told",
            },
            "read_only": {"type": "boolean", "description": "the database refuses every change"},
            "max_rows": {"type": "integer", "minimum": 1, "description": "at most this many rows, else an error"},
        },
        oneOf=[{"required": [way]} for way in ("query", "execute", "batch", "transaction")],
    ),
    {
        "description": "query: array of row objects; execute and batch: {affected, rows}; "
        "transaction: the results of its statements in order"
    },
)
