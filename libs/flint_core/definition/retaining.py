"""`metadata.flint.retention`: how long a workflow's ended runs are kept."""

from __future__ import annotations

from typing import Any, Final

from flint_core.definition.context import Context
from flint_core.definition.findings import Rule
from flint_core.durations import DurationError, parse_duration

__all__ = ["retention_hint"]

FOR_EVER: Final = "forever"
_LEAST_MS: Final = 3_600_000
_MOST_MS: Final = 36_500 * 86_400_000


def retention_hint(context: Context, value: Any, place: str) -> int | None:
    """Seconds; 0: for ever. None, and a finding, when it is neither a duration of a sensible length nor `forever`."""
    if value == FOR_EVER:
        return 0
    try:
        length_ms = parse_duration(value).length_ms(0)
    except DurationError as error:
        context.error(Rule.INVALID_VALUE, f"{error}; or the word '{FOR_EVER}'", place)
        return None
    if not _LEAST_MS <= length_ms <= _MOST_MS:
        context.error(Rule.INVALID_VALUE, f"runs are kept from an hour to 36500 days, or '{FOR_EVER}'", place)
        return None
    return length_ms // 1000
