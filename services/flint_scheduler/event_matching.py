"""Which subscriptions an event may satisfy, found by index however many runs wait.

A filter of an await is split in two. Its *shape* is what many filters have in common: the exact type they ask for,
which attributes are compared with a value, which regular expressions others have to match, and which expressions
(`from`) are compared with an expected value. Its *match* is a hash of those values. For an event each shape of its
namespace and type is evaluated once, which gives the match that subscriptions must have: a lookup by (namespace,
shape, match).

    filter ── split ──▶ shape, match ──▶ event_shape, event_subscription
    event ── per shape: attributes and expressions of the event ──▶ match ──▶ subscriptions ──▶ inboxes

The answer may be generous, never too small, for the machine checks every event itself: what cannot be compared by value
here (an expression outside the fast path or with variables, a first event that decides) is left out of the shape. Pure
but for a cache of compiled shapes.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import orjson

from flint_core.cloud_events import TYPE_CHARACTERS
from flint_core.expressions import Expression, ExpressionFault, ExpressionSyntaxError, compile_expression
from flint_core.patterns import is_regular, matches
from flint_ops.logging import get_logger
from flint_store.events import Shape

__all__ = ["Filter", "ShapeBook", "split_filters"]

log = get_logger(__name__)

_CACHED: Final = 20_000
_ATTRIBUTES: Final = 64  # of one filter; what goes beyond is left to the machine
_JSON: Final = orjson.OPT_SORT_KEYS | orjson.OPT_PASSTHROUGH_SUBCLASS


class Filter(NamedTuple):
    """One filter of an await, split."""

    shape: Shape
    match: bytes


class _Compiled(NamedTuple):
    attributes: tuple[str, ...]
    patterns: dict[str, str]
    expressions: tuple[Expression, ...]


def split_filters(namespace: str, request: Mapping[str, Any]) -> list[Filter]:
    """The filters of an await's request, each as a shape and a match; equal ones once."""
    filters = request.get("filters")
    if not isinstance(filters, list) or not filters:
        filters = [{}]  # every event
    return list(dict.fromkeys(_split(namespace, part if isinstance(part, dict) else {}) for part in filters))


def _split(namespace: str, part: Mapping[str, Any]) -> Filter:
    attributes = part.get("with")
    exact: dict[str, Any] = {}
    patterns: dict[str, str] = {}
    if isinstance(attributes, dict):
        for name, value in list(attributes.items())[:_ATTRIBUTES]:
            if isinstance(value, str) and is_regular(value):
                patterns[name] = value
            elif name != "data" and isinstance(value, str | int | float):
                exact[name] = value
    kind = exact.pop("type", "")
    if not isinstance(kind, str) or len(kind) > TYPE_CHARACTERS or "\0" in kind:
        kind = ""
    names = sorted(exact)
    values = [exact[name] for name in names]
    expected: dict[str, Any] = {}
    correlate = part.get("correlate")
    if isinstance(correlate, dict):
        for entry in correlate.values():
            if isinstance(entry, dict) and "expect" in entry and _plain_expression(entry.get("from")) is not None:
                expected.setdefault(entry["from"], entry["expect"])
    sources = sorted(expected)[:_ATTRIBUTES]
    values += [expected[source] for source in sources]
    spec = orjson.dumps([names, patterns, sources], option=orjson.OPT_SORT_KEYS)
    shape = _hash(kind.encode() + b"\0" + spec)
    return Filter(Shape(namespace, kind, shape, spec), _hash(_canonical(values)))


def _plain_expression(source: Any) -> Expression | None:
    """The expression, when its value depends on the event alone and needs no jq."""
    if not isinstance(source, str):
        return None
    try:
        expression = compile_expression(source, variables=frozenset())
    except ExpressionSyntaxError:
        return None  # with variables, or only jq knows
    # Without the time: a value that changes cannot be looked up.
    return expression if expression.fast and not re.search(r"\bnow\b", expression.source) else None


class ShapeBook:
    """Evaluates shapes on events. Belongs to one event loop."""

    def __init__(self) -> None:
        self._compiled: OrderedDict[bytes, _Compiled] = OrderedDict()

    def matches(self, event: Mapping[str, Any], shapes: Iterable[Shape], now_ms: int) -> list[tuple[Shape, bytes]]:
        """For each shape that the event can satisfy: the match that its subscriptions must have."""
        found = []
        kind = event.get("type")
        for shape in shapes:
            if shape.type and shape.type != kind:
                continue
            try:
                match = self._match(event, shape, now_ms)
            except Exception as error:
                # One event must not stop those behind it. What cannot be compared equals no value that a filter gave:
                # that one has been written as JSON.
                log.exception("event_not_compared", namespace=shape.namespace, type=shape.type, error=repr(error)[:500])
                continue
            if match is not None:
                found.append((shape, match))
        return found

    def _match(self, event: Mapping[str, Any], shape: Shape, now_ms: int) -> bytes | None:
        compiled = self._compiled.get(shape.shape)
        if compiled is None:
            compiled = self._compile(shape)
        else:
            self._compiled.move_to_end(shape.shape)
        values: list[Any] = []
        for name in compiled.attributes:
            if name not in event:
                return None
            values.append(event[name])
        if compiled.patterns and not matches(compiled.patterns, event):
            return None
        for expression in compiled.expressions:
            try:
                values.append(expression.evaluate(event, {}, now_ms))
            except ExpressionFault:
                return None  # this event has no such value
        return _hash(_canonical(values))

    def _compile(self, shape: Shape) -> _Compiled:
        names, patterns, sources = orjson.loads(shape.spec)
        expressions = tuple(compile_expression(source, variables=frozenset()) for source in sources)
        compiled = self._compiled[shape.shape] = _Compiled(tuple(names), patterns, expressions)
        while len(self._compiled) > _CACHED:
            self._compiled.popitem(last=False)
        return compiled


def _hash(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()


def _canonical(values: Sequence[Any]) -> bytes:
    """JSON in one spelling: what jq calls equal is the same text."""
    return orjson.dumps(_settled(values), option=_JSON)


def _settled(value: Any) -> Any:
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if isinstance(value, list | tuple):
        return [_settled(item) for item in value]
    if isinstance(value, dict):
        return {name: _settled(item) for name, item in value.items()}
    return value
