"""`call: http`."""

from __future__ import annotations

from typing import Final

from flint_core.functions.schemas import ENDPOINT, SCALAR, function, object_of

__all__ = ["SPEC"]

SPEC: Final = function(
    "http",
    "Calls an HTTP API. Sends an Idempotency-Key unless the headers hold one.",
    object_of(
        ["method", "endpoint"],
        {
            "method": {"type": "string", "pattern": "^[A-Za-z]{1,20}$"},
            "endpoint": ENDPOINT,
            "headers": {"type": "object", "additionalProperties": SCALAR, "maxProperties": 100},
            "body": {"description": "a string is sent as it is, anything else as JSON"},
            "query": {
                "type": "object",
                "additionalProperties": {"anyOf": [SCALAR, {"type": "array", "items": SCALAR}]},
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
