"""Compiles `schedule`: when a workflow starts by itself."""

from __future__ import annotations

from typing import Any, Final

from flint_core.bindings import Binding, template_strings
from flint_core.definition.context import Context, kind_of
from flint_core.definition.findings import Rule
from flint_core.definition.reader import join_pointer
from flint_core.durations import DurationError, parse_duration
from flint_core.expressions import ExpressionSyntaxError
from flint_core.patterns import PatternError, check_pattern
from flint_core.schedule import CronInvalid, Schedule, check_cron
from flint_core.schedule_policy import SHORTEST_MS

__all__ = ["compile_schedule"]

_WAYS: Final = ("every", "cron", "after", "on")
_STRATEGIES: Final = ("all", "any", "one")
_HINT: Final = "a schedule holds before there is a run"


def compile_schedule(context: Context, value: Any) -> Schedule | None:
    """The schedule of a document; None when it is refused."""
    members = context.mapping(value, "/schedule", "'schedule'", frozenset(_WAYS))
    if len(members) != 1:
        if isinstance(value, dict) and len(members) == len(value):
            context.error(Rule.INVALID_VALUE, "'schedule' is one of every, cron, after and on", "/schedule")
        return None
    way, content = next(iter(members.items()))
    place = join_pointer("/schedule", way)
    if way == "cron":
        text = context.text(content, place, "'cron'")
        if not text:
            return None
        try:
            check_cron(text)
        except CronInvalid as error:
            context.error(Rule.INVALID_VALUE, f"'cron': {error}", place)
            return None
        return Schedule(cron=text)
    if way == "on":
        return Schedule(on=content) if _strategy(context, content, place) else None
    return _duration(context, way, content, place)


def _duration(context: Context, way: str, content: Any, place: str) -> Schedule | None:
    if any(True for _ in template_strings(content)):
        message = f"'{way}' holds before there is a run: it cannot have expressions"
        context.error(Rule.INVALID_VALUE, message, place)
        return None
    try:
        length = parse_duration(content).length_ms(0)
    except DurationError as error:
        context.error(Rule.INVALID_VALUE, f"'{way}': {error}", place)
        return None
    if way == "every" and length < SHORTEST_MS:
        context.error(Rule.INVALID_VALUE, "'every' must be at least 100 milliseconds", place)
        return None
    return Schedule(**{way: content})


def _strategy(context: Context, value: Any, pointer: str) -> bool:
    """Whether this is an event consumption strategy; what is wrong becomes findings."""
    members = context.mapping(value, pointer, "'on'", frozenset({*_STRATEGIES, "until"}))
    ways = [way for way in _STRATEGIES if way in members]
    if len(ways) != 1:
        if isinstance(value, dict):
            context.error(Rule.INVALID_VALUE, "'on' needs exactly one of all, any and one", pointer)
        return False
    if "until" in members:
        message = "a start by events ends with the events that start it: 'until' is for listen"
        context.error(Rule.INVALID_VALUE, message, join_pointer(pointer, "until"), key=True)
        return False
    content, place = members[ways[0]], join_pointer(pointer, ways[0])
    if ways[0] == "one":
        return _filter(context, content, place)
    if not isinstance(content, list):
        context.error(Rule.WRONG_TYPE, f"'{ways[0]}' must be a list of filters, not {kind_of(content)}", place)
        return False
    if ways[0] == "all" and not content:
        context.error(Rule.INVALID_VALUE, "'all' needs at least one filter", place)
        return False
    if len(content) > context.limits.filters:
        message = f"'{ways[0]}' has {len(content)} filters; the limit is {context.limits.filters}"
        context.error(Rule.LIMIT, message, place)
        return False
    checked = [_filter(context, each, join_pointer(place, position)) for position, each in enumerate(content)]
    return all(checked)  # all of them are looked at, so that all mistakes are told


def _patterns(context: Context, attributes: dict[str, Any], pointer: str) -> None:
    """Checks regular expressions and expressions of a filter."""
    unseen: list[tuple[str, Any]] = [(pointer, attributes)]
    while unseen:
        place, node = unseen.pop()
        if isinstance(node, dict):
            unseen.extend((join_pointer(place, name), part) for name, part in node.items())
        elif isinstance(node, list) and any(True for _ in template_strings(node)):
            message = "a list in a filter is compared as a whole: use one expression for all of it"
            context.error(Rule.INVALID_VALUE, message, place)
        elif isinstance(node, str) and "${" in node:
            _plain(context, node, place)
        elif isinstance(node, str):
            try:
                check_pattern(node)
            except PatternError as error:
                context.error(Rule.INVALID_VALUE, str(error), place)


def _plain(context: Context, text: str, pointer: str) -> None:
    """An expression whose value depends on the event alone, without what only jq itself knows."""
    try:
        binding = Binding(text, frozenset())
    except ExpressionSyntaxError as error:
        context.error(Rule.EXPRESSION, f"{error}; {_HINT}: only the event is there", pointer)
        return
    if binding.guarded or binding.deferred or binding.names:
        message = f"{_HINT}: an expression may use paths, comparisons, arithmetic, `and or not` and `//`"
        context.error(Rule.INVALID_VALUE, message, pointer)


def _filter(context: Context, value: Any, pointer: str) -> bool:
    before = len(context.findings)
    members = context.mapping(value, pointer, "an event filter", frozenset({"with", "correlate"}), ("with",))
    if "with" in members:
        attributes = members["with"]
        if not isinstance(attributes, dict) or not attributes:
            message = "'with' of an event filter is an object with at least one attribute"
            context.error(Rule.WRONG_TYPE, message, join_pointer(pointer, "with"))
        else:
            _patterns(context, attributes, join_pointer(pointer, "with"))
    place = join_pointer(pointer, "correlate")
    correlate = members.get("correlate", {})
    known = correlate if isinstance(correlate, dict) else {}
    for name, correlation in context.mapping(correlate, place, "'correlate'", known).items():
        spot = join_pointer(place, name)
        parts = context.mapping(correlation, spot, "a correlation", frozenset({"from", "expect"}), ("from",))
        if "from" in parts:
            source = parts["from"]
            if not isinstance(source, str):
                message = f"'from' must be an expression over the event, not {kind_of(source)}"
                context.error(Rule.WRONG_TYPE, message, join_pointer(spot, "from"))
            else:
                _plain(context, source if "${" in source else f"${{ {source} }}", join_pointer(spot, "from"))
        if any(True for _ in template_strings(parts.get("expect"))):
            message = f"{_HINT}: 'expect' must be a constant"
            context.error(Rule.INVALID_VALUE, message, join_pointer(spot, "expect"))
    return len(context.findings) == before
