"""Compiles `emit`."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any, Final

from flint_core.definition.context import kind_of
from flint_core.definition.findings import Rule
from flint_core.definition.reader import join_pointer
from flint_core.plan import Places

if TYPE_CHECKING:
    from flint_core.definition.tasks import TaskCompiler

__all__ = ["ATTRIBUTE", "compile_emit"]

ATTRIBUTE: Final = re.compile(r"[a-z0-9]{1,20}|data_base64|datacontenttype")
"""Names that attributes of a CloudEvent may have."""


def compile_emit(compiler: TaskCompiler, members: dict[str, Any], pointer: str, places: Places) -> dict[str, Any]:
    """What `emit` adds to the common members of a task: a call that publishes one event."""
    context = compiler.context
    place = join_pointer(pointer, "emit")
    parts = context.mapping(members["emit"], place, "'emit'", frozenset({"event"}), ("event",))
    if "event" not in parts:
        return {}
    spot = join_pointer(place, "event")
    event = context.mapping(parts["event"], spot, "'event'", frozenset({"with"}), ("with",))
    if "with" not in event:
        return {}
    spot = join_pointer(spot, "with")
    attributes = event["with"]
    if not isinstance(attributes, dict):
        context.error(Rule.WRONG_TYPE, f"'with' must be an object, not {kind_of(attributes)}", spot)
        return {}
    for name in attributes:
        if not ATTRIBUTE.fullmatch(name):
            message = f"'{name[:80]}' is no attribute of an event: those are of 1 to 20 lower-case letters and digits"
            context.error(Rule.UNKNOWN_FIELD, message, join_pointer(spot, name), key=True)
            return {}
    if "type" not in attributes:
        near = difflib.get_close_matches("type", attributes, n=1, cutoff=0.6)
        hint = f"; '{near[0]}' is an extension: did you mean 'type'?" if near else ""
        context.error(Rule.MISSING_FIELD, f"an event needs 'type'{hint}", spot)
        return {}
    if "data" in attributes and "data_base64" in attributes:
        message = "an event has 'data' or 'data_base64', not both"
        context.error(Rule.INVALID_VALUE, message, join_pointer(spot, "data_base64"), key=True)
    context.template(attributes, spot, places.body)
    compiler.check_arguments("emit", {"event": attributes}, spot, skip=1)
    return {"function": "emit", "arguments": {"event": attributes}}
