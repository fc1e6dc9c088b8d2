"""Processes that leave in order amid traffic lose nothing and repeat nothing; a poisonous run is stopped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from flint_core.problems import ProblemType
from flint_sdk import AsyncFlint, RunState
from support.house import definition, open_house
from support.outside import outside_world
from support.record_reader import YIELDED
from support.stack import RunningStack, eventually, running_stack
from support.traffic import STEPS, Traffic

pytestmark = pytest.mark.robustness

RUNS = 200
# What is given back is not waited for: here no lease runs out, neither for want of a moment's processor time nor as the
# way in which a departure is noticed.
UNHURRIED = {
    "registry": {"lease_ttl_s": 60},
    "etcd": {"lease_ttl_s": 60},
    "worker": {"drain_s": 60},
    "scheduler": {"drain_s": 60},
}
NOTICED_S = 50.0  # below the leases' time


@asynccontextmanager
async def trickle(traffic: Traffic) -> AsyncIterator[list[str]]:
    """Starts go on inside the block, one after the other; every one of them must be answered."""
    started: list[str] = []
    leaving = asyncio.Event()

    async def keep_on() -> None:
        while not leaving.is_set():
            await traffic.more(1)
            started.append(traffic.runs[-1])

    task = asyncio.create_task(keep_on())
    try:
        yield started
    finally:
        leaving.set()
        await task  # raises what a start raised


def ended_in_order(stack: RunningStack, name: str) -> bool:
    """Whether the process ended by itself when it was asked to."""
    kinds = [event.kind for event in stack.events if event.name == name]
    return kinds.count("ended") == 1 and "killed" not in kinds and "died" not in kinds


async def test_processes_leave_in_order(tmp_path: Path) -> None:
    """A worker, then a scheduler: SIGTERM in the middle of traffic, while further runs are started."""
    async with outside_world(delay_s=0.5) as world, running_stack(tmp_path, overrides=UNHURRIED) as stack:
        traffic = await Traffic.start(stack, world, RUNS)
        try:
            await traffic.until_executions(RUNS)
            async with trickle(traffic) as started:
                victim = await traffic.incarnation("worker-1")
                world.gate.clear()  # legs are amid a step when it is asked to leave
                held = (await traffic.record.open_legs()).get(victim, [])
                assert held, "the worker held no leg"
                stopping = asyncio.create_task(stack.stop("worker-1"))
                await eventually(lambda: '"drains"' in stack.log("worker-1", lines=500), interval_s=0.2)
                world.gate.set()
                await stopping
                assert ended_in_order(stack, "worker-1")
                await eventually(lambda: gone(traffic, victim), NOTICED_S)
                assert await traffic.record.legs_that_ended(YIELDED) & set(held), "no leg was given back"
                await stack.start("worker-1")

                before, count = await traffic.record.terms(), len(started)
                groups = await traffic.record.groups_of("scheduler-1")
                assert groups, "the scheduler owned nothing"
                assert await eventually(lambda: traffic.record.open_legs_of(groups)), "none of its runs had an open leg"
                await stack.stop("scheduler-1")
                assert ended_in_order(stack, "scheduler-1")
                await eventually(lambda: owned_by(traffic, "scheduler-2", groups), NOTICED_S)
                after = await traffic.record.terms()
                assert all(after[group] > before[group] for group in groups), "a term did not rise"
                await eventually(lambda: len(started) > count + 10)
            await traffic.finish()
            assert await traffic.judge() == {}, "a step ran again although nothing was lost"
            assert len(world.executions) == STEPS * len(traffic.runs)
            legs = await traffic.record.legs()
            assert any(legs[run] > 1 for run in held), "no leg number rose"
        finally:
            await traffic.close()


async def gone(traffic: Traffic, incarnation: str) -> bool:
    return incarnation not in await traffic.record.open_legs()


async def owned_by(traffic: Traffic, scheduler: str, groups: set[int]) -> bool:
    return groups <= await traffic.record.groups_of(scheduler)


async def test_a_run_that_kills_its_worker_is_poison(tmp_path: Path) -> None:
    """Each time its step has begun the worker dies; after three losses the run fails, and its slot serves others.

    Its workflow says that one failure is too many: that is told, and no run of it begins until somebody lets it, which
    holds when every scheduler was killed, too.
    """
    call = "do: [{deadly: {call: http, with: {method: post, endpoint: '${ .url + \"/steps/deadly\" }'}}}]"
    short = {"lease_ttl_s": 4, "heartbeat_interval_s": 0.5}
    limits = {"leg_losses": 3}
    policy = "metadata: {flint: {escalation: {failures: 1, within: {hours: 1}, pause: true}}}"
    head = f"document: {{dsl: 1.0.3, namespace: default, name: deadly, version: 1.0.0, {policy}}}"
    async with (
        outside_world(delay_s=0) as world,
        open_house(
            tmp_path, worker={"slots": 1}, registry=short, limits=limits, events={"lifecycle_to_listen": True}
        ) as house,
    ):
        await house.stack.stop("worker-2")
        world.gate.clear()
        flint: AsyncFlint = house.flint
        await flint.apply(f"{head}\n{call}")
        await flint.apply(definition("do: [{ok: {call: noop, with: {output: 1}}}]", "harmless"))
        deadly = await flint.start("deadly", {"url": world.url})
        for losses in (1, 2, 3):
            await eventually(lambda losses=losses: len(world.executions) == losses, timeout_s=60)
            run = await deadly.get()
            assert (run.state, run.leg) == (RunState.RUNNING, losses)
            await house.stack.kill("worker-1")
        harmless = await flint.start("harmless")
        ended = await flint.wait(deadly.id, 60)
        assert ended.state is RunState.FAILED
        assert ended.error is not None
        assert (ended.error.type, ended.error.status) == (ProblemType.POISON, 500)
        assert len(world.executions) == 3, "it was tried again after it was found to be poison"
        assert await harmless.result(60) == 1

        async def told() -> bool:
            kinds = await house.record.rows(
                "SELECT DISTINCT type FROM event WHERE convert_from(content, 'UTF8') LIKE '%' || :run || '%'"
                " OR (type = 'dev.flint.workflow.escalated' AND convert_from(content, 'UTF8') LIKE '%deadly%')",
                run=deadly.id,
            )
            wanted = {"io.serverlessworkflow.workflow.faulted.v1", "dev.flint.workflow.escalated"}
            return wanted <= {str(kind) for (kind,) in kinds}

        await eventually(told, 60)
        held = [hold.workflow_id for hold in await flint.list_holds()]
        assert held == ["deadly"]
        for scheduler in ("scheduler-1", "scheduler-2"):
            await house.stack.kill(scheduler)
            await house.stack.ready(scheduler, 60)
        again = await flint.start("deadly", {"url": world.url})
        assert await (await flint.start("harmless")).result(60) == 1
        assert (await again.get()).state is RunState.QUEUED
        assert len(world.executions) == 3, "a held workflow's run began"
        world.gate.set()
        assert await flint.release_workflow("deadly")
        assert (await flint.wait(again.id, 60)).state is RunState.SUCCEEDED
