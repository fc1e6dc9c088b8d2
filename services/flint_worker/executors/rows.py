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
from io import BytesIO
from typing import Any, Final

import orjson
from sqlalchemy import exc
from sqlalchemy.engine import CursorResult

from flint_worker.executors import RawJson

__all__ = ["TooManyBytes", "TooManyRows", "json_value", "rows_of"]

_INTEGERS: Final = range(-(2**63), 2**64)
_EXACT_DIGITS: Final = 15
_PART: Final = 500
"""Rows that are fetched at once, at most; fewer when they are large, for a part is in memory as objects."""
_PART_BYTES: Final = 2**18
_FIRST_PART: Final = 20
_LARGE: Final = 2**20
_EMPTY: Final = len(b"[]")


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


def rows_of(result: CursorResult[Any], limit: int, limit_bytes: int) -> tuple[list[dict[str, Any]] | RawJson, int]:
    """The rows as objects by column name, and how many bytes of JSON they are. Above 1 MiB they stay JSON.

    Rows are fetched in parts where the result can be, and each part is made JSON before the next one comes: a result
    takes little more memory than its JSON. Raises TooManyRows and TooManyBytes (of JSON) as soon as it is known, and
    InvalidRequestError for two columns of one name.
    """
    if not result.returns_rows:
        return [], _EMPTY
    names = list(result.keys())
    if len(set(names)) != len(names):
        result.close()
        raise exc.InvalidRequestError("two columns have the same name; give each its own with AS")
    encoded = BytesIO()
    encoded.write(b"[")
    count = 0
    wanted = _FIRST_PART
    try:
        while part := result.fetchmany(min(wanted, limit + 1 - count)):
            before = encoded.tell()
            for row in part:
                if count:
                    encoded.write(b",")
                encoded.write(orjson.dumps({name: json_value(value) for name, value in zip(names, row, strict=True)}))
                count += 1
                if count > limit:
                    raise TooManyRows(limit)
                if encoded.tell() >= limit_bytes:  # the bracket at the end is still to come
                    raise TooManyBytes(limit_bytes)
            bytes_each = max(1, (encoded.tell() - before) // len(part))
            wanted = max(1, min(_PART, _PART_BYTES // bytes_each))
    except (TooManyRows, TooManyBytes):
        _give_up(result)
        raise
    finally:
        result.close()
    encoded.write(b"]")
    size = encoded.tell()
    # No copy: the bytes are the buffer's own as long as nobody writes to it.
    data = encoded.getvalue()
    return (RawJson(data) if size > _LARGE else orjson.loads(data)), size


def _give_up(result: CursorResult[Any]) -> None:
    """Drops the connection where closing the result would read all the rest of it (MariaDB and MySQL)."""
    if result.connection.dialect.name in ("mysql", "mariadb"):
        unread = getattr(result.cursor, "_result", None)
        if unread is not None and hasattr(unread, "unbuffered_active"):
            unread.unbuffered_active = False  # PyMySQL would read on even when its connection is closed
        result.connection.invalidate()


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
