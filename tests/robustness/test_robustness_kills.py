"""kill -9 of each process in the middle of 200 running runs: nothing lost, nothing folded is executed again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from support.metrics import read_metrics
from support.outside import outside_world
from support.stack import RunningStack, eventually, running_stack
from support.traffic import STEPS, WORKERS_KEEP_LEASES, Traffic, run_of

pytestmark = pytest.mark.robustness

RUNS = 200
MIDDLE = RUNS * 2  # executions after which every run is under way and none has ended


LEASES = {"registry": {"lease_ttl_s": 15}, "etcd": {"lease_ttl_s": 10}}
"""Nobody loses one because the machine is busy: for tests in which none is to end."""


@asynccontextmanager
async def traffic_in_the_middle(
    folder: Path, leases: dict[str, dict[str, int]] | None = None
) -> AsyncIterator[tuple[RunningStack, Traffic]]:
    """A fresh stack with 200 runs, at their second or third step of five.

    The outside holds its answers from then on, until `finish`: so the runs are in the middle whenever the victim dies.
    """
    async with outside_world(delay_s=0.5) as world, running_stack(folder, overrides=leases) as stack:
        traffic = await Traffic.start(stack, world, RUNS)
        try:
            await traffic.until_executions(MIDDLE)
            world.gate.clear()
            yield stack, traffic
        finally:
            await traffic.close()


async def test_kill_worker(tmp_path: Path) -> None:
    async with traffic_in_the_middle(tmp_path) as (stack, traffic):
        victim = await traffic.incarnation("worker-1")
        await stack.kill("worker-1")
        lost = await traffic.moment()
        held = (await traffic.record.open_legs()).get(victim, [])
        assert held, "the victim held no leg"
        await traffic.finish()
        repeats = await traffic.judge()
        legs = await traffic.record.legs()
        assert any(legs[run] > 1 for run in held), "no leg number rose"
        # Only what was in flight on the lost worker ran again, and once for each lost leg at the most.
        assert {run_of(key) for key in repeats} <= set(held)
        traffic.were_in_flight(repeats, lost)
        assert all(count <= legs[run_of(key)] for key, count in repeats.items())
        untouched = [run for run in traffic.runs if run not in held]
        assert all(legs[run] == 1 for run in untouched)


async def test_kill_owner(tmp_path: Path) -> None:
    async with traffic_in_the_middle(tmp_path, WORKERS_KEEP_LEASES) as (stack, traffic):
        before = await traffic.record.terms()
        owned = {name: await traffic.record.groups_of(name) for name in ("scheduler-1", "scheduler-2")}
        open_legs = {name: await traffic.record.open_legs_of(owned[name]) for name in owned}
        victim = max(open_legs, key=lambda name: len(open_legs[name]))
        other = "scheduler-2" if victim == "scheduler-1" else "scheduler-1"
        groups, held = owned[victim], open_legs[victim]
        assert groups, "the victim owned nothing"
        assert held, "no run of the victim's groups had an open leg"
        await stack.kill(victim, hold=True)
        await traffic.finish()
        after = await traffic.record.terms()
        assert all(after[g] > before[g] for g in groups), "a term did not rise"
        assert await traffic.record.groups_of(other) == set(after)
        assert await traffic.judge() == {}, "a step ran again although no worker was lost"
        legs = await traffic.record.legs()
        assert {legs[run] for run in held} == {1}, "a leg was raised although its worker lived"
        await stack.start(victim)
        await eventually(lambda: traffic.record.groups_of(victim), timeout_s=60)


async def test_kill_registry(tmp_path: Path) -> None:
    async with traffic_in_the_middle(tmp_path, LEASES) as (stack, traffic):
        incarnations = await traffic.incarnations()
        assert await traffic.record.open_legs(), "no leg was open"
        led = 0.0
        for victim in ("registry-1", "registry-2"):
            address = stack.addresses[f"{victim}/ops"]

            async def renewed(address: str = address) -> bool:
                return (await read_metrics(address)).total("flint_registry_renewals_total", outcome="renewed") > 0

            await eventually(renewed, timeout_s=60)  # workers live by leases that the victim renewed
            led += (await read_metrics(address)).total("flint_registry_leading")
            await stack.kill(victim)
            await stack.ready(victim)
        assert led >= 1, "neither of the victims led"
        await traffic.finish()
        assert await traffic.judge() == {}
        assert await traffic.incarnations() == incarnations, "a worker lost its lease by a registry's death"
        assert set((await traffic.record.legs()).values()) == {1}, "a leg was raised although its worker lived"


async def test_kill_nats(tmp_path: Path) -> None:
    async with traffic_in_the_middle(tmp_path, LEASES) as (stack, traffic):
        terms, generation = await traffic.record.terms(), await traffic.record.generation()
        held = await traffic.record.open_legs()
        assert sum(map(len, held.values())), "no leg was open"
        await stack.kill("nats")
        lost = await traffic.moment()
        await traffic.more(20)  # starts are accepted all the same
        await traffic.finish()
        # Its store survived, and nobody's permission hangs on it: no ownership moves.
        assert await traffic.record.terms() == terms
        legs = await traffic.record.legs()
        repeats = await traffic.judge()
        assert all(legs[run_of(key)] > 1 for key in repeats)
        traffic.were_in_flight(repeats, lost, last_only=await traffic.record.generation() == generation)


async def test_kill_etcd(tmp_path: Path) -> None:
    async with traffic_in_the_middle(tmp_path, LEASES) as (stack, traffic):
        terms, incarnations = await traffic.record.terms(), await traffic.incarnations()
        assert await traffic.record.open_legs()
        await stack.kill("etcd")
        lost = await traffic.moment()
        await traffic.more(20)
        await traffic.finish()
        # Its store survived, leases too; were some of them over all the same, then terms rose, and none fell.
        after = await traffic.record.terms()
        assert all(after[group] >= term for group, term in terms.items())
        assert await eventually(lambda: every_group_is_owned(traffic), timeout_s=60)
        repeats, legs = await traffic.judge(), await traffic.record.legs()
        assert all(legs[run_of(key)] > 1 for key in repeats)
        traffic.were_in_flight(repeats, lost)
        if await traffic.incarnations() == incarnations:
            assert repeats == {}, "a step ran again although no worker was lost"


async def every_group_is_owned(traffic: Traffic) -> bool:
    return (await traffic.record.sessions()).keys() == (await traffic.record.terms()).keys()


async def test_kill_postgresql(tmp_path: Path) -> None:
    async with traffic_in_the_middle(tmp_path, LEASES) as (stack, traffic):
        terms, incarnations = await traffic.record.terms(), await traffic.incarnations()
        assert await traffic.record.open_legs()
        under_way = list(traffic.runs)
        await stack.kill("postgres")
        await stack.ready("postgres")
        await traffic.more(20)
        await traffic.finish()
        after = await traffic.record.terms()
        assert all(after[group] >= term for group, term in terms.items()), "a committed term was forgotten"
        assert await eventually(lambda: every_group_is_owned(traffic), timeout_s=60)
        # Workers went on into the journal meanwhile: nothing of theirs was lost, so nothing runs again.
        assert await traffic.incarnations() == incarnations
        assert await traffic.judge() == {}
        legs = await traffic.record.legs()
        raised = {run: legs[run] for run in under_way if legs[run] != 1}
        assert not raised, "a leg was raised although its worker lived"


async def test_kill_gateway(tmp_path: Path) -> None:
    async with traffic_in_the_middle(tmp_path, LEASES) as (stack, traffic):
        terms = await traffic.record.terms()
        assert await traffic.record.open_legs()
        await stack.kill("gateway")
        await traffic.finish()
        assert await traffic.judge() == {}
        assert len(traffic.world.executions) == STEPS * RUNS
        assert set((await traffic.record.legs()).values()) == {1}
        assert await traffic.record.terms() == terms
