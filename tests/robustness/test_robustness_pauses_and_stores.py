"""Zombies and lost stores: processes stopped past their lease that go on; JetStream's or etcd's files deleted."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from flint_bus import Bus, journal_stream
from support.metrics import read_metrics
from support.outside import outside_world
from support.stack import RunningStack, eventually, running_stack
from support.traffic import WORKERS_KEEP_LEASES, Traffic, run_of, step_of

pytestmark = pytest.mark.robustness

RUNS = 200


async def test_stopped_owner_is_fenced(tmp_path: Path) -> None:
    async with outside_world(delay_s=0.5) as world, running_stack(tmp_path, overrides=WORKERS_KEEP_LEASES) as stack:
        traffic = await Traffic.start(stack, world, RUNS)
        try:
            await traffic.until_executions(2 * RUNS)
            held = {n: await held_by(traffic, n) for n in ("scheduler-1", "scheduler-2")}
            victim = max(held, key=lambda name: len(held[name]))
            other = "scheduler-2" if victim == "scheduler-1" else "scheduler-1"
            assert held[victim], "no run of the victim's groups had an open leg"
            groups = await traffic.record.groups_of(victim)
            before = await traffic.record.terms()
            assert not await refused_commits(stack, victim)
            stack.pause(victim)

            async def taken_over() -> bool:
                return (await traffic.record.groups_of(other)) >= groups

            await eventually(taken_over, timeout_s=60)
            after = await traffic.record.terms()
            assert all(after[g] > before[g] for g in groups)
            stack.resume(victim)
            # Awake, it finds out by a commit that PostgreSQL refuses.
            await eventually(lambda: refused_commits(stack, victim), timeout_s=60)
            await traffic.finish()
            assert await traffic.judge() == {}
            legs = await traffic.record.legs()
            raised = {run: legs[run] for runs in held.values() for run in runs if legs[run] != 1}
            assert not raised, "a leg was raised although its worker lived"
        finally:
            await traffic.close()


async def held_by(traffic: Traffic, scheduler: str) -> set[str]:
    """Runs with an open leg in the groups of a scheduler."""
    return await traffic.record.open_legs_of(await traffic.record.groups_of(scheduler))


async def refused_commits(stack: RunningStack, scheduler: str) -> float:
    """How many commits PostgreSQL has refused a scheduler."""
    figures = await read_metrics(stack.addresses[f"{scheduler}/ops"])
    return figures.total("flint_scheduler_commits_refused_total")


async def test_stopped_worker_records_nothing_more(tmp_path: Path) -> None:
    async with outside_world(delay_s=0.5) as world, running_stack(tmp_path) as stack:
        traffic = await Traffic.start(stack, world, RUNS)
        try:
            await traffic.until_executions(2 * RUNS)
            victim = await traffic.incarnation("worker-1")
            stack.pause("worker-1")
            await world.heard()
            lost = await traffic.moment()
            held = (await traffic.record.open_legs()).get(victim, [])
            assert held, "the victim held no leg"

            async def none_left() -> bool:
                return victim not in await traffic.record.open_legs()

            await eventually(none_left, timeout_s=60)
            folded = {(s.run, s.step) for s in await traffic.record.steps() if s.worker == victim}

            async def registered_anew() -> bool:
                found = [w async for w in traffic.flint.list_workers() if w.worker_id == "worker-1"]
                return any(w.name != f"workers/{victim}" for w in found)

            # A call that it was about to make comes now: no outcome may be folded before that is over.
            world.gate.clear()
            went_on_at = time.time()
            stack.resume("worker-1")
            await eventually(registered_anew, timeout_s=60)
            await traffic.finish()
            legs = await traffic.record.legs()
            repeats = await traffic.judge()
            assert any(legs[run] > 1 for run in held)
            assert {run_of(key) for key in repeats} <= set(held)
            traffic.were_in_flight(repeats, lost, went_on_at=went_on_at)
            assert all(count <= legs[run_of(key)] for key, count in repeats.items())
            now = {(s.run, s.step) for s in await traffic.record.steps() if s.worker == victim}
            assert now == folded, "the zombie's outcome was recorded"
        finally:
            await traffic.close()


async def unfolded_entries(stack: RunningStack, traffic: Traffic) -> int:
    """Journal entries in JetStream that PostgreSQL does not have yet."""
    generation = await traffic.record.generation()
    bus = await Bus.connect(stack.settings.nats, name="test")
    try:
        state = await bus.stream_state(journal_stream(generation))
    finally:
        await bus.close()
    folded = await traffic.record.number("SELECT count(*) FROM run_entry")
    return (state.last_sequence if state else 0) - folded


async def test_deleted_journal(tmp_path: Path) -> None:
    async with outside_world(delay_s=0.3) as world, running_stack(tmp_path) as stack:
        traffic = await Traffic.start(stack, world, RUNS)
        try:
            await traffic.until_executions(RUNS)
            before = await traffic.record.generation()
            # The owners are held for a moment, shorter than their lease, so that entries pile up unfolded.
            for name in ("scheduler-1", "scheduler-2"):
                stack.pause(name)

            async def piled_up() -> bool:
                return await unfolded_entries(stack, traffic) > 50

            await eventually(piled_up, timeout_s=60)
            await stack.kill("nats", hold=True)
            shutil.rmtree(stack.data_dir / "nats")
            lost = await traffic.moment()
            for name in ("scheduler-1", "scheduler-2"):
                stack.resume(name)
            await stack.start("nats")
            await traffic.finish()
            assert await traffic.record.generation() > before, "no new generation was opened"
            legs = await traffic.record.legs()
            repeats = await traffic.judge()
            assert any(leg > 1 for leg in legs.values())
            # The lost entries' steps run again, as many of a run as were not folded; what was recorded never does.
            assert not {(run_of(key), step_of(key)) for key in repeats} & lost.recorded
            assert all(count <= legs[run_of(key)] for key, count in repeats.items())
        finally:
            await traffic.close()


async def test_deleted_etcd_store(tmp_path: Path) -> None:
    async with outside_world(delay_s=0.3) as world, running_stack(tmp_path) as stack:
        traffic = await Traffic.start(stack, world, RUNS)
        try:
            await traffic.until_executions(RUNS)
            terms, sessions = await traffic.record.terms(), await traffic.record.sessions()
            assert await traffic.record.open_legs()
            await stack.kill("etcd", hold=True)
            shutil.rmtree(stack.data_dir / "etcd")
            lost = await traffic.moment()
            await stack.start("etcd")
            await traffic.finish()
            legs = await traffic.record.legs()
            repeats = await traffic.judge()
            assert all(count <= legs[run_of(key)] for key, count in repeats.items())
            # Workers go on until their leases end, seconds after the store was lost: a step begun meanwhile may repeat.
            assert not {(run_of(key), step_of(key)) for key in repeats} & lost.recorded

            async def owned_anew() -> bool:
                now, owners = await traffic.record.terms(), await traffic.record.sessions()
                return owners.keys() == terms.keys() and all(
                    now[g] > terms[g] or owners[g] == sessions[g] for g in terms
                )

            # No term fell with etcd's revisions: each group is its owner's still, or another's under a higher term.
            await eventually(owned_anew, timeout_s=60)
        finally:
            await traffic.close()
