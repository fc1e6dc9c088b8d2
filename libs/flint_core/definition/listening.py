"""Compiles `listen`: which events a task waits for, until when, and what it does with each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from flint_core.bindings import template_strings
from flint_core.definition.context import kind_of
from flint_core.definition.emitting import ATTRIBUTE
from flint_core.definition.findings import Rule, suggestion
from flint_core.definition.reader import join_pointer
from flint_core.patterns import PatternError, check_pattern
from flint_core.plan import Places
from flint_core.program import Listen

if TYPE_CHECKING:
    from flint_core.definition.tasks import Scope, TaskCompiler

__all__ = ["FOREACH_MEMBERS", "MODES", "READ", "compile_listen"]

MODES: Final = ("one", "any", "all")
READ: Final = ("data", "envelope", "raw")
FOREACH_MEMBERS: Final = frozenset({"item", "at", "do", "output", "export"})
_NEVER: Final = frozenset({"false", "${ false }"})


def compile_listen(
    compiler: TaskCompiler,
    members: dict[str, Any],
    pointer: str,
    scope: Scope,
    local: tuple[str, ...],
    places: Places,
    timed: bool,
) -> dict[str, Any]:
    """What `listen` and its `foreach` add to the common members of a task."""
    context = compiler.context
    place = join_pointer(pointer, "listen")
    parts = context.mapping(members["listen"], place, "'listen'", frozenset({"to", "read"}), ("to",))
    read = parts.get("read", "data")
    if read not in READ:
        hint = suggestion(str(read), READ) or "; it must be data, envelope or raw"
        context.error(Rule.INVALID_VALUE, f"'read' is '{str(read)[:80]}'{hint}", join_pointer(place, "read"))
        read = "data"
    loop: dict[str, Any] = {}
    inner = places
    if "foreach" in members:
        loop, inner, local = _foreach_head(compiler, members["foreach"], pointer, places, local)
    strategy = (
        _strategy(compiler, parts.get("to", {}), join_pointer(place, "to"), places, inner) if "to" in parts else {}
    )
    if not timed:
        if strategy.get("until") in _NEVER:
            message = "this listens for ever: no timeout limits it, and its 'until' never holds"
        else:
            message = "no timeout limits this wait for events: set `timeout` on it, around it or on the workflow"
        context.warn(Rule.NO_TIMEOUT, message, pointer, key=True)
    result: dict[str, Any] = {}
    if "foreach" in members:
        result = _foreach_body(compiler, members["foreach"], pointer, scope, local, inner, timed)
    listen = Listen(read=read, **strategy, **result.pop("stations", {}))
    return {"listen": listen, **loop, **result}


def _strategy(compiler: TaskCompiler, value: Any, place: str, places: Places, inner: Places) -> dict[str, Any]:
    context = compiler.context
    parts = context.mapping(value, place, "'to'", frozenset({*MODES, "until"}))
    mode = _mode(compiler, parts, value, place, "'to'")
    if mode is None:
        return {}
    result: dict[str, Any] = {"mode": mode, "filters": _filters(compiler, mode, parts[mode], place, places)}
    spot = join_pointer(place, "until")
    if "until" not in parts:
        return result
    until = parts["until"]
    if mode != "any":
        message = f"'until' belongs to 'any'; '{mode}' ends by itself"
        context.error(Rule.INVALID_VALUE, message, spot, key=True)
    elif isinstance(until, bool):
        result["until"] = "${ true }" if until else "${ false }"
    elif isinstance(until, str):
        result["until"] = context.expression(until, spot, inner.body, "'until'")
    elif isinstance(until, dict):
        ends = context.mapping(until, spot, "'until'", frozenset(MODES))
        mode = _mode(compiler, ends, until, spot, "'until'")
        if mode is not None:
            result["until_mode"] = mode
            result["until_filters"] = _filters(compiler, mode, ends[mode], spot, places)
            if not result["until_filters"] and ends[mode] == []:
                context.error(Rule.INVALID_VALUE, "'until' needs at least one filter", join_pointer(spot, mode))
    else:
        message = f"'until' must be an expression or a strategy of its own, not {kind_of(until)}"
        context.error(Rule.WRONG_TYPE, message, spot)
    return result


def _mode(compiler: TaskCompiler, parts: dict[str, Any], value: Any, place: str, what: str) -> str | None:
    modes = [name for name in MODES if name in parts]
    if len(modes) == 1:
        return modes[0]
    if isinstance(value, dict) and len(parts) == len(value):
        spot = join_pointer(place, modes[1]) if modes else place
        compiler.context.error(Rule.INVALID_VALUE, f"{what} is one of one, any and all", spot, key=bool(modes))
    return None


def _filters(compiler: TaskCompiler, mode: str, value: Any, place: str, places: Places) -> list[dict[str, Any]]:
    context = compiler.context
    place = join_pointer(place, mode)
    if mode == "one":
        found = _filter(compiler, value, place, places)
        return [] if found is None else [found]
    if not isinstance(value, list):
        context.error(Rule.WRONG_TYPE, f"'{mode}' must be a list of filters, not {kind_of(value)}", place)
        return []
    if not value and mode == "all":
        context.error(Rule.INVALID_VALUE, "'all' needs at least one filter", place)
    if len(value) > context.limits.filters:
        message = f"'{mode}' has {len(value)} filters; the limit is {context.limits.filters}"
        context.error(Rule.LIMIT, message, place)
        return []
    found_all = [_filter(compiler, each, join_pointer(place, index), places) for index, each in enumerate(value)]
    return [found for found in found_all if found is not None]


def _filter(compiler: TaskCompiler, value: Any, place: str, places: Places) -> dict[str, Any] | None:
    context = compiler.context
    parts = context.mapping(value, place, "an event filter", frozenset({"with", "correlate"}), ("with",))
    if "with" not in parts:
        return None
    spot = join_pointer(place, "with")
    attributes = parts["with"]
    if not isinstance(attributes, dict) or not attributes:
        message = "'with' must be an object of attributes and what they are to be, such as type: com.example.paid"
        context.error(Rule.WRONG_TYPE, message, spot)
        return None
    for name in attributes:
        if not ATTRIBUTE.fullmatch(name):
            message = f"'{name[:80]}' is no attribute of an event: those are of 1 to 20 lower-case letters and digits"
            context.error(Rule.UNKNOWN_FIELD, message, join_pointer(spot, name), key=True)
    _patterns(compiler, attributes, spot)
    found: dict[str, Any] = {"with": context.template(attributes, spot, places.body)}
    if "correlate" in parts:
        found["correlate"] = _correlate(compiler, parts["correlate"], join_pointer(place, "correlate"), places)
    return found


def _patterns(compiler: TaskCompiler, attributes: dict[str, Any], place: str) -> None:
    """Checks the regular expressions of a filter. Expressions may stand for any value but within a list."""
    open_values: list[tuple[str, Any]] = [(place, attributes)]
    while open_values:
        spot, node = open_values.pop()
        if isinstance(node, dict):
            open_values.extend((join_pointer(spot, name), part) for name, part in node.items())
        elif isinstance(node, list) and any(True for _ in template_strings(node)):
            message = "a list in a filter is compared as a whole: use one expression for all of it"
            compiler.context.error(Rule.INVALID_VALUE, message, spot)
        elif isinstance(node, str) and "${" not in node:
            try:
                check_pattern(node)
            except PatternError as error:
                compiler.context.error(Rule.INVALID_VALUE, str(error), spot)


def _correlate(compiler: TaskCompiler, value: Any, place: str, places: Places) -> dict[str, Any]:
    context = compiler.context
    named = value if isinstance(value, dict) else {}
    correlations: dict[str, Any] = {}
    for name, body in context.mapping(value, place, "'correlate'", named).items():
        spot = join_pointer(place, name)
        parts = context.mapping(body, spot, f"the correlation '{name[:80]}'", frozenset({"from", "expect"}), ("from",))
        if "from" not in parts:
            continue
        source = context.expression(parts["from"], join_pointer(spot, "from"), places.body, "'from'")
        correlations[name] = {"from": source}
        if "expect" in parts:
            correlations[name]["expect"] = context.template(parts["expect"], join_pointer(spot, "expect"), places.body)
    return correlations


# --- foreach


def _foreach_head(
    compiler: TaskCompiler, value: Any, pointer: str, places: Places, local: tuple[str, ...]
) -> tuple[dict[str, Any], Places, tuple[str, ...]]:
    """The names of the loop's variables, and what its places see."""
    context = compiler.context
    place = join_pointer(pointer, "foreach")
    parts = context.mapping(value, place, "'foreach'", FOREACH_MEMBERS)
    item = compiler.variable(parts.get("item", "item"), join_pointer(place, "item"), "'item'")
    at = compiler.variable(parts.get("at", "index"), join_pointer(place, "at"), "'at'")
    if item == at:
        context.error(Rule.INVALID_VALUE, f"'item' and 'at' are both '{item}'", place)
    names = (*local, *(name for name in (item, at) if name not in local))
    return {"each": item, "at": at}, Places("listen", names), names


def _foreach_body(
    compiler: TaskCompiler,
    value: Any,
    pointer: str,
    scope: Scope,
    local: tuple[str, ...],
    inner: Places,
    timed: bool,
) -> dict[str, Any]:
    context = compiler.context
    if not isinstance(value, dict):
        return {}
    place = join_pointer(pointer, "foreach")
    stations = compiler.data_flow({name: value[name] for name in ("output", "export") if name in value}, place, inner)
    result: dict[str, Any] = {"stations": {"iterates": True, **stations}}
    if "do" in value:
        result["scope"] = compiler.scope(value["do"], join_pointer(place, "do"), "'foreach.do'", scope, local, timed)
    elif not stations:
        context.error(Rule.MISSING_FIELD, "'foreach' needs 'do', or 'output' or 'export'", place)
    return result
