"""50 MiB through a run, by every way a value takes, in bounded memory."""

from __future__ import annotations

import hashlib
from typing import Any

import orjson
import psutil
import pytest

from flint_contracts.gen.flint.payloads.v1 import payloads_pb2
from flint_core.payloads import is_reference
from flint_sdk import InvalidArgument, PayloadNotFound, RunState, StartRequest
from support.house import House, refusal

pytestmark = pytest.mark.asyncio(loop_scope="session")

MIB = 2**20
ROW = {"id": 0, "name": "x" * 50, "tags": ["a", "b"]}

CARRY = """
timeout: {after: PT4M}
do:
  - fetch:
      call: http
      with: {method: get, endpoint: "${ .url + \\"/give\\" }"}
  - look:
      set: {rows: "${ length }", last: "${ .[-1].id }", all: "${ . }", url: "${ $workflow.input.url }"}
  - send:
      call: http
      with: {method: post, endpoint: "${ .url + \\"/take\\" }", body: "${ .all }"}
  - answer:
      set:
        sent: ${ .size }
        rows: ${ $steps.look.rows }
        last: ${ $steps.look.last }
        all: ${ $steps.look.all }
"""


def rows(size: int) -> list[dict[str, Any]]:
    one = len(orjson.dumps(ROW)) + 6
    return [{**ROW, "id": number} for number in range(size // one + 1)]


def memory_of(house: House, name: str) -> int:
    return int(psutil.Process(house.stack.pid(name)).memory_info().rss)


async def test_fifty_mebibytes_through_a_run(house: House, bulk: Any) -> None:
    value = rows(53 * MIB)
    bulk.body = orjson.dumps(value)
    assert len(bulk.body) > 50 * MIB
    before = {name: memory_of(house, name) for name in ("scheduler-1", "scheduler-2", "gateway")}
    handle = await house.flint.start(await house.apply(CARRY), {"url": bulk.url})
    run = await house.flint.wait(handle.id, 240)
    assert run.state is RunState.SUCCEEDED, run.error
    assert run.output["rows"] == len(value)
    assert run.output["last"] == len(value) - 1
    assert is_reference(run.output["all"])
    assert run.output["sent"] == bulk.taken[-1][0]
    assert bulk.taken[-1] == (len(bulk.body), hashlib.sha256(bulk.body).hexdigest())
    after = {name: memory_of(house, name) for name in before}
    assert all(after[name] - before[name] < 60 * MIB for name in before), (before, after)
    assert await house.flint.resolve(run.output["all"]) == value
    history = [entry async for entry in house.flint.history(handle.id)]
    assert sum(len(orjson.dumps(step.result)) for entry in history for step in entry.steps if step.result) < 100_000


async def test_large_inputs_and_outputs_by_the_client(house: House) -> None:
    name = await house.apply("do: [{a: {set: {n: '${ length }', all: '${ . }'}}}]")
    for size in (300_000, 2 * MIB, 10 * MIB):
        value = rows(size)
        handle = await house.flint.start(name, value)
        assert await handle.result(120) == {"n": len(value), "all": value}
    many = [StartRequest(name, rows(400_000)) for _ in range(5)]
    for handle in await house.flint.start_many(many):
        assert (await handle.result(60))["n"] == len(many[0].input)  # type: ignore[union-attr]


async def test_equal_values_are_stored_once(house: House) -> None:
    name = await house.apply("do: [{a: {set: {all: '${ . }'}}}]")
    value = rows(900_000)
    await (await house.flint.start(name, value)).result(60)
    stored = await house.record.number("SELECT count(*) FROM payload")
    await (await house.flint.start(name, value)).result(60)
    assert await house.record.number("SELECT count(*) FROM payload") == stored


async def test_a_child_takes_and_gives_large_values(house: House) -> None:
    child = await house.apply("do: [{a: {set: {n: '${ length }', back: '${ . }'}}}]")
    workflow = f"{{namespace: default, name: {child}, version: 1.0.0, input: '${{ . }}'}}"
    body = f"do: [{{kid: {{run: {{workflow: {workflow}}}}}}}]"
    value = rows(700_000)
    handle = await house.flint.start(await house.apply(body), value)
    assert await handle.result(60) == {"n": len(value), "back": value}


async def test_what_is_refused(house: House) -> None:
    name = await house.apply("do: [{a: {set: {n: '${ length }'}}}]")
    with pytest.raises(InvalidArgument, match=r"limits\.value_bytes"):
        await house.flint.start(name, "x" * (65 * MIB))
    # Nor does it depend on the client: one that does not tell the size in advance is heard until it is done.
    piece = payloads_pb2.UploadPayloadRequest(parent="namespaces/default", data=bytes(2 * MIB))
    for pieces in ([piece] * 33, [payloads_pb2.UploadPayloadRequest(parent="namespaces/default", size=65 * MIB)]):
        refused = await refusal(house.raw.payloads.UploadPayload(iter(pieces), metadata=house.raw.metadata))
        assert isinstance(refused, InvalidArgument)
        assert refused.reason == "PAYLOAD_TOO_LARGE"
    forged = {"$payload": {"sha256": "0" * 64, "bytes": 5}}
    run = await house.flint.wait((await house.flint.start(name, forged)).id, 30)
    assert run.state is RunState.FAILED
    assert run.error is not None
    assert "no payload" in run.error.detail
    with pytest.raises(PayloadNotFound):
        await house.flint.resolve(forged)


async def test_results_are_kept_under_a_key(house: House, bulk: Any) -> None:
    bulk.body = orjson.dumps(rows(400_000))
    body = """
do:
  - get:
      call: http
      with: {method: get, endpoint: "${ .url + \\"/give\\" }"}
      metadata: {flint: {cache: {key: "${ .key }", ttl: PT1H}}}
  - count: {set: "${ {n: length} }"}
"""
    name = await house.apply(body)
    served = bulk.served
    outputs = [await (await house.flint.start(name, {"url": bulk.url, "key": "k"})).result(60) for _ in range(3)]
    assert outputs[0]["n"] > 1
    assert outputs[0] == outputs[1] == outputs[2]
    assert bulk.served == served + 1
    await (await house.flint.start(name, {"url": bulk.url, "key": "other"})).result(60)
    assert bulk.served == served + 2


async def test_a_large_value_is_stored_before_the_call_that_is_given_it(house: House) -> None:
    name = await house.apply("do: [{big: {call: noop, with: {output: '${ [range(100000)] }'}}}]")
    assert await (await house.flint.start(name, {})).result(60) == list(range(100_000))


async def test_references_within_large_values(house: House) -> None:
    inner = rows(300_000)
    child = await house.apply("do: [{a: {set: {all: '${ . }'}}}]")
    handle = await house.flint.start(child, inner)
    output = (await house.flint.wait(handle.id, 60)).output
    assert is_reference(output["all"])
    outer = {"one": {"pad": "x" * 5 * MIB, "held": [output["all"]]}}
    name = await house.apply(
        "do: [{a: {set: {n: '${ .one.held[0] | length }', last: '${ .one.held[0][-1].id }', all: '${ . }'}}}]"
    )
    handle = await house.flint.start(name, outer)
    whole = {"one": {**outer["one"], "held": [inner]}}
    assert await handle.result(60) == {"n": len(inner), "last": inner[-1]["id"], "all": whole}
    run_id = handle.id.replace("-", "")
    assert await house.record.number(
        f"SELECT count(*) FROM payload_use WHERE replace(run_id::text, '-', '') = '{run_id}'"
    )
    assert await house.record.number("SELECT count(*) FROM payload_part") >= 1
