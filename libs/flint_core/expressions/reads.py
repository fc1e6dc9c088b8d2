"""What an expression reads of its input and of its variables, as far as its text tells.

An expression that only walks past a large value, or hands it on, does not need the value's content: neither here, nor
has it to be fetched for jq. What the text does not tell counts as read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from flint_core.expressions.lexer import Token
from flint_core.expressions.parser import (
    Alternative,
    Array,
    Binary,
    Builtin,
    Conditional,
    Identity,
    Index,
    Interpolation,
    Literal,
    Logical,
    Node,
    NotFast,
    Object,
    Optional,
    Pipe,
    Slice,
    Variable,
    parse,
)
from flint_core.payloads import is_reference

__all__ = ["Read", "needed", "reads", "reads_of_jq"]


class Read(NamedTuple):
    """A walk down constant names and positions, from a variable or (None) from the input.

    `whole`: what it ends at is looked into; else it is only handed on into the result.
    """

    root: str | None
    keys: tuple[str | int, ...]
    whole: bool


_DEEPEST: Final = 80
_Place = tuple[str | None, tuple[str | int, ...]]


def reads(tree: Node) -> tuple[Read, ...]:
    """All that evaluating the tree may read, each once. Raises NotFast when the tree is too deep to be evaluated."""
    found: dict[Read, None] = {}
    _visit(tree, (None, ()), True, found, 0)
    return tuple(found)


def reads_of_jq(tokens: Sequence[Token]) -> tuple[Read, ...] | None:
    """What an expression that is jq's to evaluate reads, where it begins with a part that is plain.

    Behind the first pipe the input is what that part gave, and variables count as read whole. None: it may read
    whatever it can see.
    """
    stage = _first_stage(tokens)
    found: tuple[Read, ...] | None = None
    try:
        found = tuple(read._replace(whole=True) for read in reads(parse(_without_iteration(stage))))
    except NotFast:
        if len(stage) > 2 and stage[0].text in ("(", "[") and _closing(stage) == len(stage) - 1:
            found = reads_of_jq(stage[1:-1])
    return None if found is None else found + tuple(Read(name, (), True) for name in _named(tokens[len(stage) :]))


def _named(tokens: Sequence[Token]) -> dict[str, None]:
    """The variables that are named there, in order."""
    names: dict[str, None] = {}
    for token in tokens:
        if token.kind == "variable":
            names[token.text[1:]] = None
        for part in token.parts:
            if not isinstance(part, str):
                names |= _named(part)
    return names


def _first_stage(tokens: Sequence[Token]) -> Sequence[Token]:
    depth = 0
    for place, token in enumerate(tokens):
        if token.kind == "operator":
            if token.text == "|" and not depth:
                return tokens[:place]
            depth += _deeper(token)
    return tokens


def _closing(tokens: Sequence[Token]) -> int:
    """Where the bracket closes that the first token opens."""
    depth = 0
    for place, token in enumerate(tokens):
        depth += _deeper(token)
        if not depth:
            return place
    return -1


def _deeper(token: Token) -> int:
    if token.kind != "operator":
        return 0
    return (token.text in ("(", "[", "{")) - (token.text in (")", "]", "}"))


def _without_iteration(tokens: Sequence[Token]) -> tuple[Token, ...]:
    """`.a[]` reads no more than `.a` does."""
    plain: list[Token] = []
    for token in tokens:
        plain.append(token)
        if len(plain) > 2 and token.text == "]" and plain[-2].text == "[" and _ends_a_term(plain[-3]):
            del plain[-2:]
    return tuple(plain)


def needed(value: Any, root: str | None, of: Sequence[Read]) -> Any:
    """The value with nothing in its objects but what these may read of it."""
    return _pruned(value, [read.keys for read in of if read.root == root])


def _pruned(value: Any, walks: list[tuple[str | int, ...]]) -> Any:
    if type(value) is not dict or not all(walks) or is_reference(value):
        return value
    below: dict[str | int, list[tuple[str | int, ...]]] = {}
    for walk in walks:
        below.setdefault(walk[0], []).append(walk[1:])
    return {key: _pruned(value[key], rest) for key, rest in below.items() if key in value}


def _ends_a_term(token: Token) -> bool:
    return token.kind in ("field", "variable") or (token.kind == "operator" and token.text in (")", "]"))


def _visit(node: Node, dot: _Place | None, handed: bool, found: dict[Read, None], level: int) -> None:
    """Note what the node reads. `dot`: where its input stands; None: it was computed, and what of is noted already."""
    if level > _DEEPEST:
        raise NotFast
    deeper = level + 1
    if isinstance(node, Identity | Variable | Index):
        place, walks = _place(node, dot)
        if walks:
            if place is not None:
                found[Read(*place, not handed)] = None
            return
    match node:
        case Index(base, key):
            _all((base, key), dot, found, deeper)
        case Slice(base, start, end):
            _all((base, start, end), dot, found, deeper)
        case Optional(body):
            _visit(body, dot, handed, found, deeper)
        case Pipe(left, right):
            place, walks = _place(left, dot)
            _visit(left, dot, walks, found, deeper)
            _visit(right, place if walks else None, handed, found, deeper)
        case Binary(_, left, right) | Logical(_, left, right) | Alternative(left, right):
            _all((left, right), dot, found, deeper)
        case Conditional(condition, yes, no):
            _visit(condition, dot, False, found, deeper)
            _visit(yes, dot, handed, found, deeper)
            _visit(no, dot, handed, found, deeper)
        case Array(items):
            for item in items:
                _visit(item, dot, handed, found, deeper)
        case Object(members):
            for key, value in members:
                _visit(key, dot, False, found, deeper)
                _visit(value, dot, handed, found, deeper)
        case Interpolation(parts):
            _all(parts, dot, found, deeper)
        case Builtin(name):
            if name != "now" and dot is not None:
                found[Read(*dot, True)] = None


def _all(nodes: Sequence[Node | str | None], dot: _Place | None, found: dict[Read, None], level: int) -> None:
    for node in nodes:
        if node is not None and not isinstance(node, str):
            _visit(node, dot, False, found, level)


def _place(node: Node, dot: _Place | None) -> tuple[_Place | None, bool]:
    """Where the value of the node stands, and whether the node does nothing but walk there."""
    keys: list[str | int] = []
    while isinstance(node, Index):
        key = node.key.value if isinstance(node.key, Literal) else None
        if type(key) is not str and type(key) is not int:
            return None, False
        keys.append(key)
        node = node.base
    keys.reverse()
    if isinstance(node, Variable):
        return (node.name, tuple(keys)), True
    if isinstance(node, Identity):
        return (None if dot is None else (dot[0], (*dot[1], *keys))), True
    return None, False
