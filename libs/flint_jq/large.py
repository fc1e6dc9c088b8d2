"""What an evaluator does with a large value: evaluate on it, check it, take it apart. Runs within its limits."""

from __future__ import annotations

from typing import Any

import orjson

from flint_core.payloads import spill
from flint_core.plan import Schema
from flint_jq.frames import pack

__all__ = ["first_mismatch", "taken_apart"]

MARK = "***"


def taken_apart(value: Any, options: dict[str, Any]) -> bytes:
    """The value without the texts to be replaced, small enough, and with what left it behind (`pack`)."""
    redact = options.get("redact")
    small, payloads = spill(_redacted(value, redact) if redact else value, options["limit"])
    return pack(orjson.dumps(small), [payload.data for payload in payloads])


def first_mismatch(value: Any, schema: Any) -> str | None:
    """Why the value does not match the schema."""
    return Schema(schema).first_error(value)


def _redacted(value: Any, texts: list[str]) -> Any:
    if isinstance(value, str):
        for text in texts:
            value = value.replace(text, MARK)
        return value
    if isinstance(value, dict):
        return {_redacted(key, texts): _redacted(member, texts) for key, member in value.items()}
    return [_redacted(item, texts) for item in value] if isinstance(value, list) else value
