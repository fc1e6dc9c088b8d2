"""The transaction of a call on the databases that differ in it: isolation, reading only, and conflicts with others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import exc, text
from sqlalchemy.engine import Connection

__all__ = ["breaks_rules", "transaction", "wants_repeat"]

_CONFLICT_STATES: Final = ("40001", "40P01", "55P03")
"""Serialization failure, deadlock, lock not available: SQLSTATEs of the standard and of PostgreSQL."""
_CONFLICT_NUMBERS: Final = (1020, 1205, 1213)
"""Changed since it was read, lock wait timeout and deadlock of MariaDB and MySQL."""
_RULE_NUMBERS: Final = (3819, 4025)
"""A broken CHECK of MySQL and MariaDB, which the driver counts as trouble of operation."""
_BUSY: Final = ("database is locked", "database table is locked")
_MYSQL: Final = ("mysql", "mariadb")


@contextmanager
def transaction(connection: Connection, arguments: dict[str, Any]) -> Iterator[None]:
    """One transaction as the call wants it. Raises ArgumentError where the database does not offer that."""
    engine = connection.dialect.name
    read_only = arguments.get("read_only", False)
    if (isolation := arguments.get("isolation")) is not None:
        connection.execution_options(isolation_level=isolation.upper())
    if read_only and engine == "postgresql":
        connection.execution_options(postgresql_readonly=True)
    elif read_only and engine in _MYSQL:
        with connection.begin():
            connection.execute(text("SET SESSION TRANSACTION READ ONLY"))
    elif read_only and engine == "sqlite":
        with connection.begin():
            connection.execute(text("PRAGMA query_only = ON"))
    elif read_only:
        raise exc.ArgumentError(f"read_only is not offered on {engine}")
    try:
        with connection.begin():
            yield
    finally:
        if read_only and not connection.invalidated and engine != "postgresql":
            with connection.begin():
                undo = "PRAGMA query_only = OFF" if engine == "sqlite" else "SET SESSION TRANSACTION READ WRITE"
                connection.execute(text(undo))


def wants_repeat(error: exc.DBAPIError) -> bool:
    """Whether the database gave up for the sake of others: the same again may well succeed."""
    cause = error.orig
    if getattr(cause, "sqlstate", None) in _CONFLICT_STATES:
        return True
    first = cause.args[0] if cause is not None and cause.args else None
    return first in _CONFLICT_NUMBERS or (isinstance(first, str) and first in _BUSY)


def breaks_rules(error: exc.DBAPIError) -> bool:
    """Whether a constraint forbade it, where the driver does not tell so by the error's class."""
    cause = error.orig
    return cause is not None and bool(cause.args) and cause.args[0] in _RULE_NUMBERS
