"""What a template's expressions read, as far as that can be told from their text. In doubt they read everything."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any, Final, NamedTuple

from flint_core.bindings import expressions_in, template_strings
from flint_core.expressions.lexer import tokenize
from flint_core.expressions.parser import Builtin, Identity, Node, NotFast, Pipe, parse

__all__ = ["Reads", "reads_of"]

_VARIABLE: Final = re.compile(r"\$(?:__loc__|([A-Za-z_][A-Za-z0-9_]*))")
_CONSTANT_BUILTINS: Final = frozenset({"now"})


class Reads(NamedTuple):
    """What expressions read. `input`: `.` of their place. `variables`: names without the `$`."""

    input: bool
    variables: frozenset[str]


def reads_of(*templates: Any) -> Reads:
    """What the expressions in these values read. Values that were compiled without an error."""
    whole, variables = False, set[str]()
    for template in templates:
        for _, text in template_strings(template):
            for source in expressions_in(text):
                variables.update(name for name in _VARIABLE.findall(source) if name)
                whole = whole or _reads_input(source)
    return Reads(whole, frozenset(variables))


def _reads_input(source: str) -> bool:
    try:
        tree = parse(tokenize(source)[0])
    except NotFast:
        return True
    return _touches(tree)


def _touches(node: Any) -> bool:
    """Whether the value of a node depends on the input. The tree is as deep as the parser allows."""
    if isinstance(node, Identity):
        return True
    if isinstance(node, Builtin):
        return node.name not in _CONSTANT_BUILTINS
    if isinstance(node, Pipe):
        return _touches(node.left)
    if isinstance(node, tuple):
        return any(_touches(part) for part in node)
    if isinstance(node, Node):
        return any(_touches(getattr(node, field.name)) for field in fields(node))
    return False
