"""Single starts that travel together, against a scripted gateway: company, refusals, deadlines, callers that leave."""

from __future__ import annotations

import asyncio
import threading

import grpc
import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2

from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_sdk import (
    AsyncFlint,
    AsyncRunHandle,
    Flint,
    FlintError,
    InternalError,
    InvalidArgument,
    PermissionDenied,
    QueueFull,
    TimedOut,
    Unavailable,
    WorkflowNotFound,
)
from support.eventually import eventually
from support.scripted_gateway import Script, ScriptedGateway, refusal

AWAY = refusal(grpc.StatusCode.UNAVAILABLE, "COMPONENT_UNAVAILABLE", "no scheduler")
Starting = asyncio.Task[AsyncRunHandle]


def ids(script: Script) -> list[list[str]]:
    return [[start.request_id for start in batch.requests] for batch in script.batches]


def starting(flint: AsyncFlint, *request_ids: str, workflow: str = "greet") -> list[Starting]:
    return [asyncio.create_task(flint.start(workflow, {}, request_id=request_id)) for request_id in request_ids]


async def held(gateway: ScriptedGateway, flint: AsyncFlint, request_id: str = "first") -> Starting:
    """One start whose call is under way and not answered."""
    before = len(gateway.script.starts)
    gateway.script.answering.clear()
    (first,) = starting(flint, request_id)
    await eventually(lambda: len(gateway.script.starts) > before)
    return first


async def outcomes(tasks: list[Starting]) -> list[str | BaseException]:
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    return [each if isinstance(each, BaseException) else each.id for each in ended]


async def test_starts_that_come_one_after_the_other_are_calls_of_their_own(gateway: ScriptedGateway) -> None:
    async with AsyncFlint(gateway.address, "k") as flint:
        for index in range(3):
            await flint.start("greet", request_id=f"r{index}")
    assert [start.request_id for start in gateway.script.starts] == ["r0", "r1", "r2"]
    assert gateway.script.batches == []


async def test_starts_of_the_same_moment_travel_together(gateway: ScriptedGateway) -> None:
    names = [f"r{index}" for index in range(128)]
    async with AsyncFlint(gateway.address, "k") as flint:
        assert await outcomes(starting(flint, *names)) == names
    assert ids(gateway.script) == [names]
    assert gateway.script.starts == []


async def test_what_comes_while_a_call_is_under_way_is_the_next_call(gateway: ScriptedGateway) -> None:
    async with AsyncFlint(gateway.address, "k") as flint:
        first = await held(gateway, flint)
        others = starting(flint, "a", "b", "c")
        gateway.script.answering.set()
        assert (await first).created
        assert await outcomes(others) == ["a", "b", "c"]
    assert ids(gateway.script) == [["a", "b", "c"]]
    assert [start.request_id for start in gateway.script.starts] == ["first"]


async def test_a_call_that_takes_long_holds_nobody_back(gateway: ScriptedGateway) -> None:
    async with AsyncFlint(gateway.address, "k") as flint:
        first = await held(gateway, flint)
        others = starting(flint, "a", "b")
        await eventually(lambda: len(gateway.script.batches) == 1)
        later = starting(flint, "c")
        await eventually(lambda: len(gateway.script.starts) == 2)
        assert not first.done()
        gateway.script.answering.set()
        assert await outcomes(others) == ["a", "b"]
        await asyncio.gather(first, *later)


async def test_it_can_be_turned_off(gateway: ScriptedGateway) -> None:
    async with AsyncFlint(gateway.address, "k", coalesce_starts=False) as flint:
        await asyncio.gather(*starting(flint, "a", "b", "c"))
    assert sorted(start.request_id for start in gateway.script.starts) == ["a", "b", "c"]
    assert gateway.script.batches == []


async def test_a_large_start_goes_by_itself_and_waits_for_nobody(gateway: ScriptedGateway) -> None:
    async with AsyncFlint(gateway.address, "k") as flint:
        first = await held(gateway, flint)
        waiting = starting(flint, "a", "b")
        large = asyncio.create_task(flint.start("greet", "x" * 100_000, request_id="large"))
        await eventually(lambda: "large" in [start.request_id for start in gateway.script.starts])
        gateway.script.answering.set()
        await asyncio.gather(first, large, *waiting)
    assert all("large" not in batch for batch in ids(gateway.script))


async def test_a_batch_is_cut_by_count_and_by_bytes(gateway: ScriptedGateway) -> None:
    async with AsyncFlint(gateway.address, "k") as flint:
        names = [f"r{index}" for index in range(1500)]
        assert await outcomes(starting(flint, *names)) == names
        assert [name for batch in ids(gateway.script) for name in batch] == names
        assert max(len(batch) for batch in ids(gateway.script)) == 1000
        gateway.script.batches.clear()
        await asyncio.gather(*(flint.start("greet", "x" * 60_000) for _ in range(80)))
    assert sum(len(batch.requests) for batch in gateway.script.batches) == 80
    assert len(gateway.script.batches) == 2
    assert max(batch.ByteSize() for batch in gateway.script.batches) < 4 * 2**20


async def test_one_that_is_refused_fails_alone_and_in_its_own_words(gateway: ScriptedGateway) -> None:
    def result(start: runs_pb2.StartRunRequest) -> runs_pb2.StartRunResult | None:
        if start.workflow_id == "missing":
            return runs_pb2.StartRunResult(error=refusal(grpc.StatusCode.NOT_FOUND, "WORKFLOW_NOT_FOUND", "no missing"))
        if start.workflow_id == "No Label":
            violation = error_details_pb2.BadRequest.FieldViolation(field="requests[2].workflow_id", description="bad")
            details = error_details_pb2.BadRequest(field_violations=[violation])
            text = "requests[2].workflow_id: bad"
            error = refusal(grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID", text, details)
            return runs_pb2.StartRunResult(error=error)
        return None

    gateway.script.start_result = result
    async with AsyncFlint(gateway.address, "k") as flint:
        good, missing, invalid, last = await asyncio.gather(
            *starting(flint, "a"),
            *starting(flint, "b", workflow="missing"),
            *starting(flint, "c", workflow="No Label"),
            *starting(flint, "d"),
            return_exceptions=True,
        )
    assert isinstance(good, AsyncRunHandle)
    assert isinstance(last, AsyncRunHandle)
    assert [good.id, last.id] == ["a", "d"]
    assert isinstance(missing, WorkflowNotFound)
    assert missing.reason == "WORKFLOW_NOT_FOUND"
    assert isinstance(invalid, InvalidArgument)
    assert invalid.message == "workflow_id: bad"
    assert [violation.field for violation in invalid.violations] == ["workflow_id"]
    assert len(gateway.script.batches) == 1


async def test_one_that_found_no_component_is_sent_again(gateway: ScriptedGateway) -> None:
    refused: list[str] = []

    def result(start: runs_pb2.StartRunRequest) -> runs_pb2.StartRunResult | None:
        if start.request_id == "b" and len(refused) < 2:
            refused.append(start.request_id)
            return runs_pb2.StartRunResult(error=AWAY)
        return None

    gateway.script.start_result = result
    async with AsyncFlint(gateway.address, "k") as flint:
        first, second = starting(flint, "a", "b")
        await eventually(lambda: len(refused) == 1)
        others = starting(flint, "c", "d")
        assert (await first).id == "a"
        await second
        assert await outcomes(others) == ["c", "d"]
    assert sum(batch.count("a") for batch in ids(gateway.script)) == 1


async def test_one_whose_time_is_over_hears_why(gateway: ScriptedGateway) -> None:
    wait = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=60))
    full = refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", "full", wait)
    errors = {"b": AWAY, "c": full}
    gateway.script.start_result = lambda start: (
        runs_pb2.StartRunResult(error=errors[start.request_id]) if start.request_id in errors else None
    )
    # What goes again may be alone by then.
    gateway.script.refusals = []
    async with AsyncFlint(gateway.address, "k", timeout_s=20) as flint:
        first, second, third = starting(flint, "a", "b", "c")
        assert (await first).id == "a"
        with pytest.raises(QueueFull) as found:
            await third
        assert found.value.retry_after_s == 60
        second.cancel()
    async with AsyncFlint(gateway.address, "k", timeout_s=0.02) as flint:
        gateway.script.answering.clear()
        ended = await outcomes(starting(flint, "x", "y"))
        assert all(isinstance(each, TimedOut) for each in ended)


async def test_a_batch_that_is_refused_as_a_whole_is_halved(gateway: ScriptedGateway) -> None:
    def refuse(batch: runs_pb2.StartRunsRequest) -> status_pb2.Status | None:
        poisoned = any(start.request_id == "poison" for start in batch.requests)
        return refusal(grpc.StatusCode.INTERNAL, "INTERNAL", "a defect") if poisoned else None

    gateway.script.batch_refusal = refuse
    names = ["a", "b", "c", "poison", "e", "f", "g"]
    async with AsyncFlint(gateway.address, "k") as flint:
        ended = await outcomes(starting(flint, *names))
    assert isinstance(ended[3], InternalError)
    assert [each for each in ended if isinstance(each, str)] == ["a", "b", "c", "e", "f", "g"]


async def test_a_gateway_that_takes_fewer_at_a_time_is_asked_so_once(gateway: ScriptedGateway) -> None:
    def refuse(batch: runs_pb2.StartRunsRequest) -> status_pb2.Status | None:
        if len(batch.requests) <= 4:
            return None
        details = error_details_pb2.BadRequest(
            field_violations=[error_details_pb2.BadRequest.FieldViolation(field="requests", description="1 to 4")]
        )
        return refusal(grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID", "requests: 1 to 4", details)

    gateway.script.batch_refusal = refuse
    names = [f"r{index}" for index in range(16)]
    async with AsyncFlint(gateway.address, "k") as flint:
        assert await outcomes(starting(flint, *names)) == names
        gateway.script.batches.clear()
        assert await outcomes(starting(flint, *names)) == names
    assert [len(batch) for batch in ids(gateway.script)] == [4, 4, 4, 4]


async def test_without_permission_all_hear_so_of_one_call(gateway: ScriptedGateway) -> None:
    gateway.script.refusals = [refusal(grpc.StatusCode.PERMISSION_DENIED, "ROLE_INSUFFICIENT", "no")]
    async with AsyncFlint(gateway.address, "k") as flint:
        ended = await outcomes(starting(flint, "a", "b", "c"))
    assert all(isinstance(each, PermissionDenied) for each in ended)
    assert len({id(each) for each in ended}) == 3
    assert len(gateway.script.batches) == 1


async def test_callers_that_leave_disturb_nobody(gateway: ScriptedGateway) -> None:
    async with AsyncFlint(gateway.address, "k") as flint:
        first = await held(gateway, flint)
        gone, *others = starting(flint, "gone", "a", "b")
        await asyncio.sleep(0)  # they wait now
        gone.cancel()
        await eventually(lambda: len(gateway.script.batches) == 1)
        others[0].cancel()
        first.cancel()
        gateway.script.answering.set()
        assert await others[1]
        assert [each.cancelled() for each in (gone, others[0], first)] == [True, True, True]
        # A caller that leaves in the moment in which it was to call leaves its turn to the next one.
        (alone,) = starting(flint, "alone")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        alone.cancel()
        assert (await flint.start("greet")).name
    assert "gone" not in ids(gateway.script)[0]


async def test_a_timeout_of_the_callers_own_ends_its_wait_alone(gateway: ScriptedGateway) -> None:
    async with AsyncFlint(gateway.address, "k") as flint:
        first = await held(gateway, flint)
        others = starting(flint, "a", "b")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(flint.start("greet", request_id="hurried"), 0.01)
        gateway.script.answering.set()
        await first
        assert await outcomes(others) == ["a", "b"]


async def test_the_next_gateway_takes_over_with_the_same_requests(
    gateway: ScriptedGateway, second_gateway: ScriptedGateway
) -> None:
    async with AsyncFlint([gateway.address, second_gateway.address], "k") as flint:
        first = await held(gateway, flint)
        others = starting(flint, "a", "b")
        await eventually(lambda: ids(gateway.script) == [["a", "b"]])
        await gateway.stop()
        await first
        assert await outcomes(others) == ["a", "b"]
    assert ids(second_gateway.script) == [["a", "b"]]
    assert [start.request_id for start in second_gateway.script.starts] == ["first"]


async def test_nothing_reachable_is_unavailable_at_the_deadline(gateway: ScriptedGateway) -> None:
    await gateway.stop()
    async with AsyncFlint(gateway.address, "k", timeout_s=0.4) as flint:
        ended = await outcomes(starting(flint, "a", "b", "c"))
    for each in ended:
        assert isinstance(each, Unavailable)
        assert gateway.address in each.message


async def test_each_namespace_has_its_own_calls(gateway: ScriptedGateway) -> None:
    async with AsyncFlint(gateway.address, "k") as flint:
        tasks = []
        for index in range(24):
            flint.namespace = f"tenant-{index % 12}"
            tasks += starting(flint, f"r{index}")
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
    for batch in gateway.script.batches:
        assert {start.parent for start in batch.requests} == {batch.parent}
    sent = [start for batch in gateway.script.batches for start in batch.requests] + gateway.script.starts
    assert sorted(start.request_id for start in sent) == sorted(f"r{index}" for index in range(24))
    assert all(start.parent == f"namespaces/tenant-{int(start.request_id[1:]) % 12}" for start in sent)


async def test_closing_fails_those_under_way_and_those_that_wait(gateway: ScriptedGateway) -> None:
    flint = AsyncFlint(gateway.address, "k")
    first = await held(gateway, flint)
    flying = starting(flint, "a", "b")
    await eventually(lambda: len(gateway.script.batches) == 1)
    waiting = starting(flint, "c", "d")
    await asyncio.sleep(0)
    await flint.close()
    ended = await outcomes([first, *flying, *waiting])
    assert all(isinstance(each, FlintError) for each in ended)
    with pytest.raises(FlintError, match="closed"):
        await flint.start("greet")
    gateway.script.answering.set()


async def test_closing_fails_those_that_were_to_be_sent_again(gateway: ScriptedGateway) -> None:
    wait = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=15))
    away = refusal(grpc.StatusCode.UNAVAILABLE, "COMPONENT_UNAVAILABLE", "no scheduler", wait)
    gateway.script.start_result = lambda start: runs_pb2.StartRunResult(error=away) if start.request_id == "a" else None
    flint = AsyncFlint(gateway.address, "k")
    resting, other = starting(flint, "a", "b")
    await other
    await flint.close()
    (ended,) = await outcomes([resting])
    assert isinstance(ended, FlintError)
    assert "closed" in ended.message


def test_threads_of_a_blocking_client_start_each_its_own_run() -> None:
    loop = asyncio.new_event_loop()
    serving = threading.Thread(target=loop.run_forever)
    serving.start()
    gateway = ScriptedGateway()
    asyncio.run_coroutine_threadsafe(gateway.start(), loop).result(60)
    found: dict[str, str] = {}
    try:
        with Flint(gateway.address, "k") as flint:

            def start(request_id: str) -> None:
                found[request_id] = flint.start("greet", {}, request_id=request_id).name

            threads = [threading.Thread(target=start, args=(f"r{index}",)) for index in range(16)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
    finally:
        asyncio.run_coroutine_threadsafe(gateway.stop(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        serving.join(60)
        loop.close()
    script = gateway.script
    sent = [start.request_id for start in script.starts] + [each for batch in ids(script) for each in batch]
    assert sorted(sent) == sorted(f"r{index}" for index in range(16)) == sorted(found)
    together = {each for batch in ids(script) for each in batch}
    assert all(found[each].endswith(f"/{each}") for each in together)
