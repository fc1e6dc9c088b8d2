"""Wide forks: how long a parallel loop of many light iterations takes, and the memory of each process meanwhile.

    python benchmarks/fanout.py [COUNT ...]        1000 and 100000 unless told

Everything is real and on this machine, the client too. The body is one pure step (`set`); with `--http` it is an HTTP
call to a server in this process, which answers at once.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import psutil
import uvloop
from rich.console import Console
from rich.table import Table

from flint_sdk import AsyncFlint
from support.outside import outside_world
from support.stack import RunningStack, running_stack

_BODY = {
    "set": "{s: {set: '${ $n + 1 }'}}",
    "http": "{s: {call: http, with: {method: post, endpoint: '${ $workflow.input.url + \"/steps/s\" }'}}}",
}
_LOOP = """
document: {{dsl: 1.0.3, namespace: default, name: fanout-{kind}, version: 1.0.0}}
do:
  - all:
      metadata: {{flint: {{parallel: 1000}}}}
      for: {{each: n, in: '${{ [range(.count)] }}'}}
      do: [{body}]
  - size: {{set: '${{ {{size: length}} }}'}}
"""


class Memory:
    """Highest resident size of each child while the block lasts, MiB."""

    def __init__(self, stack: RunningStack) -> None:
        self._pids = {name: pid for name, pid in stack.pids.items() if name.split("-")[0] not in ("postgres", "etcd")}
        self.before: dict[str, float] = {}
        self.most: dict[str, float] = {}
        self._task: asyncio.Task[None] | None = None

    def _look(self) -> dict[str, float]:
        found = {}
        for name, pid in self._pids.items():
            process = psutil.Process(pid)
            family = [process, *process.children(recursive=True)]
            found[name] = sum(each.memory_info().rss for each in family) / 2**20
        return found

    async def _watch(self) -> None:
        while True:
            for name, size in self._look().items():
                self.most[name] = max(size, self.most.get(name, 0.0))
            await asyncio.sleep(0.25)

    async def __aenter__(self) -> Memory:
        self.before = self._look()
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()


async def measure(console: Console, stack: RunningStack, flint: AsyncFlint, kind: str, count: int, url: str) -> None:
    """One loop."""
    async with Memory(stack) as memory:
        begun = time.perf_counter()
        started = await flint.start(f"fanout-{kind}", {"count": count, "url": url})
        run = await flint.wait(started.id, timeout_s=600)
        took_s = time.perf_counter() - begun
    chunks = [branch async for branch in flint.list_runs(branches_of=run.id, page_size=500)]
    right = run.output == {"size": count}
    console.print(
        f"{count} iterations ({kind}): {took_s:.2f} s, {count / took_s:,.0f}/s, {len(chunks)} branch runs"
        + ("" if right else f"  WRONG: {run.error or run.output}")
    )
    table = Table("process", "MiB before", "MiB at most")
    for name, most in sorted(memory.most.items()):
        table.add_row(name, f"{memory.before[name]:.0f}", f"{most:.0f}")
    console.print(table)


async def main() -> None:
    """Measure and print."""
    console = Console(width=100)
    kind = "http" if "--http" in sys.argv else "set"
    counts = [int(text) for text in sys.argv[1:] if text.isdigit()] or [1_000, 100_000]
    overrides = {"worker": {"allow_private_addresses": True}}
    with tempfile.TemporaryDirectory() as folder:
        async with outside_world(delay_s=0.0) as world, running_stack(Path(folder), overrides=overrides) as stack:
            flint = AsyncFlint(address=stack.gateway, key=stack.admin_key)
            try:
                await flint.apply(_LOOP.format(kind=kind, body=_BODY[kind]))
                warm = await flint.start(f"fanout-{kind}", {"count": 100, "url": world.url})
                await flint.wait(warm.id, timeout_s=120)
                for count in counts:
                    await measure(console, stack, flint, kind, count, world.url)
            finally:
                await flint.close()


if __name__ == "__main__":
    uvloop.run(main())
