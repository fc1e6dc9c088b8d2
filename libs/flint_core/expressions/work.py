"""How much an expression builds, bounded: the fast path runs where other runs wait for their turn.

Two bounds, so that ordinary expressions pay nothing. When an expression is compiled, `demand` estimates from its text
how many times over it could build or walk the values it is given; up to `EASY` times it runs unmetered, for what it is
given is bounded itself. Beyond that each evaluation has a `Budget`, spent by everything that builds or compares.

What is spent depends on the values alone, never on how they are shared in memory or on time: an expression that goes
beyond does so in every replay and on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from flint_core.effects import Deferred
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
    Object,
    Optional,
    Pipe,
    Slice,
    Variable,
)

__all__ = ["BUDGET", "EASY", "Budget", "Demand", "TooMuch", "demand"]

BUDGET: Final = 4 * 2**20
"""Characters of text and JSON values that one metered evaluation may build or walk."""
EASY: Final = 16.0
"""Copies of what it is given that an expression may ask for without being metered."""
_TRIFLE: Final = 1 / 64
_TRIFLING_TEXT: Final = 4_096
_REPEATED: Final = 6.0
"""What a product counts at least: a repeated text has a limit of its own, numbers are nothing."""

Demand = tuple[float, float]
"""Size of the result and work done for it, both in multiples of the largest value that the expression is given."""


class TooMuch(Exception):
    """The budget is spent. No ExpressionFault: a `?` does not catch it."""

    detail: Final = f"the expression builds more than {BUDGET} characters and values"


class Budget:
    """What one evaluation may still build. Not to be shared between evaluations."""

    __slots__ = ("_known", "left")

    def __init__(self, left: int = BUDGET) -> None:
        self.left = left
        self._known: dict[int, tuple[Any, int]] = {}  # holds the objects, so that no other gets their id

    def spend(self, amount: int) -> None:
        """Raises TooMuch when there is not that much left."""
        self.left -= amount
        if self.left < 0:
            raise TooMuch

    def weigh(self, value: Any) -> int:
        """Characters and values in it, what is shared at every place. Raises TooMuch beyond what is left."""
        if type(value) is str:
            return len(value) + 1
        if type(value) is not list and type(value) is not dict:
            return 1
        known = self._known.get(id(value))
        if known is not None:
            return known[1]
        weight = 0
        stack: list[Any] = [value]
        while stack:
            node = stack.pop()
            known = self._known.get(id(node))
            if known is not None:
                weight += known[1]
            elif type(node) is str:
                weight += len(node) + 1
            elif type(node) is list:
                weight += 1
                stack.extend(node)
            elif type(node) is dict:
                weight += 1 + sum(map(len, node))
                stack.extend(node.values())
            elif type(node) is Deferred:
                weight += len(node.source)
            else:
                weight += 1
            if weight + len(stack) > self.left:
                self.left = -1
                raise TooMuch
        self._known[id(value)] = (value, weight)
        return weight

    def built(self, value: Any, weight: int) -> None:
        """Spends the weight of a value just built, and remembers it for a list or an object."""
        self.spend(weight)
        if (type(value) is list or type(value) is dict) and id(value) not in self._known:
            self._known[id(value)] = (value, weight)

    def operands(self, operator: str, left: Any, right: Any) -> int:
        """Spends what an operation costs before it is done; the most that its result weighs."""
        containers = (list, dict)
        if operator in _COMPARING:
            if type(left) is type(right) and type(left) in (str, list, dict):
                self.spend(min(self.weigh(left), self.weigh(right)))
            return 0
        weight = self.weigh(left) + self.weigh(right)
        if type(left) in containers or type(right) in containers or type(left) is str or type(right) is str:
            self.spend(weight)
        return weight


_COMPARING: Final = frozenset({"==", "!=", "<", "<=", ">", ">="})


def demand(node: Node, dot: float = 1.0) -> Demand:
    """What evaluating the tree may come to, given an input of size `dot`. The tree is one that `build` took."""
    match node:
        case Identity():
            return dot, 0.0
        case Variable():
            return 1.0, 0.0
        case Literal(value):
            return (_TRIFLE if type(value) is not str or len(value) <= _TRIFLING_TEXT else 1.0), 0.0
        case Index():
            return _walked(node, dot)
        case Slice(base, start, end):
            size, work = demand(base, dot)
            return size, work + size + sum(demand(bound, dot)[1] for bound in (start, end) if bound is not None)
        case Optional(body):
            return demand(body, dot)
        case Pipe(left, right):
            size, before = demand(left, dot)
            result, after = demand(right, size)
            return result, before + after
        case Binary(operator, left, right):
            return _operated(operator, demand(left, dot), demand(right, dot))
        case Logical(_, left, right):
            return _TRIFLE, demand(left, dot)[1] + demand(right, dot)[1]
        case Alternative(left, right):
            return _either(demand(left, dot), demand(right, dot), 0.0)
        case Conditional(condition, yes, no):
            return _either(demand(yes, dot), demand(no, dot), demand(condition, dot)[1])
        case Array(items):
            return _composed([demand(item, dot) for item in items], 1.0)
        case Object(members):
            return _composed([demand(part, dot) for member in members for part in member], 1.0)
        case Interpolation(parts):
            return _composed([demand(part, dot) for part in parts if not isinstance(part, str)], 2.0)
        case Builtin(name):
            if name in ("tojson", "tostring"):
                return 2 * dot, 2 * dot  # quotation marks get signs before them, again each time
            return (dot, dot) if name == "keys" else (_TRIFLE, 0.0)


def _walked(node: Index, dot: float) -> Demand:
    base: Node = node
    work = 0.0
    while isinstance(base, Index):
        if not isinstance(base.key, Literal):
            size, own = demand(base.key, dot)
            work += own + size  # an array as key is searched for
        base = base.base
    size, own = demand(base, dot)
    return size, work + own


def _operated(operator: str, left: Demand, right: Demand) -> Demand:
    (one, before), (other, after) = left, right
    work = before + after
    match operator:
        case "+":
            return one + other, work + one + other
        case "*":
            return max(_REPEATED, one + other), work + _REPEATED + one + other  # a text may be repeated
        case "-":
            return one, work + one + other
        case "/":
            return 2 * one, work + 2 * one
        case "%":
            return _TRIFLE, work
    return _TRIFLE, work + min(one, other)


def _either(one: Demand, other: Demand, work: float) -> Demand:
    return max(one[0], other[0]), work + one[1] + other[1]


def _composed(parts: Sequence[Demand], copies: float) -> Demand:
    size = copies * sum(part[0] for part in parts) + _TRIFLE
    return size, size + sum(part[1] for part in parts)
