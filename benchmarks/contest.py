"""The same workloads on other engines, one rival after the other in each round."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from rich.console import Console

from budget import cpu_seconds
from report import Figures
from rivals.celery import Celery
from rivals.dbos import Dbos
from rivals.harness import Missing, Rival
from rivals.procrastinate import Procrastinate
from rivals.restate import RestateService, RestateWorkflow
from support.stack import RunningStack
from workloads import latency

__all__ = ["RIVALS", "installed", "rival_round"]

RIVALS: dict[str, type[Rival]] = {
    "restate": RestateWorkflow,
    "restate-service": RestateService,
    "dbos": Dbos,
    "procrastinate": Procrastinate,
    "celery": Celery,
}
_ABSENT = {
    "Temporal": "its development server is a package of neither PyPI nor npm",
    "Prefect": "no driver for it yet; 3.9.1 could not be installed by name when this was written",
}


async def installed(asked: str, console: Console) -> list[type[Rival]]:
    """Those that can be measured here; why the others cannot is said at once."""
    if asked == "none":
        return []
    names = list(RIVALS) if asked == "all" else asked.split(",")
    found = []
    for name in names:
        try:
            await RIVALS[name](Path(), "").install()
        except Missing as why:
            console.print(f"[bold red]left out: {RIVALS[name].name}: {why}")
        else:
            found.append(RIVALS[name])
    if asked == "all":
        for name, why in _ABSENT.items():
            console.print(f"[bold red]left out: {name}: {why}")
    return found


async def rival_round(
    kind: type[Rival], stack: RunningStack, figures: Figures, console: Console, number: int, size: float
) -> None:
    """One round of one rival, on a database of its own in Flint's PostgreSQL where it uses one."""
    database = f"rival_{kind.__name__.lower()}_{number}"
    with tempfile.TemporaryDirectory() as folder:
        rival = kind(Path(folder), _database(stack, database))
        try:
            await rival.install()
            await rival.start()
            await rival.ask(what="singly", steps=1, runs=400, callers=128)  # warm
            for name, request, factor in _REQUESTS:
                if "runs" in request:
                    request = {**request, "runs": max(20, int(request["runs"] * size))}
                await _measure(rival, stack, figures, console, name, request, factor)
        except Missing as why:
            console.print(f"[bold red]{kind.name}, round {number + 1}: {why}")
        finally:
            await rival.stop()


_REQUESTS: tuple[tuple[str, dict[str, Any], float], ...] = (
    ("one_ms", {"what": "alone", "steps": 1, "runs": 100}, 1),
    ("ten_ms", {"what": "alone", "steps": 10, "runs": 100}, 1),
    ("w1", {"what": "singly", "steps": 1, "runs": 2000, "callers": 128}, 1),
    ("w1_batch", {"what": "batches", "steps": 1, "runs": 2000}, 1),
    ("w2", {"what": "singly", "steps": 10, "runs": 400, "callers": 128}, 10),
    ("w2_batch", {"what": "batches", "steps": 10, "runs": 400}, 10),
    ("fan_s", {"what": "fan", "branches": 1000}, 0.001),
    ("begin_ms", {"what": "begin", "runs": 100}, 1),
)


async def _measure(
    rival: Rival,
    stack: RunningStack,
    figures: Figures,
    console: Console,
    name: str,
    request: dict[str, Any],
    factor: float,
) -> None:
    """One workload. One that makes no sense for this rival is said and left out."""
    before_s = _cpu_s(rival, stack)
    try:
        answer = await rival.ask(**request)
    except Missing as why:
        console.print(f"[red]{rival.name}: {name} left out: {why}")
        return
    if "rate" in answer:
        figures.add(rival.name, name, answer["rate"] * factor)
        figures.add(rival.name, f"{name}_cpu", (_cpu_s(rival, stack) - before_s) / request["runs"] * 1e6)
        return
    times = [time * factor for time in answer["times"]]
    figures.add(rival.name, name, statistics.median(times))
    if name.endswith("_ms"):
        figures.add(rival.name, name.removesuffix("_ms") + "_p99", latency(times).p99)


def _cpu_s(rival: Rival, stack: RunningStack) -> float:
    """CPU time so far of its processes, its client's and, where it uses that, PostgreSQL's."""
    pids = {str(process.pid): process.pid for process in rival.processes if process.returncode is None}
    if rival.uses_postgres:
        pids["postgres"] = stack.pids["postgres"]
    return sum(cpu_seconds(pids).values())


def _database(stack: RunningStack, name: str) -> str:
    """A new database beside Flint's; its DSN, as the superuser: rivals make schemas of their own."""
    secrets = stack.stack.layout.load_secrets()
    server = f"postgresql://postgres:{secrets.postgres_superuser}@127.0.0.1:{stack.ports.postgres}"
    with psycopg.connect(f"{server}/postgres", autocommit=True, connect_timeout=10) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return f"{server}/{name}"
