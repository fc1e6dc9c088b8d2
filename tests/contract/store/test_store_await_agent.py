"""The agent of awaits on a real PostgreSQL: what it cannot serve stands in nobody's way."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

import orjson
import pytest
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_core.ids import group_of_run, make_run_id
from flint_ops.config import PostgresSettings
from flint_scheduler.awaits import Agent
from flint_scheduler.record import Record
from flint_store.awaits import AwaitRow, read_unserved
from flint_store.engine import create_engine
from support.record import GROUPS

KIND = 1
INSERT = text("""
INSERT INTO run_await (run_id, key, kind, group_id, namespace_id, step, iteration, request, opened_at)
SELECT :r, n::text, 1, :g, 'default', '/do/0/wait', '', '{}', timestamptz '2026-01-01' + n * interval '1 ms'
FROM generate_series(1, :count) AS n
""")


class Everything:
    """Owns every group."""

    def owns(self, group: int) -> bool:
        return True


class Told:
    """Takes the nudges."""

    def __init__(self) -> None:
        self.subjects: list[str] = []

    def publish_now(self, subject: str, data: bytes) -> None:
        self.subjects.append(subject)


class Picky:
    """Fails on some rows, puts off others."""

    def __init__(self, poison: Iterable[str] = (), later: Iterable[str] = ()) -> None:
        self.poison, self.later = set(poison), set(later)
        self.served: set[str] = set()
        self.calls = 0

    async def opened(self, rows: Sequence[AwaitRow]) -> Iterable[AwaitRow]:
        self.calls += 1
        if any(row.key in self.poison for row in rows):
            raise ValueError("not to be stored")
        self.served |= {row.key for row in rows if row.key not in self.later}
        return [row for row in rows if row.key in self.later]

    async def closed(self, rows: Sequence[AwaitRow]) -> Iterable[AwaitRow]:
        return ()


@pytest.fixture
async def record(dsn: str) -> AsyncIterator[Record]:
    settings = PostgresSettings(dsn=SecretStr(dsn))
    made = Record(create_engine(settings, "lane", pool_size=2), create_engine(settings, "read", pool_size=2), 10)
    yield made
    await made.close()


async def opened_run(engine: AsyncEngine, count: int) -> bytes:
    run_id = make_run_id(3, 1_795_000_000_000, os.urandom(9))
    async with engine.begin() as connection:
        values = {"r": UUID(bytes=run_id), "g": group_of_run(run_id, GROUPS), "count": count}
        await connection.execute(INSERT, values)
    return run_id


@asynccontextmanager
async def serving(record: Record, handler: Picky) -> AsyncIterator[tuple[Agent, Told]]:
    told = Told()
    agent = Agent(record, told, Everything())  # type: ignore[arg-type]
    agent.serve(KIND, handler)
    task = asyncio.create_task(agent.run())
    try:
        yield agent, told
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def left(record: Record, run_id: bytes) -> list[str]:
    return [row.key for row in await record.read(lambda c: read_unserved(c, [run_id], 10_000))]


async def settled(record: Record, run_id: bytes, keys: list[str]) -> None:
    async with asyncio.timeout(60):
        while await left(record, run_id) != keys:
            await asyncio.sleep(0.02)


async def test_one_await_that_fails_stalls_no_other_and_is_answered_in_the_end(
    engine: AsyncEngine, record: Record
) -> None:
    run_id = await opened_run(engine, 100)
    handler = Picky(poison=["37"])
    async with serving(record, handler) as (agent, told):
        agent.tell([run_id])
        await settled(record, run_id, ["37"])
        assert len(handler.served) == 99
        assert handler.calls < 30
        for _ in range(2):  # sweeps
            agent.tell([run_id])
            calls = handler.calls
            async with asyncio.timeout(60):
                while handler.calls == calls:
                    await asyncio.sleep(0.01)
        await settled(record, run_id, [])
        async with asyncio.timeout(60):
            while not told.subjects:
                await asyncio.sleep(0.01)
    async with engine.connect() as connection:
        row = (
            await connection.execute(
                text("SELECT key, await_key, payload FROM inbox WHERE run_id = :r"), {"r": UUID(bytes=run_id)}
            )
        ).one()
    assert (row.key, row.await_key) == ("refused/37", "37")
    answer = orjson.loads(bytes(row.payload))
    assert (answer["state"], answer["error"]["title"]) == ("refused", "Await refused")
    assert "not to be stored" not in answer["error"]["detail"]


async def test_awaits_behind_many_that_are_put_off_are_served(engine: AsyncEngine, record: Record) -> None:
    run_id = await opened_run(engine, 650)
    stuck = [str(n) for n in range(1, 451)]
    handler = Picky(later=stuck)
    async with serving(record, handler) as (agent, _):
        agent.tell([run_id])
        await settled(record, run_id, stuck)
    assert len(handler.served) == 200
    assert handler.calls == 4
