"""Every member of the language that the compiler knows, as places such as `http.query` or `task-run.run.shell.stdin`.

Read from the language's JSON Schema, which is made of the compiler's own tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from flint_core.definition.json_schema import workflow_schema

__all__ = ["members"]

COMMON: Final = frozenset({"if", "input", "output", "export", "timeout", "then", "metadata"})


def members() -> set[str]:
    """All places. What all tasks have stands once, below `task`."""
    schema = workflow_schema()
    found = {f"workflow.{name}" for name in schema["properties"]}
    for name, part in schema["$defs"].items():
        for place in _below(part, name.removeprefix("arguments-")):
            kind, _, rest = place.partition(".")
            if kind.startswith("task-") and rest.partition(".")[0] in COMMON:
                place = f"task.{rest}"
            found.add(place)
    return found


def _below(schema: Any, place: str) -> Iterator[str]:
    """Members of an object at a place, and of the objects in it; what is defined elsewhere stands there."""
    if not isinstance(schema, dict):
        return
    for name, part in schema.get("properties", {}).items():
        inner = f"{place}.{name}"
        yield inner
        yield from _below(part, inner)
    for word in ("anyOf", "oneOf", "allOf"):
        for part in schema.get(word, ()):
            yield from _below(part, place)
    for word in ("then", "else", "items", "additionalProperties"):
        yield from _below(schema.get(word), place)
