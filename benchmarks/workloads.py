"""The workloads: W1 (one step) and W2 (ten steps in a row), and an idle system."""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass

import psutil
from sqlalchemy import text

from flint_ops.config import Settings
from flint_sdk import AsyncFlint, StartRequest
from flint_store.engine import create_engine

HEAD = "document: {{dsl: 1.0.3, namespace: default, name: {name}, version: 1.0.0}}\ndo:\n"
ONE = HEAD.format(name="bench-one") + "  - step0: {call: noop}\n"
TEN = HEAD.format(name="bench-ten") + "".join(f"  - step{n}: {{call: noop}}\n" for n in range(10))


@dataclass(frozen=True)
class Latency:
    """Milliseconds."""

    median: float
    p99: float


async def alone(flint: AsyncFlint, workflow: str, runs: int = 200) -> Latency:
    """One run at a time: from start to the result in the client's hands."""
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        handle = await flint.start(workflow, {})
        await handle.result(timeout_s=60)
        times.append((time.perf_counter() - began) * 1000)
    return Latency(statistics.median(times), statistics.quantiles(times, n=100)[98])


async def singly(flint: AsyncFlint, workflow: str, runs: int, callers: int) -> float:
    """Runs a second, started one by one by concurrent callers, each waiting for its result before its next start."""
    left = runs

    async def caller() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            handle = await flint.start(workflow, {})
            await handle.result(timeout_s=120)

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return runs / (time.perf_counter() - began)


async def in_batches(flint: AsyncFlint, workflow: str, runs: int, batch: int = 100, callers: int = 8) -> float:
    """Runs a second through StartRuns in hundreds, to the last result."""
    left = runs // batch

    async def caller() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            handles = await flint.start_many([StartRequest(workflow, {}) for _ in range(batch)])
            results = [h.result(timeout_s=120) for h in handles if not isinstance(h, Exception)]
            assert len(results) == batch
            await asyncio.gather(*results)

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return runs / (time.perf_counter() - began)


@dataclass(frozen=True)
class Idle:
    """What an idle system costs."""

    statements_per_s: float
    cores: float
    by_process: dict[str, float]


async def idle(settings: Settings, pids: dict[str, int], seconds: float = 20.0) -> Idle:
    """Transactions that PostgreSQL saw and CPU time of all processes of the stack, over some seconds of nothing.

    In autocommit each statement is one transaction; the measurement's own two are left out.
    """
    engine = create_engine(settings.postgres, "reading", pool_size=1)
    try:
        before, spent = await _transactions(engine), _cpu(pids)
        await asyncio.sleep(seconds)
        after, now = await _transactions(engine), _cpu(pids)
    finally:
        await engine.dispose()
    by_process = {name: (now[name] - spent[name]) / seconds for name in now if name in spent}
    return Idle(max(0.0, after - before - 1) / seconds, sum(by_process.values()), by_process)


async def _transactions(engine: object) -> int:
    async with engine.connect() as connection:  # type: ignore[attr-defined]
        await connection.execute(text("SELECT pg_stat_clear_snapshot()"))
        row = await connection.execute(
            text("SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()")
        )
        return int(row.scalar_one())


def _cpu(pids: dict[str, int]) -> dict[str, float]:
    found = {}
    for name, pid in pids.items():
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        total = 0.0
        for member in family:
            try:
                times = member.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
        found[name] = total
    return found
