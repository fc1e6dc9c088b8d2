"""Rows as JSON.

Dates and times become ISO 8601, intervals seconds, UUIDs text, bytes base64. A decimal becomes a number when a double
holds it exactly as written (up to 15 digits), else text, so no digit is ever lost.
"""

from __future__ import annotations

import base64
import datetime
import enum
import math
import uuid
from decimal import Decimal
from typing import Any, Final

import orjson
from sqlalchemy import exc
from sqlalchemy.engine import CursorResult

__all__ = ["TooManyBytes", "TooManyRows", "json_value", "rows_of"]

_INTEGERS: Final = range(-(2**63), 2**64)
_EXACT_DIGITS: Final = 15
_PART: Final = 500


class TooManyRows(Exception):
    """A statement gave more rows than it may."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit


class TooManyBytes(Exception):
    """A statement gave more bytes than a value may have."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit


def rows_of(result: CursorResult[Any], limit: int, limit_bytes: int) -> list[dict[str, Any]]:
    """The rows as objects by column name, fetched in parts where the result can be.

    Raises TooManyRows and TooManyBytes (of JSON) as soon as it is known, and InvalidRequestError for two columns of one
    name.
    """
    if not result.returns_rows:
        return []
    names = list(result.keys())
    if len(set(names)) != len(names):
        raise exc.InvalidRequestError("two columns have the same name; give each its own with AS")
    converted: list[dict[str, Any]] = []
    size = 0
    try:
        while part := result.fetchmany(min(_PART, limit + 1 - len(converted))):
            rows = [{name: json_value(value) for name, value in zip(names, row, strict=True)} for row in part]
            size += len(orjson.dumps(rows))
            converted += rows
            if len(converted) > limit:
                raise TooManyRows(limit)
            if size > limit_bytes:
                raise TooManyBytes(limit_bytes)
    finally:
        result.close()
    return converted


def json_value(value: Any) -> Any:
    """A database value as JSON."""
    match value:
        case None | bool() | str():
            return value
        case enum.Enum():
            return json_value(value.value)
        case int():
            return value if value in _INTEGERS else str(value)
        case float():
            return value if math.isfinite(value) else None
        case Decimal():
            return _decimal(value)
        case datetime.datetime() | datetime.date() | datetime.time():
            return value.isoformat()
        case datetime.timedelta():
            return value.total_seconds()
        case bytes() | bytearray() | memoryview():
            return base64.b64encode(value).decode()
        case uuid.UUID():
            return str(value)
        case dict():
            return {str(key): json_value(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [json_value(item) for item in value]
    return str(value)


def _decimal(value: Decimal) -> int | float | str | None:
    if not value.is_finite():
        return None
    digits = value.as_tuple().digits
    if value == value.to_integral_value() and abs(value) < 2**53:
        return int(value)
    return float(value) if len(digits) <= _EXACT_DIGITS and 1e-300 < abs(value) < 1e300 else str(value)
