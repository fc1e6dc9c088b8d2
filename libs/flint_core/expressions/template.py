"""JSON with expressions in its strings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from flint_core.effects import Deferred
from flint_core.expressions import values
from flint_core.expressions.errors import ExpressionFault, ExpressionSyntaxError
from flint_core.expressions.expression import Expression, expression_of_tokens
from flint_core.expressions.lexer import Token, tokenize
from flint_core.expressions.work import EASY, Budget, TooMuch

__all__ = ["Template", "compile_template"]

SECRETS = "secrets"
"""The variable whose expressions only an executor may evaluate."""


class _Run:
    """One evaluation: where the leaves find what they need."""

    __slots__ = ("budget", "input", "now_ms", "parts", "variables")

    def __init__(
        self, input: Any, variables: Mapping[str, Any], now_ms: int, parts: Sequence[Any], budget: Budget | None
    ) -> None:
        self.input = input
        self.variables = variables
        self.now_ms = now_ms
        self.parts = parts
        self.budget = budget


_Maker = Callable[[_Run], Any]


class Template:
    """A compiled JSON value. Immutable; safe to share.

    A string that is one `${ … }` and nothing else takes the expression's value, of whatever type. Text around
    interpolates: strings as they are, everything else as JSON.

    `constant`: no expression in it. `parts`: the expressions that only jq can evaluate, in order; their values are
    given to `evaluate`. `fast`: there are none. `names`: the variables used. `deferred`: some strings name `$secrets`;
    they evaluate to `Deferred`. `in_text`: for each of the parts, whether text stands around it.
    """

    __slots__ = ("_make", "_metered", "constant", "deferred", "in_text", "names", "parts")

    def __init__(
        self,
        make: _Maker,
        constant: bool,
        names: frozenset[str],
        parts: tuple[Expression, ...],
        deferred: bool,
        in_text: tuple[bool, ...] = (),
        metered: bool = False,
    ) -> None:
        self._make = make
        self._metered = metered
        self.constant = constant
        self.names = names
        self.parts = parts
        self.deferred = deferred
        self.in_text = in_text

    @property
    def fast(self) -> bool:
        """Whether `evaluate` needs no values of parts."""
        return not self.parts

    def evaluate(self, input: Any, variables: Mapping[str, Any], now_ms: int, parts: Sequence[Any] = ()) -> Any:
        """The value. `parts`: the results of `self.parts`, in order. Raises ExpressionFault, also when all together
        builds more than `work.BUDGET`.

        The result may share structure with input, variables and the template: treat it as immutable.
        """
        if len(parts) != len(self.parts):
            raise ValueError(f"the template needs the values of {len(self.parts)} expressions, not of {len(parts)}")
        try:
            return self._make(_Run(input, variables, now_ms, parts, Budget() if self._metered else None))
        except TooMuch as error:
            raise ExpressionFault(error.detail) from None
        except RecursionError:
            raise ExpressionFault("the value is nested too deeply") from None


def compile_template(
    value: Any, *, variables: frozenset[str], defer_secrets: bool = True, every_part: bool = False
) -> Template:
    """Compiles JSON whose strings may hold `${ … }`; object keys are literal. Raises ExpressionSyntaxError.

    The error's offset counts within the string at fault and its `pointer` says which one that is. With `defer_secrets`
    a string that names `$secrets` becomes a `Deferred` instead of being evaluated. With `every_part` all expressions
    are parts, the fast ones too: the caller decides for each how it gets its value.
    """
    compiler = _Compiler(variables, defer_secrets, every_part)
    make = compiler.value(value, ())
    if make is None:
        return Template(lambda run: value, True, frozenset(), (), False)
    parts, in_text = tuple(compiler.parts), tuple(compiler.in_text)
    metered = compiler.effort > EASY
    return Template(make, False, frozenset(compiler.names), parts, compiler.deferred, in_text, metered)


class TemplateSyntaxError(ExpressionSyntaxError):
    """An expression in a template is wrong. `pointer`: JSON pointer of its string within the template."""

    def __init__(self, message: str, offset: int, pointer: str) -> None:
        super().__init__(message, offset)
        self.pointer = pointer


class _Compiler:
    def __init__(self, variables: frozenset[str], defer_secrets: bool, every_part: bool) -> None:
        self.variables = variables
        self.defer_secrets = defer_secrets
        self.every_part = every_part
        self.names: set[str] = set()
        self.parts: list[Expression] = []
        self.in_text: list[bool] = []
        self.deferred = False
        self.effort = 0.0

    def value(self, value: Any, path: tuple[str, ...]) -> _Maker | None:
        """The maker of a value, or None when the value is constant."""
        if isinstance(value, str):
            return self.string(value, path) if "${" in value else None
        if isinstance(value, list):
            return _list_maker(value, [self.value(item, (*path, str(place))) for place, item in enumerate(value)])
        if isinstance(value, dict):
            return _dict_maker(value, {key: self.value(item, (*path, key)) for key, item in value.items()})
        return None

    def string(self, text: str, path: tuple[str, ...]) -> _Maker:
        try:
            pieces = _pieces(text)
            expressions = [
                piece if isinstance(piece, str) else expression_of_tokens(*piece, variables=self.variables)
                for piece in pieces
            ]
        except ExpressionSyntaxError as error:
            pointer = "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in path)
            raise TemplateSyntaxError(error.message, error.offset, pointer) from None
        names = frozenset(name for piece in expressions if isinstance(piece, Expression) for name in piece.names)
        self.names |= names
        solid = [piece for piece in expressions if not (isinstance(piece, str) and not piece.strip())]
        single = solid[0] if len(solid) == 1 and isinstance(solid[0], Expression) else None
        if self.defer_secrets and SECRETS in names:
            self.deferred = True
            source = text if single is None else single.source
            secrets = _secrets_named([piece for piece in pieces if not isinstance(piece, str)])
            return _deferred_maker(source, single is None, names - {SECRETS}, secrets)
        if single is not None:
            return self.leaf(single, in_text=False)
        return _text_maker(
            [piece if isinstance(piece, str) else self.leaf(piece, in_text=True) for piece in expressions]
        )

    def leaf(self, expression: Expression, *, in_text: bool) -> _Maker:
        if expression.fast and not self.every_part:
            self.effort += 2 * expression.effort if in_text else expression.effort
            return lambda run: _counted(
                expression.evaluate(run.input, run.variables, run.now_ms, run.budget), run.budget
            )
        self.effort += 2 if in_text else 1
        place = len(self.parts)
        self.parts.append(expression)
        self.in_text.append(in_text)
        return lambda run: _counted(run.parts[place], run.budget)


def _counted(value: Any, budget: Budget | None) -> Any:
    """The value, spent from the budget as a part of what is made: many places may take the same."""
    if budget is not None:
        budget.spend(budget.weigh(value))
    return value


_MOST_PIECES: Final = 2_000  # texts and expressions of one string


def _pieces(text: str) -> list[str | tuple[str, tuple[Token, ...]]]:
    pieces: list[str | tuple[str, tuple[Token, ...]]] = []
    position = 0
    while (start := text.find("${", position)) >= 0:
        if start > position:
            pieces.append(text[position:start])
        tokens, end = tokenize(text, start + 2, until_brace=True)
        if not tokens:
            raise ExpressionSyntaxError("the expression is empty", start)
        pieces.append((text[start + 2 : end].strip(), tokens))
        if len(pieces) > _MOST_PIECES:
            raise ExpressionSyntaxError(f"a text has at most {_MOST_PIECES // 2} expressions", start)
        position = end + 1
    if position < len(text):
        pieces.append(text[position:])
    return pieces


def _secrets_named(pieces: list[tuple[str, tuple[Token, ...]]]) -> tuple[str, ...]:
    """The secrets that expressions name plainly (`$secrets.name`); ("*",) when one is used in another way."""
    named: set[str] = set()
    stack = [tokens for _, tokens in pieces]
    while stack:
        tokens = stack.pop()
        stack.extend(part for token in tokens for part in token.parts if not isinstance(part, str))
        for place, token in enumerate(tokens):
            if token.kind != "variable" or token.text != "$" + SECRETS:
                continue
            name = _member_after(tokens, place + 1)
            if name is None:
                return ("*",)
            named.add(name)
    return tuple(sorted(named))


def _member_after(tokens: tuple[Token, ...], place: int) -> str | None:
    following = tokens[place : place + 3]
    if following and following[0].kind == "field":
        return following[0].text[1:]
    if len(following) >= 2 and following[0].text in (".", "[") and following[1].kind == "string":
        parts = following[1].parts
        if len(parts) == 1 and isinstance(parts[0], str):
            return parts[0]
    return None


def _deferred_maker(source: str, template: bool, names: frozenset[str], secrets: tuple[str, ...]) -> _Maker:
    def make(run: _Run) -> Any:
        needed = {name: run.variables[name] for name in names if name in run.variables}
        return Deferred(source, template, run.input, needed, secrets)

    return make


def _text_maker(pieces: list[str | _Maker]) -> _Maker:
    def make(run: _Run) -> Any:
        texts = []
        for piece in pieces:
            value = piece if isinstance(piece, str) else piece(run)
            texts.append(value if isinstance(value, str) else values.text(value))
        if run.budget is not None:
            run.budget.spend(sum(map(len, texts)))
        return "".join(texts)

    return make


def _list_maker(items: list[Any], makers: list[_Maker | None]) -> _Maker | None:
    if not any(makers):
        return None
    pairs = list(zip(items, makers, strict=True))
    return lambda run: [item if maker is None else maker(run) for item, maker in pairs]


def _dict_maker(members: dict[str, Any], makers: dict[str, _Maker | None]) -> _Maker | None:
    if not any(makers.values()):
        return None
    triples = [(key, item, makers[key]) for key, item in members.items()]
    return lambda run: {key: item if maker is None else maker(run) for key, item, maker in triples}
