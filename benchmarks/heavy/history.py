"""W8, a long history: what starts, lists, searches cost over millions of ended runs, and when half of them is gone."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import limits
import workloads
from budget import Budget, Meter
from flint_core.ids import run_id_text
from flint_sdk import AsyncFlint, NotFound, Run, RunState
from heavy.gauges import quiet
from heavy.generated import PAGE, SPAN_DAYS, History, check_generated
from heavy.results import Outcome
from heavy.verdicts import at_least, at_most, percentile, told
from support.stack import RunningStack, running_stack

__all__ = ["long_history"]

SETTINGS = {"retention": {"runs_per_s": 100_000, "work_share": 1.0, "batch_runs": 1_000, "sweep_s": 5.0}}
"""Deletion as fast as it goes; usually it rests as long as it works."""

ROUNDS = 5

Search = Callable[[AsyncFlint], Awaitable[object]]


def searches(history: History) -> dict[str, Search]:
    """What people ask of a long history; a page of 50 each."""
    middle = datetime.fromtimestamp((history.first_ms + history.last_ms) / 2000, UTC)
    hour = {"created_after": middle, "created_before": middle + timedelta(hours=1)}
    failed, cancelled = [RunState.FAILED], [RunState.CANCELLED]

    def page(**what: Any) -> Search:
        return lambda flint: first(flint.list_runs(page_size=PAGE, **what))

    found = {
        "newest": page(),
        "of a workflow": page(workflow="bench-ten"),
        "of a rare workflow": page(workflow="history-rare"),
        "succeeded": page(states=[RunState.SUCCEEDED]),
        "failed": page(states=failed),
        "cancelled (there are none)": page(states=cancelled),
        "failed or cancelled of a workflow": page(workflow="history-failed", states=failed + cancelled),
        "failed of a workflow that never failed": page(workflow="bench-one", states=failed),
        "failed of a rare workflow": page(workflow="history-rare", states=failed),
        "running or queued": page(states=[RunState.RUNNING, RunState.QUEUED]),
        "an hour amid the history": page(**hour),
        "failed in that hour": page(states=failed, **hour),
        "of a workflow in that hour": page(workflow="history-waited", **hour),
        "before the middle": page(created_before=middle),
    }
    if history.samples:
        newest = run_id_text(history.samples[-1].run_id)

        async def record(flint: AsyncFlint) -> None:
            async for _ in flint.history(newest):
                pass

        found["one run"] = lambda flint: flint.get_run(newest)
        found["its record"] = record
    return found


async def first(runs: AsyncIterator[Run]) -> list[Run]:
    """The first page; the next one is not asked for."""
    found: list[Run] = []
    async for run in runs:
        found.append(run)
        if len(found) == PAGE:
            break
    return found


@dataclass
class Phase:
    """What was measured at one length of the history."""

    w1: float
    w1_batch: float
    commits: float
    unary: float
    budget: Budget  # of a run started singly
    searches: dict[str, float]  # p95, ms


async def measure(stack: RunningStack, flint: AsyncFlint, history: History, share: float) -> Phase:
    """Starts singly and in hundreds, medians of five rounds; what the servers underneath give beside it; searches."""
    await workloads.singly(flint, "bench-one", max(200, int(1000 * share)), 64)  # warm
    await history.checkpoint()
    w1: list[float] = []
    each = max(200, int(4000 * share))

    async def rounds() -> float:
        w1.extend([await workloads.singly(flint, "bench-one", each, 128) for _ in range(ROUNDS)])
        return statistics.median(w1)

    meter = await Meter.open(stack)
    try:
        singly, budget = await meter.measure(ROUNDS * each, rounds)
    finally:
        await meter.close()
    hundreds = max(200, int(10_000 * share))
    w1_batch = [await workloads.in_batches(flint, "bench-one", hundreds) for _ in range(ROUNDS)]
    times: dict[str, float] = {}
    for name, search in searches(history).items():
        taken = []
        for _ in range(max(20, int(100 * share))):
            began = time.perf_counter()
            await search(flint)
            taken.append((time.perf_counter() - began) * 1000)
        times[name] = percentile(taken, 0.95)
    return Phase(
        singly,
        statistics.median(w1_batch),
        await limits.commits(stack.settings),
        await limits.unary_calls(),
        budget,
        times,
    )


async def long_history(
    console: Console,
    folder: Path,
    outcome: Outcome,
    *,
    finished: int,
    share: float,
    drop_minutes: float,
    load: float | None,
) -> None:
    """Empty, full, half. Ends by itself: the filling takes as long as it takes, the dropping at most its minutes; 0:
    nothing is dropped, and there is no half.

    With `load`, each of the three is measured only once the load of the machine is below that.
    """
    async with running_stack(folder / "w8", overrides=SETTINGS) as stack:
        flint = AsyncFlint(address=stack.gateway, key=stack.admin_key)
        history: History | None = None
        try:
            history = await History.prepare(stack, flint)
            await quiet(console, load)
            phases = {"empty": await measure(stack, flint, history, share)}
            console.print("W8: the empty system is measured")
            await history.fill(console, finished, outcome)
            await check_generated(flint, history)
            await quiet(console, load)
            phases["full"] = await measure(stack, flint, history, share)
            console.print("W8: the full one is measured")
            if drop_minutes:
                phases["dropping"], gone = await _drop(console, stack, flint, history, outcome, share, drop_minutes)
                outcome.add(told("retention: time to vacuum after it", await history.settle(), "s"))
                await quiet(console, load)
                phases["half"] = await measure(stack, flint, history, share)
                await _check_dropped(flint, history, gone)
        finally:
            if history is not None:
                history.writer.close()
            await flint.close()
    _report(console, outcome, phases, history.written)


async def _drop(
    console: Console,
    stack: RunningStack,
    flint: AsyncFlint,
    history: History,
    outcome: Outcome,
    share: float,
    minutes: float,
) -> tuple[Phase, bool]:
    """Retention deletes the older half; what is measured meanwhile, and whether it came to its end in time."""
    keep_days = SPAN_DAYS // 2
    before = (await flint.describe_retention()).runs_deleted
    began = time.perf_counter()
    await flint.set_namespace(retention_days=keep_days)
    cutoff_ms = int(time.time() * 1000) - keep_days * 86_400_000
    old = await history.ask(f"SELECT count(*) FROM run WHERE run_id < '{_id_at(cutoff_ms)}'")
    phase = await measure(stack, flint, history, share)
    deleted, told_at = 0, time.monotonic()
    while deleted < old and time.perf_counter() - began < minutes * 60:
        await asyncio.sleep(1.0)
        deleted = (await flint.describe_retention()).runs_deleted - before
        if time.monotonic() - told_at > 30:
            told_at = time.monotonic()
            console.print(f"W8: {deleted:,} of {old:,} old runs are deleted")
    took_s = time.perf_counter() - began
    await flint.set_namespace(retention_days=-1)  # no more of it while the rest is measured
    outcome.add(
        told("retention: runs deleted", deleted, "", f"of {old:,} that were old"),
        told("retention: time for it", took_s, "s", f"{deleted / took_s:,.0f} runs/s, without its usual limit"),
    )
    if deleted < old:
        outcome.note(f"retention: after {minutes:g} minutes {old - deleted:,} old runs were still there")
    return phase, deleted >= old


async def _check_dropped(flint: AsyncFlint, history: History, complete: bool) -> None:
    """Young runs are there as before, old ones are not (when all were deleted). Raises AssertionError."""
    middle_ms = int(time.time() * 1000) - SPAN_DAYS // 2 * 86_400_000
    for sample in history.samples:
        run_id = run_id_text(sample.run_id)
        if sample.at_ms > middle_ms:
            assert (await flint.get_run(run_id)).id == run_id
        elif complete and sample.at_ms < middle_ms - 7_200_000:
            with contextlib.suppress(NotFound):
                raise AssertionError(f"{await flint.get_run(run_id)} should be gone")


def _id_at(at_ms: int) -> str:
    return run_id_text(at_ms.to_bytes(6, "big") + bytes(10))


def _report(console: Console, outcome: Outcome, phases: dict[str, Phase], written: int) -> None:
    table = Table("W8", *phases)
    rows: dict[str, Callable[[Phase], float]] = {
        "W1 singly, runs/s": lambda phase: phase.w1,
        "W1 in hundreds, runs/s": lambda phase: phase.w1_batch,
        "raw: commits/s": lambda phase: phase.commits,
        "raw: unary calls/s": lambda phase: phase.unary,
        "PostgreSQL, CPU µs a run": lambda phase: phase.budget.cpu_us["postgres"],
        "all processes, CPU µs a run": lambda phase: phase.budget.total_us,
        "write-ahead log, bytes a run": lambda phase: phase.budget.wal_bytes,
    }
    for title, figure in rows.items():
        table.add_row(title, *(f"{figure(phase):,.0f}" for phase in phases.values()))
    for name in phases["full"].searches:
        table.add_row(
            f"{name}, p95 ms", *(f"{p.searches[name]:.1f}" if name in p.searches else "" for p in phases.values())
        )
    console.print(table)
    empty = phases["empty"]
    for name, title in (("full", f"{written:,} ended runs"), ("half", "half of them deleted")):
        if name not in phases:
            continue
        phase = phases[name]
        commits, unary = phase.commits / empty.commits, phase.unary / empty.unary
        raw = f"raw limits beside it, of those before: commits {commits:.2f}, unary calls {unary:.2f}"
        outcome.add(
            at_least(f"{title}: W1 singly, of the empty system's", phase.w1 / empty.w1, 0.9, "×", raw),
            at_least(f"{title}: W1 in hundreds", phase.w1_batch / empty.w1_batch, 0.9, "×"),
            told(f"{title}: write-ahead log of a run", phase.budget.wal_bytes / empty.budget.wal_bytes, "×"),
            told(f"{title}: CPU of a run, all processes", phase.budget.total_us / empty.budget.total_us, "×"),
        )
        for search, p95 in phase.searches.items():
            note = f"empty: {empty.searches[search]:.1f} ms" if search in empty.searches else ""
            outcome.add(at_most(f"{title}: p95 of «{search}»", p95, 50.0, "ms", note))
    if "dropping" in phases:
        outcome.add(told("W1 singly while retention deletes", phases["dropping"].w1 / empty.w1, "×"))
    outcome.series["phases"] = {
        name: {"w1": p.w1, "w1_batch": p.w1_batch, "commits": p.commits, "unary": p.unary, "p95_ms": p.searches}
        | {"cpu_us": p.budget.cpu_us, "wal_bytes": p.budget.wal_bytes, "messages": p.budget.messages}
        for name, p in phases.items()
    }
