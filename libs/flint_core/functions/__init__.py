"""The functions that calls name: what each takes and gives, one module per function.

Each function has two JSON Schemas made from one: `schema` is for definitions, where any value may be a string with
`${ … }` instead; `resolved` is for the arguments once every expression has its value. Pure data.
"""

from __future__ import annotations

from typing import Final

from flint_core.functions import container, email, http, noop, script, shell, sql
from flint_core.functions.schemas import FunctionSpec

__all__ = ["FUNCTIONS", "PROCESSES", "FunctionSpec"]

FUNCTIONS: Final[dict[str, FunctionSpec]] = {
    spec.name: spec
    for spec in (
        http.SPEC,
        sql.SPEC,
        email.SPEC,
        noop.SPEC,
        script.SPEC,
        shell.SPEC,
        container.SPEC,
    )
}
"""The functions by the name that `call` uses, and those that `run` uses."""

PROCESSES: Final = frozenset({"script", "shell", "container"})
"""Functions that `run` starts; `call` does not name them."""
