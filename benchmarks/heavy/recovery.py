"""W7, recovery: the owner of half the shard groups killed with a crowd queued; everything killed over a long record.

Moments are PostgreSQL's: when a run ended is what its row says.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from rich.console import Console

import workloads
from flint_core.ids import run_id_text
from flint_sdk import AsyncFlint, FlintError, StartRequest
from heavy.generated import History, check_generated
from heavy.results import Outcome
from heavy.verdicts import at_most, full_again, pause, told
from support.record_reader import Record
from support.stack import RunningStack, eventually, running_stack

__all__ = ["recovery"]

VICTIM = "scheduler-1"
STEADY_S = 6.0
LEAD_IN_S = 2.0
AFTER_S = 25.0
LOOK_S = 0.2
_NOW = "SELECT extract(epoch FROM clock_timestamp())::float8"
_UNFINISHED = "SELECT count(*) FROM run WHERE state IN (1, 2)"


async def recovery(
    console: Console, folder: Path, outcome: Outcome, *, queued: int, finished: int, waiting: int
) -> None:
    """Both parts, each on a stack of its own."""
    await _owner_killed(console, folder / "w7-owner", outcome, queued)
    await _everything_killed(console, folder / "w7-all", outcome, finished, waiting)


class Crowd:
    """Keeps about so many runs of ten steps queued until it is told to stop: they cost more than starting them does."""

    def __init__(self, flint: AsyncFlint, record: Record, size: int) -> None:
        self._flint = flint
        self._record = record
        self._size = size
        self._leaving = asyncio.Event()
        self.started = 0
        self.refused: list[str] = []

    async def gather(self) -> None:
        """All of them, while their workflow is on hold; then it is released."""
        await self._flint.hold_workflow("bench-ten", "the crowd gathers")
        try:
            await self._start(self._size)
        finally:
            await self._flint.release_workflow("bench-ten")

    async def keep(self) -> None:
        """Start as many as have ended, again and again."""
        while not self._leaving.is_set():
            missing = self._size - await self._record.number(_UNFINISHED)
            if missing >= 100:
                await self._start(missing)
            else:
                await asyncio.sleep(LOOK_S)

    def leave(self) -> None:
        """Start no more."""
        self._leaving.set()

    async def _start(self, count: int) -> None:
        """In batches of some hundreds. Each start has a request id, so whatever repeats it starts it once."""
        for at in range(0, count, 500):
            part = min(500, count - at)
            try:
                answers = await self._flint.start_many([StartRequest("bench-ten", {}) for _ in range(part)])
            except FlintError as error:
                self.refused.append(f"{part} starts: {type(error).__name__}: {error}")
                continue
            refused = [answer for answer in answers if isinstance(answer, FlintError)]
            self.refused += [f"{type(answer).__name__}: {answer}" for answer in refused]
            self.started += part - len(refused)


async def _owner_killed(console: Console, folder: Path, outcome: Outcome, queued: int) -> None:
    async with running_stack(folder) as stack:
        flint = AsyncFlint(address=stack.gateway, key=stack.admin_key)
        record = Record(stack.settings.postgres)
        try:
            await flint.apply(workloads.TEN)
            await workloads.singly(flint, "bench-ten", 500, 64)  # warm
            warm = await record.number("SELECT count(*) FROM run")
            crowd = Crowd(flint, record, queued)
            await crowd.gather()
            feeding = asyncio.create_task(crowd.keep())
            try:
                await asyncio.sleep(LEAD_IN_S + STEADY_S)
                backlog = await record.number(_UNFINISHED)
                lost = await record.groups_of(VICTIM)
                struck = float(str(await record.one(_NOW)))
                await stack.kill(VICTIM)
                await asyncio.sleep(AFTER_S)
            finally:
                crowd.leave()
                await feeding
            await eventually(partial(_none_left, record), timeout_s=180, interval_s=LOOK_S)
            ended = [
                (float(str(at)), int(str(group)))
                for at, group in await record.rows(
                    "SELECT extract(epoch FROM ended_at)::float8 AS at, group_id FROM run WHERE ended_at IS NOT NULL "
                    "AND ended_at > to_timestamp(:since) ORDER BY 1",
                    since=struck - STEADY_S,
                )
            ]
            right = await record.number("SELECT count(*) FROM run WHERE state = 4")
        finally:
            await flint.close()
            await record.close()
    ends = [at for at, _ in ended]
    before = sum(at < struck for at in ends) / STEADY_S
    observed = [at for at in ends if at <= struck + AFTER_S]
    full_s = full_again(observed, struck, before)
    firsts = {group: min((at for at, of in ended if of == group and at > struck), default=None) for group in lost}
    served = [at - struck for at in firsts.values() if at is not None]
    groups_s = max(served) if len(served) == len(lost) else None
    recovered = None if full_s is None or groups_s is None else max(full_s, groups_s)
    per_second = [sum(struck + s <= at < struck + s + 1 for at in ends) for s in range(-int(STEADY_S), int(AFTER_S))]
    outcome.add(
        told("owner killed: runs queued at the kill", backlog, ""),
        told("owner killed: runs/s before", before, "runs/s"),
        at_most(
            "owner killed: time to full throughput",
            recovered,
            5.0,
            "s",
            "until a second has 90 % of what there was before, and all groups of the dead end runs again",
        ),
        told("owner killed: all of its groups end runs again after", groups_s, "s", f"{len(lost)} groups"),
        told("owner killed: longest time in which no run ended", pause(observed, struck), "s"),
        told("owner killed: least runs/s in the five seconds after", min(per_second[int(STEADY_S) :][:5]), "runs/s"),
        at_most("owner killed: accepted runs that did not succeed", crowd.started + warm - right, 0, ""),
        at_most("owner killed: starts that were refused for good", len(crowd.refused), 0, ""),
    )
    if backlog < queued / 2:
        outcome.note(
            f"owner killed: only {backlog:,} of {queued:,} runs were queued then: they ended faster than others came"
        )
    if crowd.refused:
        outcome.note(f"owner killed: refused: {crowd.refused[0]}")
    outcome.series["owner_killed"] = {"ends_per_s_from": -int(STEADY_S), "ends_per_s": per_second}
    console.print(f"W7: runs ended per second, the owner killed after the first {STEADY_S:g}: {per_second}")


async def _none_left(record: Record) -> bool:
    return await record.number(_UNFINISHED) == 0


async def _everything_killed(console: Console, folder: Path, outcome: Outcome, finished: int, waiting: int) -> None:
    nap_s = 30 + waiting // 150
    struck = time.perf_counter()
    async with running_stack(folder) as stack:
        first_up_s = time.perf_counter() - struck
        flint = AsyncFlint(address=stack.gateway, key=stack.admin_key)
        record = Record(stack.settings.postgres)
        try:
            history = await History.prepare(stack, flint)
            try:
                written = await history.fill(console, finished, outcome)
                await check_generated(flint, history)
            finally:
                history.writer.close()
            nap = f"  - nap: {{wait: {{seconds: {nap_s}}}}}\n  - up: {{call: noop}}\n"
            await flint.apply(workloads.HEAD.format(name="sleeper") + nap)
            for at in range(0, waiting, 500):
                await flint.start_many([StartRequest("sleeper", {}) for _ in range(min(500, waiting - at))])
            await eventually(partial(_asleep, record, waiting), timeout_s=max(20.0, nap_s), interval_s=LOOK_S)
            last_due = time.time() + nap_s
            sleeping = await record.number("SELECT count(*) FROM run WHERE state = 3")
            if sleeping < waiting:
                outcome.note(f"restart: only {sleeping:,} of {waiting:,} runs waited when everything was killed")
            await _kill_all(stack)
        finally:
            await flint.close()
            await record.close()
    console.print(f"W7: everything is killed, {written:,} runs have ended, {waiting:,} wait")
    await asyncio.sleep(max(0.0, last_due - time.time()))
    struck = time.perf_counter()
    struck_at = datetime.now(UTC)
    async with running_stack(folder) as stack:
        up_s = time.perf_counter() - struck
        flint = AsyncFlint(address=stack.gateway, key=stack.admin_key)
        record = Record(stack.settings.postgres)
        try:
            await (await flint.start("bench-one", {})).result(timeout_s=120)
            ready_s = time.perf_counter() - struck
            await eventually(partial(_awake, record, waiting), timeout_s=300, interval_s=LOOK_S)
            rows = await record.rows(
                "SELECT extract(epoch FROM min(ended_at))::float8, extract(epoch FROM max(ended_at))::float8,"
                " count(*) FILTER (WHERE state = 4) FROM run JOIN workflow_version USING (definition_id)"
                " WHERE workflow_id = 'sleeper'"
            )
            first, last, right = (float(str(value)) for value in rows[0])
            began_again = time.perf_counter()
            await flint.get_run(run_id_text(history.samples[0].run_id))
            read_ms = (time.perf_counter() - began_again) * 1000
        finally:
            await flint.close()
            await record.close()
    outcome.add(
        told("restart: ended runs in the record", written, ""),
        at_most("restart: time until a new run was started and has ended", ready_s, 10.0, "s"),
        told(
            "restart: until all processes said that they are ready",
            up_s,
            "s",
            f"{first_up_s:.1f} s when all was started for the first time, without any data",
        ),
        told("restart: until the first waiting run had gone on and ended", first - struck_at.timestamp(), "s"),
        told("restart: until all of them had", last - struck_at.timestamp(), "s", f"{waiting:,} runs, all of them due"),
        at_most("restart: waiting runs that did not succeed", waiting - right, 0, ""),
        told("restart: the first read of a run of the history", read_ms, "ms"),
    )
    outcome.note(
        "restart: every process and server was killed with SIGKILL at once; from the start of the first process, "
        "PostgreSQL's own recovery, NATS's and etcd's included; waits fell due while nothing ran."
    )


async def _asleep(record: Record, waiting: int) -> bool:
    return await record.number("SELECT count(*) FROM run WHERE state = 3") >= waiting


async def _awake(record: Record, waiting: int) -> bool:
    return (
        await record.number(
            "SELECT count(*) FROM run JOIN workflow_version USING (definition_id)"
            " WHERE workflow_id = 'sleeper' AND ended_at IS NOT NULL"
        )
        >= waiting
    )


async def _kill_all(stack: RunningStack) -> None:
    await asyncio.gather(*(stack.kill(name, hold=True) for name in stack.pids))
