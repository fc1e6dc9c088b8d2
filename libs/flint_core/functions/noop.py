"""`call: noop`."""

from __future__ import annotations

from typing import Final

from flint_core.functions.schemas import function, object_of

__all__ = ["SPEC"]

SPEC: Final = function(
    "noop",
    "Does nothing, or waits, or fails on demand.",
    object_of(
        [],
        {
            "output": {"description": "returned as it is"},
            "delay_ms": {"type": "number", "minimum": 0, "maximum": 3_600_000},
            "fail": {
                "type": ["object", "null"],
                "description": "the problem to fail with; null: it does not fail",
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
