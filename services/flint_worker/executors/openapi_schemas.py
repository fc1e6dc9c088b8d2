"""The schemas of OpenAPI documents as JSON Schema, with what they refer to, ready to check values.

Patterns are matched in linear time; what only a backtracking engine could match is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import unquote

import jsonschema_rs

from flint_core.schema_bounds import check_bounds
from flint_worker.executors.openapi_documents import Document, unusable

__all__ = ["SchemaCheck", "check_for"]

_SCHEMAS: Final = 5_000
_DEPTH: Final = 100
_DATA: Final = frozenset({"example", "examples", "default", "enum", "const", "x-example"})
"""Members that hold values, not schemas: a `$ref` within is a text."""
_NAMED: Final = frozenset({"properties", "patternProperties", "definitions", "$defs"})
_SKIPPED: Final = frozenset({"$schema", "$id", "id", "discriminator"})
"""Identities would change what references mean; they are those of the document."""


class SchemaCheck:
    """Checks values; its messages name places and rules, never values."""

    def __init__(self, validator: Any) -> None:
        self._validator = validator

    def first_error(self, value: Any) -> tuple[str, str] | None:
        """Place (a JSON pointer) and message of the first thing wrong, None when all is right."""
        for error in self._validator.iter_errors(value):
            place = "".join(f"/{step}" for step in error.instance_path)
            return place, str(error.message)[:300]
        return None


def check_for(document: Document, schema: Any, modern: bool) -> SchemaCheck | None:
    """The check of a schema; None when it allows everything. `modern`: OpenAPI 3.1. Raises Fault (configuration)."""
    if not schema or schema is True:
        return None
    root: dict[str, Any] = _converted(schema, modern, 0) if isinstance(schema, dict) else {"not": {}}
    root = dict(root)
    waiting, seen = list(_references(root, 0)), set[str]()
    while waiting:
        reference = waiting.pop()
        if reference in seen or reference == "#":
            continue
        seen.add(reference)
        if len(seen) > _SCHEMAS:
            raise unusable(f"a schema refers to more than {_SCHEMAS} others")
        converted = _converted(document.at(reference), modern, 0)
        _put(root, reference, converted)
        waiting.extend(_references(converted, 0))
    kind = jsonschema_rs.Draft202012Validator if modern else jsonschema_rs.Draft4Validator
    try:
        check_bounds(root)
        validator = kind(root, mask="the value", validate_formats=False, retriever=_nothing, pattern_options=_linear())
    except ValueError as error:
        # ValidationError is one; the message quotes the document, which is public to the call.
        raise unusable(f"a schema is not valid: {str(error).splitlines()[0][:200]}") from None
    return SchemaCheck(validator)


def _linear() -> Any:
    return jsonschema_rs.RegexOptions(size_limit=2**20, dfa_size_limit=2**20)


def _nothing(uri: str) -> Any:
    raise ValueError("references to other documents are not followed")


def _converted(schema: Any, modern: bool, depth: int) -> Any:
    """The schema for a request: `nullable` as a type, nothing required that only answers have, bytes in any form."""
    if depth > _DEPTH:
        raise unusable(f"a schema has more than {_DEPTH} levels")
    if isinstance(schema, list):
        return [_converted(part, modern, depth + 1) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("format") in ("binary", "byte") and schema.get("type") in ("string", "file"):
        return {}
    if schema.get("type") == "file":
        return {}
    converted: dict[str, Any] = {}
    for name, part in schema.items():
        if name in _NAMED:
            converted[name] = _members(part, modern, depth + 1)
        elif name not in _SKIPPED:
            converted[name] = part if name in _DATA else _converted(part, modern, depth + 1)
    properties, required = schema.get("properties"), schema.get("required")
    if isinstance(properties, dict) and isinstance(required, list):
        answers = {name for name, part in properties.items() if isinstance(part, dict) and part.get("readOnly") is True}
        left = [name for name in required if name not in answers]
        if left:
            converted["required"] = left
        else:
            converted.pop("required", None)  # draft 4 wants at least one
    if not modern and (schema.get("nullable") is True or schema.get("x-nullable") is True):
        return {"anyOf": [{"type": "null"}, converted]}
    return converted


def _members(properties: Any, modern: bool, depth: int) -> Any:
    """These are named by the document: one called `id` or `default` is a schema like the others."""
    if not isinstance(properties, dict):
        return properties
    return {name: _converted(part, modern, depth) for name, part in properties.items()}


def _references(node: Any, depth: int) -> Iterator[str]:
    if depth > _DEPTH:
        raise unusable(f"a schema has more than {_DEPTH} levels")
    if isinstance(node, dict):
        reference = node.get("$ref")
        if isinstance(reference, str):
            yield reference
        for name, part in node.items():
            if name in _NAMED and isinstance(part, dict):
                for member in part.values():
                    yield from _references(member, depth + 1)
            elif name not in _DATA:
                yield from _references(part, depth + 1)
    elif isinstance(node, list):
        for part in node:
            yield from _references(part, depth + 1)


def _put(root: dict[str, Any], reference: str, schema: Any) -> None:
    """Places a schema where its reference finds it."""
    *way, last = [unquote(part).replace("~1", "/").replace("~0", "~") for part in reference[2:].split("/")]
    node = root
    for name in way:
        following = node.setdefault(name, {})
        if not isinstance(following, dict):
            raise unusable(f"the reference {reference[:200]!r} cannot be followed")
        node = following
    # A part of it may be there already, from a reference that leads deeper: the whole holds that too.
    node[last] = schema
