"""`make bench`: Flint, the raw limits of the servers underneath, and other engines, in one run on one machine.

    python benchmarks/bench.py [--quick] [--rounds N] [--size SHARE] [--rivals NAME,… | --rivals none]

Everything is real and on this machine: all services, servers and the client. PostgreSQL with fsync, JetStream with
its default sync. Each figure is the median of the rounds; in each round everything has its turn, so that what else the
machine does falls on all of them. Ratios are against those of the same run. A rival is installed when it is first
measured, started anew in each round, and left out with the reason when it cannot be.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import uvloop
from rich.console import Console

import contest
import limits
import report
import workloads
from budget import Budget, Meter
from flint_sdk import AsyncFlint
from support.stack import RunningStack, running_stack

ROUNDS = 3


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description="Measures Flint beside raw limits and other engines.")
    parser.add_argument("--quick", action="store_true", help="one short round of Flint alone, with the budget of a run")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--size", type=float, default=1.0, help="share of the usual number of runs")
    parser.add_argument("--rivals", default="all", help=f"none, all or some of: {', '.join(contest.RIVALS)}")
    return parser.parse_args()


async def flint_round(
    stack: RunningStack,
    flint: AsyncFlint,
    meter: Meter,
    figures: report.Figures,
    budgets: dict[str, Budget],
    size: float,
) -> None:
    """One round of Flint and of what is underneath it."""

    def note(name: str, value: float) -> None:
        figures.add("Flint", name, value)

    note("commits", await limits.commits(stack.settings))
    note("publish", await limits.publish_pipelined(stack.settings))
    note("publish_ms", await limits.publish_alone(stack.settings))
    note("unary", await limits.unary_calls())
    one = await workloads.alone(flint, "bench-one", int(200 * size))
    note("one_ms", one.median)
    note("one_p99", one.p99)
    ten = await workloads.alone(flint, "bench-ten", int(200 * size))
    note("ten_ms", ten.median)
    note("ten_p99", ten.p99)

    async def metered(name: str, title: str, runs: int, steps: int, workflow: str, batches: bool) -> None:
        async def work() -> float:
            if batches:
                return await workloads.in_batches(flint, workflow, runs)
            return await workloads.singly(flint, workflow, runs, 128)

        rate, budgets[title] = await meter.measure(runs, work)
        note(name, steps * rate)
        note(f"{name}_cpu", budgets[title].total_us)

    await metered("w1", "1 step, singly", int(8000 * size), 1, "bench-one", False)
    plain_runs = int(4000 * size)
    rate, budgets["1 step, plain gRPC"] = await meter.measure(
        plain_runs,
        lambda: workloads.plainly(stack.gateway, stack.admin_key, "bench-one", plain_runs, 128),
    )
    note("w1_plain", rate)
    await metered("w1_batch", "1 step, in hundreds", int(20000 * size), 1, "bench-one", True)
    await metered("w2", "10 steps, singly", int(2000 * size), 10, "bench-ten", False)
    await metered("w2_batch", "10 steps, in hundreds", int(4000 * size), 10, "bench-ten", True)
    for callers in (50, 500):
        note(f"w2_{callers}", 10 * await workloads.singly(flint, "bench-ten", int(2000 * size), callers))
    note("fan_s", await workloads.fan_out(flint, 1000))
    begin = await workloads.begins(flint, int(100 * size))
    note("begin_ms", begin.median)
    note("begin_p99", begin.p99)
    half = await workloads.begins(flint, int(100 * size), figures.median("Flint", "w1") / 2)
    note("begin_half_ms", half.median)
    note("begin_half_p99", half.p99)
    queued = 10_000 if size >= 1 else 2_000
    pressing = await workloads.urgent(flint, queued)
    note("urgent_ms", pressing.median)
    note("urgent_p99", pressing.p99)


async def main() -> None:
    """Measure and print."""
    asked = arguments()
    rounds = 1 if asked.quick else asked.rounds
    size = 0.2 if asked.quick else asked.size
    console = Console(width=150)
    figures = report.Figures()
    budgets: dict[str, Budget] = {}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        async with running_stack(Path(folder)) as stack:
            await asyncio.sleep(10)  # what begins with the services is over
            idle = await workloads.idle(stack.settings, stack.pids, 10 if asked.quick else 20)
            rivals = [] if asked.quick else await contest.installed(asked.rivals, console)
            meter = await Meter.open(stack)
            flint = AsyncFlint(address=stack.gateway, key=stack.admin_key)
            try:
                for source in (workloads.ONE, workloads.TEN, workloads.FAN):
                    await flint.apply(source)
                await workloads.singly(flint, "bench-one", 1000, 64)  # warm
                for number in range(rounds):
                    await flint_round(stack, flint, meter, figures, budgets, size)
                    for rival in rivals:
                        await contest.rival_round(rival, stack, figures, console, number, size)
            finally:
                await flint.close()
                await meter.close()
    console.print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {rounds} rounds, "
        f"{time.monotonic() - began:.0f} s; load of the machine at the end {os.getloadavg()[0]:.1f}"
    )
    report.show_flint(console, figures)
    report.show_budgets(console, budgets)
    report.show_idle(console, idle)
    if rivals:
        report.show_contest(console, figures, rivals)


if __name__ == "__main__":
    uvloop.run(main())
