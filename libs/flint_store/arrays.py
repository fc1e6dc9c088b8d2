"""Batches as PostgreSQL array literals.

A batch of some hundred rows travels as one array per column and is unnested there. psycopg's own list dumper works
element by element in Python; these literals are joined by C code and cost a fifth. Each is bound as one string
parameter and cast in the statement (`CAST(:ids AS uuid[])`); nothing is interpolated into SQL.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["bools", "byteas", "integers", "texts", "uuids"]


def integers(values: Iterable[int]) -> str:
    """For int[], bigint[]."""
    return "{" + ",".join(map(str, values)) + "}"


def bools(values: Iterable[bool]) -> str:
    """For boolean[]."""
    return "{" + ",".join(["t" if v else "f" for v in values]) + "}"


def uuids(values: Iterable[bytes | None]) -> str:
    """For uuid[], from 16 bytes each."""
    return "{" + ",".join([v.hex() if v else "NULL" for v in values]) + "}"


def byteas(values: Iterable[bytes | None]) -> str:
    """For bytea[]; None is NULL, empty stays empty."""
    return "{" + ",".join(['"\\\\x' + v.hex() + '"' if v is not None else "NULL" for v in values]) + "}"


def texts(values: Iterable[str | None]) -> str:
    """For text[], timestamptz[] and the like; None is NULL. PostgreSQL refuses a NUL character."""
    return (
        "{"
        + ",".join(
            ['"' + v.replace("\\", "\\\\").replace('"', '\\"') + '"' if v is not None else "NULL" for v in values]
        )
        + "}"
    )
