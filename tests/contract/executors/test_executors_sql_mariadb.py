"""The sql executor against a real MariaDB."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import orjson
import pymysql
import pytest
from sqlalchemy import make_url
from tests.support.eventually import eventually
from tests.support.mariadb import mariadb_server

from flint_core.problems import ProblemType
from flint_ops.config import ConnectionSettings, LimitSettings, Settings
from flint_worker.executors import ExecutionFailed, RawJson, ResolvedCall
from flint_worker.executors.sql import SqlExecutor


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with mariadb_server() as url:
        yield url


@pytest.fixture
async def executor(server: str) -> AsyncIterator[SqlExecutor]:
    shop = ConnectionSettings(kind="sql", url=server, pool_size=3, max_rows=100_000, timeout_s=60)
    executor = SqlExecutor(Settings(connections={"shop": shop}, limits=LimitSettings(value_bytes=3_000_000)))
    await run(executor, execute="CREATE OR REPLACE TABLE item (id int PRIMARY KEY, n int CHECK (n < 100))")
    yield executor
    await executor.close()


def call(deadline_s: float | None = 60, **arguments: Any) -> ResolvedCall:
    return ResolvedCall("sql", {"connection": "shop"} | arguments, "key-1", "/do/0/x", "run", "", deadline_s)


async def run(executor: SqlExecutor, **arguments: Any) -> Any:
    return await executor.execute(call(**arguments))


async def failed(executor: SqlExecutor, resolved: ResolvedCall) -> ExecutionFailed:
    with pytest.raises(ExecutionFailed) as raised:
        await executor.execute(resolved)
    return raised.value


def connected(url: str) -> Any:
    parts = make_url(url)
    return pymysql.connect(host=parts.host, port=parts.port or 0, user="flint", password="hush")


def busy(url: str, state: str = "User sleep") -> int:
    """How many statements sleep, or are in another state."""
    with connected(url) as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT count(*) FROM information_schema.processlist WHERE state = %s", (state,))
        row = cursor.fetchone()
    return int(row[0])


async def test_types_come_back_as_json(executor: SqlExecutor) -> None:
    rows = await run(
        executor,
        query="""SELECT CAST(12.50 AS decimal(9, 2)) AS price, 0.12345678901234567890 AS exact,
            18446744073709551615 AS big, CAST('2026-01-02 03:04:05' AS datetime) AS at, DATE '2026-01-02' AS day,
            x'ff00' AS bytes, TIME '00:01:30' AS span, TRUE AS yes, NULL AS nothing, 'ü' AS t, 1.5e0 AS f""",
    )
    assert rows == [
        {
            "price": 12.5,
            "exact": "0.12345678901234567890",
            "big": 2**64 - 1,
            "at": "2026-01-02T03:04:05",
            "day": "2026-01-02",
            "bytes": "/wA=",
            "span": 90.0,
            "yes": 1,
            "nothing": None,
            "t": "ü",
            "f": 1.5,
        }
    ]


async def test_parameters_are_bound_not_written(executor: SqlExecutor) -> None:
    evil = "'; DROP TABLE item; -- :id \\' %s"
    rows = await run(
        executor,
        query=r"SELECT :text AS text, 'it\'s :no' AS no, `n :x` AS quoted, 10 % 3 AS rest, :doc AS doc, "
        r":idempotency_key AS k FROM (SELECT 1 AS `n :x`) AS t WHERE 1 IN :ids # :neither",
        parameters={"text": evil, "doc": {"a": [1]}, "ids": [1, 2]},
    )
    expected = {"text": evil, "no": "it's :no", "quoted": 1, "rest": 1, "doc": '{"a":[1]}', "k": "key-1"}
    assert rows == [expected]


async def test_transactions_and_broken_rules(executor: SqlExecutor) -> None:
    add = {"execute": "INSERT INTO item VALUES (:id, 1)", "parameters": {"id": 1}}
    for broken in (add, {"execute": "INSERT INTO item VALUES (2, 100)"}):  # the key, and the CHECK
        error = await failed(executor, call(transaction=[add, broken]))
        assert (error.problem.type, error.problem.status) == (ProblemType.RUNTIME, 409)
        assert await run(executor, query="SELECT * FROM item") == []
    done = await run(executor, transaction=[add, {"query": "SELECT id FROM item"}])
    assert done == [{"affected": 1, "rows": []}, [{"id": 1}]]
    many = {"statement": "INSERT INTO item VALUES (:id, 1)", "parameters": [{"id": 2}, {"id": 3}]}
    assert await run(executor, batch=many) == {"affected": 2, "rows": []}


async def test_read_only_and_isolation(executor: SqlExecutor) -> None:
    await run(executor, execute="INSERT INTO item VALUES (1, 1)", isolation="serializable")
    assert await run(executor, query="SELECT n FROM item", read_only=True) == [{"n": 1}]
    error = await failed(executor, call(execute="DELETE FROM item", read_only=True))
    assert "READ ONLY" in error.problem.detail
    shown = await run(executor, query="SELECT @@tx_isolation AS i", isolation="read committed")
    assert shown == [{"i": "READ-COMMITTED"}]
    assert await run(executor, query="SELECT @@tx_isolation AS i") == [{"i": "REPEATABLE-READ"}]
    assert (await run(executor, execute="DELETE FROM item"))["affected"] == 1


async def test_a_deadlock_asks_for_a_repeat(executor: SqlExecutor, server: str) -> None:
    await run(executor, execute="INSERT INTO item VALUES (1, 0), (2, 0)")

    def both(first: int, second: int) -> Any:
        add = "UPDATE item SET n = n + 1 WHERE id = :id"
        pause = {"query": f"SELECT get_lock('gate-{first}', 60) AS passed"}
        steps = [{"execute": add, "parameters": {"id": first}}, pause, {"execute": add, "parameters": {"id": second}}]
        return executor.execute(call(60, transaction=steps))

    with connected(server) as connection:  # the gates stay closed until each has its first row
        cursor = connection.cursor()
        cursor.execute("SELECT get_lock('gate-1', 0), get_lock('gate-2', 0)")
        running = asyncio.gather(both(1, 2), both(2, 1), return_exceptions=True)
        await eventually(lambda: busy(server, "User lock") == 2, 60)
        cursor.execute("SELECT release_lock('gate-1'), release_lock('gate-2')")
    outcomes = await running
    errors = [outcome for outcome in outcomes if isinstance(outcome, ExecutionFailed)]
    assert [error.problem.status for error in errors] == [503]
    assert await run(executor, query="SELECT sum(n) AS n FROM item") == [{"n": 2}]


async def test_a_cancelled_statement_is_killed_in_the_database(executor: SqlExecutor, server: str) -> None:
    task = asyncio.create_task(run(executor, query="SELECT sleep(300) AS endless"))
    await eventually(lambda: busy(server) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: busy(server) == 0)
    await eventually(lambda: executor.unfinished == 0)
    assert await run(executor, query="SELECT 1 AS one") == [{"one": 1}]


async def test_large_results_stay_bytes_and_are_cut_off_while_they_come(executor: SqlExecutor) -> None:
    output = await run(executor, query="SELECT seq AS i, repeat('x', 90) AS t FROM seq_1_to_20000")
    assert isinstance(output, RawJson)
    assert orjson.loads(output.data) == [{"i": i, "t": "x" * 90} for i in range(1, 20_001)]
    error = await failed(executor, call(query="SELECT seq AS i, repeat('x', 900) AS t FROM seq_1_to_1000000000"))
    assert error.problem.title == "Too large a result"
    error = await failed(executor, call(query="SELECT seq AS i FROM seq_1_to_1000000000", max_rows=1000))
    assert error.problem.title == "Too many rows"
    assert await run(executor, query="SELECT 1 AS one") == [{"one": 1}]
