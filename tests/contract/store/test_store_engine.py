"""Connections: what the session is like, and how trouble is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_ops.config import PostgresSettings
from flint_store.engine import connected, create_engine, fetch, write
from flint_store.errors import StoreError, StoreUnavailable

SESSION = text(
    "SELECT current_setting('transaction_isolation'), current_setting('idle_in_transaction_session_timeout'),"
    " current_setting('statement_timeout'), current_setting('enable_seqscan'), current_setting('enable_hashjoin'),"
    " current_setting('enable_mergejoin'), current_setting('TimeZone')"
)
PID = text("SELECT pg_backend_pid()")


def settings(dsn: str, **more: object) -> PostgresSettings:
    return PostgresSettings(dsn=SecretStr(dsn), pool_size=2, **more)  # type: ignore[arg-type]


@pytest.fixture
async def lane(dsn: str) -> AsyncIterator[AsyncEngine]:
    created = create_engine(settings(dsn), "lane")
    yield created
    await created.dispose()


async def test_sessions_are_as_their_purpose_needs(engine: AsyncEngine, lane: AsyncEngine) -> None:
    [reading] = await fetch(engine, SESSION, {})
    assert tuple(reading) == ("read committed", "2s", "10s", "on", "on", "on", "UTC")
    [hot] = await fetch(lane, SESSION, {})
    assert tuple(hot) == ("read committed", "2s", "10s", "off", "off", "off", "UTC")


async def test_a_statement_commits_by_itself(engine: AsyncEngine, dsn: str) -> None:
    await write(engine, text("INSERT INTO namespace (namespace_id) VALUES ('x') RETURNING 1"), {})
    with psycopg.connect(dsn) as other:
        assert other.execute("SELECT count(*) FROM namespace").fetchone() == (2,)


async def test_a_lane_prepares_its_statements(lane: AsyncEngine) -> None:
    statement = text("SELECT count(*) FROM run WHERE group_id = :group")
    async with connected(lane) as connection:
        for group in range(3):
            await connection.execute(statement, {"group": group})
        prepared = (await connection.execute(text("SELECT statement FROM pg_prepared_statements"))).scalars().all()
    assert any("FROM run" in one for one in prepared)


async def test_a_slow_statement_is_ended(dsn: str) -> None:
    engine = create_engine(settings(dsn, statement_timeout_ms=100), "reading")
    with pytest.raises(StoreUnavailable, match="statement timeout"):
        await fetch(engine, text("SELECT 1 FROM pg_sleep(30)"), {})
    assert (await fetch(engine, text("SELECT 1"), {}))[0][0] == 1
    await engine.dispose()


async def test_reads_survive_ended_connections(engine: AsyncEngine, dsn: str) -> None:
    """As after a restart of PostgreSQL: every pooled connection is dead."""
    pids = {(await fetch(engine, PID, {}))[0][0]}
    with psycopg.connect(dsn, autocommit=True) as other:
        for pid in pids:
            assert other.execute("SELECT pg_terminate_backend(%s, 60000)", (pid,)).fetchone() == (True,)
    assert (await fetch(engine, PID, {}))[0][0] not in pids


async def test_writes_tell_of_ended_connections_instead_of_repeating(engine: AsyncEngine, dsn: str) -> None:
    [[pid]] = await fetch(engine, PID, {})
    with psycopg.connect(dsn, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s, 60000)", (pid,))
    insert = text("INSERT INTO namespace (namespace_id) VALUES ('once') RETURNING 1")
    with pytest.raises(StoreUnavailable):
        await write(engine, insert, {})
    assert await write(engine, insert, {})


async def test_unreachable_is_unavailable(unused_tcp_port: int) -> None:
    engine = create_engine(settings(f"postgresql://flint@127.0.0.1:{unused_tcp_port}/none"), "reading")
    with pytest.raises(StoreUnavailable, match="PostgreSQL"):
        await fetch(engine, text("SELECT 1"), {})
    await engine.dispose()


async def test_defects_are_not_unavailability(engine: AsyncEngine) -> None:
    with pytest.raises(ProgrammingError):
        await fetch(engine, text("SELECT missing FROM namespace"), {})


async def test_cancellation_passes_and_leaves_the_pool_usable(dsn: str) -> None:
    engine = create_engine(settings(dsn, statement_timeout_ms=120_000), "reading")
    with psycopg.connect(dsn, autocommit=True) as other:
        for marker in range(3):  # more than the pool of two holds
            reading = asyncio.create_task(fetch(engine, text(f"SELECT {marker} AS cancelled FROM pg_sleep(100)"), {}))
            running = "SELECT 1 FROM pg_stat_activity WHERE query LIKE %s AND wait_event = 'PgSleep'"
            async with asyncio.timeout(60):
                # Each round is a round trip; the server sends no signal.
                while other.execute(running, (f"SELECT {marker} AS cancelled%",)).fetchone() is None:
                    await asyncio.sleep(0)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
    assert (await fetch(engine, text("SELECT 1"), {}))[0][0] == 1
    await engine.dispose()


async def test_a_full_pool_is_unavailability(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flint_store.engine.POOL_TIMEOUT_S", 0.05)
    engine = create_engine(settings(dsn), "reading")
    async with connected(engine), connected(engine):
        with pytest.raises(StoreUnavailable, match="in use"):
            await fetch(engine, text("SELECT 1"), {})
    await engine.dispose()


@pytest.mark.parametrize("dsn_text", ["", "sqlite:///x.db"])
def test_a_wrong_dsn_is_told(dsn_text: str) -> None:
    with pytest.raises(StoreError, match=r"postgres\.dsn"):
        create_engine(settings(dsn_text), "reading")
