"""`call: mcp`."""

from __future__ import annotations

from typing import Final

from flint_core.functions.schemas import DURATION, ENDPOINT, SCALAR, function, object_of

__all__ = ["METHODS", "SPEC"]

METHODS: Final = (
    "tools/list",
    "tools/call",
    "prompts/list",
    "prompts/get",
    "resources/list",
    "resources/read",
    "resources/templates/list",
)
"""The methods that the specification names."""

_TEXTS = {"type": "object", "additionalProperties": SCALAR, "maxProperties": 100}

SPEC: Final = function(
    "mcp",
    "Calls a server of the Model Context Protocol, over streamable HTTP or as a process that the worker starts.",
    object_of(
        ["method", "transport"],
        {
            "protocolVersion": {
                "type": "string",
                "enum": ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"],
                "description": "offered to the server, which may answer with another one; 2025-06-18 unless told",
            },
            "method": {"type": "string", "enum": list(METHODS)},
            "parameters": {"type": "object", "description": "the method's parameters"},
            "timeout": DURATION,
            "transport": object_of(
                [],
                {
                    "http": object_of(["endpoint"], {"endpoint": ENDPOINT, "headers": _TEXTS}),
                    "stdio": object_of(
                        ["command"],
                        {
                            "command": {"type": "string", "minLength": 1, "maxLength": 4096},
                            "arguments": {
                                "type": "array",
                                "items": {"type": "string", "maxLength": 100_000},
                                "maxItems": 1000,
                            },
                            "environment": _TEXTS,
                        },
                    ),
                    "options": {**_TEXTS, "description": "options of a transport; none is known today"},
                },
                oneOf=[{"required": ["http"]}, {"required": ["stdio"]}],
            ),
            "client": object_of(
                ["name", "version"],
                {
                    "name": {"type": "string", "minLength": 1, "maxLength": 256},
                    "version": {"type": "string", "minLength": 1, "maxLength": 256},
                },
            ),
        },
    ),
    {"description": "the method's result"},
)
