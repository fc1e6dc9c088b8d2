"""The sql executor against a real SQLite database in a file."""

from __future__ import annotations

import asyncio
import datetime
import tracemalloc
import uuid
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest

from flint_core.problems import ProblemType
from flint_ops.config import ConnectionSettings, Settings
from flint_worker.executors import ExecutionFailed, RawJson, ResolvedCall
from flint_worker.executors.rows import json_value
from flint_worker.executors.sql import SqlExecutor
from support.eventually import eventually

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) AS top FROM n"


@pytest.fixture
async def executor(tmp_path: Path) -> AsyncIterator[SqlExecutor]:
    connections = {
        "shop": ConnectionSettings(
            kind="sql", url=f"sqlite:///{tmp_path}/shop.db", pool_size=2, max_rows=50, timeout_s=60
        ),
        "mail": ConnectionSettings(kind="smtp", url="smtp://localhost"),
        "strange": ConnectionSettings(kind="sql", url="nosuchdialect://u:hush@h/d"),
        "broken": ConnectionSettings(kind="sql", url="hush"),
        "away": ConnectionSettings(kind="sql", url="sqlite:////nonexistent/folder/x.db"),
    }
    executor = SqlExecutor(Settings(connections=connections))
    await run(executor, execute="CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, price REAL)")
    yield executor
    await executor.close()


def call(deadline_s: float | None = 60, **arguments: Any) -> ResolvedCall:
    arguments.setdefault("connection", "shop")
    return ResolvedCall("sql", arguments, "key-1", "/do/0/x", "run", "", deadline_s)


async def run(executor: SqlExecutor, **arguments: Any) -> Any:
    return await executor.execute(call(**arguments))


async def failed(executor: SqlExecutor, resolved: ResolvedCall) -> ExecutionFailed:
    with pytest.raises(ExecutionFailed) as raised:
        await executor.execute(resolved)
    assert "hush" not in str(raised.value.problem)
    return raised.value


INSERT = "INSERT INTO item (name, price) VALUES (:name, :price)"


async def test_execute_and_query(executor: SqlExecutor) -> None:
    done = await run(executor, execute=INSERT, parameters={"name": "cup", "price": 2.5})
    assert done == {"affected": 1, "rows": []}
    assert await run(executor, query="SELECT * FROM item WHERE name = :n", parameters={"n": "cup"}) == [
        {"id": 1, "name": "cup", "price": 2.5}
    ]
    returned = await run(executor, execute=INSERT + " RETURNING id", parameters={"name": "pot", "price": None})
    assert returned["rows"] == [{"id": 2}]


async def test_values_are_bound_not_written(executor: SqlExecutor) -> None:
    evil = "x'); DROP TABLE item; --"
    await run(executor, execute=INSERT, parameters={"name": evil, "price": 1})
    assert await run(executor, query="SELECT name FROM item") == [{"name": evil}]


async def test_arrays_expand_and_objects_are_json(executor: SqlExecutor) -> None:
    await run(executor, batch={"statement": INSERT, "parameters": [{"name": n, "price": 1} for n in "abc"]})
    rows = await run(executor, query="SELECT name FROM item WHERE name IN :names", parameters={"names": ["a", "c"]})
    assert rows == [{"name": "a"}, {"name": "c"}]
    assert await run(executor, query="SELECT name FROM item WHERE name IN :names", parameters={"names": []}) == []
    assert await run(executor, query="SELECT :o AS o", parameters={"o": {"k": [1]}}) == [{"o": '{"k":[1]}'}]


async def test_the_idempotency_key_can_be_bound(executor: SqlExecutor) -> None:
    assert await run(executor, query="SELECT :idempotency_key AS k") == [{"k": "key-1"}]


async def test_batch_is_all_or_nothing(executor: SqlExecutor) -> None:
    both = {"statement": INSERT, "parameters": [{"name": "a", "price": 1}, {"name": "a", "price": 2}]}
    error = await failed(executor, call(batch=both))
    assert (error.problem.type, error.problem.status) == (ProblemType.RUNTIME, 409)
    assert await run(executor, query="SELECT * FROM item") == []
    both["parameters"] = [{"name": "a", "price": 1}, {"name": "b", "price": 2}]
    assert await run(executor, batch=both) == {"affected": 2, "rows": []}


async def test_transaction_is_all_or_nothing(executor: SqlExecutor) -> None:
    good = {"execute": INSERT, "parameters": {"name": "a", "price": 1}}
    count = {"query": "SELECT count(*) AS n FROM item"}
    await failed(executor, call(transaction=[good, {"execute": "INSERT INTO nosuch VALUES (1)"}]))
    assert await run(executor, **count) == [{"n": 0}]
    assert await run(executor, transaction=[good, count]) == [{"affected": 1, "rows": []}, [{"n": 1}]]


async def test_row_limit(executor: SqlExecutor) -> None:
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :top) SELECT i FROM n"
    assert len(await run(executor, query=numbers, parameters={"top": 50})) == 50
    error = await failed(executor, call(query=numbers, parameters={"top": 51}))
    assert error.problem.type == ProblemType.PAYLOAD_TOO_LARGE
    await failed(executor, call(query=numbers, parameters={"top": 4}, max_rows=3))


async def test_a_large_result_stays_bytes_and_takes_little_more_memory(executor: SqlExecutor) -> None:
    query = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :top) "
    query += "SELECT i, replace(hex(zeroblob(262144)), '0', 'x') AS t FROM n"
    tracemalloc.start()
    try:
        output = await run(executor, query=query, parameters={"top": 40})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(output, RawJson)
    assert len(output.data) > 20 * 2**20
    assert peak < 3 * len(output.data)
    assert orjson.loads(output.data) == [{"i": i, "t": "x" * 524_288} for i in range(1, 41)]


@pytest.mark.parametrize(
    ("arguments", "type_"),
    [
        ({"query": "SELEC 1"}, ProblemType.COMMUNICATION),  # SQLite calls it an operational error
        ({"query": "SELECT :a"}, ProblemType.VALIDATION),
        ({"query": "SELECT 1", "parameters": {"hush": 1}}, ProblemType.VALIDATION),
        ({"query": "SELECT 1 AS a, 2 AS a"}, ProblemType.VALIDATION),
        ({"query": "SELECT 1", "execute": "SELECT 1"}, ProblemType.VALIDATION),
        ({}, ProblemType.VALIDATION),
        ({"query": "SELECT 1", "connection": "nobody"}, ProblemType.CONFIGURATION),
        ({"query": "SELECT 1", "connection": "mail"}, ProblemType.CONFIGURATION),
        ({"query": "SELECT 1", "connection": "strange"}, ProblemType.CONFIGURATION),
        ({"query": "SELECT 1", "connection": "broken"}, ProblemType.CONFIGURATION),
        ({"query": "SELECT 1", "connection": "away"}, ProblemType.COMMUNICATION),
        ({"execute": "INSERT INTO item (name) VALUES (NULL)"}, ProblemType.RUNTIME),
    ],
)
async def test_errors_are_typed(executor: SqlExecutor, arguments: dict[str, Any], type_: str) -> None:
    arguments = {name: value for name, value in arguments.items() if name != "hush"}
    with pytest.raises(ExecutionFailed) as raised:
        await executor.execute(call(**arguments))
    assert raised.value.problem.type == type_
    assert "u:hush" not in str(raised.value.problem)


async def test_a_late_statement_is_interrupted(executor: SqlExecutor) -> None:
    for _ in range(3):  # more often than there are threads
        error = await failed(executor, call(0.2, query=ENDLESS))
        assert error.problem.type == ProblemType.TIMEOUT
    assert await run(executor, query="SELECT 1 AS one") == [{"one": 1}]


async def test_a_cancelled_statement_is_interrupted(executor: SqlExecutor) -> None:
    tasks = [asyncio.create_task(run(executor, query=ENDLESS)) for _ in range(4)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
    assert await run(executor, query="SELECT 1 AS one") == [{"one": 1}]


async def test_a_statement_in_a_thread_counts_as_unfinished_until_its_thread_is_free(executor: SqlExecutor) -> None:
    task = asyncio.create_task(run(executor, query=ENDLESS))
    await eventually(lambda: executor.unfinished == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: executor.unfinished == 0)


async def test_many_at_once(executor: SqlExecutor) -> None:
    results = await asyncio.gather(*(run(executor, query="SELECT :n AS n", parameters={"n": n}) for n in range(40)))
    assert [rows[0]["n"] for rows in results] == list(range(40))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (2**64 - 1, 2**64 - 1),
        (2**70, str(2**70)),
        (float("nan"), None),
        (Decimal("12.50"), 12.5),
        (Decimal("3.00"), 3),
        (Decimal("0.1234567890123456789"), "0.1234567890123456789"),
        (Decimal("NaN"), None),
        (datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC), "2026-01-02T03:04:05+00:00"),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (datetime.timedelta(seconds=90), 90.0),
        (b"\x00\xff", "AP8="),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ([Decimal(1), {"a": b"a"}], [1, {"a": "YQ=="}]),
    ],
)
def test_values_as_json(value: Any, expected: Any) -> None:
    assert json_value(value) == expected
