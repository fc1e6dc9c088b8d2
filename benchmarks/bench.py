"""`make bench`: Flint's first workloads and the raw limits of the servers underneath, in one run on one machine.

Everything is real and on this machine: all services, servers and the client. PostgreSQL with fsync, JetStream with
its default sync. Each figure is the median of three rounds, interleaved with the raw limits; ratios are against those
of the same run.
"""

from __future__ import annotations

import asyncio
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import uvloop
from rich.console import Console
from rich.table import Table

import limits
import workloads
from flint_sdk import AsyncFlint
from support.stack import running_stack

ROUNDS = 3


async def main() -> None:
    """Measure and print."""
    quick = "--quick" in sys.argv
    rounds = 1 if quick else ROUNDS
    scale = 0.3 if quick else 1.0
    figures: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        figures.setdefault(name, []).append(value)

    with tempfile.TemporaryDirectory() as folder:
        async with running_stack(Path(folder)) as stack:
            await asyncio.sleep(5)
            idle = await workloads.idle(stack.settings, stack.pids)
            flint = AsyncFlint(address=stack.gateway, key=stack.admin_key)
            try:
                await flint.apply(workloads.ONE)
                await flint.apply(workloads.TEN)
                await workloads.singly(flint, "bench-one", 1000, 64)  # warm
                for _ in range(rounds):
                    note("commits", await limits.commits(stack.settings))
                    note("publish", await limits.publish_pipelined(stack.settings))
                    note("publish_ms", await limits.publish_alone(stack.settings))
                    note("unary", await limits.unary_calls())
                    one = await workloads.alone(flint, "bench-one")
                    note("one_ms", one.median)
                    note("one_p99", one.p99)
                    ten = await workloads.alone(flint, "bench-ten")
                    note("ten_ms", ten.median)
                    note("ten_p99", ten.p99)
                    note("w1", await workloads.singly(flint, "bench-one", int(8000 * scale), 128))
                    note("w1_batch", await workloads.in_batches(flint, "bench-one", int(20000 * scale)))
                    note("w2", 10 * await workloads.singly(flint, "bench-ten", int(2000 * scale), 128))
                    note("w2_batch", 10 * await workloads.in_batches(flint, "bench-ten", int(4000 * scale)))
            finally:
                await flint.close()
    show({name: statistics.median(values) for name, values in figures.items()}, figures, idle)


def show(medians: dict[str, float], figures: dict[str, list[float]], idle: workloads.Idle) -> None:
    """The table."""
    console = Console(width=130)
    console.print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    table = Table("workload", "median", "range", "target", "ratio to a raw limit of this run")

    def row(title: str, name: str, unit: str, target: str, ratio: str = "") -> None:
        values = figures[name]
        table.add_row(title, f"{medians[name]:,.1f} {unit}", f"{min(values):,.1f} … {max(values):,.1f}", target, ratio)

    row("single-row commits, 10 connections", "commits", "/s", "raw")
    row("JetStream publish, pipelined", "publish", "/s", "raw")
    row("JetStream publish, one at a time", "publish_ms", "ms", "raw")
    row("gRPC unary, 100 callers", "unary", "/s", "raw")
    m = medians
    row("W1 1-step runs, singly, 128 callers", "w1", "runs/s", "≥ 1,000", f"{m['w1'] / m['unary']:.2f} of unary calls")
    row(
        "W1 1-step runs, StartRuns in hundreds",
        "w1_batch",
        "runs/s",
        "≥ 4,000",
        f"{m['w1_batch'] / m['commits']:.2f} of single-row commits",
    )
    row("1-step run alone, start to result", "one_ms", "ms", "", f"{m['one_ms'] / m['publish_ms']:.1f} publishes")
    row("1-step run alone, p99", "one_p99", "ms", "")
    row("W2 10-step run alone", "ten_ms", "ms", "≤ 12", f"{m['ten_ms'] / m['publish_ms']:.1f} publishes")
    row("W2 10-step run alone, p99", "ten_p99", "ms", "")
    row(
        "W2 steps, runs started singly",
        "w2",
        "steps/s",
        "≥ 8,000",
        f"{m['w2'] / m['publish']:.2f} of pipelined publishes",
    )
    row(
        "W2 steps, runs started in hundreds",
        "w2_batch",
        "steps/s",
        "",
        f"{m['w2_batch'] / m['publish']:.2f} of pipelined publishes",
    )
    console.print(table)
    console.print(
        f"idle: {idle.statements_per_s:.2f} statements/s (target < 5), "
        f"{100 * idle.cores:.1f} % of one core (target < 5 %): "
        + ", ".join(f"{n} {100 * c:.2f} %" for n, c in sorted(idle.by_process.items(), key=lambda i: -i[1]))
    )


if __name__ == "__main__":
    uvloop.run(main())
