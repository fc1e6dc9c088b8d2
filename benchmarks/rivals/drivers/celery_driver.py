"""Celery's application and driver; runs in its environment."""

from __future__ import annotations

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import driver
from celery import Celery

app = Celery("bench", broker=os.environ["BENCH_REDIS"] + "/0", backend=os.environ["BENCH_REDIS"] + "/1")
app.conf.update(task_acks_late=True, worker_prefetch_multiplier=64, task_serializer="json", result_expires=3600)


@app.task(name="noop")
def noop() -> float:
    """A task that does nothing; when it began (Unix epoch, ms)."""
    return time.time() * 1000


def _once() -> float:
    return float(noop.delay().get(timeout=120))


class Engine:
    """Answers to the harness's requests. A task has one step only."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(16)

    async def singly(self, steps: int, runs: int, callers: int) -> dict[str, Any]:
        """Sixteen threads, each with a sixteenth of the callers' tasks in flight."""
        if steps != 1:
            raise ValueError("a task has no durable steps")
        share = max(1, callers // 16)

        def some() -> None:
            for result in [noop.delay() for _ in range(share)]:
                result.get(timeout=120)

        began = time.perf_counter()
        loop = asyncio.get_running_loop()
        rounds = max(1, runs // (16 * share))
        for _ in range(rounds):
            await asyncio.gather(*(loop.run_in_executor(self._threads, some) for _ in range(16)))
        return {"rate": rounds * 16 * share / (time.perf_counter() - began)}

    async def batches(self, steps: int, runs: int) -> dict[str, Any]:
        """All sent, then all results taken."""
        if steps != 1:
            raise ValueError("a task has no durable steps")

        def all_of_them() -> None:
            for result in [noop.delay() for _ in range(runs)]:
                result.get(timeout=300)

        began = time.perf_counter()
        await asyncio.to_thread(all_of_them)
        return {"rate": runs / (time.perf_counter() - began)}

    async def alone(self, steps: int, runs: int) -> dict[str, Any]:
        if steps != 1:
            raise ValueError("a task has no durable steps")
        return await driver.alone(lambda: asyncio.to_thread(_once), runs)

    async def begin(self, runs: int, load_per_s: float) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        return await driver.begin(lambda: loop.run_in_executor(self._threads, _once), runs, load_per_s)


if __name__ == "__main__":
    asyncio.run(driver.serve(Engine()))
