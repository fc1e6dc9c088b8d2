"""W3: how long a parallel loop of many light iterations takes, and what it costs each process in time and memory.

    python benchmarks/fanout.py [--kind noop|set|items|http] [COUNT ...]     1000 and 100000 unless told

Everything is real and on this machine, the client too. What an iteration does: `noop` one call of nothing; `set` one
pure step; `items` the same on items of 100 bytes, which it gives back, so that the collections are large values;
`http` an HTTP call to a server in this process, which answers at once. Memory is that of each process: before, the
most while the loop lasted, and what it kept when it was over.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import psutil
import uvloop
from rich.console import Console
from rich.table import Table

from flint_sdk import AsyncFlint
from support.outside import outside_world
from support.stack import RunningStack, running_stack

__all__ = ["KINDS", "Fan", "apply", "fan_out", "show"]

_NUMBERS = "[range(.count)]"
KINDS = {
    "noop": (_NUMBERS, "{s: {call: noop}}"),
    "set": (_NUMBERS, "{s: {set: '${ $n + 1 }'}}"),
    "items": (".items", "{s: {set: '${ {n: $n.n, text: $n.text} }'}}"),
    "http": (
        _NUMBERS,
        "{s: {call: http, with: {method: post, endpoint: '${ $workflow.input.url + \"/steps/s\" }'}}}",
    ),
}
_LOOP = """
document: {{dsl: 1.0.3, namespace: default, name: fanout-{kind}, version: 1.0.0}}
do:
  - all:
      metadata: {{flint: {{parallel: 1000}}}}
      for: {{each: n, in: '${{ {items} }}'}}
      do: [{body}]
  - size: {{set: '${{ {{size: length}} }}'}}
"""
_EVERY_S = 0.25
_AFTER_S = 2.0


@dataclass(frozen=True)
class _Reading:
    """Of one process with those children that are not listed apart."""

    mib: float
    cpu_s: float


def _read(pids: Mapping[str, int]) -> dict[str, _Reading]:
    """All processes of the stack; a worker's evaluators apart, since they come and go with large values."""
    fields = ("ppid", "memory_info", "cpu_times")
    seen = {process.pid: process.info for process in psutil.process_iter(fields) if process.info["memory_info"]}
    children: dict[int, list[int]] = {}
    for pid, info in seen.items():
        children.setdefault(info["ppid"], []).append(pid)
    found: dict[str, _Reading] = {}

    def note(name: str, pid: int) -> None:
        memory, times = seen[pid]["memory_info"], seen[pid]["cpu_times"]
        before = found.get(name, _Reading(0.0, 0.0))
        # PostgreSQL's backends all show the shared buffers as their own.
        mib = (memory.rss - (memory.shared if name == "postgres" else 0)) / 2**20
        found[name] = _Reading(before.mib + mib, before.cpu_s + times.user + times.system)
        for child in children.get(pid, ()):
            note(name if name == "postgres" or name.endswith("evaluators") else f"{name} evaluators", child)

    for name, pid in pids.items():
        if pid in seen:
            note(name, pid)
    return found


@dataclass(frozen=True)
class Fan:
    """One wide loop: how long it took, in how many branch runs, and by process CPU seconds and MiB of growth."""

    count: int
    seconds: float
    chunks: int
    before: dict[str, float]
    most: dict[str, float]
    kept: dict[str, float]
    cpu_s: dict[str, float]
    problem: str

    @property
    def growth_mib(self) -> float:
        """What the process that kept most kept."""
        return max(self.kept[name] - self.before.get(name, 0.0) for name in self.kept)

    @property
    def peak_mib(self) -> float:
        """What the process that grew most grew by while it lasted."""
        return max(self.most[name] - self.before.get(name, 0.0) for name in self.most)


async def apply(flint: AsyncFlint, kind: str) -> None:
    """Register the loop of this kind."""
    items, body = KINDS[kind]
    await flint.apply(_LOOP.format(kind=kind, items=items, body=body))


async def fan_out(stack: RunningStack, flint: AsyncFlint, kind: str, count: int, url: str = "") -> Fan:
    """One loop of so many iterations."""
    pids = stack.pids
    data: dict[str, object] = {"count": count, "url": url}
    if kind == "items":
        data["items"] = [{"n": n, "text": "x" * 80} for n in range(count)]
    before = await asyncio.to_thread(_read, pids)
    most = {name: reading.mib for name, reading in before.items()}

    async def watch() -> None:
        while True:
            await asyncio.sleep(_EVERY_S)
            for name, reading in (await asyncio.to_thread(_read, pids)).items():
                most[name] = max(reading.mib, most.get(name, 0.0))

    watching = asyncio.create_task(watch())
    try:
        began = time.perf_counter()
        started = await flint.start(f"fanout-{kind}", data)
        run = await flint.wait(started.id, timeout_s=600)
        seconds = time.perf_counter() - began
        await asyncio.sleep(_AFTER_S)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    after = await asyncio.to_thread(_read, pids)
    chunks = [branch async for branch in flint.list_runs(branches_of=run.id, page_size=500)]
    return Fan(
        count,
        seconds,
        len(chunks),
        {name: reading.mib for name, reading in before.items()},
        {name: max(size, after[name].mib) if name in after else size for name, size in most.items()},
        {name: reading.mib for name, reading in after.items()},
        {
            name: reading.cpu_s - before[name].cpu_s if name in before else reading.cpu_s
            for name, reading in after.items()
        },
        "" if run.output == {"size": count} else str(run.error or run.output),
    )


def show(console: Console, kind: str, fan: Fan) -> None:
    """Print it."""
    console.print(
        f"{fan.count:,} iterations ({kind}): {fan.seconds:.2f} s, {fan.count / fan.seconds:,.0f}/s, "
        f"{fan.chunks} branch runs, CPU {sum(fan.cpu_s.values()):.2f} s"
        + (f"  WRONG: {fan.problem}" if fan.problem else "")
    )
    table = Table("process", "MiB before", "at most", "after", "CPU s")
    for name in sorted(fan.most):
        numbers = (fan.before.get(name, 0.0), fan.most[name], fan.kept.get(name, 0.0))
        table.add_row(name, *(f"{number:.0f}" for number in numbers), f"{fan.cpu_s.get(name, 0.0):.2f}")
    console.print(table)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures wide forks.")
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="what an iteration does; noop unless told")
    parser.add_argument("counts", nargs="*", type=int, default=[1_000, 100_000], metavar="COUNT")
    return parser.parse_args()


async def main() -> None:
    """Measure and print."""
    asked = _arguments()
    console = Console(width=100)
    overrides = {"worker": {"allow_private_addresses": True}}
    with tempfile.TemporaryDirectory() as folder:
        async with outside_world(delay_s=0.0) as world, running_stack(Path(folder), overrides=overrides) as stack:
            flint = AsyncFlint(address=stack.gateway, key=stack.admin_key)
            try:
                for kind in asked.kind or ["noop"]:
                    await apply(flint, kind)
                    for count in [100, *asked.counts]:
                        fan = await fan_out(stack, flint, kind, count, world.url)
                        if count != 100:
                            show(console, kind, fan)
            finally:
                await flint.close()


if __name__ == "__main__":
    uvloop.run(main())
