"""A place of a definition that takes a value: constant, expression, or a structure with expressions in it.

A binding is compiled once, when a program is loaded. What is constant stays one object for ever; what lies within the
fast path of expressions is evaluated here; the rest is listed in `externals`, whose results the caller obtains
(`Evaluate`) and passes in. Strings that name `$secrets` become `Deferred`: only the executor's side may evaluate them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from flint_core.expressions import Template, compile_expression, compile_template
from flint_core.expressions.lexer import tokenize
from flint_core.sizes import weigh

__all__ = ["Binding", "expressions_in", "template_strings"]

Run = Callable[[Any, Mapping[str, Any], int, Sequence[Any]], Any]


class Binding:
    """A compiled value of one place. Immutable; safe to share.

    `names`: variables it reads. `externals`: jq sources outside the fast path, in the order in which their results are
    passed to `run` as last argument. `guarded`: all jq sources that only jq itself can check, also those with secrets.
    Raises TemplateSyntaxError.
    """

    __slots__ = (
        "_by_part",
        "_template",
        "_variables",
        "constant",
        "deferred",
        "externals",
        "guarded",
        "names",
        "run",
        "size",
        "value",
    )

    def __init__(self, template: Any, variables: frozenset[str]) -> None:
        compiled = compile_template(template, variables=variables)
        self.constant = compiled.constant
        self.value: Any = template if compiled.constant else None
        self.size = weigh(template) if compiled.constant else -1
        self.names: frozenset[str] = compiled.names - {"secrets"}
        self.externals: tuple[str, ...] = tuple(part.source for part in compiled.parts)
        self.deferred: bool = compiled.deferred
        self.guarded: tuple[str, ...] = self.externals
        if compiled.deferred:
            self.guarded = tuple(
                source
                for _, text in template_strings(template)
                for source in expressions_in(text)
                if not compile_expression(source, variables=variables).fast
            )
        self.run: Run = compiled.evaluate
        self._template, self._variables = template, variables
        self._by_part: Template | None = None

    @property
    def by_part(self) -> Template:
        """The same with every expression as a part of its own, for runs that hold references to large values."""
        if self._by_part is None:
            self._by_part = compile_template(self._template, variables=self._variables, every_part=True)
        return self._by_part


def template_strings(template: Any) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """The strings of a template that hold expressions, in order, each with the path to it."""
    stack: list[tuple[tuple[str | int, ...], Any]] = [((), template)]
    while stack:
        path, node = stack.pop()
        if isinstance(node, str):
            if "${" in node:
                yield path, node
        elif isinstance(node, dict):
            stack.extend(((*path, key), member) for key, member in reversed(node.items()))
        elif isinstance(node, list):
            stack.extend(((*path, index), node[index]) for index in range(len(node) - 1, -1, -1))


def expressions_in(text: str) -> list[str]:
    """The jq sources of a string's `${ … }` parts. Raises ExpressionSyntaxError."""
    sources: list[str] = []
    position = 0
    while (start := text.find("${", position)) >= 0:
        _, end = tokenize(text, start + 2, until_brace=True)
        sources.append(text[start + 2 : end].strip())
        position = end + 1
    return sources
