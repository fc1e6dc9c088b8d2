"""Statements that go to the driver directly: answers, errors and transactions are as SQLAlchemy's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_ops.config import PostgresSettings
from flint_store.engine import create_engine
from flint_store.hot import execute_hot

ADD = text("SELECT CAST(:a AS int) + CAST(:b AS int) AS total, '{\"k\": [1]}'::jsonb AS told, 7 % 4 AS rest")
DIVIDE = text("SELECT 1 / CAST(:by AS int) AS one")
INSERT = text("INSERT INTO hot_test (n) VALUES (CAST(:n AS int)) RETURNING n")
LENGTH = text("SELECT length(CAST(:a AS text)) AS size")
NOTHING = text("SELECT 1 AS one WHERE CAST(:a AS text) IS NULL")
LOCK = text("SELECT pg_advisory_lock(CAST(:n AS bigint)) IS NULL AS locked")
LATE = text("INSERT INTO late VALUES (CAST(:n AS int), repeat('x', 1000000)) RETURNING n, told")
COUNT = text("SELECT count(*) AS rows FROM hot_test")
END = text("SELECT pg_terminate_backend(pg_backend_pid()) AS gone, CAST(:n AS int) AS n")


@pytest.fixture
async def lane(dsn: str) -> AsyncIterator[AsyncEngine]:
    created = create_engine(PostgresSettings(dsn=SecretStr(dsn)), "lane", pool_size=2)
    yield created
    await created.dispose()


async def test_a_row_has_its_columns_as_attributes(lane: AsyncEngine) -> None:
    async with lane.connect() as connection:
        for number in range(3):  # prepared after the first
            row = await execute_hot(connection, ADD, {"a": number, "b": 2})
            assert (row.total, row.told, row.rest) == (number + 2, {"k": [1]}, 3)


async def test_errors_are_sqlalchemys_and_the_connection_goes_on(lane: AsyncEngine) -> None:
    async with lane.connect() as connection:
        await connection.execute(text("CREATE TEMPORARY TABLE hot_test (n int PRIMARY KEY)"))
        with pytest.raises(DataError) as divided:
            await execute_hot(connection, DIVIDE, {"by": 0})
        assert getattr(divided.value.orig, "sqlstate", "") == "22012"
        assert not divided.value.connection_invalidated
        assert (await execute_hot(connection, INSERT, {"n": 1})).n == 1
        with pytest.raises(IntegrityError):
            await execute_hot(connection, INSERT, {"n": 1})
        with pytest.raises(DataError) as secret:
            await execute_hot(connection, ADD, {"a": "none", "b": "a payload"})
        assert "a payload" not in str(secret.value)
        assert (await execute_hot(connection, COUNT, {})).rows == 1


async def test_it_is_within_the_transaction_of_its_connection(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        connection = await connection.execution_options(isolation_level="READ COMMITTED")
        async with connection.begin():
            await connection.execute(text("CREATE TEMPORARY TABLE hot_test (n int PRIMARY KEY)"))
        transaction = await connection.begin()
        await execute_hot(connection, INSERT, {"n": 1})
        await transaction.rollback()
        async with connection.begin():
            await execute_hot(connection, INSERT, {"n": 2})
        async with connection.begin():
            assert (await execute_hot(connection, COUNT, {})).rows == 1


async def test_a_lost_connection_is_told(lane: AsyncEngine) -> None:
    async with lane.connect() as connection:
        with pytest.raises(DBAPIError) as lost:
            await execute_hot(connection, END, {"n": 1})
        assert lost.value.connection_invalidated
        await connection.invalidate()
    async with lane.connect() as connection:
        assert (await execute_hot(connection, ADD, {"a": 1, "b": 2})).total == 3


async def test_what_does_not_fit_the_sockets_buffer_is_sent_piece_by_piece(lane: AsyncEngine) -> None:
    async with lane.connect() as connection:
        for size in (10, 40_000_000, 10):
            assert (await execute_hot(connection, LENGTH, {"a": "x" * size})).size == size


async def test_a_large_answer_and_a_commit_that_fails_behind_it_are_told(lane: AsyncEngine) -> None:
    async with lane.connect() as connection:
        await connection.execute(
            text("CREATE TEMPORARY TABLE late (n int UNIQUE DEFERRABLE INITIALLY DEFERRED, told text)")
        )
        assert len((await execute_hot(connection, LATE, {"n": 1})).told) == 1_000_000
        with pytest.raises(IntegrityError):  # by the commit, when the row has been sent already
            await execute_hot(connection, LATE, {"n": 1})
        assert (await execute_hot(connection, LATE, {"n": 2})).n == 2


async def test_no_row_is_none_and_none_is_null(lane: AsyncEngine) -> None:
    async with lane.connect() as connection:
        assert await execute_hot(connection, NOTHING, {"a": "x"}) is None
        assert (await execute_hot(connection, NOTHING, {"a": None})).one == 1


async def test_a_connection_on_which_a_statement_was_broken_off_is_used_by_nobody(lane: AsyncEngine) -> None:
    async with lane.connect() as holder, lane.connect() as connection:
        await execute_hot(holder, LOCK, {"n": 4711})
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await execute_hot(connection, LOCK, {"n": 4711})
        with pytest.raises(DBAPIError) as closed:
            await execute_hot(connection, ADD, {"a": 1, "b": 2})
        assert closed.value.connection_invalidated
        await connection.invalidate()
    async with lane.connect() as connection:
        assert (await execute_hot(connection, ADD, {"a": 1, "b": 2})).total == 3
