"""What more cores would bring: throughput on one core and on two, and a model fitted to both.

    python benchmarks/ceiling.py [--rounds 3] [--runs 8000]

All processes of a stack, the client included, are pinned to one core and then to two, in turns. From the medians come
two numbers: `busy`, the share of one core that is put to use, and `sigma`, what each further core loses to
coordination (the contention term of Gunther's universal scalability law). With the CPU time that a run costs each kind
of process they give the throughput of n cores, how many processes of each kind that takes, as none of those in Python
uses more than a core, and where it ends: at the commits that PostgreSQL takes, or at the messages that JetStream takes.
Both are measured on two cores, from one process: on more cores the servers allow more, so the end is a safe one.
"""

from __future__ import annotations

import argparse
import bisect
import math
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import psutil
import uvloop
from rich.console import Console
from rich.table import Table

import limits
import workloads
from budget import Budget, Meter
from flint_sdk import AsyncFlint
from support.stack import RunningStack, running_stack

CORES = (1, 2, 4, 8, 16, 32, 64)
SINGLE = ("gateway", "scheduler", "worker")
"""Kinds of processes that use one core at most each: more cores want more of them."""
MOST_CORES = 4096
COMMITS, PUBLISHES, COORDINATION = "PostgreSQL's commits", "JetStream's publishes", "coordination"
LIFTS = {
    COMMITS: "More runs to a commit lift it (batches grow with the load by themselves), and a disk that syncs faster.",
    PUBLISHES: "Fewer messages a run lift it; and, which is not built, jobs and journal in streams by shard group, on "
    "several NATS servers.",
    COORDINATION: "Processes that share less lift it: more schedulers, each with fewer shard groups; clients on "
    "several gateways; machines of their own for the servers.",
}
FULL = 0.8
"""How much of its core such a process may use before another one is better."""


def pin(pids: Iterable[int], cores: set[int]) -> None:
    """Lets these processes, their children and all their threads run on these cores alone."""
    for pid in pids:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        for member in family:
            try:
                threads = [int(path.name) for path in Path(f"/proc/{member.pid}/task").iterdir()]
                for thread in threads:
                    os.sched_setaffinity(thread, cores)
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended meanwhile


@dataclass(frozen=True)
class Model:
    """`run_us`: CPU time of one run, all processes together. Rates are per second."""

    run_us: float
    busy: float
    sigma: float

    @classmethod
    def fitted(cls, run_us: float, one: float, two: float) -> Model:
        """From the throughput of one core and of two."""
        return cls(run_us, one * run_us / 1e6, max(0.0, 2 * one / two - 1))

    def rate(self, cores: int) -> float:
        """Runs a second on so many cores, if nothing else ends it."""
        return cores * self.busy * 1e6 / (self.run_us * (1 + self.sigma * (cores - 1)))

    @property
    def most(self) -> float:
        """What `rate` comes near to with ever more cores."""
        return self.busy * 1e6 / (self.run_us * self.sigma) if self.sigma else math.inf

    def cores(self, rate: float) -> int | None:
        """The fewest cores that reach a rate; None when no number of them does."""
        if rate > self.rate(MOST_CORES):
            return None
        return bisect.bisect_left(range(1, MOST_CORES + 1), rate, key=self.rate) + 1


def conclusion(model: Model, ends: Mapping[str, float]) -> str:
    """Where throughput ends first, and what lifts that. `ends`: runs a second by what ends them."""
    first = min(ends, key=ends.__getitem__)
    cores = model.cores(ends[first])
    if cores is None:
        return (
            f"The first ceiling is what each further core loses to coordination: {model.most:,.0f} runs/s, however "
            f"many cores. {LIFTS[COORDINATION]} Above it, {first} would allow {ends[first]:,.0f} runs/s."
        )
    return f"The first ceiling is {first}: {ends[first]:,.0f} runs/s, reached with {cores} cores. {LIFTS[first]}"


async def measure(
    stack: RunningStack, flint: AsyncFlint, meter: Meter, runs: int, rounds: int
) -> dict[str, list[float]]:
    """Figures by name, one of each round."""
    found: dict[str, list[float]] = {}
    pids = [os.getpid(), *stack.pids.values()]
    every = sorted(os.sched_getaffinity(0))
    budgets: list[Budget] = []
    try:
        for _ in range(rounds):
            for count in (1, 2):
                pin(pids, set(every[:count]))
                found.setdefault(f"commits {count}", []).append(await limits.commits(stack.settings))
                found.setdefault(f"publish {count}", []).append(await limits.publish_pipelined(stack.settings))
                rate, budget = await meter.measure(runs, lambda: workloads.in_batches(flint, "bench-one", runs))
                found.setdefault(f"runs {count}", []).append(rate)
                budgets.append(budget)
    finally:
        pin(pids, set(every))
    for kind in budgets[0].cpu_us:
        found[f"cpu {kind}"] = [budget.cpu_us.get(kind, 0.0) for budget in budgets]
    found["commits"] = [budget.commits for budget in budgets]
    found["messages"] = [budget.messages for budget in budgets]
    return found


def show(console: Console, found: dict[str, list[float]]) -> None:
    """The fit, and what it says of machines with more cores."""
    middle = {name: statistics.median(values) for name, values in found.items()}
    costs = {name.removeprefix("cpu "): cost for name, cost in middle.items() if name.startswith("cpu ")}
    model = Model.fitted(sum(costs.values()), middle["runs 1"], middle["runs 2"])
    console.print(
        f"1 core: {middle['runs 1']:,.0f} runs/s, 2 cores: {middle['runs 2']:,.0f} runs/s "
        f"({middle['runs 2'] / middle['runs 1']:.2f} times); a run costs {model.run_us:,.0f} us of CPU; "
        f"busy {model.busy:.2f}, sigma {model.sigma:.3f}"
    )
    ends = {
        COMMITS: middle["commits 2"] / max(middle["commits"], 1e-9),
        PUBLISHES: middle["publish 2"] / max(middle["messages"], 1e-9),
    }
    table = Table(
        "cores", "runs/s", *(f"{kind}s" for kind in SINGLE), "ends at", title="1-step runs, started in hundreds"
    )
    for cores in CORES:
        rate = model.rate(cores)
        end = min(ends, key=ends.__getitem__)
        reached = rate > ends[end]
        rate = min(rate, ends[end])
        needed = [f"{max(1, math.ceil(rate * costs.get(kind, 0.0) / (1e6 * FULL)))}" for kind in SINGLE]
        table.add_row(f"{cores}", f"{rate:,.0f}", *needed, f"{end} ({ends[end]:,.0f}/s)" if reached else "CPU")
    console.print(table)
    console.print(conclusion(model, ends))
    console.print(", ".join(f"{kind} {cost:.0f} us" for kind, cost in sorted(costs.items(), key=lambda c: -c[1])))


async def main() -> None:
    """Measure, fit, print."""
    parser = argparse.ArgumentParser(description="Fits a model of scaling to one core and two.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=8_000)
    asked = parser.parse_args()
    console = Console(width=140)
    if len(os.sched_getaffinity(0)) < 2:
        console.print("[red]This needs two cores.")
        sys.exit(2)
    with tempfile.TemporaryDirectory() as folder:
        async with running_stack(Path(folder)) as stack:
            meter = await Meter.open(stack)
            flint = AsyncFlint(address=stack.gateway, key=stack.admin_key)
            try:
                await flint.apply(workloads.ONE)
                await workloads.in_batches(flint, "bench-one", 2_000)  # warm
                found = await measure(stack, flint, meter, asked.runs, asked.rounds)
            finally:
                await flint.close()
                await meter.close()
    console.print(f"{platform.machine()}, Python {platform.python_version()}, {asked.rounds} rounds")
    show(console, found)


if __name__ == "__main__":
    uvloop.run(main())
