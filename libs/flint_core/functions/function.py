"""Custom functions: what a call such as `call: myteam/resize:1.2.0` becomes."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from flint_core.functions.schemas import function, object_of

__all__ = ["NAME", "SPEC", "VERSION", "CustomFunction", "is_function_name", "is_function_version", "parse_call"]

_PART: Final = r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?"
NAME: Final = rf"^(?=.{{1,128}}$){_PART}(?:/{_PART})+$"
"""Names of custom functions: at least one "/" tells them from Flint's own."""
VERSION: Final = (
    r"^(?=.{1,64}$)(?:0|[1-9][0-9]*)\.(?:0|[1-9][0-9]*)\.(?:0|[1-9][0-9]*)"
    r"(?:-(?:0|[1-9][0-9]*|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*)(?:\.(?:0|[1-9][0-9]*|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*))*)?"
    r"(?:\+[0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*)?$"
)
"""Semantic versions (2.0.0)."""

SPEC: Final = function(
    "function",
    "Calls a custom function in a function worker that registered it.",
    object_of(
        ["name", "version", "arguments"],
        {
            "name": {"type": "string", "pattern": NAME},
            "version": {"type": "string", "maxLength": 64, "description": "empty: the highest that is connected"},
            "arguments": {"type": "object", "description": "what `with` holds; the function's own schema checks it"},
        },
    ),
    {"description": "what the function returns"},
)
"""The function that calls of custom functions compile to. A definition does not name it."""

_NAME: Final = re.compile(NAME)
_VERSION: Final = re.compile(VERSION)


class CustomFunction(NamedTuple):
    """What a call names. `version` is empty for the highest that is connected."""

    name: str
    version: str


def is_function_name(text: str) -> bool:
    """Whether a text is the name of a custom function, such as `myteam/resize`."""
    return _NAME.fullmatch(text) is not None


def is_function_version(text: str) -> bool:
    """Whether a text is a semantic version of at most 64 characters."""
    return _VERSION.fullmatch(text) is not None


def parse_call(text: str) -> CustomFunction | None:
    """The function and version that `call` names, with or without a version; None when it names none."""
    name, colon, version = text.partition(":")
    if not is_function_name(name) or (colon and not is_function_version(version)):
        return None
    return CustomFunction(name, version)
