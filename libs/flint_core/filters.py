"""What a `listen` compares events with, compiled.

An event is checked against a filter in three parts: what is constant, then the expressions below `data`, whose input is
the event's data, then the other expressions and those of the correlations, whose input is the event. Each part after
the first is one binding, since a guarded expression suspends its task between two parts and never within one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import orjson

from flint_core.bindings import Binding, expressions_in
from flint_core.patterns import equal, matches

__all__ = ["PARTS", "FilterPlan", "read_event"]

PARTS: Final = 3
"""How many parts the check of one filter has."""


class _Expressions(NamedTuple):
    """Expressions of one part, and the places in the event that each is about."""

    binding: Binding
    paths: tuple[tuple[str, ...], ...]


class FilterPlan:
    """One event filter. Immutable."""

    __slots__ = ("constant", "correlate", "data", "event", "expect", "names")

    def __init__(self, document: dict[str, Any], variables: frozenset[str]) -> None:
        attributes: dict[str, Any] = document.get("with", {})
        correlate: dict[str, Any] = document.get("correlate", {})
        self.constant, found = _split(attributes)
        self.names = tuple(attributes)
        data = [(path, source) for path, source in found if path[0] == "data"]
        self.data = _expressions(data, variables)
        rest = [(path, source) for path, source in found if path[0] != "data"]
        sources = {str(place): source for place, (_, source) in enumerate(rest)}
        sources |= {f"={name}": part["from"] for name, part in correlate.items()}
        paths = tuple(path for path, _ in rest)
        self.event = _Expressions(Binding(sources, variables), paths) if sources else None
        self.correlate = {name: part["from"] for name, part in correlate.items()}
        self.expect = {name: part["expect"] for name, part in correlate.items() if "expect" in part}

    def fits(self, event: dict[str, Any]) -> bool:
        """The first part: the attributes are there, and what is constant matches."""
        return all(name in event for name in self.names) and matches(self.constant, event)

    def verdict(self, part: int, event: dict[str, Any], results: dict[str, Any]) -> bool:
        """Whether the values of a part's expressions let the event pass (correlations apart)."""
        expressions = self.data if part == 1 else self.event
        if expressions is None:
            return True
        return all(_allows(results[str(place)], path, event) for place, path in enumerate(expressions.paths))

    def bindings(self) -> Iterator[Binding]:
        """Every binding of the filter but those of `expect`."""
        for expressions in (self.data, self.event):
            if expressions is not None:
                yield expressions.binding

    def request(self, expected: dict[str, Any]) -> dict[str, Any]:
        """What whoever delivers events may go by (`Await`)."""
        attributes = {
            name: value
            for name, value in self.constant.items()
            if name != "data" and isinstance(value, str | int | float | bool)
        }
        correlate = {
            name: {"from": _source(text), **({"expect": expected[name]} if name in expected else {})}
            for name, text in self.correlate.items()
        }
        return {"with": attributes, "correlate": correlate}


def read_event(event: dict[str, Any], how: str) -> Any:
    """What a task reads of an event: its data, its envelope, or the data as text (base64 when it is binary)."""
    if how == "envelope":
        return event
    if "data_base64" in event:
        return event["data_base64"]
    data = event.get("data")
    if how == "raw" and not isinstance(data, str):
        return "" if data is None else orjson.dumps(data).decode()
    return data


def _expressions(found: list[tuple[tuple[str, ...], str]], variables: frozenset[str]) -> _Expressions | None:
    if not found:
        return None
    sources = {str(place): source for place, (_, source) in enumerate(found)}
    return _Expressions(Binding(sources, variables), tuple(path for path, _ in found))


def _split(attributes: dict[str, Any]) -> tuple[dict[str, Any], list[tuple[tuple[str, ...], str]]]:
    """What is constant of a pattern, and the expressions in it with their paths. Lists are compared as a whole."""
    found: list[tuple[tuple[str, ...], str]] = []

    def constant(node: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for name, part in node.items():  # as deep as a definition may be
            if isinstance(part, str) and "${" in part:
                found.append(((*path, name), part))
            elif isinstance(part, dict):
                kept[name] = constant(part, (*path, name))
            else:
                kept[name] = part
        return kept

    return constant(attributes, ()), found


def _allows(result: Any, path: tuple[str, ...], event: Any) -> bool:
    if isinstance(result, bool) or result is None:
        return result is True
    value = event
    for name in path:
        if not isinstance(value, dict) or name not in value:
            return False
        value = value[name]
    return equal(result, value)


def _source(text: str) -> str:
    sources = expressions_in(text)
    return sources[0] if len(sources) == 1 else text
