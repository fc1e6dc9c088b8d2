"""The sql executor against a real PostgreSQL."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import orjson
import psycopg
import pytest
from tests.support.eventually import eventually
from tests.support.postgres import Server, postgres_server

from flint_core.problems import ProblemType
from flint_ops.config import ConnectionSettings, LimitSettings, Settings
from flint_worker.executors import ExecutionFailed, RawJson, ResolvedCall
from flint_worker.executors.sql import SqlExecutor

# psycopg warns of a server-side cursor that nobody closed, also when its connection was lost and nothing can be closed.
pytestmark = pytest.mark.filterwarnings("ignore:.*ServerCursor.*:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgres_server() as running:
        yield running


@pytest.fixture
def dsn(server: Server) -> str:
    return server.create_database()


@pytest.fixture
async def executor(dsn: str) -> AsyncIterator[SqlExecutor]:
    few = {"pool_size": 3, "max_rows": 100_000, "timeout_s": 60}
    connections = {
        "shop": ConnectionSettings(kind="sql", url=dsn, **few),
        "away": ConnectionSettings(kind="sql", url="postgresql://u:hush@127.0.0.1:1/x", **few),
    }
    executor = SqlExecutor(Settings(connections=connections, limits=LimitSettings(value_bytes=3_000_000)))
    await run(executor, execute="CREATE TABLE item (id int PRIMARY KEY, n int)")
    yield executor
    await executor.close()


def call(deadline_s: float | None = 60, **arguments: Any) -> ResolvedCall:
    return ResolvedCall("sql", {"connection": "shop"} | arguments, "key-1", "/do/0/x", "run", "", deadline_s)


async def run(executor: SqlExecutor, **arguments: Any) -> Any:
    return await executor.execute(call(**arguments))


async def failed(executor: SqlExecutor, resolved: ResolvedCall) -> ExecutionFailed:
    with pytest.raises(ExecutionFailed) as raised:
        await executor.execute(resolved)
    assert "hush" not in str(raised.value.problem)
    return raised.value


def busy(dsn: str) -> int:
    """How many connections of the test's database execute something."""
    statement = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE state = 'active' AND datname = current_database() AND pid <> pg_backend_pid()"
    )
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(statement).fetchone()
    assert row is not None
    return int(row[0])


async def test_types_come_back_as_json(executor: SqlExecutor) -> None:
    rows = await run(
        executor,
        query="""SELECT 12.50::numeric AS price, '0.12345678901234567890'::numeric AS exact,
            9007199254740993::int8 AS big,
            '{"a": [1]}'::json AS j, '{"b": null}'::jsonb AS jb, ARRAY[1, 2] AS numbers, ARRAY['x', NULL] AS texts,
            '2026-01-02 03:04:05+02'::timestamptz AS at, '2026-01-02'::date AS day, '\\xff00'::bytea AS bytes,
            '00000000-0000-0000-0000-000000000001'::uuid AS id, '90 seconds'::interval AS span, true AS yes,
            NULL AS nothing, 'NaN'::float8 AS nan, 'ü'::text AS t""",
    )
    assert rows == [
        {
            "price": 12.5,
            "exact": "0.12345678901234567890",
            "big": 9007199254740993,
            "j": {"a": [1]},
            "jb": {"b": None},
            "numbers": [1, 2],
            "texts": ["x", None],
            "at": "2026-01-02T01:04:05+00:00",
            "day": "2026-01-02",
            "bytes": "/wA=",
            "id": "00000000-0000-0000-0000-000000000001",
            "span": 90.0,
            "yes": True,
            "nothing": None,
            "nan": None,
            "t": "ü",
        }
    ]


async def test_parameters_with_casts_of_every_kind(executor: SqlExecutor) -> None:
    evil = "'; DROP TABLE item; -- :id ::text $1 %s"
    rows = await run(
        executor,
        query="""SELECT :price::numeric AS price, :doc::jsonb->'a' AS a, :at::timestamptz AS at, :id::uuid AS id,
            :numbers::int[] AS numbers, CAST(:yes AS boolean) AS yes, :text::text AS text, ':no' AS no,
            '::x' AS cast -- :neither
            """,
        parameters={
            "price": "0.1",
            "doc": {"a": [1, {"b": 2}]},
            "at": "2026-01-02T03:04:05Z",
            "id": "00000000-0000-0000-0000-000000000001",
            "numbers": [3, 4],
            "yes": True,
            "text": evil,
        },
    )
    assert rows[0]["price"] == 0.1
    assert rows[0]["a"] == [1, {"b": 2}]
    assert rows[0]["at"] == "2026-01-02T03:04:05+00:00"
    assert rows[0]["numbers"] == [3, 4]
    assert (rows[0]["yes"], rows[0]["text"], rows[0]["no"], rows[0]["cast"]) == (True, evil, ":no", "::x")
    assert await run(executor, query="SELECT 1 AS one WHERE 1 IN :ids", parameters={"ids": [1, 2]}) == [{"one": 1}]
    assert await run(executor, query="SELECT 10 % 3 AS rest, 'a%' AS like") == [{"rest": 1, "like": "a%"}]


async def test_hostile_values_are_refused_with_a_type(executor: SqlExecutor) -> None:
    for value in ("a\0b", "\ud800"):
        error = await failed(executor, call(query="SELECT :v::text AS v", parameters={"v": value}))
        assert error.problem.status >= 400
    error = await failed(executor, call(query="SELECT CAST(:v AS int) AS v", parameters={"v": "no number"}))
    assert (error.problem.type, error.problem.status) == (ProblemType.RUNTIME, 500)
    error = await failed(executor, call(query="SELEC 1"))
    assert error.problem.type == ProblemType.RUNTIME
    assert await run(executor, query="SELECT 1 AS one") == [{"one": 1}]


async def test_large_results_are_cut_off_while_they_come(executor: SqlExecutor) -> None:
    rows = await run(executor, query="SELECT i, repeat('x', 90) AS t FROM generate_series(1, 20000) i")
    assert isinstance(rows, RawJson)
    assert orjson.loads(rows.data) == [{"i": i, "t": "x" * 90} for i in range(1, 20_001)]
    numbers = {"query": "WITH n AS (SELECT generate_series(1, 20000) AS i) SELECT i, repeat('x', 60) AS t FROM n"}
    tracemalloc.start()
    try:
        first, second = await run(executor, transaction=[{"query": "SELECT 1 AS one"}, numbers])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert first == [{"one": 1}]
    assert peak < 4 * len(second.data)
    error = await failed(executor, call(transaction=[numbers, numbers]))
    assert error.problem.title == "Too large a result"
    error = await failed(executor, call(query="SELECT generate_series(1, 100000000) AS i, repeat('x', 1000) AS t"))
    assert (error.problem.type, error.problem.title) == (ProblemType.PAYLOAD_TOO_LARGE, "Too large a result")
    error = await failed(executor, call(query="SELECT generate_series(1, 100000000) AS i", max_rows=1000))
    assert error.problem.title == "Too many rows"


async def test_read_only_and_isolation(executor: SqlExecutor) -> None:
    await run(executor, execute="INSERT INTO item VALUES (1, 1)", isolation="serializable")
    assert await run(executor, query="SELECT n FROM item", read_only=True) == [{"n": 1}]
    error = await failed(executor, call(execute="DELETE FROM item", read_only=True))
    assert "read-only" in error.problem.detail
    for isolation in ("read committed", "repeatable read", "serializable"):
        shown = await run(executor, query="SHOW transaction_isolation", isolation=isolation)
        assert shown == [{"transaction_isolation": isolation}]
    assert (await run(executor, query="SHOW transaction_isolation"))[0]["transaction_isolation"] == "read committed"
    assert (await run(executor, execute="DELETE FROM item"))["affected"] == 1


async def test_a_serialization_failure_asks_for_a_repeat(executor: SqlExecutor, dsn: str) -> None:
    await run(executor, execute="INSERT INTO item VALUES (1, 1)")
    parts = [
        {"query": "SELECT n FROM item"},
        {"query": "SELECT pg_advisory_xact_lock(5)"},
        {"execute": "UPDATE item SET n = n + 1"},
    ]
    with psycopg.connect(dsn, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(5)")
        task = asyncio.create_task(failed(executor, call(transaction=parts, isolation="repeatable read")))
        await eventually(lambda: busy(dsn) == 1)
        other.execute("UPDATE item SET n = 10")
        other.execute("SELECT pg_advisory_unlock(5)")
        error = await task
    assert (error.problem.type, error.problem.status) == (ProblemType.COMMUNICATION, 503)
    assert error.problem.title == "The database asks to try again"


async def test_a_deadlock_asks_for_a_repeat(executor: SqlExecutor, dsn: str) -> None:
    await run(executor, execute="INSERT INTO item VALUES (1, 0), (2, 0)")

    def both(first: int, second: int) -> Any:
        add = "UPDATE item SET n = n + 1 WHERE id = :id"
        pause = {"query": "SELECT pg_advisory_xact_lock_shared(6)"}
        steps = [{"execute": add, "parameters": {"id": first}}, pause, {"execute": add, "parameters": {"id": second}}]
        return executor.execute(call(transaction=steps))

    with psycopg.connect(dsn, autocommit=True) as other:  # the gate stays closed until each has its first row
        other.execute("SELECT pg_advisory_lock(6)")
        running = asyncio.gather(both(1, 2), both(2, 1), return_exceptions=True)
        await eventually(lambda: busy(dsn) == 2)
        other.execute("SELECT pg_advisory_unlock(6)")
    outcomes = await running
    errors = [outcome for outcome in outcomes if isinstance(outcome, ExecutionFailed)]
    assert [error.problem.status for error in errors] == [503]
    assert await run(executor, query="SELECT sum(n) AS n FROM item") == [{"n": 2}]


async def test_cancelled_and_late_statements_are_interrupted_in_the_database(executor: SqlExecutor, dsn: str) -> None:
    endless = "SELECT pg_sleep(300) AS endless_one"
    tasks = [asyncio.create_task(run(executor, query=endless)) for _ in range(3)]
    await eventually(lambda: busy(dsn) == 3)
    for task in tasks:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
    await eventually(lambda: busy(dsn) == 0)
    error = await failed(executor, call(0.2, query=endless))
    assert error.problem.type == ProblemType.TIMEOUT
    await eventually(lambda: executor.unfinished == 0)
    assert await run(executor, query="SELECT 1 AS one") == [{"one": 1}]


async def test_a_lost_connection_is_typed_and_replaced(executor: SqlExecutor, dsn: str) -> None:
    task = asyncio.create_task(failed(executor, call(query="SELECT pg_sleep(300) AS lost_one")))
    await eventually(lambda: busy(dsn) == 1)
    with psycopg.connect(dsn, autocommit=True) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE state = 'active' AND datname = current_database() AND pid <> pg_backend_pid()"
        )
    error = await task
    assert (error.problem.type, error.problem.status) == (ProblemType.COMMUNICATION, 503)
    assert await run(executor, query="SELECT 1 AS one") == [{"one": 1}]
    error = await failed(executor, call(query="SELECT 1", connection="away"))
    assert error.problem.type == ProblemType.COMMUNICATION
    error = await failed(executor, call(query="SELECT 1 AS one, 2 AS one"))
    assert "same name" in str(error.problem.detail) + error.problem.title
    del error, task
    gc.collect()  # what was left open would be complained of now


async def test_the_pool_is_bounded(executor: SqlExecutor, dsn: str) -> None:
    seen: list[int] = []

    async def look(until: Callable[[], bool]) -> None:
        while not until():
            seen.append(await asyncio.to_thread(busy, dsn))

    query = "SELECT pg_advisory_xact_lock_shared(7), pg_sleep(0.05)"
    with psycopg.connect(dsn, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(7)")
        running = asyncio.gather(*(run(executor, query=query) for _ in range(20)))
        async with asyncio.timeout(60):
            await look(lambda: len(seen) >= 20 and 3 in seen)  # as many as the pool has wait at the gate
        other.execute("SELECT pg_advisory_unlock(7)")
        await look(running.done)
        await running
    assert max(seen) == 3
