"""Array literals come back from PostgreSQL as they went in."""

from __future__ import annotations

import os
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_store.arrays import bools, byteas, integers, texts, uuids

TEXTS = st.lists(st.one_of(st.none(), st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))))


async def echo(engine: AsyncEngine, kind: str, literal: str) -> list[object]:
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
