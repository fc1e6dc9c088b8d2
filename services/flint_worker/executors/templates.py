"""URI templates, RFC 6570: addresses such as `https://api.example.com/pets/{petId}{?fields*}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson
import uritemplate

from flint_core.problems import ProblemType
from flint_worker.executors.faults import Fault, invalid

__all__ = ["expand"]

_OPTIONAL: Final = frozenset({"?", "&", ";", "#"})


def expand(template: str, values: Mapping[str, Any], place: str) -> str:
    """The address with its variables filled in and encoded. Raises Fault (validation, expression).

    A variable of the path must have a value: RFC 6570 leaves one without out, and another resource would be addressed;
    nor may it be `.` or `..`. Of `{name}` it must be a scalar; `{name*}` and the other operators take arrays and
    objects. Variables of the query (`{?name}`, `{&name}`) may have none.
    """
    given = {name: _plain(value) for name, value in values.items() if value is not None}
    parsed = uritemplate.URITemplate(template)
    for variable in parsed.variables:
        operator = str(getattr(variable.operator, "value", variable.operator) or "")
        if operator in _OPTIONAL:
            continue
        for name in variable.variable_names:
            value = given.get(name)
            if value is None or value in ("", [], {}):
                raise invalid(f"{place}: the variable '{name[:100]}' has no value")
            if not operator and isinstance(value, list | dict) and not _exploded(variable, name):
                kind = "an object" if isinstance(value, dict) else "an array"
                detail = (
                    f"{place}: the variable '{name[:100]}' is {kind}; in a path it must be text, a number or a boolean"
                )
                raise Fault(ProblemType.EXPRESSION, 400, "Invalid variable of a URI template", detail)
            if value in (".", ".."):
                raise invalid(f"{place}: the variable '{name[:100]}' must not be '.' or '..'")
    return str(parsed.expand(given))


def _exploded(variable: Any, name: str) -> bool:
    return any(known == name and options["explode"] for known, options in variable.variables)


def _plain(value: Any) -> Any:
    """Values as the library knows them: text, and flat lists and objects of text."""
    if isinstance(value, dict):
        return {name: _text(member) for name, member in value.items() if member is not None}
    if isinstance(value, list):
        return [_text(item) for item in value if item is not None]
    return _text(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()
