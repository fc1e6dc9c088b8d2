"""Patterns that events are compared with: values, and regular expressions that take linear time on any text.

Text is a regular expression when it holds one of `\\ ^ $ * + ? ( ) [ ] { } |`, and has to match a value as a whole;
other text is equal or not. The dot alone makes no regular expression: names of event types are full of them.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Final

import jsonschema_rs

__all__ = ["PatternError", "check_pattern", "equal", "is_regular", "matches"]

LONGEST: Final = 1_000
"""Characters of a regular expression."""
_SIGNS: Final = re.compile(r"[\\^$*+?()\[\]{}|]")
_OPTIONS: Final = jsonschema_rs.RegexOptions(size_limit=1_000_000)


class PatternError(ValueError):
    """The text is no regular expression; the message says why."""


def is_regular(text: str) -> bool:
    """Whether the text is taken for a regular expression."""
    return _SIGNS.search(text) is not None


def check_pattern(text: str) -> None:
    """Compile the text if it is a regular expression. Raises PatternError."""
    if is_regular(text):
        if len(text) > LONGEST:
            raise PatternError(f"a regular expression has at most {LONGEST} characters")
        _compiled(text)


def matches(pattern: Any, value: Any) -> bool:
    """Whether a value fits a pattern: any JSON, in which text may be a regular expression.

    An object fits when each member of the pattern is there and fits; everything else is compared as a whole.
    Never raises: text that is no regular expression is compared as text.
    """
    if isinstance(pattern, str):
        if pattern == value:
            return True
        if not isinstance(value, str) or not is_regular(pattern) or len(pattern) > LONGEST:
            return False
        try:
            return bool(_compiled(pattern).is_valid(value))
        except PatternError:
            return False
    if isinstance(pattern, dict):
        if not isinstance(value, dict):
            return False
        return all(name in value and matches(part, value[name]) for name, part in pattern.items())
    return equal(pattern, value)


def equal(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal; a boolean is no number."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(part, other[name]) for name, part in one.items())
    return bool(one == other)


@lru_cache(maxsize=1_000)
def _compiled(text: str) -> Any:
    schema = {"type": "string", "pattern": f"^(?:{text})$"}
    try:
        return jsonschema_rs.validator_for(schema, pattern_options=_OPTIONS)
    except (ValueError, jsonschema_rs.ValidationError) as error:
        reason = getattr(error, "message", None) or str(error)
        raise PatternError(f"not a regular expression of linear time: {str(reason)[:200]}") from None
