"""What grows: resident memory of processes, tables of PostgreSQL, streams of JetStream."""

from __future__ import annotations

import asyncio
import json
import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from rich.console import Console
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_bus import Bus
from flint_store.engine import create_engine, fetch
from support.stack import RunningStack

__all__ = ["Gauges", "Memory", "Sizes", "folder_bytes", "quiet", "resident_mib"]

# Every table with what belongs to it: indexes, and values kept outside of rows.
_TABLES = text("""
SELECT c.relname, pg_total_relation_size(c.oid) FROM pg_class c
WHERE c.relkind IN ('r', 'p') AND c.relnamespace = current_schema()::regnamespace
""")
_DATABASE = text("SELECT pg_database_size(current_database())")


def resident_mib(pids: Mapping[str, int]) -> dict[str, float]:
    """Resident MiB of each process with its children, without what they share with others where they share much.

    PostgreSQL's backends all show the shared buffers as their own: of its family only what is private counts.
    """
    found = {}
    for name, pid in pids.items():
        total = 0
        try:
            family = [process := psutil.Process(pid), *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
        for member in family:
            try:
                memory = member.memory_info()
            except psutil.NoSuchProcess:
                continue
            total += memory.rss - (memory.shared if name == "postgres" else 0)
        found[name] = total / 2**20
    return found


async def quiet(console: Console, below: float | None, every_s: float = 10.0) -> None:
    """Returns when the load average of the last minute is below so much; at once when it is None."""
    told = False
    while below is not None and (load := os.getloadavg()[0]) >= below:
        if not told:
            told = True
            console.print(f"the load of the machine is {load:.1f}: nothing is measured until it is below {below:g}")
        await asyncio.sleep(every_s)


class Memory:
    """Samples processes every few seconds while its block lasts."""

    def __init__(self, pids: Callable[[], Mapping[str, int]], every_s: float) -> None:
        self._pids = pids
        self._every_s = every_s
        self._task: asyncio.Task[None] | None = None
        self.samples: list[tuple[float, dict[str, float]]] = []
        """Seconds since the beginning, MiB by process."""

    async def __aenter__(self) -> Memory:
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            self.samples.append((loop.time() - began, await asyncio.to_thread(resident_mib, self._pids())))
            await asyncio.sleep(self._every_s)

    def by_window(self, window_s: float, windows: int) -> list[dict[str, float]]:
        """Means of the samples of each window, by process; a window without any is that before it."""
        found: list[dict[str, float]] = []
        for number in range(windows):
            sums: dict[str, list[float]] = defaultdict(list)
            for at, sample in self.samples:
                if number * window_s <= at < (number + 1) * window_s:
                    for name, mib in sample.items():
                        sums[name].append(mib)
            means = {name: sum(values) / len(values) for name, values in sums.items()}
            found.append(means or (dict(found[-1]) if found else {}))
        return found


@dataclass(frozen=True)
class Sizes:
    """Bytes on disk at a moment."""

    database: int
    tables: dict[str, int] = field(default_factory=dict)
    streams: dict[str, int] = field(default_factory=dict)

    @property
    def stream_bytes(self) -> int:
        """All streams together."""
        return sum(self.streams.values())


class Gauges:
    """Asks a stack's servers how large things are. `close` when done."""

    def __init__(self, engine: AsyncEngine, bus: Bus) -> None:
        self._engine = engine
        self._bus = bus

    @classmethod
    async def open(cls, stack: RunningStack) -> Gauges:
        """One for a running stack."""
        bus = await Bus.connect(stack.settings.nats, name="gauges")
        return cls(create_engine(stack.settings.postgres, "reading", pool_size=1), bus)

    async def close(self) -> None:
        """Give up its connections."""
        await self._bus.close()
        await self._engine.dispose()

    async def sizes(self) -> Sizes:
        """How large everything is now."""
        tables = {row[0]: int(row[1]) for row in await fetch(self._engine, _TABLES, {})}
        database = int((await fetch(self._engine, _DATABASE, {}))[0][0])
        listed = json.loads(await self._bus.request("$JS.API.STREAM.LIST", b"", 5.0))
        streams = {stream["config"]["name"]: int(stream["state"]["bytes"]) for stream in listed.get("streams") or ()}
        return Sizes(database, tables, streams)


def folder_bytes(folder: Path) -> int:
    """What files below a folder hold; those that vanish meanwhile count for nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total
