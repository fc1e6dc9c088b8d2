"""What workers and readers of the fleet see: registration, heartbeats, loss, departure, drain."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from flint_contracts.gen.flint.fleet.v1.fleet_pb2 import Worker
from flint_contracts.gen.flint.registry.v1 import registry_pb2
from flint_coord import Coord, keys
from flint_ops.config import NatsSettings
from flint_rpc.errors import Refused
from support.etcd_server import free_ports
from support.registry_client import RegistryClient


def beat_of(card: registry_pb2.WorkerCard, **fields: Any) -> registry_pb2.Beat:
    return registry_pb2.Beat(incarnation=card.incarnation, lease_id=card.lease_id, **fields)


async def test_a_worker_registers_at_one_replica_and_is_seen_at_all(start: Any, coord: Coord, eventually: Any) -> None:
    first, second = start("registry-1"), start("registry-2")
    card = await first.client.register("worker-1", slots=7, labels={"disk": "fast"}, pid=42, host="here")
    again = await second.client.register("worker-1")
    assert card.incarnation != again.incarnation
    assert card.lease_id != again.lease_id

    item = await coord.get(keys.worker(card.incarnation))
    assert item is not None
    assert item.lease_id == card.lease_id
    assert registry_pb2.WorkerCard.FromString(item.value) == card
    for each in (first, second):

        async def seen(client: Any = each.client) -> bool:
            return set(await client.workers()) == {card.incarnation, again.incarnation}

        await eventually(seen)
    worker = (await second.client.workers())[card.incarnation]
    assert (worker.worker_id, worker.slots, worker.pid, worker.host) == ("worker-1", 7, 42, "here")
    assert worker.state == Worker.STATE_READY
    assert dict(worker.labels) == {"disk": "fast"}
    assert not worker.HasField("heartbeat_time")


async def test_beats_to_one_replica_are_shown_by_the_other(start: Any, eventually: Any) -> None:
    first, second = start("registry-1"), start("registry-2")
    card = await first.client.register()

    async def shown() -> bool:
        assert await first.client.beat(beat_of(card, legs=3, cpu_cores=0.5, memory_bytes=10, draining=True)) == [
            (True, False)
        ]
        worker = (await second.client.workers()).get(card.incarnation)
        return worker is not None and (worker.legs, worker.cpu_cores, worker.memory_bytes, worker.state) == (
            3,
            0.5,
            10,
            Worker.STATE_DRAINING,
        )

    await eventually(shown)


async def test_any_replica_renews_many_leases_in_one_call_and_names_the_ended(start: Any) -> None:
    first, second = start("registry-1", lease_ttl_s=20), start("registry-2")
    cards = await asyncio.gather(*(first.client.register(f"worker-{number}") for number in range(120)))
    await first.client.deregister(cards[5])
    foreign = registry_pb2.Beat(incarnation=cards[6].incarnation, lease_id=cards[7].lease_id)
    unknown = registry_pb2.Beat(incarnation="0" * 32, lease_id=77)
    beats = [beat_of(card) for card in cards] + [foreign, unknown]
    answers = await second.client.beat(*beats)
    assert [number for number, (renewed, _) in enumerate(answers) if not renewed] == [5, 120, 121]
    assert await second.client.beat() == []


async def test_a_worker_that_stops_beating_is_lost_and_the_others_live_on(start: Any, eventually: Any) -> None:
    first, second = start("registry-1", lease_ttl_s=6), start("registry-2")
    alive, silent = await first.client.register("alive"), await first.client.register("silent")

    async def lost() -> bool:
        assert await second.client.beat(beat_of(alive)) == [(True, False)]
        worker = (await second.client.workers(ended=True)).get(silent.incarnation)
        return worker is not None and worker.state == Worker.STATE_LOST

    await eventually(lost)
    for client in (first.client, second.client):
        assert set(await client.workers()) == {alive.incarnation}
        worker = (await client.workers(ended=True))[silent.incarnation]
        assert worker.worker_id == "silent"
        assert worker.end_time.ToMilliseconds() >= worker.register_time.ToMilliseconds()
    assert await first.client.beat(beat_of(silent)) == [(False, False)]


async def test_a_worker_that_leaves_has_ended_at_once(start: Any, eventually: Any) -> None:
    first, second = start("registry-1", lease_ttl_s=60), start("registry-2")
    card = await first.client.register()
    await second.client.deregister(card)
    await first.client.deregister(card)

    async def ended() -> bool:
        if await first.client.workers():
            return False
        worker = (await first.client.workers(ended=True)).get(card.incarnation)
        return worker is not None and worker.state == Worker.STATE_ENDED

    await eventually(ended)
    assert await first.client.beat(beat_of(card)) == [(False, False)]


async def test_a_lease_whose_key_was_deleted_is_not_renewed(start: Any, coord: Coord, eventually: Any) -> None:
    first = start("registry-1", lease_ttl_s=60)
    card = await first.client.register()
    assert await coord.delete(keys.worker(card.incarnation))

    async def refused() -> bool:
        return await first.client.beat(beat_of(card)) == [(False, False)]  # type: ignore[no-any-return]

    await eventually(refused)


async def test_a_worker_that_is_asked_to_drain_hears_of_it_from_any_replica(start: Any, eventually: Any) -> None:
    first, second = start("registry-1", lease_ttl_s=20), start("registry-2")
    card, other = await first.client.register("one"), await first.client.register("two")
    worker = await first.client.drain(card.incarnation)
    assert (worker.name, worker.state) == (f"workers/{card.incarnation}", Worker.STATE_DRAINING)

    async def heard() -> bool:
        return await second.client.beat(beat_of(card), beat_of(other)) == [(True, True), (True, False)]  # type: ignore[no-any-return]

    await eventually(heard)
    states = {worker.worker_id: worker.state for worker in (await second.client.workers()).values()}
    assert states == {"one": Worker.STATE_DRAINING, "two": Worker.STATE_READY}


async def test_only_live_workers_can_be_asked_to_drain(start: Any) -> None:
    first = start("registry-1")
    card = await first.client.register()
    await first.client.deregister(card)
    for incarnation in ("0" * 32, card.incarnation):
        with pytest.raises(Refused) as refused:
            await first.client.drain(incarnation)
        assert refused.value.code is grpc.StatusCode.NOT_FOUND
        assert refused.value.reason_name == "WORKER_NOT_FOUND"
    with pytest.raises(Refused) as refused:
        await first.client.drain("nonsense")
    assert refused.value.reason_name == "FIELD_INVALID"


async def test_workers_are_listed_by_pool_then_by_id(start: Any, eventually: Any) -> None:
    first = start("registry-1", lease_ttl_s=20)
    for worker_id, pool in (("b", "late"), ("a", "late"), ("c", "early")):
        await first.client.register(worker_id, pool=pool)

    async def listed() -> bool:
        workers = (await first.client.workers()).values()
        return [(worker.pool, worker.worker_id) for worker in workers] == [("early", "c"), ("late", "a"), ("late", "b")]

    await eventually(listed)


async def test_a_malformed_card_is_refused_with_every_field_named(start: Any) -> None:
    first = start("registry-1")
    with pytest.raises(Refused) as refused:
        await first.client.register(
            "Not A Label", pool="", slots=0, incarnation="mine", labels={str(n): "" for n in range(33)}
        )
    assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in refused.value.field_violations] == [
        "card.worker_id",
        "card.pool",
        "card.slots",
        "card.incarnation",
        "card.labels",
    ]
    with pytest.raises(Refused) as refused:
        await first.client.beat(*[registry_pb2.Beat(incarnation="0" * 32)] * 1001)
    assert refused.value.field_violations[0].field == "beats"


async def test_a_caller_without_the_token_is_refused(start: Any) -> None:
    first = start("registry-1")
    for token, reason in (("", "CREDENTIALS_MISSING"), ("another", "CREDENTIALS_INVALID")):
        client = RegistryClient(first.settings.registry.listen, token)
        with pytest.raises(Refused) as refused:
            await client.workers()
        assert refused.value.reason_name == reason
        await client.close()


async def test_without_nats_workers_register_and_renew(start: Any, settings: Any, eventually: Any) -> None:
    elsewhere = NatsSettings(urls=[f"nats://127.0.0.1:{free_ports(1)[0]}"])
    first = start("registry-1", settings.model_copy(update={"nats": elsewhere}))
    card = await first.client.register()

    async def shown() -> bool:
        assert await first.client.beat(beat_of(card, legs=5)) == [(True, False)]
        worker = (await first.client.workers()).get(card.incarnation)
        return worker is not None and worker.legs == 5

    await eventually(shown)
    assert "nats" in first.lifecycle.readiness.failing()
