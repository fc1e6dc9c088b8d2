"""A generated history of one stack: made of runs that it has executed, and checked to be read like them."""

from __future__ import annotations

import asyncio
import shutil
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from rich.console import Console

import workloads
from flint_core.ids import run_id_text
from flint_sdk import AsyncFlint, HistoryEntry
from heavy.finished import BURST, Recipe, Sample, Writer
from heavy.results import Outcome
from heavy.verdicts import told
from support.stack import RunningStack

__all__ = ["PAGE", "SPAN_DAYS", "History", "check_generated"]

SPAN_DAYS = 20
"""The history goes back so far: less than the 30 days after which runs are deleted unless told otherwise."""
RESERVE_BYTES = 8 * 2**30
"""Free space that is left alone; write-ahead logs and the journal need some of it."""
PILOT = 20_000
PAGE = 50
"""Runs that are asked for at a time."""

WAITED = workloads.HEAD.format(name="history-waited") + "  - a: {call: noop}\n  - rest: {wait: {seconds: 2}}\n"
FAILED = workloads.HEAD.format(name="history-failed") + (
    "  - a: {call: noop}\n"
    "  - b: {raise: {error: {type: https://example.com/errors/asked, status: 500, title: As asked for}}}\n"
)
RARE = workloads.HEAD.format(name="history-rare") + "  - a: {call: noop}\n"


@dataclass
class History:
    """Generated runs of one stack, and what they are made of."""

    stack: RunningStack
    writer: Writer
    recipe: Recipe
    first_ms: int
    last_ms: int
    written: int = 0

    @classmethod
    async def prepare(cls, stack: RunningStack, flint: AsyncFlint) -> History:
        """Execute one run of each kind."""
        ids = {}
        for source in (workloads.ONE, workloads.TEN, WAITED, FAILED, RARE):
            applied = await flint.apply(source)
            handle = await flint.start(applied.workflow.workflow_id, {})
            await flint.wait(handle.id, timeout_s=120)
            ids[applied.workflow.workflow_id] = handle.id
        dsn = stack.settings.postgres.dsn.get_secret_value()

        def open_writer() -> tuple[Writer, Recipe]:
            with psycopg.connect(dsn, connect_timeout=10) as connection:
                ((groups,),) = connection.execute("SELECT shard_groups FROM cluster").fetchall()
            writer = Writer(dsn, groups)
            one, ten, waited, failed, rare = (writer.read_template(run_id) for run_id in ids.values())
            return writer, Recipe([(one, BURST - 40), (ten, 20), (waited, 16), (failed, 4)], rare)

        now_ms = int(time.time() * 1000)
        return cls(stack, *await asyncio.to_thread(open_writer), now_ms - SPAN_DAYS * 86_400_000, now_ms - 3_600_000)

    @property
    def samples(self) -> list[Sample]:
        """Some of the generated runs."""
        return self.writer.samples

    async def fill(self, console: Console, runs: int, outcome: Outcome) -> int:
        """Write so many, or as many as the disk has room for; answers how many."""
        before = await self._bytes()
        pilot = min(PILOT, max(1, runs // 10))
        self.written = await self._write(console, pilot, self.first_ms - 60_000, self.first_ms)
        each = (await self._bytes() - before) / self.written
        free = shutil.disk_usage(self.stack.data_dir).free
        fitting = int((free - RESERVE_BYTES) / (each * 1.15))
        outcome.note(
            f"history: {each:,.0f} bytes a run on disk by the first {self.written:,}; {free / 2**30:.0f} GiB free"
        )
        wanted = runs - self.written
        if wanted > fitting:
            outcome.note(f"history: {runs:,} runs do not fit: only {self.written + max(0, fitting):,} were generated")
            wanted = max(0, fitting)
        began = time.perf_counter()
        if wanted:
            self.written += await self._write(console, wanted, self.first_ms, self.last_ms)
        took_s = time.perf_counter() - began
        await self.settle()
        grown = (await self._bytes() - before) / self.written
        rate = f", {wanted / took_s:,.0f} runs/s" if wanted else ""
        outcome.add(
            told("history: runs generated", self.written, "", f"by COPY, indexes in place{rate}"),
            told("history: bytes a run in the end", grown, "B"),
        )
        return self.written

    async def _write(self, console: Console, runs: int, first_ms: int, last_ms: int) -> int:
        told_at = time.monotonic()
        leaving = False

        def going_on(done: int) -> bool:
            nonlocal told_at
            if time.monotonic() - told_at > 30:
                told_at = time.monotonic()
                console.print(f"history: {done:,} of {runs:,}")
            return not leaving

        try:
            return await asyncio.to_thread(self.writer.write, self.recipe, runs, first_ms, last_ms, going_on)
        finally:
            leaving = True

    async def _bytes(self) -> int:
        return int(await self.ask("SELECT pg_database_size(current_database())"))

    async def settle(self) -> float:
        """What autovacuum and checkpoints would come to by themselves, now: nothing of it is measured. Seconds."""
        began = time.perf_counter()
        await asyncio.to_thread(self.writer.settle)
        await self.checkpoint()
        return time.perf_counter() - began

    async def checkpoint(self) -> None:
        """After it, each page that is changed is written to the log once as a whole."""
        await self.ask("CHECKPOINT", superuser=True)

    async def ask(self, query: str, *, superuser: bool = False) -> Any:
        """The first value that PostgreSQL answers, if any; without the deadline that services put on statements."""

        def ask() -> Any:
            dsn = self.stack.settings.postgres.dsn.get_secret_value()
            if superuser:
                secret = self.stack.stack.layout.load_secrets().postgres_superuser
                dsn = f"postgresql://postgres:{secret}@127.0.0.1:{self.stack.ports.postgres}/postgres"
            with psycopg.connect(dsn, autocommit=True, connect_timeout=10) as connection:
                cursor = connection.execute(query)
                row = cursor.fetchone() if cursor.description else None
                return row[0] if row else None

        return await asyncio.to_thread(ask)


async def check_generated(flint: AsyncFlint, history: History) -> None:
    """Generated runs are read, listed and their records shown as those of the runs that they were made of.

    Raises AssertionError for the first that is not.
    """
    for sample in history.samples[:: max(1, len(history.samples) // 20)]:
        mine, model = run_id_text(sample.run_id), run_id_text(sample.template)
        run, other = await flint.get_run(mine), await flint.get_run(model)
        at = datetime.fromtimestamp(sample.at_ms / 1000, UTC)
        assert run.create_time == at, (run, at)
        same = ("workflow_id", "version", "state", "input", "output", "error", "position", "leg", "level")
        for name in same:
            assert getattr(run, name) == getattr(other, name), (name, run, other)
        entries = [entry async for entry in flint.history(mine)]
        others = [entry async for entry in flint.history(model)]
        assert len(entries) == len(others) == run.position, (entries, others)
        for entry, twin in zip(entries, others, strict=True):
            assert (entry.index, entry.leg, entry.leg_end) == (twin.index, twin.leg, twin.leg_end)
            assert [(s.step, s.state, s.result) for s in entry.steps] == [
                (s.step, s.state, s.result) for s in twin.steps
            ]
            for step in entry.steps:
                assert step.start_time is None or timedelta(0) <= step.start_time - at < timedelta(minutes=5), step
        window = {"created_after": at, "created_before": at + timedelta(milliseconds=1)}
        listed = [found async for found in flint.list_runs(page_size=PAGE, **window)]  # type: ignore[arg-type]
        assert len({found.id for found in listed}) == len(listed) >= BURST, len(listed)
        assert mine in {found.id for found in listed}
        of_kind = [
            found
            async for found in flint.list_runs(workflow=run.workflow_id, states=[run.state], **window)  # type: ignore[arg-type]
        ]
        assert mine in {found.id for found in of_kind}
        assert {(found.workflow_id, found.state) for found in of_kind} == {(run.workflow_id, run.state)}


def _shown(entry: HistoryEntry) -> list[tuple[Any, ...]]:
    return [(step.step, step.state, step.attempt, step.result, step.duration_s) for step in entry.steps]
