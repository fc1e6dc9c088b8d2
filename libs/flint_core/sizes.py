"""Sizes and depth of JSON values, as far as they matter to the limits of a run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import orjson

from flint_core.effects import Deferred

__all__ = [
    "SCALARS",
    "VALUE_DEPTH",
    "could_be_too_deep",
    "json_size",
    "nested_too_deeply",
    "too_deep",
    "weigh",
    "weight_of",
]

SCALARS: Final = (type(None), bool, int, float)
_TRIFLE: Final = 16
_CONTAINERS: Final = (dict, list, tuple)

VALUE_DEPTH: Final = 200
"""Levels of lists and objects that a value may have when it comes from outside.

Parsers read 1,024 levels, but what writes JSON stops at 254, and a value stands some levels deep in what holds it: in
an event, in the state of a run, in a message.
"""


def json_size(value: Any) -> int:
    """Bytes of JSON; 0 for a trifle. Raises orjson.JSONEncodeError for what JSON cannot hold.

    Trifles count for nothing because for some of them Python has one object: what shares such a value and what merely
    holds an equal one cannot be told apart, and the account of a run must not depend on that.
    """
    if isinstance(value, SCALARS):
        return 0
    size = len(orjson.dumps(value, default=_deferred))
    return size if size > _TRIFLE else 0


def weight_of(value: Any, size: int) -> int:
    """What `json_size` gives of a value whose JSON is known to have so many bytes; -1 where that is not known (-1)."""
    if size < 0:
        return -1
    return 0 if size <= _TRIFLE or isinstance(value, SCALARS) else size


def weigh(value: Any) -> int:
    """The same, but 0 for what JSON cannot hold."""
    try:
        return json_size(value)
    except orjson.JSONEncodeError:
        return 0


def nested_too_deeply(value: Any) -> bool:
    """Whether a value has more than `VALUE_DEPTH` levels of lists and objects. Does not recurse."""
    level = [value] if isinstance(value, _CONTAINERS) else []
    for _ in range(VALUE_DEPTH):
        level = [part for node in level for part in _parts(node) if isinstance(part, _CONTAINERS)]
        if not level:
            return False
    return True


def _parts(node: Any) -> Iterable[Any]:
    return node.values() if isinstance(node, dict) else node


def too_deep(data: bytes) -> bool:
    """The same of a JSON text that is known to be read without an error."""
    return could_be_too_deep(data) and nested_too_deeply(orjson.loads(data))


def could_be_too_deep(data: bytes) -> bool:
    """Whether a JSON text has brackets enough for it. Most have not, and need no second look."""
    return data.count(b"[") + data.count(b"{") > VALUE_DEPTH


def _deferred(value: Any) -> Any:
    if isinstance(value, Deferred):
        return {"source": value.source, "input": value.input, "variables": value.variables}
    raise TypeError
