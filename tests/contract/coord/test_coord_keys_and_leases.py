"""Leases, keys and renewals against a real etcd."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from flint_coord import Coord, CoordRefused, CoordUnavailable, LeaseEnded
from flint_ops.clock import boottime
from flint_ops.config import EtcdSettings

Eventually = Callable[..., Awaitable[None]]


async def test_a_key_is_written_read_listed_and_deleted(coord: Coord) -> None:
    await coord.put("schedulers/a", "here")
    await coord.put("schedulers/b", b"there")
    item = await coord.get("schedulers/a")
    assert item is not None
    assert (item.key, item.value, item.lease_id) == ("schedulers/a", b"here", 0)
    assert [each.key for each in await coord.scan("schedulers/")] == ["schedulers/a", "schedulers/b"]
    assert await coord.delete("schedulers/a")
    assert not await coord.delete("schedulers/a")
    assert await coord.get("schedulers/a") is None


async def test_a_listing_longer_than_a_page_is_whole_and_sorted(coord: Coord) -> None:
    async with asyncio.TaskGroup() as group:
        for number in range(1203):
            group.create_task(coord.put(f"many/{number:05d}", str(number)))
    keys = [item.key for item in await coord.scan("many/")]
    assert keys == [f"many/{number:05d}" for number in range(1203)]


async def test_clusters_do_not_see_each_other(coord: Coord, etcd: Any) -> None:
    other = await Coord.connect(etcd.settings(), cluster="somebody-else")
    try:
        await other.put("groups/1", "theirs")
        assert await coord.get("groups/1") is None
    finally:
        await other.close()


async def test_only_one_of_many_creators_wins(coord: Coord) -> None:
    leases = await asyncio.gather(*(coord.grant(30) for _ in range(8)))
    won = await asyncio.gather(*(coord.create("groups/7", str(lease.id), lease.id) for lease in leases))
    assert sum(won) == 1
    item = await coord.get("groups/7")
    assert item is not None
    assert item.lease_id == leases[won.index(True)].id


async def test_creating_again_under_the_same_lease_says_that_it_is_held(coord: Coord) -> None:
    lease, other = await coord.grant(30), await coord.grant(30)
    assert await coord.create("groups/1", "me", lease.id)
    assert await coord.create("groups/1", "me", lease.id)
    assert not await coord.create("groups/1", "me", other.id)
    assert not await coord.create("groups/1", "you", lease.id)


async def test_a_key_held_under_another_lease_is_not_deleted(coord: Coord) -> None:
    mine, yours = await coord.grant(30), await coord.grant(30)
    await coord.put("groups/1", "me", mine.id)
    assert not await coord.delete("groups/1", only_lease=yours.id)
    assert await coord.delete("groups/1", only_lease=mine.id)


async def test_a_dead_lease_holds_no_key(coord: Coord) -> None:
    lease = await coord.grant(30)
    await coord.put("schedulers/a", "here", lease.id)
    await lease.revoke()
    assert lease.lost.is_set()
    assert not lease.valid
    assert await coord.get("schedulers/a") is None
    with pytest.raises(LeaseEnded):
        await coord.put("schedulers/a", "here", lease.id)
    with pytest.raises(LeaseEnded):
        await coord.create("schedulers/a", "here", lease.id)
    await lease.revoke()


async def test_a_lease_shorter_than_two_seconds_is_refused(coord: Coord) -> None:
    with pytest.raises(CoordRefused):
        await coord.grant(1)


async def test_validity_is_counted_from_before_the_request(coord: Coord) -> None:
    before = boottime()
    lease = await coord.grant(3)
    assert before + 3 <= lease.valid_until <= boottime() + 3
    assert lease.valid


async def test_a_kept_lease_outlives_its_time_and_an_unkept_one_does_not(coord: Coord, eventually: Eventually) -> None:
    kept, unkept = await coord.grant(6), await coord.grant(2)
    kept.keep()
    await coord.put("schedulers/kept", "", kept.id)
    await coord.put("schedulers/unkept", "", unkept.id)

    async def only_kept() -> bool:
        return [item.key for item in await coord.scan("schedulers/")] == ["schedulers/kept"]

    await eventually(only_kept)
    assert kept.valid
    assert not unkept.valid
    assert await coord.renew(unkept.id) == 0


async def test_a_lease_revoked_by_somebody_else_is_noticed(coord: Coord) -> None:
    lease = await coord.grant(3)
    keeper = lease.keep()
    assert lease.keep() is keeper
    await coord.revoke(lease.id)
    async with asyncio.timeout(60):
        await lease.lost.wait()
    assert not lease.valid


async def test_anybody_renews_many_leases_in_one_batch(coord: Coord, etcd: Any, cluster: str) -> None:
    leases = await asyncio.gather(*(coord.grant(20) for _ in range(300)))
    await leases[17].revoke()
    other = await Coord.connect(etcd.settings(), cluster=cluster)
    try:
        answers = await other.renew_many([lease.id for lease in leases] + [12345])
    finally:
        await other.close()
    assert [index for index, ttl in enumerate(answers) if ttl == 0] == [17, 300]
    assert set(answers) == {0, 20}


async def test_renewals_of_one_lease_do_not_share_an_answer(coord: Coord) -> None:
    lease = await coord.grant(20)
    answers = await asyncio.gather(*(coord.renew(lease.id) for _ in range(20)))
    assert answers == [20] * 20


async def test_a_renewal_survives_a_restart_of_etcd(coord: Coord, etcd: Any) -> None:
    lease = await coord.grant(20)
    assert await coord.renew(lease.id) == 20
    etcd.kill()
    renewal = asyncio.create_task(coord.renew(lease.id, timeout_s=60))
    etcd.start()
    assert await renewal == 20


async def test_without_etcd_every_request_ends_in_time(coord: Coord, etcd: Any, eventually: Eventually) -> None:
    lease = await coord.grant(2)
    lease.keep()
    assert coord.connected
    etcd.kill()
    for request in (
        coord.get("x", timeout_s=0.3),
        coord.put("x", "y", timeout_s=0.3),
        coord.create("x", "y", lease.id, timeout_s=0.3),
        coord.renew(lease.id, timeout_s=0.3),
        coord.grant(5, timeout_s=0.3),
        coord.ping(timeout_s=0.3),
    ):
        with pytest.raises(CoordUnavailable):
            async with asyncio.timeout(60):
                await request
    assert not coord.connected
    async with asyncio.timeout(60):
        await lease.lost.wait()
    assert boottime() >= lease.valid_until
    etcd.start()
    await coord.ping(timeout_s=60)
    await eventually(lambda: coord.connected)


async def test_a_kept_lease_ends_here_before_a_hung_etcd_answers(coord: Coord, etcd: Any) -> None:
    lease = await coord.grant(2)
    lease.keep()
    etcd.pause()
    async with asyncio.timeout(60):
        await lease.lost.wait()
    assert not lease.valid
    etcd.resume()


async def test_a_wiped_store_has_another_identity_and_no_leases(coord: Coord, etcd: Any) -> None:
    lease = await coord.grant(20)
    before = await coord.store_identity()
    assert (await coord.store_identity()).same_store(before)
    etcd.wipe()
    etcd.start()
    assert not (await coord.store_identity(timeout_s=60)).same_store(before)
    assert await coord.renew(lease.id, timeout_s=60) == 0


async def test_a_dead_endpoint_among_several_is_passed_over(etcd: Any, cluster: str) -> None:
    made = await Coord.connect(EtcdSettings(endpoints=["127.0.0.1:1", etcd.endpoint]), cluster=cluster)
    try:
        await made.put("x", "y")
        lease = await made.grant(5)
        assert await made.renew(lease.id) == 5
    finally:
        await made.close()


@pytest.mark.parametrize("endpoint", ["nowhere", ":2379", "127.0.0.1:port"])
async def test_a_malformed_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(CoordRefused):
        await Coord.connect(EtcdSettings(endpoints=[endpoint]), cluster="x")
