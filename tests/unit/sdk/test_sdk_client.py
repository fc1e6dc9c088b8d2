"""The client against a scripted gateway: repeats, failover, batches, errors, pages."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import grpc
import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2

from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_sdk import (
    AsyncFlint,
    AsyncRunHandle,
    DefinitionInvalid,
    Flint,
    FlintError,
    InvalidArgument,
    QueueFull,
    RunState,
    StartRequest,
    TimedOut,
    Unavailable,
    WorkflowNotFound,
)
from support.scripted_gateway import RUN, ScriptedGateway, refusal, run

AWAY = refusal(grpc.StatusCode.UNAVAILABLE, "COMPONENT_UNAVAILABLE", "no scheduler")


def full(seconds: int) -> error_details_pb2.RetryInfo:
    return error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=seconds))


async def test_a_start_that_found_no_scheduler_is_repeated_with_the_same_request_id(gateway: ScriptedGateway) -> None:
    gateway.script.refusals = [AWAY, AWAY]
    async with AsyncFlint(gateway.address, "flint_1_secret") as flint:
        handle = await flint.start("greet", {"name": "Ada"}, level=0)
    assert handle.name == RUN
    assert handle.id == RUN.rpartition("/")[2]
    assert handle.run.state is RunState.QUEUED
    starts = gateway.script.starts
    assert len(starts) == 3
    assert len({start.request_id for start in starts}) == 1
    assert starts[0].request_id
    assert starts[0].HasField("level")
    assert set(gateway.script.keys) == {"Bearer flint_1_secret"}


async def test_each_start_without_request_id_gets_one_of_its_own(gateway: ScriptedGateway) -> None:
    async with AsyncFlint(gateway.address, "k") as flint:
        await asyncio.gather(flint.start("greet"), flint.start("greet"), flint.start("greet", request_id="mine"))
    script = gateway.script
    ids = {
        start.request_id for start in (*script.starts, *(start for batch in script.batches for start in batch.requests))
    }
    assert len(ids) == 3
    assert "mine" in ids


async def test_the_next_address_takes_over(gateway: ScriptedGateway, second_gateway: ScriptedGateway) -> None:
    await gateway.stop()
    async with AsyncFlint([gateway.address, second_gateway.address], "k") as flint:
        await flint.start("greet")
        await flint.start("greet")
    assert len(second_gateway.script.starts) == 2


async def test_nothing_reachable_is_unavailable_at_the_deadline(gateway: ScriptedGateway) -> None:
    await gateway.stop()
    async with AsyncFlint(gateway.address, "k", timeout_s=0.4) as flint:
        with pytest.raises(Unavailable, match=gateway.address):
            await flint.get_run("1")


async def test_refusals_are_typed_and_not_repeated(gateway: ScriptedGateway) -> None:
    violation = error_details_pb2.BadRequest.FieldViolation(field="/do/0", description="3:5: unknown task")
    gateway.script.refusals = [
        refusal(grpc.StatusCode.NOT_FOUND, "WORKFLOW_NOT_FOUND", "no workflow greet"),
        refusal(
            grpc.StatusCode.INVALID_ARGUMENT,
            "DEFINITION_INVALID",
            "1 error",
            error_details_pb2.BadRequest(field_violations=[violation]),
        ),
    ]
    async with AsyncFlint(gateway.address, "k") as flint:
        with pytest.raises(WorkflowNotFound, match="no workflow greet") as found:
            await flint.start("greet")
        assert found.value.reason == "WORKFLOW_NOT_FOUND"
        with pytest.raises(DefinitionInvalid) as refused:
            await flint.apply("document: {}")
        assert [(v.field, v.description) for v in refused.value.violations] == [("/do/0", "3:5: unknown task")]
    assert len(gateway.script.starts) == 1


async def test_a_code_without_details_is_typed_by_the_code(gateway: ScriptedGateway) -> None:
    async with AsyncFlint(gateway.address, "k") as flint:
        with pytest.raises(FlintError) as found:  # the scripted gateway does not have this method
            await flint.cancel("1")
    assert "not implemented" in str(found.value).lower()


async def test_a_full_queue_is_waited_for_as_long_as_the_server_asks(gateway: ScriptedGateway) -> None:
    busy = refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", "full", full(0))
    gateway.script.refusals = [busy]
    async with AsyncFlint(gateway.address, "k", timeout_s=2) as flint:
        await flint.start("greet")
        gateway.script.refusals = [refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", "full", full(60))]
        with pytest.raises(QueueFull) as found:
            await flint.start("greet")
    assert found.value.retry_after_s == 60


async def test_an_input_that_is_not_json_is_refused_before_it_is_sent(gateway: ScriptedGateway) -> None:
    async with AsyncFlint(gateway.address, "k") as flint:
        with pytest.raises(InvalidArgument) as found:
            await flint.start("greet", {"when": object()})
    assert found.value.violations[0].field == "input"
    assert gateway.script.starts == []


async def test_batches_are_cut_and_each_start_has_its_own_result(gateway: ScriptedGateway) -> None:
    not_found = refusal(grpc.StatusCode.NOT_FOUND, "WORKFLOW_NOT_FOUND", "no such workflow")
    gateway.script.start_result = lambda start: (
        runs_pb2.StartRunResult(error=not_found) if start.workflow_id == "missing" else None
    )
    starts = [StartRequest("missing" if index == 7 else "greet", {"n": index}, f"r{index}") for index in range(2345)]
    async with AsyncFlint(gateway.address, "k") as flint:
        results = await flint.start_many(starts)
    assert sorted(len(batch.requests) for batch in gateway.script.batches) == [345, 1000, 1000]
    assert isinstance(results[7], WorkflowNotFound)
    handles = [result for result in results if isinstance(result, AsyncRunHandle)]
    assert [handle.id for handle in handles] == [f"r{index}" for index in range(2345) if index != 7]


async def test_starts_of_a_batch_that_found_no_component_are_sent_again(gateway: ScriptedGateway) -> None:
    seen: set[str] = set()

    def first_time_away(start: runs_pb2.StartRunRequest) -> runs_pb2.StartRunResult | None:
        if start.request_id in seen or start.request_id != "b":
            return None
        seen.add(start.request_id)
        return runs_pb2.StartRunResult(error=AWAY)

    gateway.script.start_result = first_time_away
    async with AsyncFlint(gateway.address, "k") as flint:
        results = await flint.start_many([StartRequest("greet", request_id=name) for name in "abc"])
    assert all(isinstance(result, AsyncRunHandle) for result in results)
    assert [[start.request_id for start in batch.requests] for batch in gateway.script.batches] == [
        ["a", "b", "c"],
        ["b"],
    ]


async def test_batches_stay_below_the_message_limit(gateway: ScriptedGateway) -> None:
    starts = [StartRequest("greet", "x" * 200_000) for _ in range(40)]
    async with AsyncFlint(gateway.address, "k") as flint:
        await flint.start_many(starts)
    assert sum(len(batch.requests) for batch in gateway.script.batches) == 40
    assert max(batch.ByteSize() for batch in gateway.script.batches) < 4 * 2**20


async def test_lists_go_from_page_to_page(gateway: ScriptedGateway) -> None:
    gateway.script.pages = {
        "": runs_pb2.ListRunsResponse(runs=[run("namespaces/default/runs/1")], next_page_token="two"),
        "two": runs_pb2.ListRunsResponse(runs=[run("namespaces/default/runs/2")]),
    }
    async with AsyncFlint(gateway.address, "k") as flint:
        found = [r.id async for r in flint.list_runs(states=["RUNNING"], created_after=datetime.now(UTC))]
    assert found == ["1", "2"]


async def test_a_moment_without_time_zone_is_refused(gateway: ScriptedGateway) -> None:
    async with AsyncFlint(gateway.address, "k") as flint:
        with pytest.raises(ValueError, match="time zone"):
            await anext(flint.list_runs(created_after=datetime.now()))


async def test_a_closed_client_says_so(gateway: ScriptedGateway) -> None:
    flint = AsyncFlint(gateway.address, "k")
    await flint.close()
    with pytest.raises(FlintError, match="closed"):
        await flint.get_run("1")


async def test_the_blocking_client_in_a_thread(gateway: ScriptedGateway) -> None:
    gateway.script.pages = {"": runs_pb2.ListRunsResponse(runs=[run()])}

    def use() -> tuple[str, list[str]]:
        with Flint(gateway.address, "k") as flint:
            handle = flint.start("greet")
            return handle.name, [found.name for found in flint.list_runs()]

    assert await asyncio.to_thread(use) == (RUN, [RUN])


async def test_the_blocking_client_waits_with_a_deadline(gateway: ScriptedGateway) -> None:
    def use() -> None:
        with Flint(gateway.address, "k") as flint, pytest.raises(TimedOut):
            flint.result("1", 0.1)
        with pytest.raises(FlintError, match="closed"):
            flint.get_run("1")

    await asyncio.to_thread(use)
