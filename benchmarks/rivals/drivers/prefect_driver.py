"""Prefect's driver; runs in its environment. Flows run in the process that calls them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import driver
import uvloop
from prefect import flow, task


@task(persist_result=True)
async def step(n: int) -> float:
    """One step whose result is kept: when it began (Unix epoch, ms)."""
    return time.time() * 1000


@flow(persist_result=True)
async def sequence(steps: int) -> float:
    """Steps one after the other; when the first one began."""
    began = await step(0)
    for n in range(1, steps):
        await step(n)
    return began


@flow(persist_result=True)
async def fan(branches: int) -> int:
    """Steps side by side."""
    return len(await asyncio.gather(*(step(n) for n in range(branches))))


class Engine:
    """Answers to the harness's requests."""

    async def singly(self, steps: int, runs: int, callers: int) -> dict[str, Any]:
        return await driver.singly(lambda: sequence(steps), runs, min(_CALLERS, callers))

    async def batches(self, steps: int, runs: int) -> dict[str, Any]:
        return await driver.singly(lambda: sequence(steps), runs, _CALLERS)

    async def alone(self, steps: int, runs: int) -> dict[str, Any]:
        return await driver.alone(lambda: sequence(steps), runs)

    async def fan(self, branches: int) -> dict[str, Any]:
        return await driver.alone(lambda: fan(branches), 1)

    async def begin(self, runs: int, load_per_s: float) -> dict[str, Any]:
        return await driver.begin(lambda: sequence(1), runs, load_per_s)


_CALLERS = 16
"""More at once only make its server answer later: it is busy with these."""

if __name__ == "__main__":
    uvloop.run(driver.serve(Engine()))
