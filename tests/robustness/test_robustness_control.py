"""Random commands for runs under way while a worker and a scheduler are killed: every run ends, nothing recorded is
executed again other than by a reset, and a job comes to each run exactly once."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import defaultdict
from pathlib import Path

import pytest

from flint_sdk import AsyncFlint, BatchState, FailedPrecondition, RunState
from support.outside import outside_world
from support.stack import RunningStack, eventually, running_stack
from support.traffic import Traffic, run_of, step_of

pytestmark = pytest.mark.robustness

RUNS = 40
COMMANDS = 160
SEED = 2604


async def command(flint: AsyncFlint, chance: random.Random, run: str) -> None:
    """One of everything that can be asked of a run; what its state does not allow is refused, and that is all."""
    kind = chance.choice(["pause", "pause", "resume", "resume", "retry", "reset", "step", "level", "signal", "cancel"])
    try:
        match kind:
            case "pause":
                await flint.pause(run)
            case "resume":
                await flint.resume(run)
            case "retry":
                await flint.retry(run)
            case "reset":
                await flint.reset(run)
            case "step":
                await flint.reset(run, f"/do/{(n := chance.randrange(5))}/step{n}")
            case "level":
                await flint.set_level(run, chance.randrange(10))
            case "signal":
                await flint.signal(run, "any")
            case _ if chance.random() < 0.3:
                await (flint.terminate(run) if chance.random() < 0.5 else flint.cancel(run, grace_s=chance.random()))
    except FailedPrecondition:
        return


async def steer(traffic: Traffic, chance: random.Random, count: int) -> None:
    for _ in range(count):
        await command(traffic.flint, chance, chance.choice(traffic.runs))


async def settle(traffic: Traffic) -> None:
    """Let go on what is paused until every run has ended and nothing is asked of any."""

    async def over() -> bool:
        job = await traffic.flint.start_batch("resume", states=[RunState.PAUSED])

        async def came_through() -> bool:
            return (await traffic.flint.get_batch(job.id)).state is BatchState.COMPLETED

        await eventually(came_through, 60)
        asked = await traffic.record.number("SELECT count(*) FROM inbox")
        open_ = await traffic.record.number("SELECT count(*) FROM run WHERE state NOT IN (4, 5, 6)")
        return not asked and not open_

    await eventually(over, 180)


async def judge(traffic: Traffic) -> None:
    """No key came to the outside again once its outcome was recorded."""
    recorded: dict[tuple[str, str], list[float]] = defaultdict(list)
    for found in await traffic.record.steps():
        recorded[found.run, found.step].append(found.recorded_at)
    for key, calls in traffic.world.by_key().items():
        for first, again in itertools.pairwise(calls):
            between = [at for at in recorded[run_of(key), step_of(key)] if first.came_at < at < again.came_at]
            assert not between, f"{key} was executed again after it had been recorded"


async def kill_in_the_middle(stack: RunningStack, traffic: Traffic) -> None:
    executions = len(traffic.world.executions)
    await traffic.until_executions(executions + 20)
    await stack.kill("worker-1")
    executions = len(traffic.world.executions)
    await traffic.until_executions(executions + 10)
    await stack.kill("scheduler-1")


async def test_random_commands_while_processes_are_killed(tmp_path: Path) -> None:
    print(f"seed {SEED}")
    chance = random.Random(SEED)
    async with outside_world(delay_s=0.1) as world, running_stack(tmp_path) as stack:
        traffic = await Traffic.start(stack, world, RUNS)
        try:
            await asyncio.gather(kill_in_the_middle(stack, traffic), steer(traffic, chance, COMMANDS))
            job = await traffic.flint.start_batch("pause", workflow="robust")
            await stack.kill("scheduler-2")

            async def complete() -> bool:
                return (await traffic.flint.get_batch(job.id)).state is BatchState.COMPLETED

            await eventually(complete, 90)
            found = await traffic.flint.get_batch(job.id)
            assert found.matched == RUNS and found.done + found.refused == RUNS
            await settle(traffic)
            await judge(traffic)
            states = {run.state async for run in traffic.flint.list_runs()}
            assert states <= {RunState.SUCCEEDED, RunState.CANCELLED}, states
        finally:
            await traffic.close()
