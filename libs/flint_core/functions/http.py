"""`call: http`."""

from __future__ import annotations

from typing import Final

from flint_core.functions.schemas import ENDPOINT, VALUES, function, object_of

__all__ = ["SPEC"]

SPEC: Final = function(
    "http",
    "Calls an HTTP API. Sends an Idempotency-Key unless the headers hold one.",
    object_of(
        ["method", "endpoint"],
        {
            "method": {"type": "string", "pattern": "^[A-Za-z]{1,20}$"},
            "endpoint": ENDPOINT,
            "headers": {"type": "object", "additionalProperties": VALUES, "maxProperties": 100},
            "body": {
                "description": "a string is sent as it is; an object as a form where the content type is one; "
                "{base64: …} as bytes where the content type is not JSON; anything else as JSON"
            },
            "query": {"type": "object", "additionalProperties": VALUES, "maxProperties": 200},
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
