"""Reads a definition's text: YAML 1.2 (JSON is a subset) to plain values, with the place of each.

Built on libyaml's events without recursion, so that hostile nesting costs nothing and 1 MiB takes a third of a second.
Scalars are read here, by the core schema of YAML 1.2 (`on` is text, `012` is twelve). Refused: duplicate keys, keys
that are no text, integers beyond 64 bits, several documents, tags of one's own, aliases that expand beyond the bound.
"""

from __future__ import annotations

import math
import re
from typing import Any, Final

import orjson
import yaml
from yaml.error import MarkedYAMLError, YAMLError
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from flint_core.definition.findings import DefinitionLimits, Rule

__all__ = ["Node", "ReadError", "join_pointer", "read", "split_pointer"]

_NULL: Final = re.compile(r"~|null|Null|NULL|")
_BOOL: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT: Final = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_SPECIAL: Final = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_CORE: Final = "tag:yaml.org,2002:"
_PAIR: Final = re.compile(r"(?<!\\)((?:\\\\)*)\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")


class ReadError(Exception):
    """The text is no definition. Line and column count from 1."""

    def __init__(self, rule: str, message: str, line: int = 1, column: int = 1) -> None:
        super().__init__(message)
        self.rule = rule
        self.message = message
        self.line = line
        self.column = column


_Loader: Final = getattr(yaml, "CLoader", yaml.Loader)  # only its events are used: nothing is resolved or constructed


class Node:
    """A value in the text: a scalar, a list of nodes, or a mapping of keys to nodes."""

    __slots__ = ("column", "depth", "keys", "line", "size", "span", "text", "value")

    def __init__(self, value: Any, line: int, column: int) -> None:
        self.value = value  # scalar, list[Node] or dict[str, Node]
        self.keys: dict[str, tuple[int, int]] = {}  # where the mapping's keys stand
        self.line = line
        self.column = column
        self.depth = 1  # levels of this value
        self.size = 1  # values within it, aliases expanded
        self.span = (0, 0)  # a scalar's place in the text, characters
        self.text = ""  # of the root: the whole text

    def plain(self) -> Any:
        """The value without places. Depth is bounded by `read`."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def place(self, pointer: str, key: bool = False) -> tuple[int, int]:
        """Line and column of what a pointer names, or of the closest thing around it. `key`: of the key itself."""
        node, place = self, (self.line, self.column)
        for part in split_pointer(pointer):
            if isinstance(node.value, dict) and part in node.value:
                key_place = node.keys[part]
                node = node.value[part]
                place = key_place if key else (node.line, node.column)
            elif isinstance(node.value, list) and part.isdigit() and int(part) < len(node.value):
                node = node.value[int(part)]
                place = (node.line, node.column)
            else:
                break
        return place

    def at(self, pointer: str) -> Node | None:
        """What a pointer names; None when it is not there."""
        node = self
        for part in split_pointer(pointer):
            if isinstance(node.value, dict) and part in node.value:
                node = node.value[part]
            elif isinstance(node.value, list) and part.isdigit() and int(part) < len(node.value):
                node = node.value[int(part)]
            else:
                return None
        return node

    def place_within(self, pointer: str, words: str) -> tuple[int, int]:
        """Line and column of words within the text that a pointer names; of its beginning when they are not found.

        Asked of the root. A text may be written in another way than it is read: folded, or with escapes.
        """
        node = self.at(pointer)
        first = words.strip().partition("\n")[0].rstrip()
        if node is not None and first:
            found = self.text.find(first, *node.span)
            if found >= 0:
                return self.text.count("\n", 0, found) + 1, found - self.text.rfind("\n", 0, found)
        return self.place(pointer)


def split_pointer(pointer: str) -> list[str]:
    """The parts of a JSON pointer."""
    return [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]


def join_pointer(pointer: str, *parts: str | int) -> str:
    """A longer JSON pointer."""
    return pointer + "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def read(source: str | bytes, limits: DefinitionLimits) -> Node:
    """The definition as a tree of nodes. Raises ReadError."""
    data = source.encode("utf-8", "surrogatepass") if isinstance(source, str) else source
    if len(data) > limits.definition_bytes:
        message = f"the definition has {len(data)} bytes; the limit is {limits.definition_bytes}"
        raise ReadError(Rule.LIMIT, message)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ReadError(Rule.YAML, f"the definition is not UTF-8 (byte {error.start})") from None
    try:
        return _Builder(limits).build(_without_pairs(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
        reason = " ".join(str(part) for part in (error.context, error.problem) if part)
        raise ReadError(Rule.YAML, f"this is not well-formed YAML: {reason}", *place) from None
    except (YAMLError, ValueError) as error:
        raise ReadError(Rule.YAML, f"this is not well-formed YAML: {str(error)[:300]}") from None


def _without_pairs(text: str) -> str:
    """JSON may write a character beyond 16 bits as two escapes, which YAML does not know: the character itself."""
    if "\\u" not in text or not text.lstrip().startswith(("{", "[")):
        return text
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return text  # flow style of YAML, where the same letters may stand outside of quotes

    def character(found: re.Match[str]) -> str:
        high, low = int(found[2], 16), int(found[3], 16)
        return found[1] + chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))

    return _PAIR.sub(character, text)


class _Builder:
    def __init__(self, limits: DefinitionLimits) -> None:
        self.limits = limits
        self.anchors: dict[str, Node] = {}
        self.open: list[tuple[Node, list[Any], str | None]] = []
        self.root: Node | None = None

    def build(self, text: str) -> Node:
        documents = 0
        event: Any
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self.error(event, Rule.YAML, "a definition is one YAML document, not several")
            elif isinstance(event, ScalarEvent):
                self.add(self.anchored(event, self.scalar(event)), event)
            elif isinstance(event, AliasEvent):
                node = self.anchors.get(event.anchor or "")
                if node is None:
                    raise self.error(event, Rule.YAML, f"the alias *{event.anchor} names no finished anchor before it")
                self.add(node, event)
            elif isinstance(event, SequenceStartEvent | MappingStartEvent):
                self.check_tag(event)
                if len(self.open) >= self.limits.depth:
                    raise self.error(event, Rule.LIMIT, f"nested deeper than {self.limits.depth} levels")
                container: Any = [] if isinstance(event, SequenceStartEvent) else {}
                mark: Any = event.start_mark
                self.open.append((Node(container, mark.line + 1, mark.column + 1), [], event.anchor))
            elif isinstance(event, SequenceEndEvent | MappingEndEvent):
                node, _, anchor = self.open.pop()
                if anchor is not None:
                    self.anchors[anchor] = node
                self.add(node, event)
        if self.root is None:
            raise ReadError(Rule.YAML, "the definition is empty")
        self.root.text = text
        return self.root

    def anchored(self, event: Any, node: Node) -> Node:
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def add(self, node: Node, event: Any) -> None:
        """Put a finished value where it belongs."""
        if not self.open:
            self.root = node
            return
        parent, pending, _ = self.open[-1]
        if isinstance(parent.value, list):
            parent.value.append(node)
        elif not pending:
            pending.append(self.key(parent, node, event))
            return
        else:
            parent.value[pending.pop()] = node
        parent.size += node.size
        parent.depth = max(parent.depth, node.depth + 1)
        if parent.size > self.limits.nodes:
            raise self.error(event, Rule.LIMIT, f"more than {self.limits.nodes} values, aliases expanded")
        if parent.depth + len(self.open) - 1 > self.limits.depth:
            raise self.error(event, Rule.LIMIT, f"nested deeper than {self.limits.depth} levels, aliases expanded")

    def key(self, parent: Node, node: Node, event: Any) -> str:
        if not isinstance(node.value, str):
            raise self.error(event, Rule.YAML, "a key must be text: put it into quotes")
        if node.value in parent.value:
            raise self.error(event, Rule.DUPLICATE_KEY, f"the key '{node.value[:80]}' stands here twice")
        mark = event.start_mark
        parent.keys[node.value] = (mark.line + 1, mark.column + 1)
        return node.value

    def scalar(self, event: Any) -> Node:
        mark = event.start_mark
        node = Node(self.scalar_value(event), mark.line + 1, mark.column + 1)
        node.span = (mark.index, event.end_mark.index)
        return node

    def scalar_value(self, event: Any) -> Any:
        text: str = event.value
        tag = self.check_tag(event)
        if tag == "str" or (tag is None and not event.implicit[0]):
            try:
                orjson.dumps(text)
            except orjson.JSONEncodeError:
                raise self.error(event, Rule.YAML, "the text holds half of a surrogate pair") from None
            if "\0" in text:
                raise self.error(event, Rule.YAML, "the text holds the character NUL, which no name or filter may have")
            return text
        if tag in (None, "null") and _NULL.fullmatch(text):
            return None
        if tag in (None, "bool") and text in _BOOL:
            return _BOOL[text]
        if tag in (None, "int") and _INT.fullmatch(text):
            return self.integer(text, event)
        if tag in (None, "float") and _FLOAT.fullmatch(text):
            number = float(text)
            if math.isfinite(number):
                return number
            raise self.error(event, Rule.INVALID_VALUE, "the number is too large")
        if tag in (None, "float") and _SPECIAL.fullmatch(text):
            raise self.error(
                event, Rule.INVALID_VALUE, "infinity and NaN are not JSON; put it into quotes if it is text"
            )
        if tag is not None:
            raise self.error(event, Rule.YAML, f"'{text[:40]}' is not a value of the tag !!{tag}")
        return text

    def integer(self, text: str, event: Any) -> int:
        digits = text[2:] if text[1:2] in ("o", "x") else text
        number = int(digits, {"o": 8, "x": 16}.get(text[1:2], 10)) if len(digits) <= 24 else 1 << 65
        if not -(2**63) <= number < 2**64:
            raise self.error(event, Rule.INVALID_VALUE, "an integer must fit into 64 bits; put it into quotes")
        return number

    def check_tag(self, event: Any) -> str | None:
        tag = event.tag
        if tag is None:
            return None
        name = str(tag)
        if name == "!":
            return "str"
        short = name[len(_CORE) :] if name.startswith(_CORE) else name.removeprefix("!!")
        wanted = ("str", "null", "bool", "int", "float") if isinstance(event, ScalarEvent) else ("map", "seq")
        if short not in wanted:
            raise self.error(event, Rule.YAML, f"the tag {name[:60]} is not part of a definition")
        return short

    @staticmethod
    def error(event: Any, rule: str, message: str) -> ReadError:
        mark = event.start_mark
        return ReadError(rule, message, mark.line + 1, mark.column + 1)
