"""Sizes of JSON values in bytes, as far as they matter to the limits of a run."""

from __future__ import annotations

from typing import Any, Final

import orjson

from flint_core.effects import Deferred

__all__ = ["SCALARS", "json_size", "weigh"]

SCALARS: Final = (type(None), bool, int, float)
_TRIFLE: Final = 16


def json_size(value: Any) -> int:
    """Bytes of JSON; 0 for a trifle. Raises orjson.JSONEncodeError for what JSON cannot hold.

    Trifles count for nothing because for some of them Python has one object: what shares such a value and what merely
    holds an equal one cannot be told apart, and the account of a run must not depend on that.
    """
    if isinstance(value, SCALARS):
        return 0
    size = len(orjson.dumps(value, default=_deferred))
    return size if size > _TRIFLE else 0


def weigh(value: Any) -> int:
    """The same, but 0 for what JSON cannot hold."""
    try:
        return json_size(value)
    except orjson.JSONEncodeError:
        return 0


def _deferred(value: Any) -> Any:
    if isinstance(value, Deferred):
        return {"source": value.source, "input": value.input, "variables": value.variables}
    raise TypeError
