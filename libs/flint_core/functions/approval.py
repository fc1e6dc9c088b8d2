"""`call: approval`."""

from __future__ import annotations

from typing import Final

from flint_core.functions.schemas import Schema, function, object_of

__all__ = ["SPEC"]

_ASSIGNEES: Final[Schema] = {
    "type": "array",
    "items": {"type": "string", "minLength": 1, "maxLength": 256},
    "minItems": 1,
    "maxItems": 100,
}
_DURATION: Final[Schema] = {"type": ["string", "object"], "description": "ISO 8601 text or an object of units"}

SPEC: Final = function(
    "approval",
    "Waits for a person to decide. While it waits the run takes no worker's slot.",
    object_of(
        ["title"],
        {
            "title": {"type": "string", "minLength": 1, "maxLength": 500, "description": "what is to be decided"},
            "description": {"type": "string", "maxLength": 20_000},
            "assignees": {**_ASSIGNEES, "description": "who may decide; everybody with the right to, unless told"},
            "form": {"type": "object", "description": "JSON Schema of the fields that come with the decision"},
            "deadline": {**_DURATION, "description": "how long it waits; then it fails with a timeout"},
            "escalation": object_of(
                ["after", "assignees"],
                {"after": _DURATION, "assignees": {**_ASSIGNEES, "description": "who may decide too from then on"}},
            ),
        },
    ),
    object_of(
        ["decision", "by", "at"],
        {
            "decision": {"type": "string", "enum": ["approved", "rejected"]},
            "by": {"type": "string", "description": "who decided"},
            "comment": {"type": "string"},
            "fields": {"type": "object", "description": "the form's fields"},
            "at": {"type": "string", "description": "when, RFC 3339"},
        },
    ),
)
