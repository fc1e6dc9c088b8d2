"""The budget of a run: what it costs each process, PostgreSQL and JetStream. Counts hold on a busy machine too."""

from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import psutil
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_bus import Bus
from flint_store.engine import create_engine
from support.stack import RunningStack

__all__ = ["Budget", "Meter", "cpu_seconds"]

_STATISTICS_S = 1.2
"""PostgreSQL's sessions tell their statistics at most once a second."""


def cpu_seconds(pids: dict[str, int]) -> dict[str, float]:
    """User and system time of processes and their children so far, those that have ended (and were waited for) too."""
    found = {}
    for name, pid in pids.items():
        try:
            process = psutil.Process(pid)
            family = [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
        total = 0.0
        for member in family:
            try:
                times = member.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system + times.children_user + times.children_system
        found[name] = total
    return found


@dataclass(frozen=True)
class Budget:
    """Per run."""

    cpu_us: dict[str, float]  # by kind of process
    commits: float
    wal_bytes: float
    messages: float  # stored by JetStream: jobs, journal entries
    message_bytes: float

    @property
    def total_us(self) -> float:
        """All processes, the client included."""
        return sum(self.cpu_us.values())


@dataclass(frozen=True)
class _Reading:
    cpu: dict[str, float]
    commits: int
    wal: int
    messages: int
    bytes: int


class Meter:
    """Reads counters around a workload. `close` when done."""

    def __init__(self, stack: RunningStack, engine: AsyncEngine, bus: Bus) -> None:
        self._stack = stack
        self._engine = engine
        self._bus = bus

    @classmethod
    async def open(cls, stack: RunningStack) -> Meter:
        """One for a running stack."""
        bus = await Bus.connect(stack.settings.nats, name="budget")
        return cls(stack, create_engine(stack.settings.postgres, "reading", pool_size=1), bus)

    async def close(self) -> None:
        """Give up its connections."""
        await self._bus.close()
        await self._engine.dispose()

    async def measure(self, runs: int, work: Callable[[], Awaitable[float]]) -> tuple[float, Budget]:
        """What `work`, which is so many runs, answers, and what each of them cost."""
        before = await self._read()
        answer = await work()
        after = await self._read()
        kinds: dict[str, float] = {}
        for name, seconds in after.cpu.items():
            kind = name.split("-")[0]
            kinds[kind] = kinds.get(kind, 0.0) + (seconds - before.cpu.get(name, 0.0)) / runs * 1e6
        messages = after.messages - before.messages
        return answer, Budget(
            kinds,
            (after.commits - before.commits) / runs,
            (after.wal - before.wal) / runs,
            messages / runs,
            (after.bytes - before.bytes) / runs,
        )

    async def _read(self) -> _Reading:
        await asyncio.sleep(_STATISTICS_S)
        cpu = cpu_seconds(self._stack.pids)
        own = resource.getrusage(resource.RUSAGE_SELF)
        cpu["client"] = own.ru_utime + own.ru_stime
        async with self._engine.connect() as connection:
            await connection.execute(text("SELECT pg_stat_clear_snapshot()"))
            row = (
                await connection.execute(
                    text(
                        "SELECT xact_commit, pg_current_wal_insert_lsn() - '0/0'::pg_lsn FROM pg_stat_database "
                        "WHERE datname = current_database()"
                    )
                )
            ).one()
        listed = json.loads(await self._bus.request("$JS.API.STREAM.LIST", b"", 5.0))
        states = [stream["state"] for stream in listed.get("streams") or ()]
        return _Reading(
            cpu,
            int(row[0]),
            int(row[1]),
            sum(state["last_seq"] for state in states),
            sum(state["bytes"] for state in states),
        )
