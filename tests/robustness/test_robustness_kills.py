"""kill -9 of each process in the middle of 200 running runs: nothing lost, nothing folded is executed again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from support.outside import outside_world
from support.stack import eventually, running_stack
from support.traffic import STEPS, Traffic

pytestmark = pytest.mark.robustness

RUNS = 200
MIDDLE = RUNS * 2  # executions after which every run is under way and none has ended


@asynccontextmanager
async def traffic_in_the_middle(folder: Path) -> AsyncIterator[Traffic]:
    """A fresh stack with 200 runs, each at its second or third step of five."""
    async with outside_world(delay_s=0.5) as world, running_stack(folder) as stack:
        traffic = await Traffic.start(stack, world, RUNS)
        try:
            await traffic.until_executions(MIDDLE)
            yield traffic
        finally:
            await traffic.close()


def run_of(key: str) -> str:
    return key.split("/")[0]


async def test_kill_worker(tmp_path: Path) -> None:
    async with traffic_in_the_middle(tmp_path) as traffic:
        victim = await traffic.incarnation("worker-1")
        await traffic.stack.kill("worker-1")
        held = (await traffic.record.open_legs()).get(victim, [])
        assert held, "the victim held no leg"
        await traffic.finish()
        repeats = await traffic.judge()
        legs = await traffic.record.legs()
        assert any(legs[run] > 1 for run in held), "no leg number rose"
        # Only what was in flight on the lost worker ran again, and once for each lost leg at the most.
        assert {run_of(key) for key in repeats} <= set(held)
        assert all(count <= legs[run_of(key)] for key, count in repeats.items())
        untouched = [run for run in traffic.runs if run not in held]
        assert all(legs[run] == 1 for run in untouched)


async def test_kill_owner(tmp_path: Path) -> None:
    async with traffic_in_the_middle(tmp_path) as traffic:
        before = await traffic.record.terms()
        groups = await traffic.record.groups_of("scheduler-1")
        assert groups, "the victim owned nothing"
        await traffic.stack.kill("scheduler-1", hold=True)
        await traffic.finish()
        after = await traffic.record.terms()
        assert all(after[g] > before[g] for g in groups), "a term did not rise"
        assert await traffic.record.groups_of("scheduler-2") == set(after)
        assert await traffic.judge() == {}, "a step ran again although no worker was lost"
        await traffic.stack.start("scheduler-1")
        await eventually(lambda: traffic.record.groups_of("scheduler-1"), timeout_s=30)


async def test_kill_registry(tmp_path: Path) -> None:
    async with traffic_in_the_middle(tmp_path) as traffic:
        for victim in ("registry-1", "registry-2"):
            await traffic.stack.kill(victim)
            await traffic.stack.ready(victim)
        await traffic.finish()
        assert await traffic.judge() == {}
        assert set((await traffic.record.legs()).values()) == {1}, "a leg was raised although its worker lived"


async def test_kill_nats(tmp_path: Path) -> None:
    async with traffic_in_the_middle(tmp_path) as traffic:
        held = await traffic.record.open_legs()
        assert sum(map(len, held.values())), "no leg was open"
        await traffic.stack.kill("nats")
        await traffic.more(20)  # starts are accepted all the same
        await traffic.finish()
        legs = await traffic.record.legs()
        repeats = await traffic.judge()
        assert all(legs[run_of(key)] > 1 for key in repeats)


async def test_kill_etcd(tmp_path: Path) -> None:
    async with traffic_in_the_middle(tmp_path) as traffic:
        assert await traffic.record.open_legs()
        await traffic.stack.kill("etcd")
        await traffic.more(20)
        await traffic.finish()
        legs = await traffic.record.legs()
        assert all(legs[run_of(key)] > 1 for key in await traffic.judge())


async def test_kill_postgresql(tmp_path: Path) -> None:
    async with traffic_in_the_middle(tmp_path) as traffic:
        assert await traffic.record.open_legs()
        await traffic.stack.kill("postgres")
        await traffic.stack.ready("postgres")
        await traffic.more(20)
        await traffic.finish()
        legs = await traffic.record.legs()
        assert all(legs[run_of(key)] > 1 for key in await traffic.judge())


async def test_kill_gateway(tmp_path: Path) -> None:
    async with traffic_in_the_middle(tmp_path) as traffic:
        await traffic.stack.kill("gateway")
        await traffic.finish()
        assert await traffic.judge() == {}
        assert len(traffic.world.executions) == STEPS * RUNS
