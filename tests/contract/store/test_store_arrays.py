"""Arrays come back from PostgreSQL as they went in, as literals and in binary."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.exc import DataError
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_store import columns
from flint_store.arrays import bools, byteas, integers, texts, uuids

TEXTS = st.lists(st.one_of(st.none(), st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))))


async def echo(engine: AsyncEngine, kind: str, literal: object) -> list[object]:
    async with engine.connect() as connection:
        found = await connection.execute(text(f"SELECT CAST(:v AS {kind}[])"), {"v": literal})
        return list(found.scalar_one())


async def test_values_come_back(engine: AsyncEngine) -> None:
    raw = [b"", b"\0\xff", None, b'"\\{},', os.urandom(300)]
    assert await echo(engine, "bytea", byteas(raw)) == raw
    ids = [os.urandom(16), None]
    assert await echo(engine, "uuid", uuids(ids)) == [UUID(bytes=i) if i else None for i in ids]
    assert await echo(engine, "bigint", integers([0, -1, 2**62])) == [0, -1, 2**62]
    assert await echo(engine, "boolean", bools([True, False])) == [True, False]
    assert await echo(engine, "text", texts([])) == []


async def test_texts_come_back(engine: AsyncEngine) -> None:
    samples: list[list[str | None]] = []

    @given(TEXTS)
    def collect(values: list[str | None]) -> None:
        samples.append(values)

    collect()
    samples.append(["NULL", "null", "", " ", "a,b", "{}", '"', "\\", '\\"', "é\n\t", None])
    for values in samples:
        assert await echo(engine, "text", texts(values)) == values
        assert await echo(engine, "text", columns.texts(values)) == values


async def test_columns_come_back(engine: AsyncEngine) -> None:
    raw = [b"", b"\0\xff", None, b'"\\{},', os.urandom(70_000)]
    assert await echo(engine, "bytea", columns.byteas(raw)) == raw
    ids = [os.urandom(16), None]
    for some in (ids, ids[:1], ids[1:]):
        assert await echo(engine, "uuid", columns.uuids(some)) == [UUID(bytes=i) if i else None for i in some]
    assert await echo(engine, "bigint", columns.bigints([0, -1, 2**62])) == [0, -1, 2**62]
    assert await echo(engine, "int", columns.integers([0, -1, 2**31 - 1])) == [0, -1, 2**31 - 1]
    assert await echo(engine, "boolean", columns.booleans([True, False])) == [True, False]
    moments = [0, None, 946_684_800_000, 1_795_000_000_123, -5]
    assert await echo(engine, "timestamptz", columns.instants(moments)) == [
        datetime.fromtimestamp(ms / 1000, UTC) if ms is not None else None for ms in moments
    ]
    for empty in (columns.texts([]), columns.uuids([])):
        assert await echo(engine, "text", empty) == []


async def test_a_nul_character_is_refused_as_a_value(engine: AsyncEngine) -> None:
    with pytest.raises(DataError):
        await echo(engine, "text", columns.texts(["a\0b"]))
