"""A syntax tree to a function of input and variables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from flint_core.expressions import values
from flint_core.expressions.errors import ExpressionFault
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
)
from flint_core.expressions.work import Budget

__all__ = ["Environment", "Nothing", "build"]


class Nothing(Exception):
    """The expression has no result, like jq's `empty`. Whatever it is part of has none either."""


class Environment:
    """What one evaluation sees beside its input, and what it may build if that is metered."""

    __slots__ = ("budget", "now", "variables")

    def __init__(self, variables: Mapping[str, Any], now_ms: int, budget: Budget | None = None) -> None:
        self.variables = variables
        self.budget = budget
        self.now = values.computed(now_ms / 1000)


Evaluator = Callable[[Any, Environment], Any]

_DEEPEST: Final = 80
_ARITHMETIC: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "+": values.add,
    "-": values.subtract,
    "*": values.multiply,
    "/": values.divide,
    "%": values.remainder,
    "==": values.equal,
    "!=": lambda left, right: not values.equal(left, right),
    "<": lambda left, right: values.order(left, right) < 0,
    "<=": lambda left, right: values.order(left, right) <= 0,
    ">": lambda left, right: values.order(left, right) > 0,
    ">=": lambda left, right: values.order(left, right) >= 0,
}


_REPEATING: Final = frozenset({"*", "/"})
"""What may give more than its operands weigh: a text repeated, a text in pieces."""


def _string(value: Any, env: Environment) -> str:
    return value if type(value) is str else _text(value, env)


def _text(value: Any, env: Environment) -> str:
    budget = env.budget
    if budget is None:
        return values.text(value)
    budget.spend(budget.weigh(value))  # before: what shares its parts is small in memory, and no longer as text
    result = values.text(value)
    budget.spend(len(result))
    return result


def _keys(dot: Any, env: Environment) -> list[Any]:
    result = values.keys(dot)
    if env.budget is not None:
        env.budget.built(result, env.budget.weigh(result))
    return result


_BUILTINS: Final[dict[str, Evaluator]] = {
    "keys": _keys,
    "length": lambda dot, env: values.length(dot),
    "not": lambda dot, env: dot is None or dot is False,
    "now": lambda dot, env: env.now,
    "tojson": _text,
    "tostring": _string,
    "type": lambda dot, env: values.type_name(dot),
}


def build(node: Node, level: int = 0) -> Evaluator:
    """The function of a tree. Raises NotFast when the tree is too deep to be evaluated by recursion."""
    if level > _DEEPEST:
        raise NotFast
    deeper = level + 1
    match node:
        case Identity():
            return lambda dot, env: dot
        case Literal(value):
            return lambda dot, env: value
        case Variable(name):
            return _variable(name)
        case Index():
            return _index(node, deeper)
        case Slice(base, start, end, quiet):
            return _slice(
                quiet,
                build(base, deeper),
                None if start is None else build(start, deeper),
                None if end is None else build(end, deeper),
            )
        case Optional(body):
            return _optional(build(body, deeper))
        case Pipe(left, right):
            first, second = build(left, deeper), build(right, deeper)
            return lambda dot, env: second(first(dot, env), env)
        case Binary(operator, left, right):
            return _binary(operator, build(left, deeper), build(right, deeper))
        case Logical(both, left, right):
            return _logical(both, build(left, deeper), build(right, deeper))
        case Alternative(left, right):
            return _alternative(build(left, deeper), build(right, deeper))
        case Conditional(condition, yes, no):
            return _conditional(build(condition, deeper), build(yes, deeper), build(no, deeper))
        case Array(items):
            return _array([build(item, deeper) for item in items])
        case Object(members):
            return _object([(build(key, deeper), build(value, deeper)) for key, value in members])
        case Interpolation(parts):
            return _interpolation([part if isinstance(part, str) else build(part, deeper) for part in parts])
        case Builtin(name):
            return _BUILTINS[name]


def _variable(name: str) -> Evaluator:
    def evaluate(dot: Any, env: Environment) -> Any:
        try:
            return env.variables[name]
        except KeyError:
            raise ExpressionFault(f"${name} has no value here") from None

    return evaluate


def _index(node: Index, level: int) -> Evaluator:
    """A chain of constant names and positions becomes one loop; a calculated key is evaluated before its base."""
    names: list[Any] = []
    base: Node = node
    quiet = node.quiet
    while isinstance(base, Index) and isinstance(base.key, Literal) and not base.quiet:
        names.append(base.key.value)
        base = base.base
    if not names:
        whole, key = build(node.base, level), build(node.key, level)

        def evaluate_key(dot: Any, env: Environment) -> Any:
            place = key(dot, env)
            value = whole(dot, env)
            if env.budget is not None and type(place) is list:
                env.budget.operands("+", value, place)
            return _quietly(values.index, value, place) if quiet else values.index(value, place)

        return evaluate_key
    path = tuple(reversed(names))
    root = None if isinstance(base, Identity) else build(base, level)

    def evaluate(dot: Any, env: Environment) -> Any:
        value = dot if root is None else root(dot, env)
        for name in path:
            value = value.get(name) if type(value) is dict and type(name) is str else values.index(value, name)
        return value

    return evaluate


def _quietly(operation: Callable[..., Any], *operands: Any) -> Any:
    """One step with a `?` behind it: no result where it fails."""
    try:
        return operation(*operands)
    except ExpressionFault:
        raise Nothing from None


def _slice(quiet: bool, base: Evaluator, start: Evaluator | None, end: Evaluator | None) -> Evaluator:
    def evaluate(dot: Any, env: Environment) -> Any:
        first = None if start is None else start(dot, env)
        last = None if end is None else end(dot, env)
        value = base(dot, env)
        result = _quietly(values.slice_, value, first, last) if quiet else values.slice_(value, first, last)
        if env.budget is not None:
            env.budget.built(result, env.budget.weigh(result))
        return result

    return evaluate


def _optional(body: Evaluator) -> Evaluator:
    def evaluate(dot: Any, env: Environment) -> Any:
        try:
            return body(dot, env)
        except ExpressionFault:
            raise Nothing from None

    return evaluate


def _binary(operator: str, left: Evaluator, right: Evaluator) -> Evaluator:
    operation = _ARITHMETIC[operator]

    def evaluate(dot: Any, env: Environment) -> Any:
        second = right(dot, env)
        first = left(dot, env)
        budget = env.budget
        if budget is None:
            return operation(first, second)
        weight = budget.operands(operator, first, second)
        result = operation(first, second)
        budget.built(result, budget.weigh(result) if operator in _REPEATING else weight)
        return result

    return evaluate


def _truth(value: Any) -> bool:
    return value is not None and value is not False


def _logical(both: bool, left: Evaluator, right: Evaluator) -> Evaluator:
    def evaluate(dot: Any, env: Environment) -> Any:
        if _truth(left(dot, env)) is both:
            return _truth(right(dot, env))
        return not both

    return evaluate


def _alternative(left: Evaluator, right: Evaluator) -> Evaluator:
    def evaluate(dot: Any, env: Environment) -> Any:
        try:
            value = left(dot, env)
        except Nothing:
            value = None
        return value if _truth(value) else right(dot, env)

    return evaluate


def _conditional(condition: Evaluator, yes: Evaluator, no: Evaluator) -> Evaluator:
    return lambda dot, env: yes(dot, env) if _truth(condition(dot, env)) else no(dot, env)


def _array(items: list[Evaluator]) -> Evaluator:
    def evaluate(dot: Any, env: Environment) -> Any:
        result = []
        for item in items:
            try:
                result.append(item(dot, env))
            except Nothing:
                continue  # an item without a result is left out
        budget = env.budget
        if budget is not None:
            budget.built(result, 1 + sum(map(budget.weigh, result)))
        return result

    return evaluate


def _object(members: list[tuple[Evaluator, Evaluator]]) -> Evaluator:
    def evaluate(dot: Any, env: Environment) -> Any:
        result: dict[str, Any] = {}
        for key, value in members:
            name = key(dot, env)
            item = value(dot, env)
            if type(name) is not str:
                raise ExpressionFault(f"{values.type_name(name)} cannot be an object's key")
            result[name] = item
        budget = env.budget
        if budget is not None:
            budget.built(result, 1 + sum(map(len, result)) + sum(map(budget.weigh, result.values())))
        return result

    return evaluate


def _interpolation(parts: list[str | Evaluator]) -> Evaluator:
    def evaluate(dot: Any, env: Environment) -> Any:
        texts = [part if isinstance(part, str) else _string(part(dot, env), env) for part in reversed(parts)]
        if env.budget is not None:
            env.budget.spend(sum(map(len, texts)))
        return "".join(reversed(texts))

    return evaluate
