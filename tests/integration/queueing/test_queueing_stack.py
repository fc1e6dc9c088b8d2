"""How runs queue, on a real stack of two schedulers and two workers: order, shares, quotas, windows, pools, moves."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import grpc
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2, status_pb2

from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_sdk import AsyncFlint, LevelUnknown, QueueHintInvalid, QuotaExceeded, RunState, StartRequest
from support.holders import Holders, holders_world
from support.house import House, open_house
from support.stack import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

SLOTS = 4  # of each of two workers
CROWD = 2000
HOLD = "do: [{hold: {call: http, with: {method: post, endpoint: '${ .url }'}}}]"
NOTHING = "do: [{nothing: {set: {done: true}}}]"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    overrides = {"worker": {"slots": SLOTS}, "scheduler": {"overcommit": 1.0}}
    async with open_house(tmp_path_factory.mktemp("house"), **overrides) as house:
        yield house


@pytest_asyncio.fixture(loop_scope="module")
async def world() -> AsyncIterator[Holders]:
    async with holders_world(delay_s=0.0) as world:
        yield world


async def apply(house: House, hints: str, body: str) -> str:
    name = house.name("queueing")
    head = f"dsl: 1.0.3, namespace: default, name: {name}, version: 1.0.0, metadata: {{flint: {{{hints}}}}}"
    await house.flint.apply(f"document: {{{head}}}\n{body}")
    return name


async def occupy(house: House, world: Holders) -> list[str]:
    """Fill every slot with runs that the world holds until its gate is opened."""
    world.gate.clear()
    name = await house.apply(HOLD)
    handles = [await house.flint.start(name, {"url": world.url}, level=0) for _ in range(2 * SLOTS)]
    await eventually(lambda: len(world.holding) == 2 * SLOTS, 60)
    return [handle.id for handle in handles]


@dataclass(frozen=True)
class Begun:
    """A run that began: whose it is, when, and in which scheduler's queue it had waited."""

    namespace: str
    at: datetime
    owner: str


async def started(house: House, workflow: str) -> list[Begun]:
    """In order."""
    rows = await house.record.rows(
        "SELECT r.namespace_id, r.started_at, r.group_id FROM run r JOIN workflow_version d USING (definition_id)"
        " WHERE d.workflow_id = :w AND r.started_at IS NOT NULL ORDER BY r.started_at",
        w=workflow,
    )
    owners = await house.record.owners()
    return [
        Begun(str(namespace), at, owners[int(str(group))]) for namespace, at, group in rows if isinstance(at, datetime)
    ]


async def owner_of(house: House, run: str) -> str:
    group = await house.record.number("SELECT group_id FROM run WHERE run_id = CAST(:r AS uuid)", r=run)
    return (await house.record.owners())[group]


async def test_an_urgent_run_overtakes_a_crowd_and_a_raised_one_too(house: House, world: Holders) -> None:
    crowd = await house.apply(NOTHING)
    held = await occupy(house, world)
    answers = await house.flint.start_many([StartRequest(crowd) for _ in range(CROWD)], timeout_s=60)
    handles = [answer for answer in answers if not isinstance(answer, Exception)]
    assert len(handles) == CROWD
    await house.flint.set_level(handles[-1].id, 1)
    urgent = await house.flint.start(await house.apply(NOTHING), level=0)
    raised = handles[-1].id

    async def is_raised() -> bool:
        return (await house.flint.get_run(raised)).level == 1

    await eventually(is_raised, 60)

    async def is_told() -> bool:
        pools = {pool.pool: pool for pool in await house.flint.describe_queue()}
        # A few may stand at a worker: two schedulers may have lent themselves the same slots (decision 0009).
        waiting = sum(pools["default"].ready) if "default" in pools else 0
        return CROWD + 1 - 2 * SLOTS <= waiting <= CROWD + 1 and not pools["default"].waiting_for

    await eventually(is_told, 60)
    world.gate.set()
    first = await house.flint.wait(urgent.id, 60)
    early = await house.flint.wait(raised, 60)
    for handle in handles:
        await house.flint.wait(handle.id, 120)
    order = await started(house, crowd)
    # Two schedulers, each with a queue of its own: what the other one begins meanwhile is no one's fault.
    for run in (first, early):
        assert run.start_time is not None
        owner = await owner_of(house, run.id)
        assert sum(other.at < run.start_time for other in order if other.owner == owner) <= 4 * SLOTS
    for run in held:
        assert (await house.flint.wait(run, 60)).state is RunState.SUCCEEDED


async def test_two_tenants_progress_by_weight(house: House, world: Holders) -> None:
    await house.record.rows("INSERT INTO namespace (namespace_id) VALUES ('tenant') RETURNING 1")
    await house.flint.set_namespace("tenant", weight=300)
    assert (await house.flint.namespace_settings("tenant")).weight == 300
    name = house.name("tenants")
    clients = {
        space: AsyncFlint(house.stack.gateway, namespace=space, key=house.stack.admin_key)
        for space in ("default", "tenant")
    }
    try:
        for space, client in clients.items():
            head = f"document: {{dsl: 1.0.3, namespace: {space}, name: {name}, version: 1.0.0}}"
            await client.apply(f"{head}\n{NOTHING}")
        await occupy(house, world)
        every = 400
        handles = []
        # Each call is accepted by one scheduler, whose own its runs are then: both are to have runs of both tenants.
        starts = [StartRequest(name) for _ in range(10)]
        for client in [c for c in clients.values() for _ in range(every // 10)]:
            handles += await client.start_many(starts, timeout_s=60)
        assert not [h for h in handles if isinstance(h, Exception)]
        world.gate.set()

        async def done() -> bool:
            return len(await started(house, name)) == 2 * every

        await eventually(done, 120)
        order = await started(house, name)
        compared = 0
        for owner in {run.owner for run in order}:  # each scheduler has a queue of its own
            own = [run.namespace for run in order if run.owner == owner]
            left, both = Counter(own), 0
            while min(left["default"], left["tenant"]) > 0:
                left[own[both]] -= 1
                both += 1
            if both >= 100:
                compared += both
                # Three quarters, give or take what was begun at once.
                assert 0.6 * both <= own[:both].count("tenant") <= 0.9 * both, (owner, Counter(own), both)
        assert compared >= every / 2
    finally:
        for client in clients.values():
            await client.close()
    await house.flint.set_namespace("tenant", weight=0)


async def test_quotas_refuse_with_a_reason_and_a_time(house: House, world: Holders) -> None:
    name = await house.apply(NOTHING)
    await occupy(house, world)
    await house.flint.set_namespace(max_queued=5)

    async def refused(count: int) -> list[Exception]:
        starts = [runs_pb2.StartRunRequest(workflow_id=name) for _ in range(count)]
        request = runs_pb2.StartRunsRequest(parent="namespaces/default", requests=starts)
        answer = await house.raw.runs.StartRuns(request, metadata=house.raw.metadata)
        return [result.error for result in answer.results if result.HasField("error")]

    errors: list[Exception] = []

    async def in_force() -> bool:
        errors[:] = [error for found in await asyncio.gather(*(refused(10) for _ in range(4))) for error in found]
        return len(errors) == 40  # both schedulers know

    await eventually(in_force, 60)
    with pytest.raises(QuotaExceeded) as caught:
        await asyncio.wait_for(house.flint.start(name), 60)
    assert caught.value.retry_after_s
    queued = await house.record.number(
        "SELECT count(*) FROM run r JOIN workflow_version d USING (definition_id)"
        " WHERE d.workflow_id = :w AND r.state = 1",
        w=name,
    )
    assert queued >= 5
    status: status_pb2.Status = errors[0]  # type: ignore[assignment]
    failure, retry = error_details_pb2.QuotaFailure(), error_details_pb2.RetryInfo()
    assert [detail.Unpack(failure) for detail in status.details].count(True) == 1
    assert [detail.Unpack(retry) for detail in status.details].count(True) == 1
    assert status.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert failure.violations[0].subject == "namespaces/default"
    await house.flint.set_namespace(max_queued=0, starts_per_second=0.001, starts_burst=3)

    async def by_rate() -> bool:
        found = await refused(4)
        return bool(found) and "starts per second" in found[0].message  # type: ignore[attr-defined]

    await eventually(by_rate, 60)
    assert len(await refused(3)) == 3
    await house.flint.set_namespace(starts_per_second=0, starts_burst=0)

    async def free_again() -> bool:
        return not await refused(1)

    await eventually(free_again, 60)
    world.gate.set()


async def test_levels_have_names(house: House) -> None:
    body = await apply(house, "level: gold", NOTHING)
    with pytest.raises(LevelUnknown):
        await house.flint.start(body)
    await house.flint.name_level("gold", 2)

    async def known() -> bool:
        try:
            return (await house.flint.wait((await house.flint.start(body)).id, 60)).level == 2
        except LevelUnknown:
            return False

    await eventually(known, 60)
    plain = await house.apply(NOTHING)
    assert (await house.flint.wait((await house.flint.start(plain, level="gold")).id, 60)).level == 2
    with pytest.raises(LevelUnknown):
        await house.flint.start(plain, level="silver")
    assert (await house.flint.forget_level("gold")).levels == {}
    keyed = await apply(house, "fairness: '${ .customer }'", NOTHING)
    with pytest.raises(QueueHintInvalid):
        await house.flint.start(keyed, {"customer": {}})


async def test_a_run_is_not_begun_before_its_moment(house: House) -> None:
    moment = datetime.now(UTC) + timedelta(seconds=2)
    name = await house.apply(NOTHING)
    run = await house.flint.wait((await house.flint.start(name, not_before=moment)).id, 60)
    assert run.start_time is not None
    assert run.start_time >= moment
    far = (datetime.now(UTC) + timedelta(hours=6)).strftime("%H:%M")
    end = (datetime.now(UTC) + timedelta(hours=7)).strftime("%H:%M")
    late = await apply(house, f"window: {{from: '{far}', to: '{end}', latestStart: PT2S}}", NOTHING)
    run = await house.flint.wait((await house.flint.start(late)).id, 60)
    assert run.start_time is not None
    assert run.create_time is not None
    assert run.start_time >= run.create_time + timedelta(seconds=2)
    spare = await apply(house, f"window: {{from: '{far}', to: '{end}'}}, offPeak: true", NOTHING)
    assert (await house.flint.wait((await house.flint.start(spare)).id, 60)).state is RunState.SUCCEEDED


MOVING = """do:
- here: {call: http, with: {method: post, endpoint: '${ $workflow.input.plain }'}}
- there:
    call: http
    with: {method: post, endpoint: '${ $workflow.input.gated }'}
    metadata: {flint: {pool: gpu}}
- back: {call: http, with: {method: post, endpoint: '${ $workflow.input.plain }'}}
"""


async def test_a_step_is_executed_in_its_pool_and_moves_on_when_its_worker_is_lost(
    house: House, world: Holders
) -> None:
    async with holders_world(delay_s=0.0) as plain:
        world.gate.clear()
        handle = await house.flint.start(await house.apply(MOVING), {"plain": plain.url, "gated": world.url})

        async def lacks() -> bool:
            request = runs_pb2.GetRunRequest(name=handle.name)
            run = (await house.raw.runs.GetRun(request, metadata=house.raw.metadata)).run
            return bool(run.pool == "gpu" and run.waiting_for == "no worker of pool gpu")

        await eventually(lacks, 60)
        assert "no worker of pool gpu" in {pool.waiting_for for pool in await house.flint.describe_queue()}
        await house.stack.add_worker("worker-gpu", pool="gpu", slots=2)
        await eventually(lambda: len(world.holding) == 1, 60)
        await house.stack.kill("worker-gpu")
        await eventually(lambda: sum(world.now.values()) >= 2 or len(world.calls) >= 1, 60)
        world.gate.set()
        run = await house.flint.wait(handle.id, 60)
        assert run.state is RunState.SUCCEEDED, run.error
        assert len(plain.calls) == 2
        assert len({run for run, _, _ in world.calls}) == 1
    pools = await house.record.rows(
        "SELECT DISTINCT w.pool FROM run_entry e JOIN worker w ON w.incarnation = e.claimant"
        " WHERE e.run_id = CAST(:r AS uuid) ORDER BY 1",
        r=handle.id,
    )
    assert [pool for (pool,) in pools] == ["default", "gpu"]
    moves = await house.record.number(
        "SELECT count(*) FROM run_entry"
        " WHERE run_id = CAST(:r AS uuid) AND convert_from(events, 'UTF8') LIKE '%[\"m\",%'",
        r=handle.id,
    )
    assert moves == 2


KEPT = "do: [{a: {call: http, with: {method: post, endpoint: '${ .url }'}, metadata: {flint: {pool: critical}}}}]"


async def test_standby_slots_are_for_the_urgent_and_a_dedicated_pool_for_its_namespace(
    house: House, world: Holders
) -> None:
    """Eight slots, four of them standby, of a pool that is the default namespace's own."""
    slots, standby = 8, 4
    world.gate.clear()
    await house.record.rows("INSERT INTO namespace (namespace_id) VALUES ('stranger') RETURNING 1")
    stranger = AsyncFlint(house.stack.gateway, namespace="stranger", key=house.stack.admin_key)
    held: list[str] = []
    try:
        pool = await house.flint.update_pool("critical", standby_slots=standby, dedicated_to="default")
        assert (pool.settings.standby_slots, pool.settings.dedicated_to) == (standby, "default")
        name = house.name("kept")
        await stranger.apply(f"document: {{dsl: 1.0.3, namespace: stranger, name: {name}, version: 1.0.0}}\n{KEPT}")
        foreign = [(await stranger.start(name, {"url": world.url}, level=0)).id for _ in range(4)]

        async def told() -> bool:
            whys = {queue.waiting_for for queue in await house.flint.describe_queue() if queue.pool == "critical"}
            return any("dedicated to the namespace default" in why for why in whys)

        await eventually(told, 60)
        await house.stack.add_worker("worker-critical", pool="critical", slots=slots)
        mine = await house.apply(KEPT)
        # One call is accepted by one scheduler: two that begin at once may lend themselves the same slots for a moment.
        starts = [StartRequest(mine, {"url": world.url}, level=5) for _ in range(2 * slots)]
        answers = await house.flint.start_many(starts, timeout_s=60)
        held = [answer.id for answer in answers if not isinstance(answer, Exception)]
        assert len(held) == len(starts)
        await eventually(lambda: len(world.holding) == slots - standby, 60)
        urgent = [(await house.flint.start(mine, {"url": world.url}, level=0)).id for _ in range(2)]
        await eventually(lambda: len(world.holding) == slots - standby + len(urgent), 60)
        assert not world.calls, "nothing had to end for them"
        assert not {run for run in world.holding if run in foreign}
        waiting = sum([(await house.flint.get_run(run)).state is RunState.QUEUED for run in held])
        assert waiting == len(held) - (slots - standby), "the standby is not for these"
        world.gate.set()
        for run in [*held, *urgent]:
            assert (await house.flint.wait(run, 60)).state is RunState.SUCCEEDED
        assert not {run for run, _, _ in world.calls} & set(foreign)
        await house.flint.update_pool("critical", dedicated_to=None, standby_slots=None)
        for run in foreign:
            assert (await stranger.wait(run, 60)).state is RunState.SUCCEEDED
    finally:
        world.gate.set()
        await stranger.close()


async def test_a_leg_that_waits_at_a_full_worker_begins_at_one_with_room(house: House, world: Holders) -> None:
    """One slot, and two schedulers that each may send a leg to it: one waits there. Then three more slots come.

    So there are as many as legs, and whatever the schedulers lent themselves the last leg finds the last slot.
    """
    world.gate.clear()
    await house.stack.add_worker("worker-narrow-1", pool="narrow", slots=1)
    body = KEPT.replace("critical", "narrow")
    name = await house.apply(body)
    runs = [(await house.flint.start(name, {"url": world.url})).id for _ in range(4)]
    await eventually(lambda: len(world.holding) == 1, 60)
    await house.stack.add_worker("worker-narrow-2", pool="narrow", slots=3)
    await eventually(lambda: len(world.holding) == 4, 60)
    assert not world.calls, "the first one is still at its step"
    world.gate.set()
    for run in runs:
        assert (await house.flint.wait(run, 60)).state is RunState.SUCCEEDED
    assert len(world.calls) == 4, "none was executed twice"
