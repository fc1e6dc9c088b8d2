"""procrastinate's driver and its worker; runs in its environment.

Nobody can wait for a single job: the end is when no row is left that is to be done, asked for twenty times a second.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import driver
import psycopg
import uvloop
from procrastinate import App, PsycopgConnector

_POLL_S = 0.05
DSN = sys.argv[2]
app = App(connector=PsycopgConnector(conninfo=DSN, min_size=4, max_size=30))


@app.task(name="noop", pass_context=False)
async def noop() -> None:
    """A job that does nothing."""


class Engine:
    """Answers to the harness's requests. A job has one step only."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection

    async def _left(self) -> int:
        cursor = await self._connection.execute(
            "SELECT count(*) FROM (SELECT FROM procrastinate_jobs WHERE status IN ('todo', 'doing') LIMIT 1) AS open"
        )
        row = await cursor.fetchone()
        return int(row[0]) if row else 0

    async def _drained(self) -> None:
        while await self._left():  # noqa: ASYNC110 - another process does the work
            await asyncio.sleep(_POLL_S)

    async def singly(self, steps: int, runs: int, callers: int) -> dict[str, Any]:
        """Deferred one by one; nobody waits for a single job, so this is kinder than it is to the others."""
        if steps != 1:
            raise ValueError("a job has no durable steps")
        began = time.perf_counter()
        await driver.singly(noop.defer_async, runs, callers)
        await self._drained()
        return {"rate": runs / (time.perf_counter() - began)}

    async def batches(self, steps: int, runs: int) -> dict[str, Any]:
        """Deferred in hundreds."""
        if steps != 1:
            raise ValueError("a job has no durable steps")
        began = time.perf_counter()
        for at in range(0, runs, 100):
            await noop.batch_defer_async(*({} for _ in range(min(100, runs - at))))
        await self._drained()
        return {"rate": runs / (time.perf_counter() - began)}


async def main() -> None:
    """The worker, or the driver until stdin ends."""
    async with app.open_async():
        if sys.argv[1] == "worker":
            await app.run_worker_async(concurrency=50, delete_jobs="never", install_signal_handlers=True)
            return
        await app.schema_manager.apply_schema_async()
        async with await psycopg.AsyncConnection.connect(DSN, autocommit=True) as connection:
            await driver.serve(Engine(connection))


if __name__ == "__main__":
    uvloop.run(main())
