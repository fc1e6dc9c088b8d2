"""`call: grpc`."""

from __future__ import annotations

from typing import Final

from flint_core.functions.schemas import AUTHENTICATION, ENDPOINT, SCALAR, function, object_of

__all__ = ["SPEC"]

_HOST: Final = r"^(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\])$"

SPEC: Final = function(
    "grpc",
    "Calls a method of a gRPC service, which a .proto document or its own reflection describes.",
    object_of(
        ["service", "method"],
        {
            "proto": object_of(
                [],
                {
                    "name": {"type": "string", "maxLength": 256},
                    "endpoint": ENDPOINT,
                    "content": {
                        "type": "string",
                        "minLength": 1,
                        "maxLength": 1_000_000,
                        "description": "the .proto file itself (Flint's addition)",
                    },
                },
                oneOf=[{"required": ["endpoint"]}, {"required": ["content"]}],
                description="the .proto document; left out: the service is asked by reflection (Flint's addition)",
            ),
            "service": object_of(
                ["name", "host"],
                {
                    "name": {
                        "type": "string",
                        "pattern": r"^[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*$",
                        "maxLength": 512,
                        "description": "full name, package included",
                    },
                    "host": {"type": "string", "pattern": _HOST},
                    "port": {"type": "integer", "minimum": 1, "maximum": 65535},
                    "tls": {
                        "type": "boolean",
                        "description": "whether to use TLS; unless told, only on port 443 (Flint's addition)",
                    },
                    "authentication": AUTHENTICATION,
                },
            ),
            "method": {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]{0,255}$"},
            "arguments": {
                "anyOf": [
                    {"type": "object"},
                    {"type": "array", "items": {"type": "object"}},
                ],
                "description": "the request in protobuf's JSON form; a method that takes a stream takes an array",
            },
            "metadata": {
                "type": "object",
                "additionalProperties": SCALAR,
                "maxProperties": 100,
                "description": "metadata to send (Flint's addition)",
            },
        },
    ),
    {"description": "the response in protobuf's JSON form; an array of them when the method answers with a stream"},
)
