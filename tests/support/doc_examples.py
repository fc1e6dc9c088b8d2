"""The examples of the language's page: their text, the input and the output that the page states, and what comes for
those that wait.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson

from flint_core.definition import compile_definition

__all__ = ["MAIL", "Example", "examples"]

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "definition-language.md"
_EXAMPLE: Final = re.compile(r"^```yaml\n(document:.*?)^```\n\n((?:[^\n]+\n)+)", re.MULTILINE | re.DOTALL)
_GIVES: Final = re.compile(r"gives `([\[{\"].*?)`[\s.:;,(]|gives `([\[{\"].*?)`$")
_INPUT: Final = re.compile(r"--input '(.*?)'")

PARCEL: Final = {"specversion": "1.0", "source": "s", "type": "com.example.parcel.packed"}
MAIL: Final[dict[str, list[Any]]] = {
    "collect-parcels": [
        PARCEL | {"id": "1", "data": {"order": 7, "weight": 4}},
        PARCEL | {"id": "2", "data": {"order": 8, "weight": 9}},
        PARCEL | {"id": "3", "data": {"order": 7, "weight": 6}},
    ],
    "each-parcel": [
        PARCEL | {"id": "11", "data": {"weight": 4}},
        PARCEL | {"id": "12", "data": {"weight": 6, "last": True}},
    ],
    "ask-first": [{"decision": "approved", "by": "ada", "comment": "", "fields": {"account": "petty"}, "at": ""}],
}
"""What comes for the awaits of an example, by its name: events, or a decision."""


class Example(NamedTuple):
    """A definition of the page that says what it gives. `functions`: what its tasks call."""

    source: str
    input: Any
    output: Any
    functions: frozenset[str]


def examples() -> dict[str, Example]:
    """By name, those of the page whose text says «gives `…`»."""
    found: dict[str, Example] = {}
    for match in _EXAMPLE.finditer(PAGE.read_text(encoding="utf-8")):
        text = match[2].replace("\n", " ")
        gives = _GIVES.search(text)
        program = compile_definition(match[1]).program
        if gives is None or program is None:
            continue
        given = _INPUT.search(text)
        data = orjson.loads(given[1]) if given else {}
        functions = frozenset(task.function for task in program.tasks)
        found[program.workflow_id] = Example(match[1], data, orjson.loads(gives[1] or gives[2]), functions)
    return found
