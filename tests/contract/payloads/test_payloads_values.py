"""Large values on a worker and at the gateway: references within contents, memory, and a store that is away."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from sqlalchemy import TextClause, text

from flint_bus import payloads as bus_payloads
from flint_bus.payloads import PayloadTooLarge
from flint_bus.room import Room
from flint_contracts.gen.flint.payloads.v1 import payloads_pb2
from flint_core.effects import Call, Evaluate
from flint_core.events import CallSucceeded
from flint_core.payloads import Payload, Reference
from flint_gateway import payloads as gateway_payloads
from flint_jq import EvaluatorPool
from flint_ops.clock import boottime
from flint_ops.config import LimitSettings
from flint_rpc.errors import Refused
from flint_worker.calls import Caller, Origin
from flint_worker.executors import RawJson, ResolvedCall
from flint_worker.journal import LegStopped
from flint_worker.lease import Lease
from flint_worker.secrets import SecretResolver
from flint_worker.values import Values

RUN = bytes(16)
# The desk goes on answering: that it cannot reach its store.
AWAY, BACK = text("ALTER TABLE payload RENAME TO away"), text("ALTER TABLE away RENAME TO payload")
LIMITS = LimitSettings(payload_bytes=4_096, value_bytes=2**20, values_in_memory_bytes=2 * 2**20)


async def change(shop: Any, statement: TextClause) -> None:
    async with shop.engine.connect() as connection:
        await connection.execute(statement)


async def stored(shop: Any, value: Any) -> dict[str, Any]:
    data = orjson.dumps(value)
    reference = Reference(hashlib.sha256(data).hexdigest(), len(data))
    await shop.client.put("default", Payload(reference, data))
    return reference.to_json()


@pytest.fixture
async def values(shop: Any) -> AsyncIterator[Values]:
    pool = EvaluatorPool(1, 1_000, 2**28, 100_000)
    await pool.start()
    opened = Values(shop.client, pool, LIMITS)
    yield opened
    await opened.close()
    await pool.close()


async def test_references_within_contents_are_resolved(shop: Any, values: Values) -> None:
    inner = await stored(shop, [1, 2])
    middle = await stored(shop, {"inner": inner, "again": [inner]})
    outer = await stored(shop, [middle, inner])
    whole = [{"inner": [1, 2], "again": [[1, 2]]}, [1, 2]]
    async with values.resolved("default", {"a": outer, "b": {"c": inner}, "raw": middle}, ["raw"]) as arguments:
        raw = arguments.pop("raw")
        assert arguments == {"a": whole, "b": {"c": [1, 2]}}
        assert isinstance(raw, RawJson)
        assert orjson.loads(raw.data) == whole[0]
    question = Evaluate(1, ".[0].again[0][1] + $x[0].inner[0]", outer, {"x": outer}, 0)
    assert await values.evaluate("default", RUN, question) == 3


async def test_contents_that_grow_beyond_the_limit_are_refused(shop: Any, values: Values) -> None:
    value: Any = "x" * 100_000
    for _ in range(3):
        value = [await stored(shop, value)] * 10
    with pytest.raises(PayloadTooLarge):
        async with values.resolved("default", {"a": await stored(shop, value)}):
            pass
    value = 1
    for _ in range(10):
        value = [await stored(shop, value)]
    with pytest.raises(PayloadTooLarge):
        async with values.resolved("default", {"a": value}):
            pass


async def test_a_running_call_leaves_room_for_others(shop: Any, values: Values) -> None:
    big = await stored(shop, "x" * 400_000)
    async with values.resolved("default", {"a": big}), asyncio.timeout(60):
        assert await values.evaluate("default", RUN, Evaluate(1, "length", big, {}, 0)) == 400_000
        await values.spill("default", RUN, orjson.dumps("y" * 300_000))


class Noted:
    unfinished = 0

    def __init__(self) -> None:
        self.seen: list[Any] = []

    async def execute(self, call: ResolvedCall) -> Any:
        self.seen.append(call.arguments)
        return 1

    async def close(self) -> None: ...


async def test_an_outage_of_the_store_fails_no_step(shop: Any, values: Values, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_payloads, "_FIRST_PAUSE_S", 0.001)
    big = await stored(shop, "content")
    executor = Noted()
    caller = Caller({"f": executor}, SecretResolver({}, None), values)  # type: ignore[arg-type]
    origin = Origin("run", RUN, "trace", "default", "demo")
    call = Call(1, "/do/0/a", "a", "", 1, "f", {"a": big}, "k")
    tries = asyncio.Event()
    resolved = values.resolved

    def counted(*arguments: Any) -> Any:
        if counted.before:  # type: ignore[attr-defined]
            tries.set()
        counted.before = True  # type: ignore[attr-defined]
        return resolved(*arguments)

    counted.before = False  # type: ignore[attr-defined]
    monkeypatch.setattr(values, "resolved", counted)
    await change(shop, AWAY)
    lease = Lease("inc", 1, boottime(), 600)
    performing = asyncio.create_task(caller.perform(call, lease, origin, large=True))
    await asyncio.wait_for(tries.wait(), 60)
    assert not executor.seen
    await change(shop, BACK)
    assert isinstance(await asyncio.wait_for(performing, 60), CallSucceeded)
    assert executor.seen == [{"a": "content"}]
    await change(shop, AWAY)
    tries.clear()
    performing = asyncio.create_task(caller.perform(call, lease, origin, large=True))
    await asyncio.wait_for(tries.wait(), 60)
    lease.end()
    with pytest.raises(LegStopped):
        await asyncio.wait_for(performing, 60)
    assert len(executor.seen) == 1
    await change(shop, BACK)


async def test_the_eldest_that_grows_does_not_wait() -> None:
    room = Room(100)
    async with room.hold(0) as eldest, room.hold(0) as younger:
        await eldest.grow(60)
        await younger.grow(40)
        waiting = asyncio.create_task(younger.grow(10))
        await eldest.grow(30)
        assert room.used == 130
        assert not waiting.done()
        waiting.cancel()
        await asyncio.wait({waiting})
    assert room.used == 0


async def test_an_upload_holds_room_from_its_first_piece(shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_payloads, "current_principal", lambda: None)
    monkeypatch.setattr(gateway_payloads, "authorise", lambda *_: None)
    servicer = gateway_payloads.PayloadServicer(shop.client, LIMITS)
    more, held = asyncio.Event(), asyncio.Event()

    async def pieces() -> AsyncIterator[payloads_pb2.UploadPayloadRequest]:
        yield payloads_pb2.UploadPayloadRequest(parent="namespaces/default", data=b'"abc')
        held.set()
        await more.wait()
        yield payloads_pb2.UploadPayloadRequest(parent="namespaces/default", data=b'def"')

    uploading = asyncio.create_task(servicer.UploadPayload(pieces(), None))  # type: ignore[arg-type]
    await held.wait()
    assert shop.client.room.used == 8
    more.set()
    answer = await uploading
    assert answer.size == 8
    assert await shop.client.get("default", Reference(answer.sha256, 8)) == b'"abcdef"'
    assert shop.client.room.used == 0
    more.clear()
    monkeypatch.setattr(gateway_payloads, "_UPLOAD_S", 0.05)
    with pytest.raises(Refused, match="not complete after"):
        await servicer.UploadPayload(pieces(), None)  # type: ignore[arg-type]
    assert shop.client.room.used == 0
