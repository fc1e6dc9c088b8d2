"""jq's values: order, equality, arithmetic, indexing and text, exactly as jq 1.8 has them.

A number that came in as JSON keeps its digits in jq (integers stay exact); a number that was calculated is a double.
The two differ only where a double's text differs from a literal's: very large, very small, not a number, minus zero.
Such a result is carried as `Computed` until `settle` turns the final value into plain JSON.
"""

from __future__ import annotations

import re
from decimal import Decimal
from math import isinf, trunc
from types import NoneType
from typing import Any, Final

import orjson

from flint_core.expressions.errors import ExpressionFault
from flint_core.expressions.work import Budget, TooMuch

__all__ = [
    "Computed",
    "add",
    "computed",
    "divide",
    "equal",
    "index",
    "keys",
    "length",
    "multiply",
    "order",
    "remainder",
    "settle",
    "slice_",
    "subtract",
    "text",
    "type_name",
]


class Computed(float):
    """A calculated number whose text is not that of the same JSON literal."""

    __slots__ = ()


_NULL, _FALSE_TRUE, _NUMBER, _STRING, _ARRAY, _OBJECT = 0, 1, 3, 4, 5, 6
_RANKS: Final[dict[type, int]] = {
    NoneType: _NULL,
    bool: _FALSE_TRUE,
    int: _NUMBER,
    float: _NUMBER,
    Computed: _NUMBER,
    str: _STRING,
    list: _ARRAY,
    dict: _OBJECT,
}
_TYPE_NAMES: Final = {0: "null", 1: "boolean", 3: "number", 4: "string", 5: "array", 6: "object"}
_EXACT: Final = 2**53
_PLAIN_BELOW: Final = 1e15
_PLAIN_FROM: Final = 1e-4
_LONGEST: Final = 4 * 2**20
"""Characters that a repeated string may have; every payload limit is far below."""
_PAIRS: Final = 200_000
"""Pairwise comparisons of one operation, where no index can be used."""
_EXPONENT: Final = re.compile(r"[0-9][eE][-+]?[0-9]")
_INT_MAX, _INT_MIN = 2**63 - 1, -(2**63)


def rank(value: Any) -> int:
    """The place of a value's type in jq's order; false and true share theirs here."""
    try:
        return _RANKS[type(value)]
    except KeyError:
        raise ExpressionFault(f"{type(value).__name__} is not a JSON value") from None


def type_name(value: Any) -> str:
    """What jq's `type` says."""
    return _TYPE_NAMES[rank(value)]


def computed(value: float) -> int | float:
    """A calculated number as a plain int or float where that has the same text, else as Computed."""
    size = abs(value)
    if size < _PLAIN_BELOW:
        if value.is_integer():
            if value != 0 or str(value) == "0.0":
                return int(value)
        elif size >= _PLAIN_FROM:
            return value
    return Computed(value)


# Order


def order(left: Any, right: Any) -> int:
    """Negative, zero or positive by jq's total order (not a number is below all numbers, itself included)."""
    kind = rank(left)
    difference = kind - rank(right)
    if difference:
        return difference
    match kind:
        case 0:
            return 0
        case 3:
            return _order_numbers(left, right)
        case 5:
            for one, other in zip(left, right, strict=False):
                if difference := order(one, other):
                    return difference
            return len(left) - len(right)
        case 6:
            own, others = sorted(left), sorted(right)
            if own != others:
                return -1 if own < others else 1
            for key in own:
                if difference := order(left[key], right[key]):
                    return difference
            return 0
    return bool(left > right) - bool(left < right)


def equal(left: Any, right: Any) -> bool:
    """jq's `==`."""
    if type(left) is str and type(right) is str:
        return left == right
    return order(left, right) == 0


def _order_numbers(left: Any, right: Any) -> int:
    if type(left) is Computed or type(right) is Computed:
        left, right = float(left), float(right)
        if left != left:
            return -1
        if right != right:
            return 1
    elif type(left) is not type(right) and (abs(left) >= _EXACT or abs(right) >= _EXACT):
        left, right = Decimal(_number_text(left)), Decimal(_number_text(right))
    return bool(left > right) - bool(left < right)


# Arithmetic


def _refuse(left: Any, right: Any, what: str) -> ExpressionFault:
    return ExpressionFault(f"{_brief(left)} and {_brief(right)} cannot be {what}")


def _brief(value: Any) -> str:
    shown = text(value) if rank(value) < _ARRAY else "…"
    return f"{type_name(value)} ({shown if len(shown) <= 30 else shown[:29] + '…'})"


def add(left: Any, right: Any) -> Any:
    """jq's `+`."""
    if left is None:
        return right
    if right is None:
        return left
    kind = rank(left)
    if kind == rank(right):
        match kind:
            case 3:
                return computed(float(left) + float(right))
            case 4 | 5:
                return left + right
            case 6:
                return {**left, **right}
    raise _refuse(left, right, "added")


def subtract(left: Any, right: Any) -> Any:
    """jq's `-`."""
    kind = rank(left)
    if kind == rank(right):
        if kind == _NUMBER:
            return computed(float(left) - float(right))
        if kind == _ARRAY:
            return _without(left, right)
    raise _refuse(left, right, "subtracted")


def _without(left: list[Any], right: list[Any]) -> list[Any]:
    if len(left) * len(right) > 64:
        try:
            unwanted = {_hashable(item) for item in right}
            return [item for item in left if _hashable(item) not in unwanted]
        except _NotHashable:
            _check_pairs(left, right, "subtracted")
    return [item for item in left if not any(equal(item, other) for other in right)]


def _check_pairs(left: list[Any], right: list[Any], what: str) -> None:
    """Raises ExpressionFault when comparing each with each, whole items, would take too long."""
    budget = Budget()
    try:
        budget.spend(budget.weigh(left) * len(right))
    except TooMuch:
        raise ExpressionFault(f"the arrays are too large to be {what}") from None
    if len(left) * len(right) > _PAIRS:
        raise ExpressionFault(f"the arrays are too long to be {what}")


class _NotHashable(Exception):
    """Equality of this value is not that of any Python value."""


def _hashable(value: Any) -> Any:
    match rank(value):
        case 1:
            return (value,)
        case 3:
            if type(value) is Computed or abs(value) >= _EXACT:
                raise _NotHashable
        case 5:
            return ("a", *map(_hashable, value))
        case 6:
            return frozenset((key, _hashable(item)) for key, item in value.items())
    return value


def multiply(left: Any, right: Any) -> Any:
    """jq's `*`."""
    kinds = rank(left), rank(right)
    if kinds == (_NUMBER, _NUMBER):
        return computed(float(left) * float(right))
    if kinds == (_STRING, _NUMBER):
        return _repeat(left, float(right))
    if kinds == (_NUMBER, _STRING):
        return _repeat(right, float(left))
    if kinds == (_OBJECT, _OBJECT):
        return _merge(left, right)
    raise _refuse(left, right, "multiplied")


def _repeat(string: str, times: float) -> str | None:
    if times != times or times < 0:
        return None
    if times * len(string) > _LONGEST:
        raise ExpressionFault("the repeated string is too long")
    return string * int(times) if string else ""


def _merge(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    merged = dict(left)
    for key, value in right.items():
        own = merged.get(key)
        merged[key] = _merge(own, value) if isinstance(own, dict) and isinstance(value, dict) else value
    return merged


def divide(left: Any, right: Any) -> Any:
    """jq's `/`."""
    kinds = rank(left), rank(right)
    if kinds == (_NUMBER, _NUMBER):
        if right == 0:
            raise _refuse(left, right, "divided because the divisor is zero")
        return computed(float(left) / float(right))
    if kinds == (_STRING, _STRING):
        if not left:
            return []
        return left.split(right) if right else list(left)
    raise _refuse(left, right, "divided")


def remainder(left: Any, right: Any) -> Any:
    """jq's `%`: of the integer parts, with the sign of the left side."""
    if rank(left) != _NUMBER or rank(right) != _NUMBER:
        raise _refuse(left, right, "divided (remainder)")
    dividend, divisor = float(left), float(right)
    if dividend != dividend or divisor != divisor:
        return Computed("nan")
    whole, by = _integer(dividend), _integer(divisor)
    if by == 0:
        raise _refuse(left, right, "divided (remainder) because the divisor is zero")
    rest = abs(whole) % abs(by)
    return computed(float(-rest if whole < 0 else rest))


def _integer(value: float) -> int:
    if isinf(value):
        return _INT_MAX if value > 0 else _INT_MIN
    return min(max(trunc(value), _INT_MIN), _INT_MAX)


# Containers


def index(base: Any, key: Any) -> Any:
    """jq's `base[key]`."""
    if type(key) is str:
        if type(base) is dict:
            return base.get(key)
        if base is None:
            return None
    kinds = rank(base), rank(key)
    if kinds[0] == _NULL and kinds[1] in (_STRING, _NUMBER, _OBJECT):
        return None
    if kinds == (_ARRAY, _NUMBER):
        return _item(base, float(key))
    if kinds[0] in (_ARRAY, _STRING) and kinds[1] == _OBJECT:
        if "start" not in key or "end" not in key:
            raise ExpressionFault("slice indices must be integers")
        return slice_(base, key["start"], key["end"])
    if kinds == (_ARRAY, _ARRAY):
        return _occurrences(base, key)
    raise ExpressionFault(f"{_brief(base)} cannot be indexed with {_brief(key)}")


def _item(base: list[Any], position: float) -> Any:
    if position != position or abs(position) > len(base) + 1:
        return None
    place = trunc(position)
    if place < 0:
        place += len(base)
    return base[place] if 0 <= place < len(base) else None


def _occurrences(base: list[Any], wanted: list[Any]) -> list[int]:
    _check_pairs(base, wanted, "searched")
    return [
        start
        for start in range(len(base) - len(wanted) + 1)
        if wanted and all(equal(base[start + offset], item) for offset, item in enumerate(wanted))
    ]


def slice_(base: Any, start: Any, end: Any) -> Any:
    """jq's `base[start:end]`."""
    if base is None:
        return None
    if rank(base) not in (_ARRAY, _STRING):
        raise ExpressionFault(f"{_brief(base)} cannot be sliced")
    if any(rank(bound) not in (_NULL, _NUMBER) for bound in (start, end)):
        raise ExpressionFault("slice indices must be integers")
    size = len(base)
    first = _bound(0.0 if start is None else float(start), size)
    last = _bound(float(size) if end is None else float(end), size)
    low = int(first)
    high = int(last) + (last > int(last))
    return base[low : max(low, high)]


def _bound(value: float, size: int) -> float:
    if value != value:
        return 0.0
    if value < 0:
        value += size
    return min(max(value, 0.0), float(size))


def length(value: Any) -> Any:
    """jq's `length`."""
    match rank(value):
        case 0:
            return 0
        case 1:
            raise ExpressionFault(f"{_brief(value)} has no length")
        case 3:
            return Computed(abs(value)) if type(value) is Computed else abs(value)
    return len(value)


def keys(value: Any) -> list[Any]:
    """jq's `keys`."""
    match rank(value):
        case 5:
            return list(range(len(value)))
        case 6:
            return sorted(value)
    raise ExpressionFault(f"{_brief(value)} has no keys")


# Text


def text(value: Any) -> str:
    """jq's `tojson`."""
    kind = rank(value)
    if kind == _NUMBER:
        return _number_text(value)
    if kind < _ARRAY:
        return _plain(value)
    try:
        plain = _plain(value)
    except TypeError:
        return _slow_text(value)  # a Computed is inside
    return _slow_text(value) if _EXPONENT.search(plain) else plain


def _plain(value: Any) -> str:
    return orjson.dumps(value).decode().replace("\x7f", "\\u007f")


def _slow_text(value: Any) -> str:
    match rank(value):
        case 3:
            return _number_text(value)
        case 5:
            return "[" + ",".join(map(_slow_text, value)) + "]"
        case 6:
            return "{" + ",".join(f"{_plain(key)}:{_slow_text(item)}" for key, item in value.items()) + "}"
    return _plain(value)


def _number_text(value: Any) -> str:
    if type(value) is Computed:
        return _double_text(value)
    if type(value) is int:
        return str(value)
    shortest = orjson.dumps(value).decode()
    return str(Decimal(shortest)) if "e" in shortest else shortest


def _double_text(value: float) -> str:
    """A double as jq writes it: 17 digits at most, an exponent when that is shorter."""
    if value != value:
        return "null"
    if isinf(value):
        return "-1.7976931348623157e+308" if value < 0 else "1.7976931348623157e+308"
    if value == 0:
        return "-0"
    sign, digits, exponent = Decimal(repr(float(value))).normalize().as_tuple()
    shown = "".join(map(str, digits))
    point = len(shown) + int(exponent)
    minus = "-" if sign else ""
    if point <= -4 or point > len(shown) + 15:
        mantissa = shown[0] + ("." + shown[1:] if len(shown) > 1 else "")
        return f"{minus}{mantissa}e{point - 1:+03d}"
    if point <= 0:
        return f"{minus}0.{'0' * -point}{shown}"
    if point >= len(shown):
        return minus + shown + "0" * (point - len(shown))
    return f"{minus}{shown[:point]}.{shown[point:]}"


def settle(value: Any) -> Any:
    """A result as plain JSON: each Computed becomes what its text reads back as."""
    if type(value) is list or type(value) is dict:
        try:
            orjson.dumps(value)
        except TypeError:
            return _settled(value)  # a Computed is inside
        return value
    return _settled(value)


def _settled(value: Any) -> Any:
    match rank(value):
        case 3:
            return orjson.loads(_double_text(value)) if type(value) is Computed else value
        case 5:
            return [_settled(item) for item in value]
        case 6:
            return {key: _settled(item) for key, item in value.items()}
    return value
