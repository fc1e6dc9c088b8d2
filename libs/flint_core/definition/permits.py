"""`metadata.flint.concurrency` and `metadata.flint.rate` of a document."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from flint_core.definition.context import Context, kind_of
from flint_core.definition.findings import Rule
from flint_core.definition.reader import join_pointer
from flint_core.durations import DurationError, parse_duration
from flint_core.permit_hints import LIMIT_NAME, MOST_BURST, MOST_KEYS, MOST_LIMIT, MOST_PERIOD_MS, OVERFLOWS

__all__ = ["concurrency_hint", "rate_hint"]

_CONCURRENCY: Final = frozenset({"key", "limit", "overflow"})
_RATE: Final = frozenset({"key", "limit", "count", "per", "burst"})

KeyCompiler = Callable[[Any, str], Any]
"""Compiles a key (text, expressions in it) at a pointer; None when it did not, which it has told the context."""


def concurrency_hint(context: Context, value: Any, place: str, key: KeyCompiler) -> list[dict[str, Any]]:
    """The compiled members: one mapping, or a list of at most four."""
    return [_concurrency(context, *item, key) for item in _items(context, value, place, "'concurrency'")]


def rate_hint(context: Context, value: Any, place: str, key: KeyCompiler) -> list[dict[str, Any]]:
    """The compiled members: one mapping, or a list of at most four."""
    return [_rate(context, *item, key) for item in _items(context, value, place, "'rate'")]


def _items(context: Context, value: Any, place: str, what: str) -> list[tuple[Any, str]]:
    if not isinstance(value, list):
        return [(value, place)]
    if len(value) > MOST_KEYS:
        context.error(Rule.LIMIT, f"{what} has {len(value)} members; at most {MOST_KEYS}", place)
        return []
    return [(member, join_pointer(place, str(index))) for index, member in enumerate(value)]


def _concurrency(context: Context, value: Any, place: str, key: KeyCompiler) -> dict[str, Any]:
    members = context.mapping(value, place, "'concurrency'", _CONCURRENCY, ("limit",))
    found = _key(members, place, key)
    limit = members.get("limit")
    spot = join_pointer(place, "limit")
    if isinstance(limit, str):
        found |= _named(context, limit, spot)
    elif limit is not None and _number(context, limit, spot, "'limit'", MOST_LIMIT):
        found["limit"] = limit
    if "overflow" in members:
        overflow = members["overflow"]
        if overflow not in OVERFLOWS:
            message = f"'overflow' must be one of {', '.join(OVERFLOWS)}"
            context.error(Rule.INVALID_VALUE, message, join_pointer(place, "overflow"))
        elif overflow != "queue":
            found["overflow"] = overflow
    return found


def _rate(context: Context, value: Any, place: str, key: KeyCompiler) -> dict[str, Any]:
    members = context.mapping(value, place, "'rate'", _RATE)
    found = _key(members, place, key)
    if "limit" in members:
        spot = join_pointer(place, "limit")
        if not isinstance(members["limit"], str):
            message = f"'limit' of a rate is the name of a limit, not {kind_of(members['limit'])}; or say count and per"
            context.error(Rule.WRONG_TYPE, message, spot)
        for other in ("count", "per", "burst"):
            if other in members:
                message = f"'{other}' is what the named limit says"
                context.error(Rule.INVALID_VALUE, message, join_pointer(place, other), key=True)
        return found | _named(context, members["limit"], spot) if isinstance(members["limit"], str) else found
    for name in ("count", "per"):
        if name not in members:
            context.error(Rule.MISSING_FIELD, f"'rate' needs '{name}', or 'limit' with the name of one", place)
    if "count" in members and _number(context, members["count"], join_pointer(place, "count"), "'count'", MOST_LIMIT):
        found["count"] = members["count"]
    if "burst" in members and _number(context, members["burst"], join_pointer(place, "burst"), "'burst'", MOST_BURST):
        found["burst"] = members["burst"]
    if "per" in members:
        found |= _period(context, members["per"], join_pointer(place, "per"))
    return found


def _period(context: Context, value: Any, place: str) -> dict[str, Any]:
    try:
        duration = parse_duration(value)
    except DurationError as error:
        context.error(Rule.INVALID_VALUE, f"'per': {error}", place)
        return {}
    if duration.months or not 1 <= duration.milliseconds <= MOST_PERIOD_MS:
        context.error(Rule.INVALID_VALUE, "'per' must be from a millisecond to 31 days", place)
        return {}
    return {"period_ms": duration.milliseconds}


def _key(members: dict[str, Any], place: str, key: KeyCompiler) -> dict[str, Any]:
    if "key" not in members:
        return {}
    compiled = key(members["key"], join_pointer(place, "key"))
    return {} if compiled is None else {"key": compiled}


def _named(context: Context, name: str, place: str) -> dict[str, Any]:
    if re.fullmatch(LIMIT_NAME, name) is None:
        message = f"'{name[:80]}' is no name of a limit: lower-case letters, digits and hyphens, at most 63"
        context.error(Rule.INVALID_VALUE, message, place)
        return {}
    return {"named": name}


def _number(context: Context, value: Any, place: str, what: str, most: int) -> bool:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        context.error(Rule.INVALID_VALUE, f"{what} must be a number from 1 to {most:,}", place)
        return False
    return True
