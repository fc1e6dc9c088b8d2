"""Large values through the schedulers' desk, to PostgreSQL and to S3, and back."""

from __future__ import annotations

import asyncio
import hashlib
import os
import uuid

import pytest
from sqlalchemy import text

from flint_bus.payloads import CHUNK_BYTES, PayloadClient, PayloadMissing
from flint_core.payloads import Payload, Reference
from flint_store import payloads
from flint_store.engine import write

RUN = uuid.uuid4().bytes


def payload_of(data: bytes) -> Payload:
    return Payload(Reference(hashlib.sha256(data).hexdigest(), len(data)), data)


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 5 * CHUNK_BYTES + 77])
async def test_what_is_put_comes_back(shop, size):
    payload = payload_of(os.urandom(size))
    await shop.client.put("default", payload, RUN)
    assert await shop.client.get("default", payload.reference) == payload.data
    await shop.client.put("default", payload, RUN)  # the same again is no second copy
    rows = await write(shop.engine, text("SELECT count(*) AS n, sum(length(data)) AS size FROM payload_chunk"), {})
    assert (rows[0].n, rows[0].size or 0) == ((size + CHUNK_BYTES - 1) // CHUNK_BYTES, size)


async def test_another_namespace_does_not_see_it(shop):
    payload = payload_of(b"mine")
    await shop.client.put("mine", payload)
    with pytest.raises(PayloadMissing):
        await shop.client.get("yours", payload.reference)


async def test_a_reference_that_lies_about_the_size_is_refused(shop):
    payload = payload_of(b"data")
    await shop.client.put("default", payload)
    with pytest.raises(PayloadMissing):
        await shop.client.get("default", Reference(payload.reference.sha256, 3))


async def test_content_that_is_not_what_its_name_says_is_refused(shop):
    lie = Payload(Reference("ab" * 32, 4), b"data")
    await shop.client.put("default", lie)
    with pytest.raises(PayloadMissing):
        await shop.client.get("default", lie.reference)


async def test_a_payload_without_all_of_its_chunks_does_not_exist(shop):
    payload = payload_of(os.urandom(2 * CHUNK_BYTES))
    digest = bytes.fromhex(payload.reference.sha256)
    await payloads.put_chunk(shop.engine, "default", digest, 0, payload.data[:CHUNK_BYTES])
    with pytest.raises(payloads.PayloadIncomplete):
        await payloads.finish(
            shop.engine, "default", digest, size=2 * CHUNK_BYTES, chunks=2, location="postgres", run_id=None
        )
    with pytest.raises(PayloadMissing):
        await shop.client.get("default", payload.reference)
    await shop.client.put("default", payload)  # whoever comes next completes it
    assert await shop.client.get("default", payload.reference) == payload.data


async def test_many_at_once(shop):
    everything = [payload_of(os.urandom(300_000) + bytes([n])) for n in range(40)]
    async with asyncio.TaskGroup() as group:
        for payload in everything:
            group.create_task(shop.client.put("default", payload))
    for payload in everything:
        assert await shop.client.get("default", payload.reference) == payload.data


async def test_what_no_run_names_is_dropped_after_a_while(shop):
    used, unused, fresh = payload_of(b"used"), payload_of(b"unused"), payload_of(b"fresh")
    await shop.client.put("default", used, RUN)
    await shop.client.put("default", unused)
    torso = bytes(32)
    await payloads.put_chunk(shop.engine, "default", torso, 0, b"begun and never ended")
    old = "now() - interval '1 hour'"
    await write(shop.engine, text(f"UPDATE payload SET touched_at = {old} RETURNING 1"), {})
    await write(shop.engine, text(f"UPDATE payload_chunk SET created_at = {old} RETURNING 1"), {})
    await shop.client.put("default", fresh)
    assert await shop.desk.drop_unused() == 1
    assert await shop.client.get("default", used.reference) == b"used"
    assert await shop.client.get("default", fresh.reference) == b"fresh"
    with pytest.raises(PayloadMissing):
        await shop.client.get("default", unused.reference)
    assert await payloads.get_chunk(shop.engine, "default", torso, 0) is None


async def test_room_is_bounded_and_the_largest_goes_alone(shop):
    client = PayloadClient(shop.bus, 100)
    held = asyncio.Event()
    order: list[str] = []

    async def hold(name: str, size: int, until: asyncio.Event | None) -> None:
        async with client.room.hold(size):
            order.append(name)
            held.set()
            if until is not None:
                await until.wait()

    leave = asyncio.Event()
    first = asyncio.create_task(hold("first", 80, leave))
    await held.wait()
    waiting = asyncio.create_task(hold("too large for the rest", 30, None))
    huge = asyncio.create_task(hold("larger than all", 1000, None))
    small = asyncio.create_task(hold("small", 10, None))
    await asyncio.wait({small, huge, waiting}, timeout=0)
    assert order == ["first"]  # the small one would fit, and would be one of many that keep the large ones out
    leave.set()
    await asyncio.gather(first, waiting, huge, small)
    assert order[1:] == ["too large for the rest", "larger than all", "small"]
    assert client.room.used == 0


async def test_cached_results_expire(shop):
    key = hashlib.sha256(b"key").digest()
    assert await shop.client.cached("default", key) is None
    await shop.client.keep("default", key, b'{"a":1}', 60_000)
    assert await shop.client.cached("default", key) == b'{"a":1}'
    assert await shop.client.cached("other", key) is None
    await shop.client.keep("default", key, b"2", 60_000)
    assert await shop.client.cached("default", key) == b"2"
    await write(shop.engine, text("UPDATE result_cache SET expires_at = now() RETURNING 1"), {})
    assert await shop.client.cached("default", key) is None
    assert await payloads.drop_expired_results(shop.engine, 10) == 1
