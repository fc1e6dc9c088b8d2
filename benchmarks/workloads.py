"""The workloads: W1 (one step) and W2 (ten steps in a row), and an idle system."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import grpc
from sqlalchemy import text

from budget import cpu_seconds
from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_contracts.gen.flint.runs.v1.runs_pb2_grpc import RunServiceStub
from flint_ops.config import Settings
from flint_sdk import AsyncFlint, StartRequest
from flint_store.engine import create_engine

HEAD = "document: {{dsl: 1.0.3, namespace: default, name: {name}, version: 1.0.0}}\ndo:\n"
FAN = (
    HEAD.format(name="bench-fan")
    + """
  - all:
      metadata: {flint: {parallel: 1000}}
      for: {each: n, in: '${ [range(.count)] }'}
      do: [{s: {call: noop}}]
  - size: {set: '${ {size: length} }'}
"""
)
Metadata = tuple[tuple[str, str], ...]
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
    return latency(times)


def latency(times: list[float]) -> Latency:
    """Median and p99 of milliseconds."""
    ordered = sorted(times)
    return Latency(statistics.median(ordered), ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))])


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


async def plainly(address: str, key: str, workflow: str, runs: int, callers: int) -> float:
    """As `singly`, without the client library: of each run one StartRun and one AwaitRun, over one connection."""
    request = _plain_start(workflow)

    async def two_calls(stub: RunServiceStub, metadata: Metadata) -> runs_pb2.Run:
        started = await stub.StartRun(request, metadata=metadata, timeout=60)
        waited = runs_pb2.AwaitRunRequest(name=started.run.name)
        return (await stub.AwaitRun(waited, metadata=metadata, timeout=120)).run

    return await _by_calls(address, key, two_calls, runs, callers)


async def in_one_call(address: str, key: str, workflow: str, runs: int, callers: int) -> float:
    """As `plainly`, of each run one RunWorkflow."""
    request = runs_pb2.RunWorkflowRequest(start=_plain_start(workflow))

    async def one_call(stub: RunServiceStub, metadata: Metadata) -> runs_pb2.Run:
        return (await stub.RunWorkflow(request, metadata=metadata, timeout=120)).run

    return await _by_calls(address, key, one_call, runs, callers)


def _plain_start(workflow: str) -> runs_pb2.StartRunRequest:
    return runs_pb2.StartRunRequest(parent="namespaces/default", workflow_id=workflow, input=b"{}")


async def _by_calls(
    address: str,
    key: str,
    run: Callable[[RunServiceStub, Metadata], Awaitable[runs_pb2.Run]],
    runs: int,
    callers: int,
) -> float:
    """Runs a second, one after the other by each caller, all over one connection."""
    left = runs
    metadata = (("authorization", f"Bearer {key}"),)
    async with grpc.aio.insecure_channel(address) as channel:
        stub = RunServiceStub(channel)

        async def caller() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                ended = await run(stub, metadata)
                assert ended.state == runs_pb2.Run.STATE_SUCCEEDED, ended

        began = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(callers)))
        return runs / (time.perf_counter() - began)


async def in_batches(flint: AsyncFlint, workflow: str, runs: int, batch: int = 100, callers: int = 8) -> float:
    """Runs a second through StartRuns in hundreds, to the last result."""
    batch = min(batch, runs)
    batches = left = runs // batch

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
    return batches * batch / (time.perf_counter() - began)


async def fan_out(flint: AsyncFlint, branches: int) -> float:
    """Seconds of one run with so many parallel iterations of one call, and their join."""
    began = time.perf_counter()
    started = await flint.start("bench-fan", {"count": branches})
    run = await flint.wait(started.id, timeout_s=300)
    took_s = time.perf_counter() - began
    assert run.output == {"size": branches}, run
    return took_s


async def begins(flint: AsyncFlint, runs: int, load_per_s: float = 0.0) -> Latency:
    """From the call of start to the moment when the step began on its worker, as the record has it.

    The record has whole milliseconds: half of one is added. With `load_per_s`, while so many other runs are started a
    second.
    """
    stop = asyncio.Event()
    loading = asyncio.create_task(_load(flint, load_per_s, stop))
    started = []
    try:
        await asyncio.sleep(0.5 if load_per_s else 0)
        for _ in range(runs):
            at_ms = time.time() * 1000
            handle = await flint.start("bench-one", {})
            started.append((at_ms, handle))
            await handle.result(timeout_s=60)
    finally:
        stop.set()
        await loading
    times = []
    for at_ms, handle in started:
        async for entry in flint.history(handle.id):
            step = next((step for step in entry.steps if step.start_time is not None), None)
            if step is not None and step.start_time is not None:
                times.append(step.start_time.timestamp() * 1000 + 0.5 - at_ms)
                break
    return latency(times)


async def _load(flint: AsyncFlint, per_s: float, stop: asyncio.Event) -> None:
    """Runs started at a steady rate, whatever becomes of them meanwhile; returns when all have ended."""
    loop = asyncio.get_running_loop()
    began, begun = loop.time(), 0
    tasks: set[asyncio.Task[None]] = set()

    async def one() -> None:
        await (await flint.start("bench-one", {})).result(timeout_s=120)

    while per_s and not stop.is_set():
        due = int((loop.time() - began) * per_s)
        while begun < due:
            task = asyncio.create_task(one())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            begun += 1
        await asyncio.sleep(0.01)
    await asyncio.gather(*tasks)


async def urgent(flint: AsyncFlint, queued: int, runs: int = 50) -> Latency:
    """Start to result of urgent runs, one at a time, while so many normal ones wait or are worked off.

    The crowd is started while its workflow is on hold, so that all of it waits when the first urgent run comes.
    """
    await flint.hold_workflow("bench-ten", "the crowd gathers")
    crowd = []
    try:
        for _ in range(queued // 500):
            crowd += await flint.start_many([StartRequest("bench-ten", {}) for _ in range(500)])
    finally:
        await flint.release_workflow("bench-ten")
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        handle = await flint.start("bench-one", {}, level=0)
        await handle.result(timeout_s=60)
        times.append((time.perf_counter() - began) * 1000)
    handles = [handle for handle in crowd if not isinstance(handle, Exception)]
    assert len(handles) == queued
    for at in range(0, queued, 1000):
        await asyncio.gather(*(handle.result(timeout_s=300) for handle in handles[at : at + 1000]))
    return latency(times)


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
        before, spent = await _transactions(engine), cpu_seconds(pids)
        await asyncio.sleep(seconds)
        after, now = await _transactions(engine), cpu_seconds(pids)
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
