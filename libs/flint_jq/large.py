"""What an evaluator does with a large value: evaluate on it, check it, take it apart. Runs within its limits."""

from __future__ import annotations

import functools
from typing import Any

import orjson

from flint_core.branches import Spread, divide
from flint_core.expressions import Expression, ExpressionFault, ExpressionSyntaxError, compile_expression
from flint_core.outlines import outline_of
from flint_core.payloads import spill
from flint_core.schemas import Schema
from flint_jq.frames import pack

__all__ = ["divided", "evaluated", "first_mismatch", "outlined", "taken_apart"]

MARK = "***"


def evaluated(source: str, variables: tuple[str, ...], body: bytes) -> tuple[Any] | None:
    """The result of a plain expression on `[input, {variables}, now_ms]`; None: it is for jq to evaluate.

    It is the same, in a fraction of the time and of the memory that jq takes for a large value. What fails here is
    evaluated again, so that the reason is given in jq's words.
    """
    expression = _compiled(source, variables)
    if expression is None:
        return None
    try:
        input, given, now_ms = orjson.loads(body)
        return (expression.evaluate(input, given, now_ms),)
    except (orjson.JSONDecodeError, ExpressionFault):
        return None


@functools.lru_cache(maxsize=256)
def _compiled(source: str, variables: tuple[str, ...]) -> Expression | None:
    try:
        expression = compile_expression(source, variables=frozenset(variables))
    except ExpressionSyntaxError:
        return None
    return expression if expression.fast else None


def taken_apart(value: Any, options: dict[str, Any]) -> bytes:
    """The value without the texts to be replaced, small enough, and with what left it behind (`pack`)."""
    redact = options.get("redact")
    small, payloads = spill(_redacted(value, redact) if redact else value, options["limit"])
    return pack(orjson.dumps(small), [payload.data for payload in payloads])


def divided(items: Any, options: dict[str, Any]) -> bytes:
    """A collection in segments for the branches of a wide fork (`pack`): what `flint_core.branches.divide` gives."""
    if not isinstance(items, list):
        return pack(b'{"count":-1}', [])
    division, payloads = divide(items, Spread(*options["spread"]), options["limit"])
    return pack(orjson.dumps(division), [payload.data for payload in payloads])


def outlined(value: Any, room: int) -> bytes:
    """The outline of an object, JSON: `[object, [path, …]]`; null when it has none."""
    outline = outline_of(value, room)
    return b"null" if outline is None else orjson.dumps([outline.value, list(outline.left_out)])


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
