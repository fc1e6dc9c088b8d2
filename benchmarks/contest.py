"""The same workloads on other engines, one rival after the other in each round."""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from rich.console import Console

from budget import cpu_seconds
from figures import Figures, Record
from rivals.celery import Celery
from rivals.dbos import Dbos
from rivals.harness import Lost, Missing, Rival
from rivals.prefect import Prefect
from rivals.procrastinate import Procrastinate
from rivals.restate import RestateService, RestateWorkflow
from rivals.temporal import Temporal, TemporalLocal
from support.stack import RunningStack
from workloads import latency

__all__ = ["RIVALS", "installed", "rival_turn"]

RIVALS: dict[str, type[Rival]] = {
    "restate": RestateWorkflow,
    "restate-service": RestateService,
    "dbos": Dbos,
    "temporal": Temporal,
    "temporal-local": TemporalLocal,
    "prefect": Prefect,
    "procrastinate": Procrastinate,
    "celery": Celery,
}
TURN_S = 240.0
"""A rival's turn in a round is given up after this time, and what it measured is kept."""


async def installed(asked: str, console: Console, record: Record) -> list[type[Rival]]:
    """Those that can be measured here; why the others cannot is said at once, and written down."""
    if asked == "none":
        return []
    names = list(RIVALS) if asked == "all" else asked.split(",")
    found = []
    for name in names:
        kind = RIVALS[name]
        try:
            await kind(Path(), "").install()
        except Missing as why:
            record.absent[kind.name] = str(why)
            console.print(f"[bold red]left out: {kind.name}: {why}")
        else:
            found.append(kind)
            record.settings[kind.name] = kind.settings
    return found


async def rival_turn(
    kind: type[Rival], stack: RunningStack, record: Record, console: Console, number: int, size: float
) -> None:
    """A rival's turn in a round, on a database of its own in Flint's PostgreSQL where it uses one.

    What it cannot do, or not in time, is told and left out.
    """
    now, began = record.figures.rounds[-1], time.monotonic()

    def left_out(what: str) -> None:
        now.notes.append(f"{kind.name}: {what}")
        console.print(f"[red]round {number + 1}: {kind.name}: {what}")

    try:
        async with asyncio.timeout(TURN_S):
            await _turn(kind, stack, record.figures, number, size, left_out)
    except Missing as why:
        left_out(str(why))
    except TimeoutError:
        left_out(f"its turn was not over within {TURN_S:g} s")
    except Exception as error:  # a rival that fails keeps nobody else from being measured
        left_out(f"{type(error).__name__}: {error}"[:1000])
    now.took_s[kind.name] = round(time.monotonic() - began, 1)


async def _turn(
    kind: type[Rival], stack: RunningStack, figures: Figures, number: int, size: float, left_out: Callable[[str], None]
) -> None:
    """Measures all that makes sense for it. Raises Missing when it cannot be measured (any more)."""
    database = f"rival_{kind.__name__.lower()}_{number}_{os.getpid()}"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        rival = kind(Path(folder), _create(stack, database) if kind.uses_postgres else "")
        try:
            await rival.install()
            await rival.start()
            for name, request, factor in _requests(kind, size):
                try:
                    await _measure(rival, stack, figures, name, request, factor)
                except Lost as why:
                    raise Missing(f"{name or 'warming up'}, and what comes after it: {why}") from why
                except Missing as why:
                    left_out(f"{name or 'warming up'}: {why}")
        finally:
            await rival.stop()
            if kind.uses_postgres:
                _drop(stack, database)


_LEAST = 20
_REQUESTS: tuple[tuple[str, dict[str, Any], float], ...] = (
    ("", {"what": "singly", "steps": 1, "runs": 1000, "callers": 128}, 1),  # warm
    ("w1", {"what": "singly", "steps": 1, "runs": 4000, "callers": 128}, 1),
    ("w1_batch", {"what": "batches", "steps": 1, "runs": 4000}, 1),
    ("one_ms", {"what": "alone", "steps": 1, "runs": 200}, 1),
    ("ten_ms", {"what": "alone", "steps": 10, "runs": 200}, 1),
    ("w2", {"what": "singly", "steps": 10, "runs": 1000, "callers": 128}, 10),
    ("w2_50", {"what": "singly", "steps": 10, "runs": 1000, "callers": 50}, 10),
    ("w2_500", {"what": "singly", "steps": 10, "runs": 1000, "callers": 500}, 10),
    ("w2_batch", {"what": "batches", "steps": 10, "runs": 1000}, 10),
    ("fan_s", {"what": "fan", "branches": 1000}, 0.001),
    ("begin_ms", {"what": "begin", "runs": 200, "load_per_s": 0}, 1),
    ("begin_half_ms", {"what": "begin", "runs": 200, "load_per_s": 0.5}, 1),
)
"""The figure, what is asked for, and what its answer is multiplied by. `load_per_s`: as a share of its own W1."""


def _requests(kind: type[Rival], size: float) -> list[tuple[str, dict[str, Any], float]]:
    """Those that make sense for it, in its own size: a slow one needs fewer runs for a rate."""
    chosen = []
    for name, request, factor in _REQUESTS:
        if (request.get("steps", 1) > 1 and not kind.durable_steps) or name in kind.without:
            continue
        if "runs" in request:
            request = {**request, "runs": max(_LEAST, int(request["runs"] * kind.share * size))}
        chosen.append((name, request, factor))
    return chosen


async def _measure(
    rival: Rival, stack: RunningStack, figures: Figures, name: str, request: dict[str, Any], factor: float
) -> None:
    """One workload. Raises Missing."""
    if request.get("load_per_s"):
        rate = figures.now(rival.name, "w1")
        if rate is None:
            raise Missing("the rate that it is a half of is not known")
        request = {**request, "load_per_s": rate * request["load_per_s"]}
    before_s = _cpu_s(rival, stack)
    answer = await rival.ask(**request)
    if not name:
        return
    if "rate" in answer:
        figures.add(rival.name, name, answer["rate"] * factor)
        figures.add(rival.name, f"{name}_cpu", (_cpu_s(rival, stack) - before_s) / request["runs"] * 1e6)
        return
    times = [each * factor for each in answer["times"]]
    figures.add(rival.name, name, statistics.median(times))
    if name.endswith("_ms"):
        figures.add(rival.name, name.removesuffix("_ms") + "_p99", latency(times).p99)


def _cpu_s(rival: Rival, stack: RunningStack) -> float:
    """CPU time so far of its processes, its client's and, where it uses that, PostgreSQL's."""
    pids = {str(process.pid): process.pid for process in rival.processes if process.returncode is None}
    if rival.uses_postgres:
        pids["postgres"] = stack.pids["postgres"]
    return sum(cpu_seconds(pids).values())


def _server(stack: RunningStack) -> str:
    secrets = stack.stack.layout.load_secrets()
    return f"postgresql://postgres:{secrets.postgres_superuser}@127.0.0.1:{stack.ports.postgres}"


def _create(stack: RunningStack, name: str) -> str:
    """A new database beside Flint's; its DSN, as the superuser: rivals make schemas of their own."""
    with psycopg.connect(f"{_server(stack)}/postgres", autocommit=True, connect_timeout=10) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return f"{_server(stack)}/{name}"


def _drop(stack: RunningStack, name: str) -> None:
    with psycopg.connect(f"{_server(stack)}/postgres", autocommit=True, connect_timeout=10) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
