"""What the schemas of script, shell and container share: argument lists, environment, output. Pure data."""

from __future__ import annotations

from typing import Any, Final

from flint_core.functions.schemas import SCALAR, Schema, object_of

__all__ = ["ARGUMENT_LIST", "ENVIRONMENT", "OUTPUTS", "process"]

ENVIRONMENT: Final[Schema] = {
    "type": "object",
    "description": "environment variables; nothing else of the worker's environment is inherited",
    "propertyNames": {"pattern": r"^[A-Za-z_][A-Za-z0-9_.-]{0,127}$"},
    "additionalProperties": SCALAR,
    "maxProperties": 200,
}

ARGUMENT_LIST: Final[Schema] = {"type": "array", "items": SCALAR, "maxItems": 1000}

_COMMON: Final[dict[str, Schema]] = {
    "environment": ENVIRONMENT,
    "stdin": {"description": "standard input: a string as it is, anything else as JSON; nothing means none"},
    "return": {
        "type": "string",
        "enum": ["stdout", "stderr", "code", "all", "none"],
        "description": "what the task outputs: stdout (default) or stderr as text, the exit code, all three as "
        "{code, stdout, stderr}, or nothing (null)",
    },
    "await": {
        "type": "boolean",
        "description": "false: start it and go on; what it says and how it ends is not known then",
    },
}

OUTPUTS: Final[Schema] = {
    "description": "text for stdout and stderr, an integer for code, {code, stdout, stderr} for all, null for none; "
    "null when it is not awaited",
}


def process(required: list[str], properties: dict[str, Schema], **more: Any) -> Schema:
    """The schema of one kind of process: its own properties and those that all have."""
    return object_of(required, {**properties, **_COMMON}, **more)
