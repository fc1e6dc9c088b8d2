"""Owners come and go amid starts, reads and watches: no client's call fails, and single duties go on."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import psycopg
import pytest

from flint_bus import Bus, journal_stream
from flint_coord import Coord, keys
from flint_ops.failpoints import VARIABLE
from flint_scheduler.purging import PURGING_GROUP
from flint_sdk import AsyncFlint, RunState
from support.callers import Callers
from support.house import definition
from support.outside import outside_world
from support.record_reader import Record
from support.stack import RunningStack, eventually, running_stack
from support.traffic import WORKERS_KEEP_LEASES, Traffic

pytestmark = pytest.mark.robustness

CALLERS = 6
PAUSE_S = 0.05
WAIT_S = 120
QUICK = "do: [{a: {set: {n: 1}}}, {b: {wait: {milliseconds: 20}}}, {c: {set: {n: 2}}}]"


async def owns_all(record: Record, name: str) -> bool:
    return await record.groups_of(name) == set(await record.terms())


async def share(record: Record, *names: str) -> bool:
    return all([await record.groups_of(name) for name in names])


async def test_no_call_fails_while_owners_come_and_go(tmp_path: Path) -> None:
    """One is stopped in order and comes back, the other is killed: each time its heir serves all that there is."""
    async with running_stack(tmp_path, overrides={"retention": {"sweep_s": 0.5}}) as stack:
        flint = AsyncFlint(address=stack.gateway, key=stack.admin_key)
        record = Record(stack.settings.postgres)
        try:
            await flint.apply(definition(QUICK, "quick"))
            callers = Callers(flint, "quick", CALLERS, PAUSE_S)

            async def goes_on() -> None:
                """Whole rounds of every caller that began after this moment."""
                count = len(callers.seen.runs)
                await eventually(lambda: callers.seen.failed or len(callers.seen.runs) > count + 3 * CALLERS, WAIT_S)

            await eventually(lambda: share(record, "scheduler-1", "scheduler-2"), WAIT_S)
            await goes_on()
            before = await record.terms()
            groups = await record.groups_of("scheduler-1")
            await stack.stop("scheduler-1")
            await eventually(lambda: owns_all(record, "scheduler-2"), WAIT_S)
            after = await record.terms()
            assert all(after[group] > before[group] for group in groups), "a term did not rise"
            await goes_on()
            await stack.start("scheduler-1")
            await eventually(lambda: share(record, "scheduler-1", "scheduler-2"), WAIT_S)
            await goes_on()
            await stack.kill("scheduler-2", hold=True)
            await eventually(lambda: owns_all(record, "scheduler-1"), WAIT_S)
            await goes_on()
            seen = await callers.leave()
            assert seen.failed == []
            assert len(seen.runs) == len(seen.starts) == len(seen.reads) == len(seen.watches)

            await the_heir_deletes(stack, record, len(seen.runs))
            await stack.start("scheduler-2")
        finally:
            await flint.close()
            await record.close()


async def the_heir_deletes(stack: RunningStack, record: Record, runs: int) -> None:
    """The duty of the dead: ended runs of its groups are deleted by whoever has the groups now."""
    ended = "SELECT count(*) FROM run WHERE state = 4"
    assert await record.number(ended) == runs
    assert len(await record.rows("SELECT DISTINCT group_id FROM run")) > 1
    await asyncio.to_thread(keep_briefly, stack)
    await eventually(lambda: nothing(record, ended), WAIT_S)


async def nothing(record: Record, count: str) -> bool:
    return await record.number(count) == 0


def keep_briefly(stack: RunningStack) -> None:
    """What a definition cannot ask for: its ended runs are kept for a second."""
    dsn = stack.settings.postgres.dsn.get_secret_value()
    with psycopg.connect(dsn, autocommit=True, connect_timeout=10) as connection:
        connection.execute("UPDATE workflow_version SET retention_s = 1")


async def test_who_comes_back_does_not_wait_for_the_lease_that_it_left_behind(tmp_path: Path) -> None:
    """Its new session has ended the former one, so the keys of the dead, whose lease still stands, keep nobody out."""
    async with running_stack(tmp_path, schedulers=1, workers=1, overrides={"etcd": {"lease_ttl_s": 60}}) as stack:
        flint = AsyncFlint(address=stack.gateway, key=stack.admin_key)
        record = Record(stack.settings.postgres)
        coord = await Coord.connect(stack.settings.etcd, cluster=stack.settings.cluster.name)
        try:
            await flint.apply(definition(QUICK, "quick"))
            await eventually(lambda: owns_all(record, "scheduler-1"), WAIT_S)
            before = await record.terms()
            (former,) = {item.lease_id for item in await coord.scan(keys.GROUPS)}
            await stack.kill("scheduler-1", hold=True)

            async def owns_again() -> bool:
                assert await coord.renew(former) > 0, "the lease of the dead has ended"
                after = await record.terms()
                return await owns_all(record, "scheduler-1") and all(after[group] > before[group] for group in before)

            await asyncio.gather(stack.start("scheduler-1"), eventually(owns_again, WAIT_S))
            assert (await (await flint.start("quick", {})).result(timeout_s=WAIT_S)) is not None
            assert await coord.renew(former) > 0
        finally:
            await coord.close()
            await flint.close()
            await record.close()


async def test_who_loses_its_lease_before_it_takes_ends_nobody(tmp_path: Path) -> None:
    """A scheduler wins keys and is held until its lease is over and another has the groups: its commit takes none."""
    points = tmp_path / "points"
    points.mkdir()
    async with running_stack(
        tmp_path,
        workers=1,
        registries=1,
        overrides={"etcd": {"lease_ttl_s": 60}},  # a lease ends here when it is revoked, however slow the machine is
        environ={**os.environ, VARIABLE: str(points)},
    ) as stack:
        flint = AsyncFlint(address=stack.gateway, key=stack.admin_key)
        record = Record(stack.settings.postgres)
        coord = await Coord.connect(stack.settings.etcd, cluster=stack.settings.cluster.name)
        try:
            await flint.apply(definition(QUICK, "quick"))
            await stack.stop("scheduler-2")
            await eventually(lambda: owns_all(record, "scheduler-1"), WAIT_S)
            before = await record.sessions()
            (owner,) = set(before.values())
            (points / ".takeover.won").write_text("stop 0")
            (points / ".takeover.won").rename(points / "takeover.won")
            starting = asyncio.create_task(stack.start("scheduler-2"))
            held = await eventually(lambda: next(points.glob("takeover.won.*"), None), WAIT_S)
            try:
                assert held.suffix == f".{stack.pid('scheduler-2')}"
                won = {item.key for item in await coord.scan(keys.GROUPS) if item.value == b"scheduler-2"}
                assert won, "it was held before it had won anything"
                given = before.keys() - (await record.sessions()).keys()
                assert {keys.group(group) for group in given} >= won
                member = await coord.get(keys.scheduler("scheduler-2"))
                assert member is not None
                await coord.revoke(member.lease_id)
                await eventually(lambda: owns_all(record, "scheduler-1"), WAIT_S)
            finally:
                os.kill(int(held.suffix[1:]), signal.SIGCONT)
            await starting
            await eventually(lambda: was_refused(stack, "scheduler-2"), WAIT_S)
            # It begins anew and is given its share, by the one whose session it might have ended.
            await eventually(lambda: share(record, "scheduler-1", "scheduler-2"), WAIT_S)
            ended = "SELECT count(*) FROM owner_session WHERE session_id::text = :s AND ended_at IS NOT NULL"
            assert await record.number(ended, s=owner) == 0
            assert (await flint.wait((await flint.start("quick")).id, WAIT_S)).state is RunState.SUCCEEDED
        finally:
            await coord.close()
            await flint.close()
            await record.close()


def was_refused(stack: RunningStack, name: str) -> bool:
    """Its commit found other terms; or, held for too long, it gave its connections up before it could try."""
    log = stack.stack.layout.log_file(name).read_text()
    return "groups_taken_by_another" in log or "session_failed" in log


PURGING = WORKERS_KEEP_LEASES | {"journal": {"keep_folded_s": 10, "purge_interval_s": 0.5}}


async def test_a_takeover_after_a_purge_loses_nothing(tmp_path: Path) -> None:
    """Runs are in the middle when what was folded of them leaves the journal and then its purger is killed."""
    async with outside_world(delay_s=0.1) as world, running_stack(tmp_path, overrides=PURGING) as stack:
        traffic = await Traffic.start(stack, world, 100)
        bus = await Bus.connect(stack.settings.nats, name="test")
        try:
            await traffic.until_executions(200)
            world.gate.clear()
            stream = journal_stream(await traffic.record.generation())

            async def is_empty() -> bool:
                state = await bus.stream_state(stream)
                return state is not None and state.last_sequence > 0 and state.messages == 0

            await eventually(is_empty, WAIT_S)
            purger = "scheduler-1" if PURGING_GROUP in await traffic.record.groups_of("scheduler-1") else "scheduler-2"
            assert PURGING_GROUP in await traffic.record.groups_of(purger)
            world.gate.set()
            await traffic.until_executions(300)
            await stack.kill(purger, hold=True)
            await traffic.more(100)
            await traffic.finish()
            assert await traffic.judge() == {}, "a step ran again although no worker was lost"
            await eventually(is_empty, WAIT_S)  # the heir goes on with it
            assert PURGING_GROUP not in await traffic.record.groups_of(purger)
        finally:
            await bus.close()
            await traffic.close()
