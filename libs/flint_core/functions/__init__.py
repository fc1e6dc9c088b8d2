"""The functions that calls name: what each takes and gives, one module per function.

Each function has two JSON Schemas made from one: `schema` is for definitions, where any value may be a string with
`${ … }` instead; `resolved` is for the arguments once every expression has its value. Pure data.
"""

from __future__ import annotations

from typing import Final

from flint_core.functions import (
    a2a,
    approval,
    asyncapi,
    container,
    email,
    emit,
    function,
    grpc,
    http,
    mcp,
    noop,
    openapi,
    script,
    shell,
    sql,
)
from flint_core.functions.schemas import FunctionSpec

__all__ = ["FUNCTIONS", "NOT_CALLED", "PROCESSES", "FunctionSpec"]

FUNCTIONS: Final[dict[str, FunctionSpec]] = {
    spec.name: spec
    for spec in (
        http.SPEC,
        openapi.SPEC,
        sql.SPEC,
        email.SPEC,
        noop.SPEC,
        grpc.SPEC,
        asyncapi.SPEC,
        mcp.SPEC,
        a2a.SPEC,
        script.SPEC,
        shell.SPEC,
        container.SPEC,
        function.SPEC,
        emit.SPEC,
        approval.SPEC,
    )
}
"""The functions by the name that `call` uses, and those that `run` uses."""

PROCESSES: Final = frozenset({"script", "shell", "container"})
"""Functions that `run` starts; `call` does not name them."""

NOT_CALLED: Final = PROCESSES | {"emit", "function"}
"""Functions that no `call` names: tasks of their own compile to them, and calls of custom functions."""
