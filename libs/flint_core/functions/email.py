"""`call: email`."""

from __future__ import annotations

from typing import Final

from flint_core.functions.schemas import NAME, Schema, function, object_of

__all__ = ["SPEC"]

_ADDRESSES: Final[Schema] = {
    "anyOf": [
        {"type": "string", "minLength": 1, "maxLength": 2000},
        {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 320}, "maxItems": 500},
    ]
}

_ATTACHMENT: Final = object_of(
    ["name"],
    {
        "name": {"type": "string", "minLength": 1, "maxLength": 255},
        "content_type": {"type": "string", "pattern": r"^[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+$"},
        "inline": {
            "type": "string",
            "pattern": r"^[A-Za-z0-9._-]{1,100}$",
            "description": "shown in the HTML where it says cid: and this name",
        },
        "text": {"type": "string", "description": "the content as text"},
        "base64": {"type": "string", "description": "the content as bytes in base64"},
    },
    oneOf=[{"required": ["text"]}, {"required": ["base64"]}],
)

SPEC: Final = function(
    "email",
    "Sends one email over a named SMTP connection. Its Message-ID is made from the step's idempotency key, so that a "
    "repeat is recognisable.",
    object_of(
        ["connection", "to", "subject"],
        {
            "connection": NAME,
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
    object_of(
        ["message_id", "accepted", "refused"],
        {
            "message_id": {"type": "string"},
            "accepted": {"type": "array", "items": {"type": "string"}},
            "refused": {"type": "object", "description": "address to the server's reason"},
        },
    ),
)
