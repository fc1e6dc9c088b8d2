"""`call: openapi`."""

from __future__ import annotations

from typing import Final

from flint_core.functions.schemas import AUTHENTICATION, RESOURCE, function, object_of

__all__ = ["SPEC"]

SPEC: Final = function(
    "openapi",
    "Calls an operation that an OpenAPI (3.0, 3.1) or Swagger (2.0) document describes.",
    object_of(
        ["document", "operationId"],
        {
            "document": RESOURCE,
            "operationId": {"type": "string", "minLength": 1, "maxLength": 256},
            "parameters": {
                "type": "object",
                "maxProperties": 500,
                "description": "the operation's parameters by name, checked against the document; `body` is its body",
            },
            "authentication": AUTHENTICATION,
            "server": object_of(
                [],
                {
                    "url": {"type": "string", "minLength": 1, "maxLength": 8192},
                    "variables": {"type": "object", "additionalProperties": {"type": "string"}, "maxProperties": 100},
                },
                description="instead of the document's first server, or values for its variables (Flint's addition)",
            ),
            "output": {
                "type": "string",
                "enum": ["content", "response", "raw"],
                "description": "content: the body, parsed (default); response: request, status, headers and content; "
                "raw: the body's bytes in base64",
            },
            "redirect": {"type": "boolean", "description": "follow redirects; else (default) a 3xx answer is an error"},
        },
    ),
    {"description": "the answer as `output` asks for it; null when there is no content"},
)
