"""Tokens to a syntax tree, for the part of jq that is evaluated without jq.

Every construct here yields at most one result. Whatever else jq knows raises `NotFast`: the expression is then left
to a guarded evaluator, which also has the last word on its syntax.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final

import orjson

from flint_core.expressions.lexer import Token

__all__ = [
    "Alternative",
    "Array",
    "Binary",
    "Builtin",
    "Conditional",
    "Identity",
    "Index",
    "Interpolation",
    "Literal",
    "Logical",
    "Node",
    "NotFast",
    "Object",
    "Optional",
    "Pipe",
    "Slice",
    "Variable",
    "parse",
]

BUILTINS: Final = frozenset({"keys", "length", "not", "now", "tojson", "tostring", "type"})
_DEEPEST: Final = 24
"""Brackets within brackets; each costs a dozen Python frames."""
_COMPARISONS: Final = frozenset({"==", "!=", "<", "<=", ">", ">="})


class NotFast(Exception):
    """The expression is outside the fast path."""


@dataclass(frozen=True, slots=True)
class Identity:
    """`.`"""


@dataclass(frozen=True, slots=True)
class Literal:
    """A string, number, true, false or null."""

    value: Any


@dataclass(frozen=True, slots=True)
class Variable:
    """`$name`"""

    name: str


@dataclass(frozen=True, slots=True)
class Index:
    """`base[key]`, `base.name`; `quiet` with a `?` behind, which covers this one step and not its base"""

    base: Node
    key: Node
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class Slice:
    """`base[start:end]`"""

    base: Node
    start: Node | None
    end: Node | None
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class Optional:
    """`body?`"""

    body: Node


@dataclass(frozen=True, slots=True)
class Pipe:
    """`left | right`"""

    left: Node
    right: Node


@dataclass(frozen=True, slots=True)
class Binary:
    """Arithmetic or comparison; the right side is evaluated first, as jq does."""

    operator: str
    left: Node
    right: Node


@dataclass(frozen=True, slots=True)
class Logical:
    """`left and right`, `left or right`"""

    both: bool
    left: Node
    right: Node


@dataclass(frozen=True, slots=True)
class Alternative:
    """`left // right`"""

    left: Node
    right: Node


@dataclass(frozen=True, slots=True)
class Conditional:
    """`if condition then yes else no end`"""

    condition: Node
    yes: Node
    no: Node


@dataclass(frozen=True, slots=True)
class Array:
    """`[a, b]`"""

    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Object:
    """`{key: value}`"""

    members: tuple[tuple[Node, Node], ...]


@dataclass(frozen=True, slots=True)
class Interpolation:
    """`"text \\(node)"`"""

    parts: tuple[str | Node, ...]


@dataclass(frozen=True, slots=True)
class Builtin:
    """One of BUILTINS."""

    name: str


Node = (
    Identity
    | Literal
    | Variable
    | Index
    | Slice
    | Optional
    | Pipe
    | Binary
    | Logical
    | Alternative
    | Conditional
    | Array
    | Object
    | Interpolation
    | Builtin
)


def parse(tokens: tuple[Token, ...]) -> Node:
    """The tree of a whole expression. Raises NotFast."""
    parser = _Parser(tokens)
    node = parser.pipe()
    if parser.position != len(tokens):
        raise NotFast
    return node


class _Parser:
    __slots__ = ("depth", "position", "tokens")

    def __init__(self, tokens: tuple[Token, ...]) -> None:
        self.tokens = tokens
        self.position = 0
        self.depth = 0

    def peek(self) -> Token | None:
        return self.tokens[self.position] if self.position < len(self.tokens) else None

    def take(self) -> Token:
        token = self.peek()
        if token is None:
            raise NotFast
        self.position += 1
        return token

    def at(self, text: str) -> bool:
        token = self.peek()
        return token is not None and token.text == text and token.kind in ("operator", "word")

    def accept(self, text: str) -> bool:
        if self.at(text):
            self.position += 1
            return True
        return False

    def expect(self, text: str) -> None:
        if not self.accept(text):
            raise NotFast

    # From the loosest binding to the tightest, as in jq's grammar.

    def pipe(self) -> Node:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise NotFast
        stages = [self.alternative()]
        while self.accept("|"):
            stages.append(self.alternative())
        self.depth -= 1
        node = stages.pop()
        while stages:
            node = Pipe(stages.pop(), node)
        return node

    def alternative(self) -> Node:
        choices = [self.disjunction()]
        while self.accept("//"):
            choices.append(self.disjunction())
        node = choices.pop()
        while choices:
            node = Alternative(choices.pop(), node)
        return node

    def disjunction(self) -> Node:
        node = self.conjunction()
        while self.accept("or"):
            node = Logical(False, node, self.conjunction())
        return node

    def conjunction(self) -> Node:
        node = self.comparison()
        while self.accept("and"):
            node = Logical(True, node, self.comparison())
        return node

    def comparison(self) -> Node:
        node = self.sum()
        token = self.peek()
        if token is not None and token.text in _COMPARISONS:
            self.position += 1
            node = Binary(token.text, node, self.sum())
            follower = self.peek()
            if follower is not None and follower.text in _COMPARISONS:
                raise NotFast  # not associative: jq refuses it
        return node

    def sum(self) -> Node:
        node = self.product()
        while (token := self.peek()) is not None and token.kind == "operator" and token.text in ("+", "-"):
            self.position += 1
            node = Binary(token.text, node, self.product())
        return node

    def product(self) -> Node:
        node = self.signed()
        while (token := self.peek()) is not None and token.kind == "operator" and token.text in ("*", "/", "%"):
            self.position += 1
            node = Binary(token.text, node, self.signed())
        return node

    def signed(self) -> Node:
        if not self.accept("-"):
            return self.postfix()
        token = self.take()
        follower = self.peek()
        if token.kind != "number" or (
            follower is not None and (follower.text in ("*", "/", "%", "[", "?", ".") or follower.kind == "field")
        ):
            raise NotFast  # the sign covers more than the number
        value = _number(token.text)
        if value == 0:
            raise NotFast  # -0 is a case of its own
        return Literal(-value)

    def postfix(self) -> Node:
        parenthesised = self.at("(")
        node = self.term()
        closed = self.position - 1 if parenthesised else -1  # `(.a.b)?` covers all of it, `.a.b?` the last step
        while (token := self.peek()) is not None:
            if token.kind == "field":
                self.position += 1
                node = Index(node, Literal(token.text[1:]))
            elif token.kind != "operator":
                break
            elif token.text == "?":
                self.position += 1
                steps = isinstance(node, Index | Slice) and not node.quiet and self.position - 2 != closed
                node = replace(node, quiet=True) if steps and isinstance(node, Index | Slice) else Optional(node)
            elif token.text == "[":
                self.position += 1
                node = self.subscript(node)
            elif token.text == ".":
                self.position += 1
                node = self.dotted(node)
            else:
                break
        return node

    def dotted(self, base: Node) -> Node:
        """What follows `base.`: a string, or `[` which is left to the postfix loop."""
        token = self.peek()
        if token is not None and token.kind == "string":
            self.position += 1
            return Index(base, self.string(token))
        if self.at("["):
            self.position += 1
            if self.at(":"):
                raise NotFast
            return self.subscript(base, slices=False)
        raise NotFast

    def subscript(self, base: Node, *, slices: bool = True) -> Node:
        if slices and self.accept(":"):
            end = self.pipe()
            self.expect("]")
            return Slice(base, None, end)
        key = self.pipe()
        if slices and self.accept(":"):
            tail = None if self.at("]") else self.pipe()
            self.expect("]")
            return Slice(base, key, tail)
        self.expect("]")
        return Index(base, key)

    def term(self) -> Node:
        token = self.take()
        match token.kind:
            case "number":
                return Literal(_number(token.text))
            case "string":
                return self.string(token)
            case "field":
                return Index(Identity(), Literal(token.text[1:]))
            case "variable":
                return Variable(_variable(token))
            case "word":
                return self.word(token.text)
            case "operator":
                return self.bracketed(token.text)
        raise NotFast

    def word(self, word: str) -> Node:
        if word == "if":
            return self.conditional()
        if self.at("("):
            raise NotFast
        if word in ("true", "false", "null"):
            return Literal({"true": True, "false": False, "null": None}[word])
        if word in BUILTINS:
            return Builtin(word)
        raise NotFast

    def conditional(self) -> Node:
        condition = self.pipe()
        self.expect("then")
        yes = self.pipe()
        no: Node
        if self.accept("elif"):
            return Conditional(condition, yes, self.conditional())
        no = self.pipe() if self.accept("else") else Identity()
        self.expect("end")
        return Conditional(condition, yes, no)

    def bracketed(self, text: str) -> Node:
        match text:
            case "(":
                node = self.pipe()
                self.expect(")")
                return node
            case "[":
                return self.array()
            case "{":
                return self.object()
            case ".":
                token = self.peek()
                if token is not None and token.kind == "string":
                    return self.dotted(Identity())
                return Identity()
        raise NotFast

    def array(self) -> Node:
        if self.accept("]"):
            return Array(())
        items = [self.pipe()]
        while self.accept(","):
            items.append(self.alternative())
        self.expect("]")
        if len(items) > 1 and isinstance(items[0], Pipe):
            raise NotFast  # `a | b, c` is a | (b, c)
        return Array(tuple(items))

    def object(self) -> Node:
        members: list[tuple[Node, Node]] = []
        if self.accept("}"):
            return Object(())
        while True:
            members.append(self.member())
            if self.accept("}"):
                return Object(tuple(members))
            self.expect(",")

    def member(self) -> tuple[Node, Node]:
        token = self.take()
        key: Node
        implied: Node | None = None
        if token.kind == "word":
            key = Literal(token.text)
            implied = Index(Identity(), key)
        elif token.kind == "variable":
            key = Literal(_variable(token))
            if self.at(":"):
                raise NotFast
            implied = Variable(_variable(token))
        elif token.kind == "string":
            key = self.string(token)
            implied = Index(Identity(), key)
        elif token.text == "(" and token.kind == "operator":
            key = self.pipe()
            self.expect(")")
            if isinstance(key, Array | Object | Binary) or (isinstance(key, Literal) and type(key.value) is not str):
                raise NotFast  # jq refuses constant keys that are not strings when it compiles
        else:
            raise NotFast
        if self.accept(":"):
            return key, self.pipe()
        if implied is None:
            raise NotFast
        return key, implied

    def string(self, token: Token) -> Node:
        if not token.parts:
            return Literal("")
        if len(token.parts) == 1 and isinstance(token.parts[0], str):
            return Literal(token.parts[0])
        return Interpolation(tuple(part if isinstance(part, str) else self.inner(part) for part in token.parts))

    def inner(self, tokens: tuple[Token, ...]) -> Node:
        """The tree of a `\\( … )`."""
        parser = _Parser(tokens)
        parser.depth = self.depth
        node = parser.pipe()
        if parser.position != len(tokens):
            raise NotFast
        return node


def _variable(token: Token) -> str:
    name = token.text[1:]
    if name in ("__loc__", "ENV", "__prog_args") or "::" in name:
        raise NotFast
    return name


def _number(text: str) -> int | float:
    """The number of a literal. Only literals that survive as 64-bit integers or doubles with the same text are fast."""
    exact = Decimal(text)
    try:
        value: int | float = orjson.loads(str(exact))
    except orjson.JSONDecodeError:
        raise NotFast from None
    if Decimal(orjson.dumps(value).decode()).as_tuple() != exact.as_tuple():
        raise NotFast
    return value
