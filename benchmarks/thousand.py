"""A thousand workers: what a large fleet costs the servers and services, and whether starts flow to it.

    python benchmarks/thousand.py [WORKERS] [--share N] [--lease-s S] [--runs N]      1000 workers of 10 slots

The stack is real and on this machine: two registries, two schedulers, a gateway, PostgreSQL, NATS, etcd. The workers
are simulated, in a few processes apart (tests/support/simulated_fleet.py): the worker's own code for registration,
lease, heartbeats, jobs and journal, no step executed. `--share N`: N workers have a connection in common and send their
heartbeats together (50 unless told; 1: each its own, as worker processes do). CPU is user and system time of a process
with its children, while nothing is asked of it but the fleet's own life ("idle"), and while runs of one step are
started as fast as they go.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import psutil
import uvloop
from rich.console import Console
from rich.table import Table

from flint_sdk import AsyncFlint, FlintError, Run, RunState, StartRequest
from support.simulated_fleet import FleetPlan, plan_json
from support.stack import RunningStack, eventually, running_stack

TESTS = Path(__file__).parents[1] / "tests"
PROCESSES = 4
SLOTS = 10
IDLE_S = 20.0
KINDS = ("registry", "etcd", "nats", "scheduler", "gateway", "postgres")
_DEFINITION = """
document: {dsl: 1.0.3, namespace: default, name: simulated, version: 1.0.0}
do: [{simulated: {call: noop}}]
"""


@dataclass
class Usage:
    """Seconds of CPU and resident MiB, by kind of process, at a moment."""

    at: float
    cpu_s: dict[str, float]
    mib: dict[str, float]

    @classmethod
    def now(cls, stack: RunningStack) -> Usage:
        cpu_s: dict[str, float] = defaultdict(float)
        mib: dict[str, float] = defaultdict(float)
        for name, pid in stack.pids.items():
            kind = name.split("-")[0]
            process = psutil.Process(pid)
            for each in (process, *process.children(recursive=True)):
                try:
                    times, memory = each.cpu_times(), each.memory_info()
                except psutil.NoSuchProcess:
                    continue
                cpu_s[kind] += times.user + times.system
                # Backends of PostgreSQL share most of what they show: the postmaster's is enough.
                if each is process:
                    mib[kind] += memory.rss / 2**20
        return cls(time.perf_counter(), cpu_s, mib)

    def cores_since(self, before: Usage) -> dict[str, float]:
        """Cores used on average since another moment."""
        return {kind: (self.cpu_s[kind] - before.cpu_s[kind]) / (self.at - before.at) for kind in self.cpu_s}


class Fleet:
    """The processes that simulate the workers."""

    def __init__(self, processes: list[asyncio.subprocess.Process]) -> None:
        self._processes = processes

    @classmethod
    async def start(cls, stack: RunningStack, workers: int, share: int) -> Fleet:
        """Returns once the workers connect; `registered` waits for them."""
        settings = stack.settings
        processes = []
        each = -(-workers // PROCESSES)
        for number in range(PROCESSES):
            plan = FleetPlan(
                nats_urls=settings.nats.urls,
                nats_user=settings.nats.user,
                nats_password=settings.nats.password.get_secret_value(),
                registries=[stack.addresses[name] for name in stack.addresses if name in ("registry-1", "registry-2")],
                token=settings.cluster.internal_token.get_secret_value(),
                workers=min(each, workers - number * each),
                slots=SLOTS,
                share=share,
                first=number * each + 1,
            )
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "support.simulated_fleet",
                cwd=TESTS,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            assert process.stdin is not None
            process.stdin.write(plan_json(plan).encode() + b"\n")
            await process.stdin.drain()
            processes.append(process)
        return cls(processes)

    async def _lines(self) -> list[dict[str, float]]:
        found = []
        for process in self._processes:
            assert process.stdout is not None
            async with asyncio.timeout(600):
                found.append(json.loads(await process.stdout.readline()))
        return found

    async def registered(self) -> float:
        """Waits until all workers read jobs: the seconds that took the slowest process, without its start."""
        return max(line["registered_s"] for line in await self._lines())

    async def figures(self) -> dict[str, float]:
        """Sums over the processes: legs, held, lapses."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(b"?\n")
        lines = await self._lines()
        return {key: sum(line[key] for line in lines) for key in lines[0]}

    async def end(self) -> None:
        """All deregister."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            async with asyncio.timeout(120):
                await process.wait()


async def seen(flint: AsyncFlint) -> int:
    """Workers that the gateway lists."""
    return sum([1 async for _ in flint.list_workers()])


async def start_all(flint: AsyncFlint, runs: int, leg_s: float = 0.0, callers: int = 10) -> list[str]:
    """Starts runs in hundreds: their ids. Each occupies a slot for `leg_s`."""
    parts = iter([min(100, runs - at) for at in range(0, runs, 100)])
    started: list[str] = []

    async def caller() -> None:
        for part in parts:
            request = StartRequest("simulated", {"leg_s": leg_s} if leg_s else {})
            for handle in await flint.start_many([request] * part):
                if isinstance(handle, FlintError):
                    raise handle
                started.append(handle.id)

    await asyncio.gather(*(caller() for _ in range(callers)))
    return started


async def idle(stack: RunningStack) -> tuple[dict[str, float], Usage]:
    """Cores used while nothing is asked, and the usage at the end."""
    before = Usage.now(stack)
    await asyncio.sleep(IDLE_S)
    after = Usage.now(stack)
    return after.cores_since(before), after


async def measure(console: Console, stack: RunningStack, flint: AsyncFlint, options: argparse.Namespace) -> None:
    """One fleet, from its registration to its end."""
    workers: int = options.workers
    bare_cores, bare = await idle(stack)
    fleet = await Fleet.start(stack, workers, options.share)
    registered_s = await fleet.registered()
    began = time.perf_counter()
    await eventually(lambda: all_seen(flint, workers), 120, 0.2)
    console.print(
        f"{workers} workers of {SLOTS} slots registered and read jobs after {registered_s:.1f} s; "
        f"all were listed {time.perf_counter() - began:.1f} s later"
    )
    await asyncio.sleep(10)  # the historian and the first heartbeats
    quiet_cores, quiet = await idle(stack)
    show_idle(console, workers, (bare_cores, bare), (quiet_cores, quiet))
    runs = options.runs
    before = Usage.now(stack)
    began = time.perf_counter()
    started = await start_all(flint, runs)
    await asyncio.gather(*(flint.wait(run, 600) for run in started))
    took_s = time.perf_counter() - began
    busy = Usage.now(stack).cores_since(before)
    legs = (await fleet.figures())["legs"]
    console.print(
        f"{runs} runs of one step: {runs / took_s:,.0f}/s, {legs:,.0f} legs taken; cores meanwhile: "
        + ", ".join(f"{kind} {busy[kind]:.2f}" for kind in KINDS)
    )
    most, wrong = await fill(console, flint, fleet, workers * SLOTS, options.fill_s)
    console.print(f"legs at the same time: {most:,.0f} of {workers * SLOTS:,}; runs that did not succeed: {wrong}")
    lapses = (await fleet.figures())["lapses"]
    began = time.perf_counter()
    await fleet.end()
    await eventually(lambda: none_seen(flint), 120, 0.2)
    gone_s = time.perf_counter() - began
    console.print(f"gone {gone_s:.1f} s after they were told to; leases lost meanwhile: {lapses:.0f}")


async def fill(console: Console, flint: AsyncFlint, fleet: Fleet, slots: int, leg_s: float) -> tuple[float, int]:
    """As many runs as there are slots, at the same time: legs that were held at most, and runs that went wrong."""
    began = time.perf_counter()
    filling = asyncio.create_task(start_all(flint, slots, leg_s=leg_s))
    ended: asyncio.Task[list[Run]] | None = None
    most = 0.0
    while ended is None or not ended.done():
        most = max(most, (await fleet.figures())["held"])
        if filling.done() and ended is None:
            console.print(f"{slots:,} runs of {leg_s:g} s started within {time.perf_counter() - began:.1f} s")
            ended = asyncio.create_task(all_ended(flint, filling.result()))
        await asyncio.sleep(0.5)
    return most, sum(run.state is not RunState.SUCCEEDED for run in ended.result())


async def all_ended(flint: AsyncFlint, runs: list[str]) -> list[Run]:
    return list(await asyncio.gather(*(flint.wait(run, 600) for run in runs)))


Idle = tuple[dict[str, float], Usage]


def show_idle(console: Console, workers: int, bare: Idle, quiet: Idle) -> None:
    """What the fleet costs while it does nothing."""
    hundreds = workers / 100
    table = Table("processes", "idle, none", f"idle, {workers}", "per 100 workers", "MiB", "MiB per 100")
    for kind in KINDS:
        (none, before), (some, after) = (bare[0][kind], bare[1].mib[kind]), (quiet[0][kind], quiet[1].mib[kind])
        table.add_row(
            kind,
            f"{none:.1%}",
            f"{some:.1%}",
            f"{(some - none) / hundreds:.2%}",
            f"{before:.0f} → {after:.0f}",
            f"{(after - before) / hundreds:.1f}",
        )
    console.print("CPU in parts of one core; all processes of a kind are added up.")
    console.print(table)


async def all_seen(flint: AsyncFlint, workers: int) -> bool:
    return await seen(flint) >= workers


async def none_seen(flint: AsyncFlint) -> bool:
    return await seen(flint) == 0


async def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workers", type=int, nargs="?", default=1000)
    parser.add_argument("--share", type=int, default=50)
    parser.add_argument("--lease-s", type=int, default=5)
    parser.add_argument("--schedulers", type=int, default=2)
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--fill-s", type=float, default=20.0)
    options = parser.parse_args()
    console = Console(width=120)
    overrides = {"registry": {"lease_ttl_s": options.lease_s, "heartbeat_interval_s": options.lease_s * 0.3}}
    with tempfile.TemporaryDirectory() as folder:
        async with (
            running_stack(Path(folder), workers=0, schedulers=options.schedulers, overrides=overrides) as stack,
            AsyncFlint(stack.gateway, stack.admin_key) as flint,
        ):
            await flint.apply(_DEFINITION)
            await measure(console, stack, flint, options)


if __name__ == "__main__":
    uvloop.run(main())
