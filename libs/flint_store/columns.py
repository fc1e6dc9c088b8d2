"""Batches as PostgreSQL arrays in binary, for the statements that every run pays a part of.

Like the literals of `arrays`, one array a column, bound as one parameter. The bytes are joined by C code here and taken
as they are there: an entry of a run costs PostgreSQL half of what it costs to read it from text. Values are of the
columns' own types; nothing is interpolated into SQL.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from struct import Struct
from typing import Final

from psycopg.adapt import AdaptersMap, Dumper
from psycopg.pq import Format

__all__ = ["bigints", "booleans", "byteas", "instants", "integers", "register", "texts", "uuids"]

_HEAD: Final = Struct(">iiIii").pack  # dimensions, whether there may be NULLs, type, length, first index
_EMPTY: Final = Struct(">iiI").pack
_BIGINT: Final = Struct(">q").pack
_INTEGER: Final = Struct(">i").pack
_BOOLEAN: Final = (b"\0", b"\1").__getitem__
_NULL: Final = _INTEGER(-1)
_EPOCH_MS: Final = 946_684_800_000  # PostgreSQL counts from the year 2000


class _Column:
    """An array as PostgreSQL receives it."""

    __slots__ = ("data",)
    array_oid: int
    element_oid: int

    def __init__(self, elements: bytes, count: int) -> None:
        """`elements`: each behind its length."""
        element = self.element_oid
        self.data = _HEAD(1, 1, element, count, 1) + elements if count else _EMPTY(0, 0, element)


class _Booleans(_Column):
    __slots__ = ()
    array_oid, element_oid = 1000, 16


class _Byteas(_Column):
    __slots__ = ()
    array_oid, element_oid = 1001, 17


class _Bigints(_Column):
    __slots__ = ()
    array_oid, element_oid = 1016, 20


class _Integers(_Column):
    __slots__ = ()
    array_oid, element_oid = 1007, 23


class _Texts(_Column):
    __slots__ = ()
    array_oid, element_oid = 1009, 25


class _Instants(_Column):
    __slots__ = ()
    array_oid, element_oid = 1185, 1184


class _Uuids(_Column):
    __slots__ = ()
    array_oid, element_oid = 2951, 2950


class _Plain(Dumper):
    format = Format.BINARY

    def dump(self, obj: _Column) -> bytes:
        return obj.data


_DUMPERS: Final = {
    kind: type(f"{kind.__name__}Dumper", (_Plain,), {"oid": kind.array_oid})
    for kind in (_Booleans, _Byteas, _Bigints, _Integers, _Texts, _Instants, _Uuids)
}


def register(adapters: AdaptersMap) -> None:
    """Connections that are made with these adapters from now on take such arrays as parameters."""
    for kind, dumper in _DUMPERS.items():
        adapters.register_dumper(kind, dumper)


def booleans(values: Sequence[bool]) -> _Column:
    """boolean[]"""
    return _Booleans(_fixed(1, map(_BOOLEAN, values)), len(values))


def bigints(values: Sequence[int]) -> _Column:
    """bigint[]"""
    return _Bigints(_fixed(8, map(_BIGINT, values)), len(values))


def integers(values: Sequence[int]) -> _Column:
    """int[]"""
    return _Integers(_fixed(4, map(_INTEGER, values)), len(values))


def uuids(values: Sequence[bytes | None]) -> _Column:
    """uuid[], from 16 bytes each; None is NULL."""
    try:
        elements = _fixed(16, values)  # type: ignore[arg-type]  # most hold no None
    except TypeError:
        elements = _variable(values)
    return _Uuids(elements, len(values))


def byteas(values: Sequence[bytes | None]) -> _Column:
    """bytea[]; None is NULL, empty stays empty."""
    return _Byteas(_variable(values), len(values))


def texts(values: Sequence[str | None]) -> _Column:
    """text[]; None is NULL. PostgreSQL refuses a NUL character."""
    return _Texts(_variable([v.encode() if v is not None else None for v in values]), len(values))


def instants(values_ms: Sequence[int | None]) -> _Column:
    """timestamptz[], from milliseconds since the Unix epoch; None is NULL."""
    values = [_BIGINT((v - _EPOCH_MS) * 1000) if v is not None else None for v in values_ms]
    return _Instants(_variable(values), len(values))


def _fixed(size: int, values: Iterable[bytes]) -> bytes:
    length = _INTEGER(size)
    return length + length.join(values)


def _variable(values: Sequence[bytes | None]) -> bytes:
    length = _INTEGER
    return b"".join([length(len(v)) + v if v is not None else _NULL for v in values])
