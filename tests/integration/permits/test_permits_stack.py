"""Concurrency keys and rates on a real stack of two schedulers and two workers: exact, and nobody is forgotten."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from datetime import datetime

import grpc
import pytest
import pytest_asyncio

from flint_contracts.gen.flint.runs.v1 import control_pb2, runs_pb2
from flint_contracts.gen.flint.runs.v1.control_pb2_grpc import RunControlServiceStub
from flint_sdk import AsyncFlint, QueueFull, StartRequest
from flint_sdk._errors import error_from_rpc, error_from_status
from support.holders import Holders, holders_world, most_at_once
from support.house import House, open_house
from support.stack import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

QUEUE = 150
PROBLEM = "https://flint.dev/errors/concurrency-limit"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    async with open_house(tmp_path_factory.mktemp("house"), scheduler={"queue_limit": QUEUE}) as house:
        yield house


@pytest_asyncio.fixture(loop_scope="module")
async def world() -> AsyncIterator[Holders]:
    async with holders_world() as world:
        yield world


HOLD = "do: [{hold: {call: http, with: {method: post, endpoint: '${ $workflow.input.url }'}}}]"
NOTHING = "do: [{nothing: {set: {done: true}}}]"


async def apply(house: House, hints: str, body: str = HOLD) -> str:
    name = house.name("permits")
    head = f"dsl: 1.0.3, namespace: default, name: {name}, version: 1.0.0, metadata: {{flint: {{{hints}}}}}"
    await house.flint.apply(f"document: {{{head}}}\n{body}")
    return name


async def spans(house: House, workflow: str) -> list[tuple[float, float]]:
    rows = await house.record.rows(
        "SELECT r.started_at, r.ended_at FROM run r JOIN workflow_version d USING (definition_id)"
        " WHERE d.workflow_id = :w AND r.started_at IS NOT NULL",
        w=workflow,
    )
    found = []
    for begun, ended in rows:
        assert isinstance(begun, datetime)
        assert isinstance(ended, datetime)
        found.append((begun.timestamp(), ended.timestamp()))
    return found


async def no_permits(house: House) -> bool:
    return await house.record.number("SELECT (SELECT count(*) FROM permit) + (SELECT count(*) FROM permit_wait)") == 0


async def test_a_key_of_three_never_shows_four_holders(house: House, world: Holders) -> None:
    workflow = await apply(house, "concurrency: {key: '${ .shop }', limit: 3}")

    async def shared_out() -> bool:
        return len(set((await house.record.owners()).values())) == 2

    await eventually(shared_out, timeout_s=60)
    given = {"url": world.url, "shop": "s1"}
    async with AsyncFlint(house.stack.gateway, house.stack.admin_key, coalesce_starts=False) as each_by_itself:
        started = await asyncio.gather(*(each_by_itself.start(workflow, given) for _ in range(200)))
    ids = [handle.id for handle in started]
    owners = await house.record.number(
        "SELECT count(DISTINCT g.session_id) FROM run r JOIN shard_group g USING (group_id)"
        " WHERE r.run_id = ANY(CAST(:ids AS uuid[]))",
        ids=ids,
    )
    assert owners == 2
    async with asyncio.timeout(120):
        runs = [await house.flint.wait(run, 120.0) for run in ids]
    assert {run.state for run in runs} == {"SUCCEEDED"}
    assert world.most == 3
    assert len(world.calls) == 200
    recorded = await spans(house, workflow)
    assert len(recorded) == 200
    assert most_at_once(recorded) == 3
    await eventually(lambda: no_permits(house))


async def test_runs_with_other_keys_do_not_wait(house: House, world: Holders) -> None:
    workflow = await apply(house, "concurrency: {key: '${ .shop }', limit: 1}")
    world.gate.clear()
    first = await house.flint.start(workflow, {"url": world.url, "shop": "a"})
    await eventually(lambda: first.id in world.holding)
    second = await house.flint.start(workflow, {"url": world.url, "shop": "a"})
    other = await house.flint.start(workflow, {"url": world.url, "shop": "b"})
    await eventually(lambda: other.id in world.holding)
    assert second.id not in world.holding
    world.gate.set()
    assert (await house.flint.wait(second.id, 60.0)).state == "SUCCEEDED"
    assert (await house.flint.wait(other.id, 60.0)).state == "SUCCEEDED"


async def test_a_holder_that_waited_goes_on_before_more_urgent_runs_that_wait_for_it(house: House) -> None:
    rests = "do: [{rest: {wait: PT3S}}, {nothing: {set: {done: true}}}]"
    workflow = await apply(house, "concurrency: {key: '${ .shop }', limit: 1}", rests)

    async def waits(run: str) -> bool:
        return (await house.flint.get_run(run)).state == "WAITING"

    holder = await house.flint.start(workflow, {"shop": "r"})
    await eventually(lambda: waits(holder.id), timeout_s=60)
    # Both schedulers have some that are to go first once the permit is free.
    urgent = [await house.flint.start(workflow, {"shop": "r"}, level=1) for _ in range(4)]
    async with asyncio.timeout(120):
        runs = [await house.flint.wait(run.id, 120.0) for run in (holder, *urgent)]
    assert {run.state for run in runs} == {"SUCCEEDED"}
    assert most_at_once(await spans(house, workflow)) == 1


async def test_a_rate_is_never_exceeded_in_any_window(house: House) -> None:
    workflow = await apply(house, "rate: {count: 20, per: PT1S}", NOTHING)
    started = await house.flint.start_many([StartRequest(workflow, {}) for _ in range(50)])
    for handle in started:
        assert not isinstance(handle, BaseException)
        assert (await house.flint.wait(handle.id, 60.0)).state == "SUCCEEDED"
    begun = sorted(b for b, _ in await spans(house, workflow))
    assert len(begun) == 50
    for first, last in itertools.combinations(range(50), 2):
        assert last - first <= 20 * (begun[last] - begun[first]) + 1e-3


async def test_what_is_over_the_limit_is_refused_or_replaces(house: House, world: Holders) -> None:
    refuse = await apply(house, "concurrency: {limit: 1, overflow: refuse}")
    replace = await apply(house, "concurrency: {limit: 1, overflow: replace}")
    world.gate.clear()
    holders = [await house.flint.start(w, {"url": world.url}) for w in (refuse, replace)]
    await eventually(lambda: {h.id for h in holders} <= world.holding)
    refused = await house.flint.start(refuse, {"url": world.url})
    run = await house.flint.wait(refused.id, 60.0)
    assert run.state == "CANCELLED"
    assert run.error is not None
    assert (run.error.type, run.error.status) == (PROBLEM, 429)
    newest = await house.flint.start(replace, {"url": world.url})
    replaced = await house.flint.wait(holders[1].id, 60.0)
    assert replaced.state == "CANCELLED"
    assert replaced.error is not None
    assert newest.id in replaced.error.detail
    world.gate.set()
    assert (await house.flint.wait(newest.id, 60.0)).state == "SUCCEEDED"
    assert (await house.flint.wait(holders[0].id, 60.0)).state == "SUCCEEDED"


async def test_a_permit_outlives_a_run_that_was_ended_over_its_leg(house: House, world: Holders) -> None:
    workflow = await apply(house, "concurrency: {limit: 1}")
    world.gate.clear()
    first = await house.flint.start(workflow, {"url": world.url})
    await eventually(lambda: first.id in world.holding)
    second = await house.flint.start(workflow, {"url": world.url})
    control = RunControlServiceStub(house.raw.channel)  # type: ignore[no-untyped-call]
    await control.TerminateRun(
        control_pb2.TerminateRunRequest(name=f"namespaces/default/runs/{first.id}"), metadata=house.raw.metadata
    )
    assert (await house.flint.wait(first.id, 60.0)).state == "CANCELLED"
    # The worker gives the leg up when it is told to; only then it is the other one's turn.
    await eventually(lambda: second.id in world.holding, timeout_s=60)
    assert await house.record.number("SELECT count(*) FROM permit WHERE claimant IS NOT NULL") == 0
    logs = [house.stack.log(name, 5000) for name in ("scheduler-1", "scheduler-2")]
    assert any("permits_freed_after_their_runs" in log for log in logs)
    world.gate.set()
    assert (await house.flint.wait(second.id, 60.0)).state == "SUCCEEDED"


async def test_a_named_limit_is_changed_while_runs_wait(house: House, world: Holders) -> None:
    workflow = await apply(house, "concurrency: {limit: shops}")
    world.gate.clear()
    handles = [await house.flint.start(workflow, {"url": world.url}) for _ in range(3)]

    async def waiting(count: int) -> bool:
        return [limit.waiting async for limit in house.flint.list_limits()] == [count]

    await house.flint.set_limit("shops", concurrency=1)
    await eventually(lambda: len(world.holding) == 1)
    await eventually(lambda: waiting(2) if len(world.holding) == 1 else False)
    assert (await house.flint.set_limit("shops", concurrency=2)).holders == 1
    await eventually(lambda: len(world.holding) == 2)
    world.gate.set()
    for handle in handles:
        assert (await house.flint.wait(handle.id, 60.0)).state == "SUCCEEDED"
    assert world.most == 2
    await house.flint.delete_limit("shops")


async def test_a_flood_is_accepted_or_told_to_come_back_and_nothing_is_dropped(house: House) -> None:
    workflow = await apply(house, "concurrency: {limit: flood}", NOTHING)
    await house.flint.set_limit("flood", concurrency=0)
    parent = "namespaces/default"
    accepted: list[str] = []

    async def start() -> None:
        request = runs_pb2.StartRunRequest(parent=parent, workflow_id=workflow)
        try:
            answer = await house.raw.runs.StartRun(request, metadata=house.raw.metadata)
        except grpc.aio.AioRpcError as error:
            refused = error_from_rpc(error)
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, refused
            assert isinstance(refused, QueueFull)
            assert refused.retry_after_s is not None
            assert refused.retry_after_s > 0
        else:
            accepted.append(answer.run.name.rpartition("/")[2])

    async with asyncio.timeout(120):
        for _ in range(8):
            await asyncio.gather(*(start() for _ in range(100)))
    assert 1 <= len(accepted) < 800
    stored = await house.record.number(
        "SELECT count(*) FROM run r JOIN workflow_version d USING (definition_id) WHERE d.workflow_id = :w", w=workflow
    )
    assert stored == len(accepted) <= 2 * (QUEUE + 64), "beyond the limit are those that ask at this moment at most"
    await house.flint.set_limit("flood", concurrency=100)
    for run in accepted:
        assert (await house.flint.wait(run, 60.0)).state == "SUCCEEDED"
    await house.flint.delete_limit("flood")


async def test_of_a_batch_beyond_the_queue_as_many_are_started_as_fit(house: House) -> None:
    workflow = await apply(house, "level: 5", NOTHING)
    one = runs_pb2.StartRunRequest(parent="namespaces/default", workflow_id=workflow)
    batch = runs_pb2.StartRunsRequest(parent="namespaces/default", requests=[one] * (QUEUE + 50))
    answer = await house.raw.runs.StartRuns(batch, metadata=house.raw.metadata)
    accepted = [each.response.run.name for each in answer.results if each.WhichOneof("result") == "response"]
    refused = [error_from_status(each.error) for each in answer.results if each.WhichOneof("result") == "error"]
    assert 1 <= len(accepted) <= QUEUE
    assert len(accepted) + len(refused) == QUEUE + 50
    assert all(isinstance(error, QueueFull) and error.retry_after_s for error in refused)
    for run in accepted:
        assert (await house.flint.wait(run, 60.0)).state == "SUCCEEDED"
    handles = await house.flint.start_many([StartRequest(workflow, {}) for _ in range(QUEUE + 50)], timeout_s=60)
    for handle in handles:
        assert not isinstance(handle, Exception), handle
        assert await handle.result(60.0) == {"done": True}
