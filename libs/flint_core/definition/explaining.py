"""Says what is wrong with a function's arguments in words, where a validator says “not valid under any of the schemas”.

Walks a value beside its schema and takes, of several possible shapes, the one that the author meant: the one that has
the value's type. What this does not understand is left to the validator's own message.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import jsonschema_rs

from flint_core.definition.findings import suggestion

__all__ = ["Fault", "faults_of"]

_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
    "integer": (int,),
    "number": (int, float),
}
_WORDS: Final = {"object": "an object", "array": "an array", "string": "text", "boolean": "true or false"}
_SHOWN: Final = 80


class Fault(NamedTuple):
    """One thing that is wrong. `key`: the name of the member is at fault, not its value."""

    path: tuple[str | int, ...]
    message: str
    key: bool = False


def faults_of(validator: Any, schema: dict[str, Any], value: Any) -> list[Fault]:
    """What is wrong with a value, nothing when the validator takes it."""
    if validator.is_valid(value):
        return []
    found = list(dict.fromkeys(_walk(schema, value, ())))
    return found or [Fault(tuple(error.instance_path), error.message[:300]) for error in validator.iter_errors(value)]


def _walk(schema: dict[str, Any], value: Any, path: tuple[str | int, ...]) -> Iterator[Fault]:
    if isinstance(value, str) and "${" in value:
        return
    meant = _meant(schema, value)
    if meant is None:
        yield Fault(path, f"must be {' or '.join(dict.fromkeys(_kinds(schema)))}")
        return
    if "enum" in meant and value not in meant["enum"]:
        known = [str(each) for each in meant["enum"]]
        text = str(value)[:_SHOWN]
        yield Fault(path, f"'{text}' is none of {', '.join(known)}{suggestion(text, known)}")
    properties = meant.get("properties", {})
    if isinstance(value, dict):
        for name, member in value.items():
            if name in properties:
                yield from _walk(properties[name], member, (*path, name))
            elif meant.get("additionalProperties") is False:
                message = f"'{name[:_SHOWN]}' is not known here{suggestion(name, properties)}"
                yield Fault((*path, name), message, True)
            elif isinstance(meant.get("additionalProperties"), dict):
                yield from _walk(meant["additionalProperties"], member, (*path, name))
        for name in meant.get("required", ()):
            if name not in value:
                yield Fault(path, f"'{name}' is required")
        yield from _choices(meant, value, path)
    elif isinstance(value, list) and isinstance(meant.get("items"), dict):
        for position, item in enumerate(value):
            yield from _walk(meant["items"], item, (*path, position))
    else:
        yield from _scalar(meant, value, path)


def _choices(schema: dict[str, Any], value: dict[str, Any], path: tuple[str | int, ...]) -> Iterator[Fault]:
    """Members of which one must be there, or exactly one."""
    for part in (schema, *schema.get("allOf", ())):
        for word in ("anyOf", "oneOf"):
            ways = [way["required"][0] for way in part.get(word, ()) if way.keys() == {"required"}]
            given = [way for way in ways if way in value]
            if ways and not given:
                yield Fault(path, f"one of {', '.join(ways)} is required")
            elif word == "oneOf" and len(given) > 1:
                yield Fault((*path, given[1]), f"{' and '.join(given)} do not go together: give one of them", True)


def _scalar(schema: dict[str, Any], value: Any, path: tuple[str | int, ...]) -> Iterator[Fault]:
    """Bounds and patterns of one value, in the validator's words."""
    alone = {
        word: part for word, part in schema.items() if word not in ("properties", "anyOf", "oneOf", "allOf", "enum")
    }
    for error in jsonschema_rs.validator_for(alone).iter_errors(value):
        yield Fault(path, error.message[:300])


def _branches(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """The shapes that a schema offers; itself when it offers none."""
    for word in ("anyOf", "oneOf"):
        parts = schema.get(word)
        if parts and not all(part.keys() <= {"required"} for part in parts):
            return [branch for part in parts for branch in _branches(part)]
    return [schema]


def _kinds(schema: dict[str, Any]) -> Iterator[str]:
    for branch in _branches(schema):
        types = branch.get("type", [])
        for kind in [types] if isinstance(types, str) else types:
            yield _WORDS.get(kind, kind)


def _meant(schema: dict[str, Any], value: Any) -> dict[str, Any] | None:
    """The shape that has the value's type, with the most of its members; None when none has."""
    fitting = [branch for branch in _branches(schema) if _fits(branch, value)]
    plain = [branch for branch in fitting if branch.get("pattern") != r"\$\{[\s\S]*\}"] or fitting
    if not plain:
        return None
    return max(
        plain, key=lambda branch: len(value.keys() & branch.get("properties", {})) if isinstance(value, dict) else 0
    )


def _fits(schema: dict[str, Any], value: Any) -> bool:
    types = schema.get("type")
    if types is None:
        return True
    if isinstance(value, bool):
        return "boolean" in types if isinstance(types, list) else types == "boolean"
    return any(isinstance(value, _TYPES[kind]) for kind in ([types] if isinstance(types, str) else types))
