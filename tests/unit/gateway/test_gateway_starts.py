from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_gateway.starts import StartBatcher
from flint_gateway.validation import check_json, make_start
from flint_rpc.errors import Refused, from_status_proto
from support.eventually import eventually

INVALID = grpc.StatusCode.INVALID_ARGUMENT


async def test_a_start_is_answered_with_the_run(house: Any) -> None:
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    request = runs_pb2.StartRunRequest(
        parent="namespaces/default", workflow_id="flow", input=b'{"a":1}', request_id="r1"
    )
    metadata = (*house.admin.metadata, ("traceparent", parent))
    first = await house.admin.runs.StartRun(request, metadata=metadata, timeout=10)
    assert first.created
    run = first.run
    assert run.state == runs_pb2.Run.STATE_QUEUED
    assert run.workflow == "namespaces/default/workflows/flow/versions/1.0.0"
    assert (run.level, run.request_id, run.input) == (5, "r1", b"")
    assert run.trace_id == "4bf92f3577b34da6a3ce929d0e0e4736"
    again = await house.admin.runs.StartRun(request, metadata=metadata, timeout=10)
    assert (again.created, again.run.name) == (False, run.name)
    read = await house.admin.call(house.admin.runs.GetRun, runs_pb2.GetRunRequest(name=run.name))
    assert read.run.input == b'{"a":1}'


async def test_no_request_id_means_one_of_the_gateways_own(house: Any) -> None:
    run = await house.admin.start()
    assert run.request_id == ""
    assert len(run.trace_id) == 32
    ((_, own),) = house.record.requests
    assert own.startswith("~")


async def test_what_arrives_meanwhile_is_the_next_batch(house: Any) -> None:
    for scheduler in house.schedulers:
        scheduler.gate.clear()
    first = [asyncio.create_task(house.admin.start())]
    await eventually(lambda: len(house.record.batches) == 1)
    first.append(asyncio.create_task(house.admin.start()))
    await eventually(lambda: len(house.record.batches) == 2)
    more = [asyncio.create_task(house.admin.start()) for _ in range(50)]
    await eventually(lambda: house.gateway._batcher._starts == 50)
    for scheduler in house.schedulers:
        scheduler.gate.set()
    runs = await asyncio.gather(*first, *more)
    assert house.record.batches[:3] == [1, 1, 50]
    assert len({run.name for run in runs}) == 52


async def test_lanes_take_turns_unless_one_is_late(house: Any) -> None:
    batcher = house.gateway._batcher
    for scheduler in house.schedulers:
        scheduler.gate.clear()
    first = asyncio.create_task(house.admin.start())
    await eventually(lambda: len(house.record.batches) == 1)
    # The first batch is late by and by, and holds the other lane back no more.
    second = asyncio.create_task(house.admin.start())
    await eventually(lambda: len(house.record.batches) == 2)
    assert sorted(scheduler.accepts for scheduler in house.schedulers) == [1, 1]
    for scheduler in house.schedulers:
        scheduler.gate.set()
    await asyncio.gather(first, second)
    await eventually(lambda: batcher._turns == 0 and len(batcher._idle) == 2)
    for _ in range(4):
        await house.admin.start()
    assert sorted(scheduler.accepts for scheduler in house.schedulers) == [3, 3]


async def test_a_full_scheduler_is_passed_over(house: Any, refused: Any) -> None:
    house.schedulers[0].full = True
    runs = [await house.admin.start() for _ in range(4)]
    assert len({run.name for run in runs}) == 4
    house.schedulers[1].full = True
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL") as caught:
        await house.admin.start()
    assert caught["error"].retry_after_s == 1.0
    assert house.gateway._schedulers.problem() is None  # full is not gone


async def test_a_lost_scheduler_fails_no_start_and_starts_nothing_twice(house: Any) -> None:
    house.schedulers[0].lose_answers = True
    runs = await asyncio.gather(*(house.admin.start() for _ in range(20)))
    assert len({run.name for run in runs}) == 20
    assert len(house.record.runs) == 20
    await house.servers[0].stop(0)
    runs = await asyncio.gather(*(house.admin.start() for _ in range(20)))
    assert len(house.record.runs) == 40


async def test_a_poisonous_start_fails_alone(house: Any, refused: Any) -> None:
    for scheduler in house.schedulers:
        scheduler.gate.clear()
    blockers = [asyncio.create_task(house.admin.start()) for _ in range(2)]
    await eventually(lambda: len(house.record.batches) >= 1)
    good = [asyncio.create_task(house.admin.start()) for _ in range(5)]
    bad = asyncio.create_task(house.admin.start("poison"))
    await eventually(lambda: house.gateway._batcher._starts >= 5)
    for scheduler in house.schedulers:
        scheduler.gate.set()
    with refused(grpc.StatusCode.INTERNAL, "INTERNAL"):
        await bad
    assert len({run.name for run in await asyncio.gather(*blockers, *good)}) == 7


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"workflow_id": ""}, ["workflow_id"]),
        ({"workflow_id": "Flow", "version": "one", "level": 10}, ["workflow_id", "version", "level"]),
        ({"request_id": "~mine"}, ["request_id"]),
        ({"request_id": "ä"}, ["request_id"]),
        ({"input": b"{"}, ["input"]),
        ({"input": b"[NaN]"}, ["input"]),
        ({"input": b"[18446744073709551616]"}, ["input"]),
        ({"parent": ""}, ["parent"]),
        ({"parent": "namespaces/Default"}, ["parent"]),
    ],
)
async def test_every_wrong_field_is_named(house: Any, refused: Any, fields: dict[str, Any], wrong: list[str]) -> None:
    request = runs_pb2.StartRunRequest(**{"parent": "namespaces/default", "workflow_id": "flow", **fields})
    with refused(INVALID, "FIELD_INVALID") as caught:
        await house.admin.call(house.admin.runs.StartRun, request)
    assert [violation.field for violation in caught["error"].field_violations] == wrong
    assert house.record.batches == []


async def test_a_large_input_needs_the_store(house: Any, refused: Any) -> None:
    with refused(grpc.StatusCode.UNAVAILABLE, "COMPONENT_UNAVAILABLE"):
        await house.admin.start(input=b'"' + b"x" * 262_144 + b'"')
    with refused(INVALID, "FIELD_INVALID") as caught:  # what is wrong with it is said before anything is stored
        await house.admin.start(input=b'"' + b"x" * 262_144)
    assert caught["error"].field_violations[0].field == "input"


def test_an_input_beyond_all_limits_is_refused() -> None:
    request = runs_pb2.StartRunRequest(workflow_id="w", input=b'"' + b"x" * 100 + b'"')
    with pytest.raises(Refused) as caught:
        make_start(request, "default", bytes(16), 100)
    assert caught.value.reason_name == "PAYLOAD_TOO_LARGE"
    assert caught.value.field_violations[0].field == "input"


def test_json_is_kept_exactly_or_refused() -> None:
    for good in (
        b"18446744073709551615",
        b"-9223372036854775808",
        b'"123456789012345678901234567890"',
        b"0.1234567890123456789",
    ):
        assert check_json(good) is None
    for bad in (b"", b"nul", b"-9223372036854775809", b'{"a":[1e999]}', b'"\\ud800"', b'"\xff"', b"9" * 5000):
        assert check_json(bad) is not None
    assert check_json(b"[" * 200 + b"]" * 200) is None
    assert "200 levels" in str(check_json(b"[" * 201 + b"]" * 201))


async def test_starts_of_a_batch_succeed_or_fail_for_themselves(house: Any) -> None:
    starts = [
        runs_pb2.StartRunRequest(workflow_id="flow"),
        runs_pb2.StartRunRequest(workflow_id="flow", input=b"{"),
        runs_pb2.StartRunRequest(workflow_id="missing"),
        runs_pb2.StartRunRequest(workflow_id="flow", parent="namespaces/other"),
        runs_pb2.StartRunRequest(workflow_id="flow"),
    ]
    request = runs_pb2.StartRunsRequest(parent="namespaces/default", requests=starts)
    response = await house.admin.call(house.admin.runs.StartRuns, request)
    kinds = [result.WhichOneof("result") for result in response.results]
    assert kinds == ["response", "error", "error", "error", "response"]
    errors = [from_status_proto(response.results[index].error) for index in (1, 2, 3)]
    assert [error.reason_name for error in errors] == ["FIELD_INVALID", "WORKFLOW_NOT_FOUND", "FIELD_INVALID"]
    assert errors[0].field_violations[0].field == "requests[1].input"
    assert errors[2].field_violations[0].field == "requests[3].parent"
    assert house.record.batches == [3]


@pytest.mark.parametrize("count", [0, 1001])
async def test_batches_have_bounds(house: Any, refused: Any, count: int) -> None:
    starts = [runs_pb2.StartRunRequest(workflow_id="flow")] * count
    with refused(INVALID, "FIELD_INVALID"):
        request = runs_pb2.StartRunsRequest(parent="namespaces/default", requests=starts)
        await house.admin.call(house.admin.runs.StartRuns, request)


async def test_a_full_waiting_room_refuses_with_retry_info(house: Any) -> None:
    from flint_contracts.gen.flint.scheduling.v1 import scheduling_pb2

    inner = house.gateway._batcher._client
    batcher = StartBatcher(inner, lanes=1, watcher="", waiting_starts=3)  # never started: nothing leaves
    start = scheduling_pb2.Start(namespace="default", workflow_id="flow", request_id="r")
    waiting = [asyncio.create_task(batcher.submit([start])) for _ in range(3)]
    await eventually(lambda: batcher._starts == 3)
    with pytest.raises(Refused) as caught:
        await batcher.submit([start])
    assert (caught.value.code, caught.value.reason_name) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert caught.value.retry_after_s
    await batcher.close()
    for task in waiting:
        with pytest.raises(Refused) as ended:
            await task
        assert ended.value.code is grpc.StatusCode.UNAVAILABLE


async def test_a_caller_that_left_is_not_sent(house: Any) -> None:
    for scheduler in house.schedulers:
        scheduler.gate.clear()
    blockers = [asyncio.create_task(house.admin.start())]
    await eventually(lambda: len(house.record.batches) == 1)
    blockers.append(asyncio.create_task(house.admin.start()))
    await eventually(lambda: len(house.record.batches) == 2)
    left = asyncio.create_task(house.admin.start("left"))
    stays = asyncio.create_task(house.admin.start("stays"))
    await eventually(lambda: house.gateway._batcher._starts == 2)
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    await eventually(lambda: any(entry.answer.done() for entry in house.gateway._batcher._waiting))
    for scheduler in house.schedulers:
        scheduler.gate.set()
    await asyncio.gather(*blockers, stays)
    assert sum(house.record.batches) == 3
