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
from flint_jq import EvaluationFailed, EvaluatorPool
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


def reads_of(shop: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Digests of what is fetched from now on."""
    fetched: list[str] = []
    get = shop.client.get

    async def noted(namespace: str, reference: Reference) -> bytes:
        fetched.append(reference.sha256)
        return bytes(await get(namespace, reference))

    monkeypatch.setattr(shop.client, "get", noted)
    return fetched


async def test_small_members_are_remembered(shop: Any, values: Values, monkeypatch: pytest.MonkeyPatch) -> None:
    big = await stored(shop, {"name": "n", "deep": {"id": 7, "blob": "y" * 9_000}, "rows": list(range(50_000))})
    fetched = reads_of(shop, monkeypatch)

    async def value_of(source: str, input: Any, variables: dict[str, Any], namespace: str = "default") -> Any:
        return await values.evaluate(namespace, RUN, Evaluate(1, source, input, variables, 0))

    assert await value_of("$w.input.name", None, {"w": {"input": big}}) == "n"
    assert len(fetched) == 1
    names = [value_of('"\\($w.input.name)\\($w.input.deep.id)"', None, {"w": {"input": big}}) for _ in range(50)]
    assert await asyncio.gather(*names) == ["n7"] * 50
    assert len(fetched) == 2, "the outline is made once, however many ask"
    assert await value_of(".missing // .name", big, {}) == "n"
    assert len(fetched) == 2
    with pytest.raises(EvaluationFailed, match="Cannot index string"):
        await value_of(".name.first", big, {})
    assert len(fetched) == 2
    assert await value_of("$w.input.name | ascii_upcase", None, {"w": {"input": big}}) == "N", "jq evaluates it"
    assert len(fetched) == 2
    # What is not small is needed as a whole, and so is all that jq may look into.
    assert await value_of(".rows[3]", big, {}) == 3
    assert await value_of(".deep.blob", big, {}) == "y" * 9_000 or len(fetched) > 2
    assert await value_of("[.deep.id, (.name | ascii_upcase)]", big, {}) == [7, "N"]
    assert len(fetched) == 5
    with pytest.raises(EvaluationFailed, match="no payload"):
        await value_of(".name", big, {}, "other")


async def test_outlines_have_their_room(shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = EvaluatorPool(1, 1_000, 2**28, 100_000)
    await pool.start()
    bigs = [await stored(shop, {"id": number, "text": "t" * 1_000, "rows": ["x" * 9_000]}) for number in range(6)]
    fetched = reads_of(shop, monkeypatch)
    for room, fewest, most in ((0, 24, 24), (4_000, 13, 36), (2**20, 12, 12)):
        fetched.clear()
        values = Values(shop.client, pool, LIMITS.model_copy(update={"outlines_bytes": room}))
        try:
            for _ in range(4):
                for number, big in enumerate(bigs):
                    assert await values.evaluate("default", RUN, Evaluate(1, ".id", big, {}, 0)) == number
            assert fewest <= len(fetched) <= most
            assert values._outlines._used <= room
        finally:
            await values.close()
    await pool.close()


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
