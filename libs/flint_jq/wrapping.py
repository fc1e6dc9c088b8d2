"""The program that surrounds an expression before jq sees it.

It binds the variables from the input (so that one compiled program serves every value), fixes `now`, hides what reaches
outside the expression (the environment, other inputs, modules, logs, the process itself), and asks for one result at
most. The result is taken as text: libjq's own conversion to Python corrupts integers beyond 2^53.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

__all__ = ["check_programs", "wrap"]

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_HIDDEN: Final = (
    "env",
    "get_jq_origin",
    "get_prog_origin",
    "get_search_list",
    "halt",
    "halt_error",
    "input",
    "inputs",
    "input_line_number",
    "modulemeta",
)

_PRELUDE: Final = (
    "def now: $__flint_now_ms / 1000; "
    + "".join(f'def {name}: error("{name} is not available in expressions"); ' for name in _HIDDEN)
    + 'def halt_error($code): error("halt_error is not available in expressions"); '
    "def input_filename: null; def debug: .; def debug(message): (message | empty), .; def stderr: .; "
)


def wrap(source: str, variables: Sequence[str]) -> str:
    """A program over `[input, {variable: value}, now_ms]` that yields the JSON text of an array of up to two results.

    Raises ValueError for a name that is not a variable's.
    """
    for name in variables:
        if _VARIABLE.fullmatch(name) is None or name in ("__loc__", "ENV"):
            raise ValueError(f"{name!r} cannot be a variable's name")
    bound = ", ".join(f"{name}: ${name}" for name in variables)
    values = "{" + bound + "}" if bound else "$__flint_none"
    # The expression may end in a comment, even one that continues on the next line.
    return (
        f". as [$__flint_input, {values}, $__flint_now_ms] | {{}} as $ENV | {_PRELUDE}"
        f"[limit(2; $__flint_input | (\n{source}\n\n))] | tojson"
    )


def check_programs(source: str, variables: Sequence[str]) -> list[str]:
    """Programs that all compile exactly when the expression is one by itself.

    The wrapped one comes first: there `import` and `include` are errors, so no file is opened for the second.
    """
    bound = "".join(f"null as ${name} | " for name in variables)
    return [wrap(source, variables), f"{bound}def __flint_check: {source}\n\n; __flint_check"]
