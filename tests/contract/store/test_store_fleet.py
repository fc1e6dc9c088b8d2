"""The fleet's history under leaders that overlap and repeat."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncEngine

from flint_contracts.gen.flint.fleet.v1 import fleet_pb2
from flint_contracts.gen.flint.registry.v1 import registry_pb2
from flint_store.fleet import end_worker, list_ended, live, upsert_worker

READY, DRAINING = fleet_pb2.Worker.STATE_READY, fleet_pb2.Worker.STATE_DRAINING
ENDED, LOST = fleet_pb2.Worker.STATE_ENDED, fleet_pb2.Worker.STATE_LOST
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


async def register(
    engine: AsyncEngine,
    incarnation: str,
    state: fleet_pb2.Worker.State.ValueType = READY,
    *,
    worker_id: str = "worker-1",
    pool: str = "default",
) -> bool:
    card = registry_pb2.WorkerCard(incarnation=incarnation, worker_id=worker_id, pool=pool, region="local", slots=4)
    return await upsert_worker(
        engine,
        card.SerializeToString(),
        incarnation=incarnation,
        worker_id=worker_id,
        pool=pool,
        region="local",
        state=state,
        at=NOW,
    )


async def test_a_worker_s_life(engine: AsyncEngine) -> None:
    assert await register(engine, "aa")
    [row] = await live(engine)
    assert (row.incarnation, row.state, row.registered_at, row.ended_at) == ("aa", READY, NOW, None)
    assert registry_pb2.WorkerCard.FromString(row.card).slots == 4
    assert not await register(engine, "aa"), "the same again is no change"
    assert await register(engine, "aa", DRAINING)
    assert (await live(engine))[0].state == DRAINING
    assert await end_worker(engine, "aa", ENDED, NOW + timedelta(minutes=1))
    assert await live(engine) == []
    [row] = await list_ended(engine, NOW)
    assert (row.incarnation, row.state, row.ended_at) == ("aa", ENDED, NOW + timedelta(minutes=1))


async def test_the_first_end_counts_and_nobody_comes_back(engine: AsyncEngine) -> None:
    await register(engine, "aa")
    assert await end_worker(engine, "aa", LOST, NOW)
    assert not await end_worker(engine, "aa", ENDED, NOW + timedelta(hours=1))
    assert not await register(engine, "aa")
    assert await live(engine) == []
    [row] = await list_ended(engine, NOW)
    assert (row.state, row.ended_at) == (LOST, NOW)
    assert not await end_worker(engine, "unknown", LOST, NOW)


async def test_lists(engine: AsyncEngine) -> None:
    for number, (worker_id, pool) in enumerate([("w2", "gpu"), ("w3", "default"), ("w1", "gpu"), ("w1", "default")]):
        await register(engine, f"i{number}", worker_id=worker_id, pool=pool)
    assert [(r.pool, r.worker_id) for r in await live(engine)] == [
        ("default", "w1"),
        ("default", "w3"),
        ("gpu", "w1"),
        ("gpu", "w2"),
    ]
    for number in range(4):
        await end_worker(engine, f"i{number}", ENDED, NOW + timedelta(minutes=number))
    recent = await list_ended(engine, NOW + timedelta(minutes=1))
    assert [r.incarnation for r in recent] == ["i3", "i2", "i1"]
    assert [r.incarnation for r in await list_ended(engine, NOW, limit=1)] == ["i3"]
