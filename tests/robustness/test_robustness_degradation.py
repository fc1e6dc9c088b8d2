"""What is left while a part is gone, and what comes back by itself: one stack, one part after the other.

Each test has runs in the middle, takes the part away for longer than it could be missed by chance, looks at what still
works, gives it back, and waits for every run. The table in docs/degradation.md names these tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
import pytest_asyncio

from flint_bus import Bus, journal_stream
from flint_bus.streams import call_api
from flint_sdk import AsyncFlint, RunState, Unavailable
from support.clocks import Clocks
from support.metrics import read_metrics
from support.outside import Outside, outside_world
from support.stack import RunningStack, eventually, running_stack
from support.traffic import DEFINITION, STEPS, Moment, Traffic, run_of, step_of

pytestmark = [pytest.mark.robustness, pytest.mark.asyncio(loop_scope="session")]

RUNS = 40
SCHEDULERS = ("scheduler-1", "scheduler-2")
REGISTRIES = ("registry-1", "registry-2")
WORKERS = ("worker-1", "worker-2")
LEASES = {"registry": {"lease_ttl_s": 10}, "etcd": {"lease_ttl_s": 6}}
"""Nobody loses one because the machine is busy; and they do end while a test waits for it."""
DISK_FULL = """
CREATE FUNCTION disk_full() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$;
CREATE TRIGGER disk_full BEFORE INSERT OR UPDATE ON run FOR EACH STATEMENT EXECUTE FUNCTION disk_full();
CREATE TRIGGER disk_full BEFORE INSERT ON run_entry FOR EACH STATEMENT EXECUTE FUNCTION disk_full();
"""
DISK_FREE = "DROP FUNCTION disk_full() CASCADE"


class Place:
    """The stack, its traffic over all tests, and what had been repeated before the present one."""

    def __init__(self, stack: RunningStack, world: Outside, traffic: Traffic, clocks: Clocks) -> None:
        self.stack = stack
        self.world = world
        self.traffic = traffic
        self.clocks = clocks
        self._before: dict[str, int] = {}
        self._refused: list[str] = []

    async def middle(self) -> list[str]:
        """Some more runs, each in its second or a later step, which the outside does not answer until `finish`."""
        known = len(self.traffic.runs)
        begun = len(self.world.executions)
        for _ in range(2):  # in waves: both schedulers get their part
            await self.traffic.more(RUNS // 2)
        await self.traffic.until_executions(begun + 2 * RUNS)
        self.world.gate.clear()
        assert await self.traffic.record.open_legs(), "no leg was open"
        return self.traffic.runs[known:]

    async def finish(self) -> dict[str, int]:
        """All runs succeed, and the promises hold; answers the steps that were repeated since the last time.

        What was refused as unavailable may have been stored all the same: repeated, it is one run.
        """
        for request_id in self._refused:
            handle = await self.traffic.flint.start("robust", {"url": self.world.url}, request_id=request_id)
            self.traffic.runs.append(handle.id)
        self._refused.clear()
        await self.traffic.finish()
        repeats = await self.traffic.judge()
        fresh = {key: count for key, count in repeats.items() if self._before.get(key) != count}
        self._before = repeats
        return fresh

    async def total(self, names: tuple[str, ...], metric: str) -> float:
        """A metric's sum over processes."""
        found = [await read_metrics(self.stack.addresses[f"{name}/ops"]) for name in names]
        return sum(figures.total(metric) for figures in found)

    async def no_leg_runs(self) -> bool:
        return await self.total(WORKERS, "flint_worker_legs_running") == 0

    async def refused_start(self) -> Unavailable:
        """How a start is refused now, and what it says of trying again."""
        self._refused.append(f"refused-{len(self.traffic.runs)}")
        async with AsyncFlint(self.stack.gateway, self.stack.admin_key, timeout_s=15) as flint:
            with pytest.raises(Unavailable) as refused:
                await flint.start("robust", {"url": self.world.url}, request_id=self._refused[-1])
        return refused.value


def repeated_nothing_recorded(repeats: dict[str, int], lost: Moment) -> bool:
    return not {(run_of(key), step_of(key)) for key in repeats} & lost.recorded


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    folder = tmp_path_factory.mktemp("degradation")
    clocks = Clocks(folder)
    async with (
        outside_world(delay_s=0.1) as world,
        running_stack(folder, environ=clocks.environ(), overrides=LEASES) as stack,
    ):
        traffic = Traffic(stack, world)
        await traffic.flint.apply(DEFINITION)
        try:
            yield Place(stack, world, traffic, clocks)
        finally:
            await traffic.close()


@pytest_asyncio.fixture(loop_scope="session")
async def place(running: Place) -> AsyncIterator[Place]:
    """The stack; a test that failed leaves nothing taken away for the next one."""
    yield running
    running.world.gate.set()
    for name in ("postgres", "nats", "etcd", *REGISTRIES, *SCHEDULERS, "gateway", *WORKERS):
        if name not in running.stack.pids:
            await running.stack.start(name)


async def test_without_postgresql_legs_go_on_and_starts_are_refused_with_a_hint(place: Place) -> None:
    runs = await place.middle()
    incarnations = await place.traffic.incarnations()
    await place.stack.kill("postgres", hold=True)
    # All the steps there are: their outcomes are in the journal only.
    place.world.gate.set()
    wanted = STEPS * len(place.traffic.runs)
    await eventually(lambda: len(place.world.by_key()) == wanted, timeout_s=60)
    refused = await place.refused_start()
    assert refused.retry_after_s is not None
    await place.stack.start("postgres")
    assert await place.finish() == {}, "a step ran again although no worker was lost"
    assert await place.traffic.incarnations() == incarnations
    legs = await place.traffic.record.legs()
    assert {legs[run] for run in runs} == {1}, "a leg was raised although its worker lived"


async def test_without_nats_starts_are_accepted_and_queued(place: Place) -> None:
    await place.middle()
    await place.stack.kill("nats", hold=True)
    lost = await place.traffic.moment()
    known = len(place.traffic.runs)
    await place.traffic.more(RUNS)
    queued = [await place.traffic.flint.get_run(run) for run in place.traffic.runs[known:]]
    assert {run.state for run in queued} == {RunState.QUEUED}
    await place.stack.start("nats")
    repeats = await place.finish()
    legs = await place.traffic.record.legs()
    assert all(count <= legs[run_of(key)] for key, count in repeats.items())
    assert repeated_nothing_recorded(repeats, lost)


async def test_without_etcd_owners_and_workers_stop_and_come_back_by_themselves(place: Place) -> None:
    await place.middle()
    terms = await place.traffic.record.terms()
    await place.stack.kill("etcd", hold=True)
    lost = await place.traffic.moment()

    async def nobody_owns() -> bool:
        return await place.total(SCHEDULERS, "flint_scheduler_groups_owned") == 0

    await eventually(nobody_owns, timeout_s=60)
    await eventually(place.no_leg_runs, timeout_s=60)
    at_rest = len(place.world.executions)
    await place.traffic.more(10)  # accepted for whoever will own them
    assert len(place.world.executions) == at_rest, "a step began without a lease"
    await place.stack.start("etcd")
    repeats = await place.finish()
    legs, after = await place.traffic.record.legs(), await place.traffic.record.terms()
    assert all(count <= legs[run_of(key)] for key, count in repeats.items())
    assert repeated_nothing_recorded(repeats, lost)
    assert all(after[group] > term for group, term in terms.items()), "owned again without a new term"


async def test_without_one_registry_nobody_notices_without_any_legs_pause(place: Place) -> None:
    runs = await place.middle()
    incarnations = await place.traffic.incarnations()
    await place.stack.kill("registry-1", hold=True)
    before = await place.total(REGISTRIES[1:], "flint_registry_renewals_total")

    async def renewed() -> bool:
        # Every worker several times, over more than one lease.
        return await place.total(REGISTRIES[1:], "flint_registry_renewals_total") >= before + 5 * len(WORKERS)

    await eventually(renewed, timeout_s=60)
    assert await place.finish() == {}
    assert await place.traffic.incarnations() == incarnations, "a worker lost its lease"
    legs = await place.traffic.record.legs()
    assert {legs[run] for run in runs} == {1}, "a leg was raised although its worker lived"

    await place.middle()
    await place.stack.kill("registry-2", hold=True)
    lost = await place.traffic.moment()
    await eventually(place.no_leg_runs, timeout_s=60)
    at_rest = len(place.world.executions)
    await place.traffic.more(10)
    assert len(place.world.executions) == at_rest, "a step began without a lease"
    for name in REGISTRIES:
        await place.stack.start(name)
    repeats = await place.finish()
    legs = await place.traffic.record.legs()
    assert all(count <= legs[run_of(key)] for key, count in repeats.items())
    assert repeated_nothing_recorded(repeats, lost)
    assert not await place.traffic.incarnations() & incarnations, "an incarnation outlived its lease"


async def test_without_one_gateway_clients_go_on_at_the_other(place: Place) -> None:
    other = await place.stack.add_gateway("gateway-2")
    addresses = [place.stack.gateway, other]
    async with AsyncFlint(addresses, place.stack.admin_key) as flint:
        place.world.gate.clear()
        data = {"url": place.world.url}
        first = [await flint.start("robust", data, request_id=f"gateway-{n}") for n in range(5)]
        waits = [asyncio.create_task(flint.wait(handle.id, 120)) for handle in first]
        await place.traffic.until_executions(len(place.world.executions))
        await place.stack.kill("gateway", hold=True)
        again = [await flint.start("robust", data, request_id=f"gateway-{n}") for n in range(10)]
        assert [handle.id for handle in again[:5]] == [handle.id for handle in first], "a repeated start began anew"
        place.traffic.runs += [handle.id for handle in again]
        place.world.gate.set()
        assert {run.state for run in await asyncio.gather(*waits)} == {RunState.SUCCEEDED}
        for handle in again:
            assert (await flint.wait(handle.id, 120)).state is RunState.SUCCEEDED
    await place.stack.start("gateway")
    await place.stack.stop("gateway-2")
    assert await place.finish() == {}


@asynccontextmanager
async def full_journal(stack: RunningStack, generation: int) -> AsyncIterator[None]:
    """The journal's stream takes nothing more inside the block, as when its share of the disk is used up.

    Its limit is set far below what it holds: what is there stays (discard new), whatever is purged meanwhile.
    """
    name = journal_stream(generation)
    bus = await Bus.connect(stack.settings.nats, name="test")
    try:
        found: dict[str, Any] = await call_api(bus.request, f"STREAM.INFO.{name}", None, 60.0)
        config = found["config"]
        full = await call_api(bus.request, f"STREAM.UPDATE.{name}", config | {"max_bytes": 1024}, 60.0)
        assert full["state"]["last_seq"] >= found["state"]["last_seq"]
        assert full["state"]["bytes"] > 1024
        try:
            yield
        finally:
            await call_api(bus.request, f"STREAM.UPDATE.{name}", config, 60.0)
    finally:
        await bus.close()


async def test_a_full_journal_pauses_legs_and_repeats_nothing(place: Place) -> None:
    runs = await place.middle()
    incarnations = await place.traffic.incarnations()

    async def each_waits_at_the_gate() -> bool:
        open_legs = sum(map(len, (await place.traffic.record.open_legs()).values()))
        return len(await place.traffic.record.steps()) + open_legs == len(place.world.by_key())

    await eventually(each_waits_at_the_gate, timeout_s=60)
    async with full_journal(place.stack, await place.traffic.record.generation()):
        before = await place.total(WORKERS, "flint_worker_append_retries_total")
        begun = len(place.world.executions)
        place.world.gate.set()

        async def refused() -> bool:
            return await place.total(WORKERS, "flint_worker_append_retries_total") >= before + RUNS

        await eventually(refused, timeout_s=60)
        assert len(place.world.executions) == begun, "a step began before the one before it was in the journal"
        await place.traffic.flint.start("robust", {"url": place.world.url}, request_id="into-a-full-journal")
    handle = await place.traffic.flint.start("robust", {"url": place.world.url}, request_id="into-a-full-journal")
    assert not handle.created
    place.traffic.runs.append(handle.id)
    assert await place.finish() == {}, "a step ran again although no worker was lost"
    assert await place.traffic.incarnations() == incarnations
    legs = await place.traffic.record.legs()
    assert {legs[run] for run in runs} == {1}


async def test_a_full_disk_of_postgresql_refuses_starts_and_loses_nothing(place: Place) -> None:
    """PostgreSQL answers each write as it does when it cannot extend a file: SQLSTATE 53100, by a trigger."""
    await place.middle()
    incarnations = await place.traffic.incarnations()
    dsn = place.stack.settings.postgres.dsn.get_secret_value()
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute(DISK_FULL)
        try:
            place.world.gate.set()
            wanted = STEPS * len(place.traffic.runs)
            await eventually(lambda: len(place.world.by_key()) == wanted, timeout_s=60)
            refused = await place.refused_start()
            assert refused.retry_after_s is not None
        finally:
            await connection.execute(DISK_FREE)
    assert await place.finish() == {}, "a step ran again although no worker was lost"
    assert await place.traffic.incarnations() == incarnations


@pytest.mark.parametrize("hours", [6, -6])
async def test_a_wall_clock_that_jumps_moves_no_lease(place: Place, hours: int) -> None:
    victims = ("worker-1", "scheduler-1", "registry-1")
    runs = await place.middle()
    incarnations, terms = await place.traffic.incarnations(), await place.traffic.record.terms()
    for name in victims:
        place.clocks.jump(name, hours=hours)
    before = await place.total(REGISTRIES, "flint_registry_renewals_total")

    async def renewed() -> bool:
        return await place.total(REGISTRIES, "flint_registry_renewals_total") >= before + 5 * len(WORKERS)

    await eventually(renewed, timeout_s=60)
    await place.traffic.more(RUNS)
    place.world.gate.set()
    assert await place.finish() == {}, "a step ran again although no worker was lost"
    for name in victims:
        place.clocks.jump(name, hours=0)
    assert await place.traffic.incarnations() == incarnations
    assert await place.traffic.record.terms() == terms, "an owner lost its groups"
    legs = await place.traffic.record.legs()
    assert {legs[run] for run in runs} == {1}
