"""The functions that calls name: what each takes and gives, one module per function.

Each function has two JSON Schemas made from one: `schema` is for definitions, where any value may be a string with
`${ … }` instead; `resolved` is for the arguments once every expression has its value. Pure data.
"""

from __future__ import annotations

from typing import Final

from flint_core.functions import email, http, noop, sql
from flint_core.functions.schemas import FunctionSpec

__all__ = ["FUNCTIONS", "FunctionSpec"]

FUNCTIONS: Final[dict[str, FunctionSpec]] = {spec.name: spec for spec in (http.SPEC, sql.SPEC, email.SPEC, noop.SPEC)}
"""The functions by the name that `call` uses."""
