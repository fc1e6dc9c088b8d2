"""What `call: approval` needs beyond the shape of its arguments: durations, and a form that can be filled in."""

from __future__ import annotations

from typing import Any

import jsonschema_rs

from flint_core.bindings import template_strings
from flint_core.definition.context import Context
from flint_core.definition.findings import Rule
from flint_core.definition.reader import join_pointer
from flint_core.durations import DurationError, parse_duration
from flint_core.plan import Schema

__all__ = ["check_approval"]


def check_approval(context: Context, arguments: dict[str, Any], pointer: str) -> None:
    """Note what is wrong with the arguments as they are written; what expressions give is checked when it is known."""
    escalation = arguments.get("escalation")
    places = [((), "deadline", arguments), (("escalation",), "after", escalation)]
    for path, name, holder in places:
        if not isinstance(holder, dict) or not isinstance(holder.get(name), str | dict):
            continue
        if any(True for _ in template_strings(holder[name])):
            continue
        try:
            parse_duration(holder[name])
        except DurationError as error:
            context.error(Rule.INVALID_VALUE, f"'{name}': {error}", join_pointer(pointer, *path, name))
    form = arguments.get("form")
    if isinstance(form, dict) and not any(True for _ in template_strings(form)):
        try:
            Schema(form)
        except (ValueError, jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError) as error:
            reason = getattr(error, "message", None) or str(error)
            message = f"the form is not a usable JSON schema: {str(reason)[:300]}"
            context.error(Rule.SCHEMA, message, join_pointer(pointer, "form"))
