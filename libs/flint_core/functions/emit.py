"""What `emit` becomes: one CloudEvent to publish."""

from __future__ import annotations

from typing import Final

from flint_core.functions.schemas import Schema, function

__all__ = ["SPEC"]

_TEXT: Final[Schema] = {"type": "string", "minLength": 1, "maxLength": 2048}

SPEC: Final = function(
    "emit",
    "Publishes a CloudEvent. Attributes that are left out and are required are made by Flint.",
    {
        "type": "object",
        "required": ["event"],
        "additionalProperties": False,
        "properties": {
            "event": {
                "type": "object",
                "required": ["type"],
                "properties": {
                    "specversion": {"type": "string", "enum": ["1.0"]},
                    "type": {**_TEXT, "maxLength": 255, "description": "what happened, such as com.example.paid"},
                    "source": {**_TEXT, "description": "URI of who says so; the workflow's own unless told"},
                    "id": {**_TEXT, "maxLength": 255, "description": "made of the idempotency key unless told"},
                    "time": {"type": "string", "description": "RFC 3339; when it is published unless told"},
                    "subject": _TEXT,
                    "datacontenttype": {**_TEXT, "maxLength": 255},
                    "dataschema": _TEXT,
                    "data": {"description": "any JSON"},
                    "data_base64": {"type": "string"},
                },
                "patternProperties": {"^[a-z0-9]{1,20}$": {}},
                "additionalProperties": False,
                "maxProperties": 60,
            }
        },
    },
    {"description": "the event as it was published, in the JSON format of CloudEvents"},
)
"""The function that `emit` compiles to; `call` does not name it."""
