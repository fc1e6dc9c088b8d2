"""Elastic pools on this machine: a step from no worker at all, a spike, the way back to nothing, and a lost worker.

    python benchmarks/elastic.py [--rounds N] [--spike N] [--spikes N]      5, 96, 1; --rounds 0: only spikes

Everything is real, the client too: the autoscaler of the leading registry starts and ends local workers of 8 slots, as
`flint up` does, 12 of them at most. Only the idle time is shorter (5 s instead of 300 s). A step begins when its HTTP
call arrives at a server in this process; a worker is lost by kill -9. In the last case nobody sees the process end
but by its lease: workers are fixed. Of a spike it tells also how often its legs were asked back by a scheduler because
they waited at a full worker (decision 0009), and how many had begun when the last one did not.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from flint_sdk import AsyncFlint, StartRequest, Worker
from support.metrics import read_metrics
from support.outside import Outside, outside_world
from support.stack import RunningStack, eventually, running_stack

SLOTS, MOST, IDLE_S, ALL_S = 8, 12, 5.0, 60.0
FLEET = {
    "provisioner": "local",
    "defaults": {"maximum_workers": MOST, "idle_s": IDLE_S, "worker_slots": SLOTS},
}
CALL = """
document: {dsl: 1.0.3, namespace: default, name: call, version: 1.0.0}
do: [{a: {call: http, with: {method: post, endpoint: '${ .url + "/steps/a" }'}}}]
"""


async def workers(flint: AsyncFlint) -> list[Worker]:
    return [worker async for worker in flint.list_workers()]


async def nobody(flint: AsyncFlint) -> float:
    """Until the pool is empty; answers when."""

    async def empty() -> bool:
        return not await workers(flint)

    await eventually(empty, timeout_s=120)
    return time.time()


async def begun(world: Outside, count: int, within_s: float = 180) -> float:
    """Until so many calls came; answers when the last of them did. Raises AssertionError when they do not come."""
    await eventually(lambda: len(world.executions) >= count, timeout_s=within_s, interval_s=0.005)
    return world.executions[count - 1].came_at


async def call(flint: AsyncFlint, world: Outside, count: int) -> tuple[float, list[str]]:
    """Start runs; answers when it was begun and their ids."""
    world.executions.clear()
    at = time.time()
    handles = await flint.start_many([StartRequest("call", {"url": world.url}) for _ in range(count)])
    for handle in handles:
        if isinstance(handle, BaseException):
            raise handle
    return at, [handle.id for handle in handles if not isinstance(handle, BaseException)]


async def lost(flint: AsyncFlint, world: Outside) -> float:
    """Seconds from the kill of the worker that makes the call to the call of another one."""
    world.gate.clear()
    _, (run,) = await call(flint, world, 1)
    await begun(world, 1)

    async def holder() -> Worker | None:
        return next((worker for worker in await workers(flint) if worker.legs), None)

    victim = await eventually(holder, timeout_s=60)
    assert victim is not None
    os.kill(victim.pid, signal.SIGKILL)
    at = time.time()
    again = await begun(world, 2)
    world.gate.set()
    await flint.wait(run, 60)
    return again - at


async def moves(stack: RunningStack) -> float:
    """Legs that were asked back from full workers, since the schedulers began."""
    names = [name for name in stack.pids if name.startswith("scheduler-")]
    figures = [await read_metrics(stack.addresses[f"{name}/ops"]) for name in names]
    return sum(f.total("flint_scheduler_seals_total", reason="crowded") for f in figures)


async def spiked(flint: AsyncFlint, world: Outside, stack: RunningStack, spike: int) -> dict[str, float]:
    """So many runs that stay at once, for a pool without a worker."""
    name = f"spike of {spike} that stay →"
    await nobody(flint)
    world.gate.clear()
    before, most = await moves(stack), spike * 9 // 10
    at, runs = await call(flint, world, spike)
    found = {f"{name} {most} have begun": await begun(world, most) - at}
    with contextlib.suppress(AssertionError):  # then the table says that they did not
        found[f"{name} all have begun"] = await begun(world, spike, ALL_S) - at
    if len(world.executions) < spike:
        found[f"{name} not all within {ALL_S:g} s; begun (count)"] = len(world.executions)
    found[f"{name} legs asked back (count)"] = await moves(stack) - before
    world.gate.set()
    for run in runs:
        await flint.wait(run, 60)
    return found


async def elastic(rounds: int, spike: int, spikes: int) -> dict[str, list[float]]:
    """The cases of a pool whose workers Flint itself starts."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        async with (
            outside_world(delay_s=0) as world,
            running_stack(Path(folder), workers=0, overrides={"fleet": FLEET}) as stack,
        ):
            flint = AsyncFlint(address=stack.gateway, key=stack.admin_key)
            try:
                await flint.apply(CALL)
                for _ in range(rounds):
                    at, (run,) = await call(flint, world, 1)
                    found.setdefault("no worker: start → its step begins", []).append(await begun(world, 1) - at)
                    ended = (await flint.wait(run, 60)).end_time
                    assert ended is not None
                    found.setdefault(f"last run ended → no worker, idle_s {IDLE_S:g}", []).append(
                        await nobody(flint) - ended.timestamp()
                    )
                for _ in range(rounds):
                    found.setdefault("worker killed, seen by its host → step begins elsewhere", []).append(
                        await lost(flint, world)
                    )
                for _ in range(spikes):
                    for case, value in (await spiked(flint, world, stack, spike)).items():
                        found.setdefault(case, []).append(value)
            finally:
                await flint.close()
    return found


async def fixed(rounds: int) -> dict[str, list[float]]:
    """A lost worker that nobody saw end: its lease tells."""
    name = "worker killed, known by its lease → step begins elsewhere"
    found: dict[str, list[float]] = {name: []}
    with tempfile.TemporaryDirectory() as folder:
        async with outside_world(delay_s=0) as world, running_stack(Path(folder)) as stack:
            flint = AsyncFlint(address=stack.gateway, key=stack.admin_key)
            try:
                await flint.apply(CALL)
                for _ in range(rounds):

                    async def both() -> bool:
                        return len(await workers(flint)) == 2

                    await eventually(both, timeout_s=60)
                    found[name].append(await lost(flint, world))
            finally:
                await flint.close()
    return found


async def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--spike", type=int, default=MOST * SLOTS)
    parser.add_argument("--spikes", type=int, default=1)
    options = parser.parse_args()
    table = Table("case", "rounds", "median s", "least … most s", title="Elastic pools and lost workers")
    found = await elastic(options.rounds, options.spike, options.spikes)
    if options.rounds:
        found |= await fixed(options.rounds)
    for case, times in found.items():
        span = f"{min(times):.2f} … {max(times):.2f}"
        table.add_row(case, str(len(times)), f"{statistics.median(times):.2f}", span)
    Console(width=120).print(table)


if __name__ == "__main__":
    uvloop.run(main())
