"""DBOS's driver; runs in its environment."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import driver
import uvloop
from dbos import DBOS


@DBOS.step()
async def step(n: int) -> float:
    """One durable step: when it began (Unix epoch, ms)."""
    return time.time() * 1000


@DBOS.workflow()
async def sequence(steps: int) -> float:
    """Steps one after the other; when the first one began."""
    began = await step(0)
    for n in range(1, steps):
        await step(n)
    return began


@DBOS.workflow()
async def fan(branches: int) -> int:
    """Steps side by side."""
    return len(await asyncio.gather(*(step(n) for n in range(branches))))


class Engine:
    """Answers to the harness's requests."""

    async def singly(self, steps: int, runs: int, callers: int) -> dict[str, Any]:
        return await driver.singly(lambda: sequence(steps), runs, callers)

    async def batches(self, steps: int, runs: int) -> dict[str, Any]:
        return await driver.singly(lambda: sequence(steps), runs, min(800, runs))

    async def alone(self, steps: int, runs: int) -> dict[str, Any]:
        return await driver.alone(lambda: sequence(steps), runs)

    async def fan(self, branches: int) -> dict[str, Any]:
        return await driver.alone(lambda: fan(branches), 1)

    async def begin(self, runs: int, load_per_s: float) -> dict[str, Any]:
        return await driver.begin(lambda: sequence(1), runs, load_per_s)


async def main() -> None:
    """Serve until stdin ends."""
    config: Any = {
        "name": "bench",
        "system_database_url": sys.argv[1],
        "sys_db_pool_size": 40,
        "log_level": "ERROR",
    }
    DBOS(config=config)
    DBOS.launch()
    try:
        await driver.serve(Engine())
    finally:
        DBOS.destroy()


if __name__ == "__main__":
    uvloop.run(main())
