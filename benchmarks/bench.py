"""`make bench`: Flint, the raw limits of the servers underneath, and other engines, in one run on one machine.

    python benchmarks/bench.py [--quick] [--rounds N] [--size SHARE] [--rivals NAME,… | --rivals none] [--again]
                               [--results FILE] [--show] [--markdown FILE] [--deadline SECONDS]

Everything is real and on this machine: all services, servers and the client. PostgreSQL with fsync, JetStream with
its default sync. Each figure is the median of the rounds; in each round everything has its turn, so that what else the
machine does falls on all of them. Ratios are against those of the same round. A rival is installed when it is first
measured, started anew in each round, and left out with the reason when it cannot be.

What each engine measured is written to FILE (.build/bench.json unless told; .build/bench-quick.json) as soon as its
turn is over. Rounds in it that are over, of the same code and options, are not measured again, unless `--again` is
given: so the command goes on where it was interrupted. `--show` only prints what is there; `--markdown` writes it as
tables and plots between two marks of a document (docs/performance.md).

Exit code 1: something of Flint could not be measured. A slow figure, a missed target, a rival that is missing, or a
deadline that passed are told, and are no failure.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import uvloop
from rich.console import Console

import contest
import fanout
import limits
import report
import workloads
from budget import Meter
from document import written
from figures import Figures, Record, Round
from flint_sdk import AsyncFlint
from support.stack import RunningStack, running_stack

ROUNDS = 3
BUILD = Path(__file__).parents[1] / ".build"
FLINT_S = 900.0
"""The turn of Flint in a round is given up after this time, and what it measured is kept."""


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description="Measures Flint beside raw limits and other engines.")
    parser.add_argument("--quick", action="store_true", help="one short round of Flint alone, with the budget of a run")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--size", type=float, default=1.0, help="share of the usual number of runs")
    parser.add_argument("--rivals", default="all", help=f"none, all or some of: {', '.join(contest.RIVALS)}")
    parser.add_argument("--again", action="store_true", help="measure anew the rounds that are known already")
    parser.add_argument("--results", type=Path, default=None, help="the file that keeps the rounds")
    parser.add_argument("--show", action="store_true", help="print what was measured before, and nothing else")
    parser.add_argument("--markdown", type=Path, default=None, help="a document to write what was measured before to")
    parser.add_argument("--deadline", type=float, default=None, help="seconds after which no more is measured")
    asked = parser.parse_args()
    if asked.quick:
        asked.rounds, asked.size, asked.rivals, asked.again = 1, 0.2, "none", True
    if asked.results is None:
        asked.results = BUILD / ("bench-quick.json" if asked.quick else "bench.json")
    return asked


async def flint_round(
    stack: RunningStack,
    flint: AsyncFlint,
    meter: Meter,
    figures: Figures,
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

    async def metered(name: str, title: str, runs: int, steps: int, work: Callable[[int], Awaitable[float]]) -> None:
        rate, budget = await meter.measure(runs, lambda: work(runs))
        note(name, steps * rate)
        note(f"{name}_cpu", budget.total_us)
        figures.rounds[-1].budgets[title] = asdict(budget)

    def singly(workflow: str) -> Callable[[int], Awaitable[float]]:
        return lambda runs: workloads.singly(flint, workflow, runs, 128)

    def plainly(runs: int) -> Awaitable[float]:
        return workloads.plainly(stack.gateway, stack.admin_key, "bench-one", runs, 128)

    def in_one_call(runs: int) -> Awaitable[float]:
        return workloads.in_one_call(stack.gateway, stack.admin_key, "bench-one", runs, 128)

    def batches(workflow: str) -> Callable[[int], Awaitable[float]]:
        return lambda runs: workloads.in_batches(flint, workflow, runs)

    await metered("w1", "1 step, singly", int(8000 * size), 1, singly("bench-one"))
    await metered("w1_plain", "1 step, plain gRPC: two calls", int(4000 * size), 1, plainly)
    await metered("w1_one_call", "1 step, plain gRPC: one call", int(4000 * size), 1, in_one_call)
    await metered("w1_batch", "1 step, in hundreds", int(20000 * size), 1, batches("bench-one"))
    await metered("w2", "10 steps, singly", int(2000 * size), 10, singly("bench-ten"))
    await metered("w2_batch", "10 steps, in hundreds", int(4000 * size), 10, batches("bench-ten"))
    for callers in (50, 500):
        note(f"w2_{callers}", 10 * await workloads.singly(flint, "bench-ten", int(2000 * size), callers))
    note("fan_s", await workloads.fan_out(flint, 1000))
    begin = await workloads.begins(flint, int(200 * size))
    note("begin_ms", begin.median)
    note("begin_p99", begin.p99)
    half = await workloads.begins(flint, int(200 * size), (figures.now("Flint", "w1") or 0) / 2)
    note("begin_half_ms", half.median)
    note("begin_half_p99", half.p99)
    queued = 10_000 if size >= 1 else 2_000
    pressing = await workloads.urgent(flint, queued)
    note("urgent_ms", pressing.median)
    note("urgent_p99", pressing.p99)
    if size >= 1:
        await fanout.apply(flint, "noop")
        await fanout.fan_out(stack, flint, "noop", 1_000)
        fan = await fanout.fan_out(stack, flint, "noop", 100_000)
        assert not fan.problem, fan.problem
        note("fan_100k_s", fan.seconds)
        note("fan_100k_cpu_s", sum(fan.cpu_s.values()))
        note("fan_100k_most_mib", fan.peak_mib)
        note("fan_100k_kept_mib", fan.growth_mib)


def what(asked: argparse.Namespace) -> dict[str, Any]:
    """What is measured: rounds of the same are of one run."""
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "version": _version(),
        "size": asked.size,
        "rivals": asked.rivals,
    }


def _version() -> str:
    """The last commit that touched the code; "+" when there is more that is not committed."""
    code = ("--", "libs", "services", "benchmarks")
    answers = []
    for command in (("log", "-1", "--format=%h"), ("status", "--porcelain")):
        git = ["git", "-C", str(Path(__file__).parents[1]), *command, *code]
        answers.append(subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip())
    return f"{answers[0] or 'unknown'}{'+' if answers[1] else ''}"


async def measure(asked: argparse.Namespace, console: Console, record: Record) -> bool:
    """The rounds that are missing; whether nothing of Flint failed."""
    good, figures = True, record.figures
    missing = range(len(figures.rounds), asked.rounds)
    if not missing:
        console.print(f"all {asked.rounds} rounds were measured before; --again measures them anew")
        return True
    rivals = await contest.installed(asked.rivals, console, record)
    with tempfile.TemporaryDirectory() as folder:
        async with running_stack(Path(folder)) as stack:
            await asyncio.sleep(10)  # what begins with the services is over
            record.idle = asdict(await workloads.idle(stack.settings, stack.pids, 10 if asked.quick else 20))
            meter = await Meter.open(stack)
            flint = AsyncFlint(address=stack.gateway, key=stack.admin_key)
            try:
                for source in (workloads.ONE, workloads.TEN, workloads.FAN):
                    await flint.apply(source)
                await workloads.singly(flint, "bench-one", 1000, 64)  # warm
                for number in missing:
                    now = Round(datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))
                    figures.rounds.append(now)
                    good &= await _flint_turn(stack, flint, meter, record, asked.size, console)
                    for rival in rivals:
                        await contest.rival_turn(rival, stack, record, console, number, asked.size)
                        record.save()
                    now.load, now.over = round(os.getloadavg()[0], 1), True
                    record.save()
            finally:
                await flint.close()
                await meter.close()
    return good


async def _flint_turn(
    stack: RunningStack, flint: AsyncFlint, meter: Meter, record: Record, size: float, console: Console
) -> bool:
    """Flint's turn in a round. What goes wrong is told and ends the turn, not the run; whether it was no failure."""
    now, began, good = record.figures.rounds[-1], time.monotonic(), True
    try:
        async with asyncio.timeout(FLINT_S):
            await flint_round(stack, flint, meter, record.figures, size)
    except TimeoutError as late:
        now.notes.append(f"Flint: something took too long, and what comes after it was left out: {late}")
    except Exception as error:
        good = False
        now.notes.append(f"Flint: {type(error).__name__}: {error}"[:1000])
        console.print_exception()
    now.took_s["Flint"] = round(time.monotonic() - began, 1)
    record.save()
    return good


async def bounded(asked: argparse.Namespace, console: Console, record: Record) -> bool:
    """As `measure`, until the deadline, or until it is told to end: then all that it started has ended, too."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        async with asyncio.timeout(asked.deadline):
            return await measure(asked, console, record)
    except TimeoutError:
        console.print(f"[bold red]not over within {asked.deadline} s; what was measured until then:")
        return True


def main() -> int:
    """Measure and print."""
    asked = arguments()
    console = Console(width=150)
    good = True
    if asked.show or asked.markdown:
        record = Record.read(asked.results)
        if record is None:
            console.print(f"[red]nothing was measured yet: there is no {asked.results}")
            return 1
    else:
        record = Record(asked.results, what(asked)) if asked.again else Record.opened(asked.results, what(asked))
        try:
            good = uvloop.run(bounded(asked, console, record))
        except (asyncio.CancelledError, KeyboardInterrupt):
            console.print(f"[bold red]interrupted; rounds that are over are kept: {asked.results}")
            return 1
    if asked.markdown:
        written(record, asked.markdown)
    else:
        report.show(console, record)
        console.print(f"all figures: {asked.results}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
