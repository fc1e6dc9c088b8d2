"""SQL text and parameters, made ready for SQLAlchemy: values are bound, never written into the text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

import orjson
from sqlalchemy import TextClause, bindparam, exc, text

__all__ = ["Prepared", "prepare"]

_KEY: Final = "idempotency_key"
_LITERALS: Final = re.compile(
    r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|--[^\n]*|/\*.*?\*/|\$(?P<tag>[A-Za-z_]\w*|)\$.*?\$(?P=tag)\$|::""", re.DOTALL
)
"""Where a colon names no parameter: texts, quoted names, comments, casts."""
_MYSQL_LITERALS: Final = re.compile(
    r"""'(?:[^'\\]|''|\\.)*'|"(?:[^"\\]|""|\\.)*"|`(?:[^`]|``)*`|--[^\n]*|\#[^\n]*|/\*.*?\*/|:=""", re.DOTALL
)
"""Likewise on MariaDB and MySQL, where a backslash quotes."""
_STREAMS: Final = re.compile(r"\s*(?:select|values|with)\b", re.IGNORECASE)
_BUFFERED: Final = re.compile(r"\b(?:insert|update|delete|merge|replace|into)\b", re.IGNORECASE)
"""A WITH that changes something, and SELECT INTO, which PostgreSQL refuses to read bit by bit."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A statement with its sets of parameters. `streams`: its rows may be fetched bit by bit."""

    clause: TextClause
    parameters: list[dict[str, Any]]
    streams: bool


def prepare(
    statement: str, parameters: list[dict[str, Any]], idempotency_key: str, *, engine: str, many: bool = False
) -> Prepared:
    """Binds parameters. A parameter that the statement does not name is an error, as is a missing one.

    Arrays expand in `IN :name`; elsewhere PostgreSQL takes them as arrays, other engines as JSON text, as all do with
    objects. `:idempotency_key` is bound by itself. Raises sqlalchemy.exc.ArgumentError.
    """
    literals = _MYSQL_LITERALS if engine in ("mysql", "mariadb") else _LITERALS
    clause = text(literals.sub(lambda part: part[0].replace(":", "\\:"), statement))
    named = set(clause.compile().params)
    if _KEY in named:
        parameters = [{_KEY: idempotency_key, **given} for given in parameters]
    for given in parameters:
        if missing := named - given.keys():
            raise exc.ArgumentError(f"no value for :{', :'.join(sorted(missing))}")
        if unknown := given.keys() - named:
            raise exc.ArgumentError(f"the statement has no :{', :'.join(sorted(unknown))}")
    expanding = {
        name
        for name in named
        if not many
        and any(isinstance(given[name], list) for given in parameters)
        and re.search(rf"\bin\s*:{re.escape(name)}\b", statement, re.IGNORECASE)
    }
    clause = clause.bindparams(*(bindparam(name, expanding=True) for name in sorted(expanding)))
    arrays = engine == "postgresql"
    bound = [
        {name: value if name in expanding else _bindable(value, arrays) for name, value in given.items()}
        for given in parameters
    ]
    bare = literals.sub(" ", statement)
    return Prepared(clause, bound, _STREAMS.match(bare) is not None and _BUFFERED.search(bare) is None)


def _bindable(value: Any, arrays: bool) -> Any:
    if isinstance(value, dict) or (
        isinstance(value, list) and not (arrays and not any(isinstance(item, dict | list) for item in value))
    ):
        return orjson.dumps(value).decode()
    return value
