"""How much work a JSON schema can ask for on one value.

References let a few lines stand for millions of checks: when each of thirty definitions refers twice to the next, one
value is checked 2^30 times, and a definition that refers to itself in place never ends. Both are found here without
expanding anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import unquote, urldefrag, urljoin

__all__ = ["MOST_CHECKS", "SchemaTooCostly", "check_bounds"]

MOST_CHECKS: Final = 10_000
"""Subschemas that one place of a schema may apply to one value, with everything that it refers to."""

_LISTS: Final = ("allOf", "anyOf", "oneOf")
_SINGLE: Final = ("not", "if", "then", "else")
_MAPS: Final = ("dependentSchemas", "dependencies")
_REFERENCES: Final = ("$ref", "$dynamicRef", "$recursiveRef")
_ANCHORS: Final = ("$anchor", "$dynamicAnchor")
_LOOKED_AT_AGAIN: Final = ("unevaluatedProperties", "unevaluatedItems")


class SchemaTooCostly(ValueError):
    """The schema would check one value too often, or for ever; the message says where."""


def check_bounds(document: Any, most: int = MOST_CHECKS) -> None:
    """Raise SchemaTooCostly when any place of the schema applies more than `most` subschemas to one value.

    Counted is what looks at the same value: references, allOf, anyOf, oneOf, not, if and their like. What looks at a
    part of it (properties, items) begins a count of its own, so recursion through those is free. Takes time linear in
    the schema; where a reference may mean several places the costliest counts.
    """
    index = _Index(document)
    counts: dict[int, int] = {}
    for node in index.nodes:
        _count(index, node, counts, most)


class _Index:
    """All objects of a document, and what references may mean."""

    def __init__(self, document: Any) -> None:
        self.nodes: list[dict[str, Any]] = []
        self._document = document
        self._pointers: dict[int, str] = {}
        self._roots: dict[int, dict[str, Any]] = {}
        self._bases: dict[int, str] = {}
        self._by_uri: dict[str, list[dict[str, Any]]] = {}
        self._by_anchor: dict[str, list[dict[str, Any]]] = {}
        waiting: list[tuple[Any, str, Any, str]] = [(document, "", document, "")]
        while waiting:
            node, pointer, root, base = waiting.pop()
            if isinstance(node, list):
                waiting += [(item, f"{pointer}/{place}", root, base) for place, item in enumerate(node)]
            if not isinstance(node, dict) or id(node) in self._pointers:
                continue
            for name in ("$id", "id"):
                own = node.get(name)
                if isinstance(own, str):
                    if own.startswith("#"):
                        self._by_anchor.setdefault(own[1:], []).append(node)
                        continue
                    root, base = node, _joined(base, own)
                    self._by_uri.setdefault(base, []).append(node)
            for name in _ANCHORS:
                if isinstance(node.get(name), str):
                    self._by_anchor.setdefault(node[name], []).append(node)
            self.nodes.append(node)
            self._pointers[id(node)], self._roots[id(node)], self._bases[id(node)] = pointer, root, base
            waiting += [(member, f"{pointer}/{name}", root, base) for name, member in node.items()]

    def place(self, node: dict[str, Any]) -> str:
        """Where it stands, as a pointer."""
        return (self._pointers.get(id(node)) or "/")[:200]

    def meant(self, node: dict[str, Any], reference: str) -> Iterator[dict[str, Any]]:
        """The objects that a reference from `node` may mean; none when they are not in this document."""
        uri, fragment = urldefrag(reference)
        roots: list[Any] = []
        if uri:
            for name in {_joined(self._bases.get(id(node), ""), uri), uri}:
                roots += self._by_uri.get(name, ())
        else:
            roots = [self._roots.get(id(node), self._document), self._document]
        if fragment and not fragment.startswith("/"):
            yield from self._by_anchor.get(unquote(fragment), ())
            return
        seen: set[int] = set()
        for root in roots:
            found = _at(root, fragment)
            if isinstance(found, dict) and id(found) not in seen:
                seen.add(id(found))
                yield found


def _count(index: _Index, start: dict[str, Any], counts: dict[int, int], most: int) -> None:
    """Counts what `start` applies to one value, in the order of its references and without recursion."""
    if id(start) in counts:
        return
    open_: set[int] = {id(start)}
    stack = [(start, _applied(index, start))]
    todo = [[target for group in groups for target in group] for _, groups in stack]
    while stack:
        node, groups = stack[-1]
        while todo[-1] and id(todo[-1][-1]) in counts:
            todo[-1].pop()
        if todo[-1]:
            target = todo[-1].pop()
            if id(target) in open_:
                raise SchemaTooCostly(f"{index.place(target)} refers to itself, so checking it would never end")
            open_.add(id(target))
            stack.append((target, _applied(index, target)))
            todo.append([found for group in stack[-1][1] for found in group])
            continue
        total = 1 + sum(max((counts[id(target)] for target in group), default=1) for group in groups)
        if any(name in node for name in _LOOKED_AT_AGAIN):
            total *= 2
        if total > most:
            raise SchemaTooCostly(
                f"{index.place(node)} stands for more than {most} checks of one value: its references multiply"
            )
        counts[id(node)] = total
        open_.discard(id(node))
        stack.pop()
        todo.pop()


def _applied(index: _Index, node: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """What the schema applies to the same value; each as the objects that it may be."""
    found: list[list[dict[str, Any]]] = []
    for name in _LISTS:
        parts = node.get(name)
        if isinstance(parts, list):
            found += [[part] for part in parts if isinstance(part, dict)]
    found += [[part] for name in _SINGLE if isinstance(part := node.get(name), dict)]
    for name in _MAPS:
        members = node.get(name)
        if isinstance(members, dict):
            found += [[part] for part in members.values() if isinstance(part, dict)]
    for name in _REFERENCES:
        reference = node.get(name)
        if isinstance(reference, str):
            found.append(list(index.meant(node, reference)))
    return found


def _joined(base: str, uri: str) -> str:
    try:
        return urldefrag(urljoin(base, uri)).url
    except ValueError:
        return uri


def _at(root: Any, pointer: str) -> Any:
    node = root
    for word in pointer.split("/")[1:]:
        name = unquote(word).replace("~1", "/").replace("~0", "~")
        if isinstance(node, list) and name.isascii() and name.isdigit() and int(name[:9]) < len(node):
            node = node[int(name[:9])]
        elif isinstance(node, dict):
            node = node.get(name)
        else:
            return None
    return node
