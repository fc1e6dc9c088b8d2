"""W6, a mixed day: short runs, runs that wait, wide runs, payloads of 1 KB to 1 MB, failures; on Flint and on Restate.

A closed loop: each of `CALLERS` starts a run and waits for its end before its next start. Who started a run that sleeps
goes on at once, as the sleep is nobody's work; at most `SLEEPERS` sleep. Latency is from the call of start to the end
at the client; of a run that waits, beyond its wait.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flint_sdk import AsyncFlint, FlintError, RunState
from heavy.gauges import Gauges, Memory, Sizes, folder_bytes
from heavy.results import Outcome
from heavy.verdicts import at_least, at_most, growth, percentile, told
from rivals.harness import Missing
from rivals.restate import RestateWorkflow
from support.stack import running_stack

__all__ = ["mixed_day"]

CALLERS = 64
SLEEPERS = 2_000
WINDOWS = 10
WAIT_S = 2.0
BRANCHES = 50
KINDS = (("short", 0.7), ("wait", 0.2), ("wide", 0.1))
SIZES = ((1_000, 0.9), (10_000, 0.09), (100_000, 0.009), (1_000_000, 0.001))
"""Bytes of payload and their shares: each decade carries as many bytes as the others."""
FAILING = 0.02
DRAIN_S = 120.0
MOST_GROWTH = 1.1
MOST_P99_GROWTH = 1.25

_HEAD = "document: {{dsl: 1.0.3, namespace: default, name: day-{kind}, version: 1.0.0}}\ndo:\n"
_END = """
  - fails:
      if: ${ $workflow.input.fail }
      raise: {error: {type: https://example.com/errors/mixed, status: 500, title: As asked for}}
  - done: {set: {ok: true}}
"""
_FIRST = "  - work: {call: noop, with: {output: '${ $workflow.input.blob }'}}\n"
DEFINITIONS = {
    "short": _HEAD.format(kind="short") + _FIRST + _END,
    "wait": _HEAD.format(kind="wait")
    + _FIRST
    + f"  - rest: {{wait: {{milliseconds: {int(WAIT_S * 1000)}}}}}\n  - again: {{call: noop}}\n"
    + _END,
    "wide": _HEAD.format(kind="wide")
    + _FIRST
    + f"""
  - all:
      metadata: {{flint: {{parallel: {BRANCHES}}}}}
      for: {{each: n, in: '${{ [range({BRANCHES})] }}'}}
      do: [{{s: {{call: noop}}}}]
"""
    + _END,
}


@dataclass(frozen=True)
class End:
    """A run that ended: seconds since the beginning, milliseconds, and whether it ended as it was told to."""

    at: float
    kind: str
    ms: float
    right: bool


class Day:
    """The traffic of one client."""

    def __init__(self, flint: AsyncFlint, seconds: float, seed: int = 6) -> None:
        self._flint = flint
        self._seconds = seconds
        self._random = random.Random(seed)
        self._blobs = {size: [self._random.randbytes(size // 2).hex() for _ in range(4)] for size, _ in SIZES}
        self._sleeping = asyncio.Semaphore(SLEEPERS)
        self._tasks: set[asyncio.Task[None]] = set()
        self._began = 0.0
        self.ends: list[End] = []
        self.errors: Counter[str] = Counter()
        self.started = 0
        self.failing = 0

    async def run(self) -> None:
        """All of it, to the end of the last run."""
        self._began = time.perf_counter()
        await asyncio.gather(*(self._call() for _ in range(CALLERS)))
        async with asyncio.timeout(DRAIN_S):
            await asyncio.gather(*self._tasks)

    async def _call(self) -> None:
        while time.perf_counter() - self._began < self._seconds:
            (kind,) = self._random.choices([k for k, _ in KINDS], [share for _, share in KINDS])
            (size,) = self._random.choices([s for s, _ in SIZES], [share for _, share in SIZES])
            fails = self._random.random() < FAILING
            data = {"blob": self._random.choice(self._blobs[size]), "fail": fails}
            self.started += 1
            self.failing += fails
            began = time.perf_counter()
            try:
                handle = await self._flint.start(f"day-{kind}", data)
            except FlintError as error:
                self.errors[type(error).__name__] += 1
                continue
            if kind != "wait":
                await self._end(handle.name, kind, fails, began)
                continue
            await self._sleeping.acquire()
            task = asyncio.create_task(self._end(handle.name, kind, fails, began))
            self._tasks.add(task)
            task.add_done_callback(self._woke)

    def _woke(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._sleeping.release()

    async def _end(self, name: str, kind: str, fails: bool, began: float) -> None:
        try:
            run = await self._flint.wait(name, timeout_s=DRAIN_S)
        except FlintError as error:
            self.errors[type(error).__name__] += 1
            return
        now = time.perf_counter()
        expected = RunState.FAILED if fails else RunState.SUCCEEDED
        ms = (now - began - (WAIT_S if kind == "wait" else 0.0)) * 1000
        self.ends.append(End(now - self._began, kind, ms, run.state is expected))


def by_window(ends: list[End], window_s: float) -> list[dict[str, float]]:
    """Of each window: runs a second, and the p99 of each kind in milliseconds."""
    windows: list[list[End]] = [[] for _ in range(WINDOWS)]
    for end in ends:
        if end.at < WINDOWS * window_s:
            windows[int(end.at / window_s)].append(end)
    return [
        {"rate": len(window) / window_s}
        | {kind: percentile([end.ms for end in window if end.kind == kind], 0.99) for kind, _ in KINDS}
        for window in windows
    ]


async def mixed_day(console: Console, folder: Path, outcome: Outcome, *, minutes: float, restate: bool) -> None:
    """Ends by itself after twice the minutes (once without Restate), and some for starting and draining."""
    window_s = minutes * 60 / WINDOWS
    rates = await _flint(console, folder, outcome, window_s)
    if restate:
        await _restate(console, outcome, window_s, rates)
    outcome.note(
        f"{CALLERS} callers, closed loop; 70 % one step, 20 % two steps with a wait of {WAIT_S:g} s between, 10 % a "
        f"step and {BRANCHES} parallel ones; payloads of 1 KB (90 %), 10 KB (9 %), 100 KB (0.9 %), 1 MB (0.1 %), as "
        f"input and as a step's result; 2 % fail. Windows of {window_s:g} s; growth: median of the last third of them "
        "against that of the second third."
    )


async def _flint(console: Console, folder: Path, outcome: Outcome, window_s: float) -> float:
    async with running_stack(folder / "w6") as stack:
        gauges = await Gauges.open(stack)
        flint = AsyncFlint(address=stack.gateway, key=stack.admin_key)
        try:
            for source in DEFINITIONS.values():
                await flint.apply(source)
            warm = Day(flint, min(10.0, window_s))
            await warm.run()
            before = await gauges.sizes()
            day = Day(flint, WINDOWS * window_s, seed=7)
            sizes: list[Sizes] = []
            async with Memory(lambda: stack.pids, min(5.0, window_s / 3)) as memory:
                watching = asyncio.create_task(_watch_sizes(gauges, window_s, sizes))
                try:
                    await day.run()
                finally:
                    watching.cancel()
                    await asyncio.gather(watching, return_exceptions=True)
            after = await gauges.sizes()
        finally:
            await flint.close()
            await gauges.close()
    windows = by_window(day.ends, window_s)
    residents = memory.by_window(window_s, WINDOWS)
    _show(console, "Flint", windows, residents, sizes)
    rate = sum(end.at < WINDOWS * window_s for end in day.ends) / (WINDOWS * window_s)
    wrong = sum(not end.right for end in day.ends)
    outcome.add(
        told("Flint: runs/s over all", rate, "runs/s"),
        at_most("Flint: runs that did not end as they should, or calls that failed", wrong + day.errors.total(), 0, ""),
    )
    if day.errors:
        outcome.note(f"Flint: calls that failed: {dict(day.errors)}")
    outcome.note(f"Flint: {day.started:,} runs, {day.failing:,} of them told to fail.")
    for kind, _ in KINDS:
        p99s = [window[kind] for window in windows]
        outcome.add(
            told(f"Flint: p99 of {kind} runs", percentile([e.ms for e in day.ends if e.kind == kind], 0.99), "ms"),
            at_most(
                f"Flint: growth of that p99, window by window ({_row(p99s)} ms)", growth(p99s), MOST_P99_GROWTH, "×"
            ),
        )
    for name in sorted({name for sample in residents for name in sample}):
        series = [sample.get(name, 0.0) for sample in residents]
        outcome.add(
            at_most(f"Flint: growth of the memory of {name}", growth(series), MOST_GROWTH, "×", f"{_row(series)} MiB")
        )
    runs = max(1, len(day.ends))
    for table in sorted(after.tables, key=lambda name: before.tables.get(name, 0) - after.tables[name])[:6]:
        grown = after.tables[table] - before.tables.get(table, 0)
        if grown > 0:
            outcome.add(
                told(f"Flint: growth of table {table}", grown / 2**20, "MiB", f"{grown / runs:,.0f} bytes a run")
            )
    for stream, size in after.streams.items():
        grown = size - before.streams.get(stream, 0)
        outcome.add(
            told(f"Flint: growth of stream {stream}", grown / 2**20, "MiB", f"{grown / runs:,.0f} bytes a run; by age")
        )
    outcome.series["flint"] = {
        "windows": windows,
        "memory_mib": residents,
        "database_mib": [size.database / 2**20 for size in sizes],
        "streams_mib": [size.stream_bytes / 2**20 for size in sizes],
    }
    return rate


async def _watch_sizes(gauges: Gauges, window_s: float, sizes: list[Sizes]) -> None:
    """One reading at the end of each window."""
    while True:
        await asyncio.sleep(window_s)
        sizes.append(await gauges.sizes())


async def _restate(console: Console, outcome: Outcome, window_s: float, flint_rate: float) -> None:
    """The same mix; the driver keeps account by windows itself."""
    with tempfile.TemporaryDirectory() as folder:
        rival = RestateWorkflow(Path(folder), "")
        try:
            await rival.install()
            await rival.start()
            request: dict[str, Any] = {
                "what": "mixed",
                "callers": CALLERS,
                "sleepers": SLEEPERS,
                "windowMs": window_s * 1000,
                "windows": WINDOWS,
                "waitMs": WAIT_S * 1000,
                "branches": BRANCHES,
                "kinds": KINDS,
                "sizes": SIZES,
                "failing": FAILING,
            }
            seconds = WINDOWS * window_s
            await rival.ask(timeout_s=DRAIN_S + 10, **request | {"windows": 1, "windowMs": min(10.0, window_s) * 1000})
            pids = dict(zip(("server", "service", "client"), (p.pid for p in rival.processes), strict=True))
            before = folder_bytes(Path(folder) / "data")
            async with Memory(lambda: pids, min(5.0, window_s / 3)) as memory:
                answer = await rival.ask(timeout_s=seconds + DRAIN_S + 10, **request)
            after = folder_bytes(Path(folder) / "data")
        except Missing as why:
            outcome.note(f"Restate left out: {why}")
            return
        finally:
            await rival.stop()
    windows: list[dict[str, float]] = answer["windows"]
    residents = memory.by_window(window_s, WINDOWS)
    _show(console, rival.name, windows, residents, [])
    rate = sum(window["rate"] for window in windows) / WINDOWS
    outcome.add(
        told("Restate: runs/s over all", rate, "runs/s"),
        told("Restate: runs that did not end as they should, or calls that failed", answer["wrong"], ""),
        at_least("Flint's runs/s against Restate's", flint_rate / rate if rate else None, 1.0, "×"),
        told("Restate: growth of its data", (after - before) / 2**20, "MiB"),
    )
    for kind, _ in KINDS:
        p99s = [window[kind] for window in windows]
        outcome.add(told(f"Restate: p99 of {kind} runs", answer["p99"][kind], "ms", _row(p99s)))
    for name in sorted(residents[-1]):
        series = [sample.get(name, 0.0) for sample in residents]
        outcome.add(told(f"Restate: growth of the memory of its {name}", growth(series), "×", f"{_row(series)} MiB"))
    outcome.series["restate"] = {"windows": windows, "memory_mib": residents}
    outcome.note(
        f"{rival.name}: {rival.settings}. Left out there: branches are steps of one invocation in one process, not "
        "legs spread over workers; steps are compiled code, no definition is interpreted; the client is Node's."
    )


def _show(
    console: Console,
    engine: str,
    windows: list[dict[str, float]],
    residents: list[dict[str, float]],
    sizes: list[Sizes],
) -> None:
    """Window by window."""
    names = sorted({name for sample in residents for name in sample})
    columns = ["window", "runs/s", *(f"p99 {kind}, ms" for kind, _ in KINDS), *(f"{name}, MiB" for name in names)]
    table = Table(*columns, *(["database, MiB", "streams, MiB"] if sizes else []), title=f"W6 on {engine}")
    for number, (window, sample) in enumerate(zip(windows, residents, strict=True)):
        cells = [str(number + 1), f"{window['rate']:.0f}", *(f"{window[kind]:.0f}" for kind, _ in KINDS)]
        cells += [f"{sample.get(name, 0):.0f}" for name in names]
        if sizes:
            size = sizes[min(number, len(sizes) - 1)]
            cells += [f"{size.database / 2**20:.0f}", f"{size.stream_bytes / 2**20:.0f}"]
        table.add_row(*cells)
    console.print(table)


def _row(values: list[float]) -> str:
    return " ".join(f"{value:.0f}" for value in values)
