"""Workers that stand aside for a time: put aside, asked for their legs, back on probation, released."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from flint_contracts.gen.flint.fleet.v1.fleet_pb2 import Worker
from flint_contracts.gen.flint.registry.v1 import registry_pb2
from flint_coord import Coord, keys
from flint_ops.config import QuarantineSettings
from flint_registry.quarantine import Quarantine
from flint_registry.view import FleetView
from flint_rpc.errors import Refused
from support.registry_client import RegistryClient

ASIDE = registry_pb2.Quarantine.STATE_ASIDE
PROBATION = registry_pb2.Quarantine.STATE_PROBATION
NAMES = [f"{number:032x}" for number in range(4)]
ILL = NAMES[2]


@pytest.fixture
async def view(coord: Coord) -> AsyncIterator[FleetView]:
    """Four workers of a pool, as a registry sees them."""
    lease = await coord.grant(600)
    for name in NAMES:
        card = registry_pb2.WorkerCard(
            incarnation=name, worker_id=f"w{name[-1]}", pool="p", region="r", slots=4, lease_id=lease.id
        )
        await coord.put(keys.worker(name), card.SerializeToString(), lease.id)
    seen = FleetView(coord)
    tasks = [asyncio.create_task(seen.follow_workers()), asyncio.create_task(seen.follow_quarantines())]
    await asyncio.wait_for(seen.known.wait(), 60)
    yield seen
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def worked(view: FleetView, calls: int, failed: int) -> None:
    """Heartbeats: each has made so many calls in all, of which the ill one failed at so many."""
    view.hear(
        registry_pb2.Beat(
            incarnation=name,
            functions=[
                registry_pb2.FunctionFigures(
                    function="http", calls=calls, errors=failed if name == ILL else 0, duration_ms=calls
                )
            ],
        )
        for name in NAMES
    )


async def test_it_comes_back_and_stands_aside_for_twice_as_long(coord: Coord, view: FleetView, eventually: Any) -> None:
    settings = QuarantineSettings(window_s=60, minimum_calls=20, quarantine_s=100)
    quarantine = Quarantine(settings, coord, view)

    async def told() -> registry_pb2.Quarantine | None:
        item = await coord.get(keys.quarantine(ILL))
        return registry_pb2.Quarantine.FromString(item.value) if item is not None else None

    async def seen(state: int | None, *, aside: bool) -> None:
        """By the view, which follows etcd."""

        async def so() -> bool:
            worker, known = view.get(ILL), view.known_quarantine(ILL)
            assert worker is not None
            marks = {worker.card.draining, worker.card.quarantined}
            return (known.state if known is not None else None) == state and marks == {aside}

        await eventually(so)

    async def tend(at_ms: int, state: int | None, *, aside: bool) -> None:
        """Until everything is as it will be; a difference counts when it is seen twice."""
        for _ in range(2):
            await quarantine.tend(at_ms)
        await seen(state, aside=aside)

    worked(view, 0, 0)
    await quarantine.look(0.0)
    worked(view, 50, 45)
    await quarantine.look(30.0)
    await seen(ASIDE, aside=True)
    first = await told()
    assert first is not None and first.times == 1 and "calls of http failed" in first.reason
    worker = view.get(ILL)
    assert worker is not None and view.leaves(worker) and not view.ends(worker)
    assert [w.worker_id for w in view.shown() if w.HasField("quarantine_end_time")] == ["w2"]
    end_ms = first.end_time.ToMilliseconds()
    assert end_ms - first.time.ToMilliseconds() == 100_000
    await tend(end_ms - 1, ASIDE, aside=True)
    await quarantine.look(60.0)  # it is put aside once

    # Its time is over: on probation, with a clean slate.
    await quarantine.tend(end_ms)
    await seen(PROBATION, aside=True)
    await tend(end_ms, PROBATION, aside=False)
    worker = view.get(ILL)
    assert worker is not None and not view.leaves(worker)
    assert not any(w.quarantine_reason for w in view.shown())
    await quarantine.look(90.0)
    worked(view, 60, 55)
    await quarantine.look(95.0)
    assert view.quarantine(ILL) is None, "ten calls say nothing, and what was before does not count"
    worked(view, 100, 95)
    await quarantine.look(100.0)
    await seen(ASIDE, aside=True)
    second = await told()
    assert second is not None and second.times == 2
    assert second.end_time.ToMilliseconds() - second.time.ToMilliseconds() == 200_000

    # The probation is stood this time: all is forgotten.
    end_ms = second.end_time.ToMilliseconds()
    await quarantine.tend(end_ms)
    await seen(PROBATION, aside=True)
    await tend(end_ms, PROBATION, aside=False)
    back = await told()
    assert back is not None and back.end_time.ToMilliseconds() == end_ms + 200_000
    await tend(end_ms + 200_000, None, aside=False)
    assert await told() is None


async def test_a_leader_that_died_between_the_two_leaves_nothing_undone(
    coord: Coord, view: FleetView, eventually: Any
) -> None:
    quarantine = Quarantine(QuarantineSettings(), coord, view)
    worker = view.get(ILL)
    assert worker is not None
    told = registry_pb2.Quarantine(incarnation=ILL, state=ASIDE)
    told.end_time.FromMilliseconds(10_000)

    async def marked(aside: bool) -> None:
        async def so() -> bool:
            await quarantine.tend(5_000)
            found = view.get(ILL)
            assert found is not None
            return found.card.quarantined is aside

        await eventually(so)

    await coord.put(keys.quarantine(ILL), told.SerializeToString(), worker.card.lease_id)
    await marked(True)
    assert [w.state for w in view.shown()].count(Worker.STATE_DRAINING) == 1
    await coord.delete(keys.quarantine(ILL))
    await marked(False)
    assert {w.state for w in view.shown()} == {Worker.STATE_READY}


async def test_a_worker_is_released_by_any_replica(start: Any, coord: Coord, eventually: Any) -> None:
    first, second = start("registry-1", lease_ttl_s=60), start("registry-2", lease_ttl_s=60)
    card = await first.client.register()
    told = registry_pb2.Quarantine(incarnation=card.incarnation, reason="it is ill", state=ASIDE, times=1)
    told.end_time.FromMilliseconds(int(time.time() * 1000) + 3_600_000)

    async def beat(client: RegistryClient) -> registry_pb2.BeatResult:
        one = registry_pb2.Beat(incarnation=card.incarnation, lease_id=card.lease_id, legs=1)
        response = await client.call("Heartbeat", registry_pb2.HeartbeatRequest(beats=[one]))
        (result,) = response.results
        assert result.renewed and not result.drain
        return result

    async def shown(client: RegistryClient, state: int, reason: str, *, give_back: bool) -> None:
        async def so() -> bool:
            worker = (await client.workers()).get(card.incarnation)
            asked = (await beat(client)).give_back
            return worker is not None and (worker.state, worker.quarantine_reason, asked) == (state, reason, give_back)

        await eventually(so)

    async def release(client: RegistryClient, incarnation: str) -> bool:
        request = registry_pb2.ReleaseWorkerRequest(incarnation=incarnation)
        return (await client.call("ReleaseWorker", request)).released  # type: ignore[no-any-return]

    await coord.put(keys.quarantine(card.incarnation), told.SerializeToString(), card.lease_id)
    for each in (first, second):
        await shown(each.client, Worker.STATE_DRAINING, "it is ill", give_back=True)
    assert await release(second.client, card.incarnation)
    assert not await release(first.client, card.incarnation)
    for each in (first, second):
        await shown(each.client, Worker.STATE_READY, "", give_back=False)

    # One whose time is over comes back by itself.
    told.end_time.FromMilliseconds(int(time.time() * 1000) - 1)
    await coord.put(keys.quarantine(card.incarnation), told.SerializeToString(), card.lease_id)

    async def on_probation() -> bool:
        item = await coord.get(keys.quarantine(card.incarnation))
        return item is not None and registry_pb2.Quarantine.FromString(item.value).state == PROBATION

    await eventually(on_probation)
    await shown(first.client, Worker.STATE_READY, "", give_back=False)
    assert not await release(first.client, card.incarnation), "it stands aside no more"
    with pytest.raises(Refused):
        await release(first.client, "f" * 32)
