"""One expression: what it names, and its value when jq is not needed for it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from flint_core.expressions import values
from flint_core.expressions.errors import ExpressionFault, ExpressionSyntaxError
from flint_core.expressions.evaluator import Environment, Evaluator, Nothing, build
from flint_core.expressions.lexer import Token, tokenize
from flint_core.expressions.parser import NotFast, parse
from flint_core.expressions.reads import Read, reads, reads_of_jq
from flint_core.expressions.work import EASY, Budget, TooMuch, demand

__all__ = ["Expression", "compile_expression", "expression_of_tokens"]


class Expression:
    """A compiled expression. Immutable; safe to share between threads and runs.

    `source`: the jq text, without `${ }`. `names`: the variables it may use, without `$`. `fast`: `evaluate` works; if
    not, a guarded jq must evaluate `source`. `reads`: what it reads of the input and of the variables; None: whatever
    it can see. `effort`: how many times over it may build what it is given; beyond `work.EASY` it is
    metered.
    """

    __slots__ = ("_evaluator", "effort", "fast", "names", "reads", "source")

    def __init__(
        self,
        source: str,
        names: frozenset[str],
        evaluator: Evaluator | None,
        reads: tuple[Read, ...] | None = None,
        effort: float = 1.0,
    ) -> None:
        self.source = source
        self.names = names
        self.fast = evaluator is not None
        self.reads = reads
        self.effort = effort
        self._evaluator = evaluator

    def evaluate(self, input: Any, variables: Mapping[str, Any], now_ms: int, budget: Budget | None = None) -> Any:
        """The expression's result as JSON; null when it has none. Equal to what jq 1.8 yields for the same.

        The result may share parts with the input and the variables: treat all of them as immutable. Raises
        ExpressionFault, also when it builds more than `work.BUDGET`, and ValueError for an expression that is not
        fast. `budget`: that of something larger which this is a part of; TooMuch passes through then.
        """
        if self._evaluator is None:
            raise ValueError("only jq can evaluate this expression")
        own = Budget() if budget is None and self.effort > EASY else None
        try:
            return values.settle(self._evaluator(input, Environment(variables, now_ms, budget or own)))
        except Nothing:
            return None
        except TooMuch as error:
            if budget is not None:
                raise
            raise ExpressionFault(error.detail) from None
        except RecursionError:
            raise ExpressionFault("the value is nested too deeply") from None


def compile_expression(text: str, *, variables: frozenset[str]) -> Expression:
    """Compiles jq text, with or without `${ }` around it. Raises ExpressionSyntaxError.

    An undefined variable is found in every expression; other errors only where the fast path sees them. The rest is
    jq's to find.
    """
    stripped = text.strip()
    if not stripped.startswith("${"):
        tokens, _ = tokenize(text)
        return expression_of_tokens(stripped, tokens, variables)
    start = text.index("${") + 2
    tokens, end = tokenize(text, start, until_brace=True)
    if text[end + 1 :].strip():
        raise ExpressionSyntaxError("text after the closing } of ${ }: only one expression is allowed here", end + 1)
    return expression_of_tokens(text[start:end].strip(), tokens, variables)


def expression_of_tokens(source: str, tokens: tuple[Token, ...], variables: frozenset[str]) -> Expression:
    """An expression whose text was already read."""
    if not tokens:
        raise ExpressionSyntaxError("the expression is empty")
    names = _names(tokens, variables)
    try:
        tree = parse(tokens)
        evaluator = build(tree)
        return Expression(source, names, evaluator, reads(tree), max(demand(tree)))
    except NotFast:
        return Expression(source, names, None, reads_of_jq(tokens))


def _flat(tokens: tuple[Token, ...]) -> list[Token]:
    flat: list[Token] = []
    for token in tokens:
        flat.append(token)
        for part in token.parts:
            if not isinstance(part, str):
                flat.extend(_flat(part))
    return flat


def _names(tokens: tuple[Token, ...], variables: frozenset[str]) -> frozenset[str]:
    """The variables from outside that are named. One that the expression binds itself under the same name counts."""
    flat = _flat(tokens)
    bound = _bound(flat)
    used: set[str] = set()
    for token in flat:
        if token.kind != "variable":
            continue
        name = token.text[1:]
        if name in variables:
            used.add(name)
        elif name == "ENV":
            raise ExpressionSyntaxError("the environment is not available to expressions", token.offset)
        elif name not in bound and name != "__loc__":
            known = ", ".join(f"${known}" for known in sorted(variables)) or "none"
            near = difflib.get_close_matches(name, sorted(variables), n=1, cutoff=0.6)
            hint = f"; did you mean ${near[0]}?" if near else ""
            raise ExpressionSyntaxError(f"{token.text} is not defined here (defined: {known}){hint}", token.offset)
    return frozenset(used)


def _bound(flat: list[Token]) -> frozenset[str]:
    """Names bound anywhere in the expression, by `as` patterns and function parameters; scopes are jq's to check."""
    bound: set[str] = set()
    binding = False
    for position, token in enumerate(flat):
        if token.kind == "word" and token.text == "as":
            binding = True
        elif token.kind == "word" and token.text == "def":
            if position + 2 < len(flat) and flat[position + 2].text == "(":
                binding = True
        elif binding and token.kind == "operator" and token.text in ("|", ":") and _ends(flat, position):
            binding = False
        elif token.kind == "variable" and (binding or (position and flat[position - 1].text == "label")):
            bound.add(token.text[1:])
    return frozenset(bound)


def _ends(flat: list[Token], position: int) -> bool:
    """Whether the `|` or `:` here may end a binding. A `:` inside an object pattern is followed by a pattern."""
    if flat[position].text == "|":
        return True
    return flat[position - 1].text == ")"
