"""RunWorkflow: a start and the wait for its end in one call."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import grpc
import pytest

from flint_contracts.gen.flint.identity.v1 import identity_pb2
from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_gateway import runs
from support.eventually import eventually

Run = runs_pb2.Run


def request_of(timeout_ms: int | None = None, **start: Any) -> runs_pb2.RunWorkflowRequest:
    fields = {"parent": "namespaces/default", "workflow_id": "flow", **start}
    request = runs_pb2.RunWorkflowRequest(start=runs_pb2.StartRunRequest(**fields))
    if timeout_ms is not None:
        request.timeout.FromMilliseconds(timeout_ms)
    return request


def run(house: Any, timeout_ms: int | None = None, **start: Any) -> asyncio.Task[Any]:
    """One call as the admin."""
    return asyncio.create_task(house.admin.call(house.admin.runs.RunWorkflow, request_of(timeout_ms, **start), 60))


async def waited_for(house: Any) -> Run:
    """The one run that is started and waited for."""
    await eventually(lambda: bool(house.gateway._hub._awaited))
    (name,) = house.gateway._hub._awaited
    return next(known for known in house.record.runs.values() if known.name == name)


async def test_the_end_is_answered_from_the_push_alone(house: Any) -> None:
    calls = [run(house, input=b'{"n":1}'), run(house, input=b'{"n":2}')]
    await eventually(lambda: len(house.gateway._hub._awaited) == 2)
    for known in house.record.runs.values():
        await house.finish(known, b'{"was":%s}' % known.input)
    answers = await asyncio.gather(*calls)
    assert [answer.run.output for answer in answers] == [b'{"was":{"n":1}}', b'{"was":{"n":2}}']
    assert {(answer.created, answer.run.state, answer.run.input) for answer in answers} == {
        (True, Run.STATE_SUCCEEDED, b"")
    }
    assert house.record.reads == 0
    waited = await house.admin.call(house.admin.runs.AwaitRun, runs_pb2.AwaitRunRequest(name=answers[0].run.name))
    assert waited.run == answers[0].run
    await eventually(lambda: house.gateway._hub._open == 0)
    assert not house.gateway._hub._awaited
    assert not house.gateway._hub._started


async def test_an_end_that_comes_before_the_starts_answer_is_not_missed(house: Any) -> None:
    for scheduler in house.schedulers:
        scheduler.gate.clear()
    call = run(house, request_id="early")
    await eventually(lambda: bool(house.record.batches))
    # The push overtakes the answer: the owner tells NATS and the gateway by different ways.
    early = house.record.add()
    run_id = bytes.fromhex(early.name[-36:].replace("-", ""))
    house.record.requests["default", "early"] = run_id
    watcher = house.gateway._batcher._watcher
    await house.publish(watcher, house.record.change(early, Run.STATE_SUCCEEDED, output=b"7"))
    await eventually(lambda: house.gateway._hub._results.get(early.name) is not None)
    for scheduler in house.schedulers:
        scheduler.gate.set()
    assert (await call).run.output == b"7"
    assert house.record.reads == 0


async def test_a_failed_run_is_an_answer_and_no_error_of_the_call(house: Any) -> None:
    call = run(house)
    known = await waited_for(house)
    change = house.record.change(known, Run.STATE_FAILED)
    change.run.error.title = "no"
    await house.publish(next(iter(house.record.watchers.values())), change)
    answer = await call
    assert (answer.run.state, answer.run.error.title) == (Run.STATE_FAILED, "no")


async def test_when_the_wait_is_over_the_run_stands_and_a_repeat_waits_on(house: Any) -> None:
    first = await run(house, 30, request_id="r1")
    assert (first.created, first.run.state, first.run.request_id) == (True, Run.STATE_QUEUED, "")
    assert not house.gateway._hub._awaited
    call = run(house, request_id="r1")
    await house.finish(await waited_for(house), b"2")
    again = await call
    assert (again.created, again.run.name, again.run.output) == (False, first.run.name, b"2")
    # And once more, when all is over.
    late = await run(house, request_id="r1")
    assert late == again
    assert len(house.record.runs) == 1


async def test_an_end_of_long_ago_is_read(house: Any) -> None:
    ended = house.record.add(state=Run.STATE_SUCCEEDED)
    ended.output = b"3"
    house.record.requests["default", "old"] = bytes.fromhex(ended.name[-36:].replace("-", ""))
    answer = await run(house, request_id="old")
    assert (answer.created, answer.run.name, answer.run.output) == (False, ended.name, b"3")


async def test_a_run_that_another_gateway_started_is_asked_for(house: Any) -> None:
    from flint_bus.subjects import owner_subject
    from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
    from flint_core.ids import group_of_run

    theirs = house.record.add()
    run_id = bytes.fromhex(theirs.name[-36:].replace("-", ""))
    house.record.requests["default", "theirs"] = run_id
    heard: list[dispatch_pb2.Interest] = []
    await house.bus.subscribe(
        owner_subject(group_of_run(run_id, 16)),
        lambda message: heard.extend(dispatch_pb2.OwnerNudge.FromString(message.data).interests),
    )
    await house.bus.request("$SYS.REQ.USER.INFO", b"", 5.0)  # a round trip: the subscription stands
    call = run(house, request_id="theirs")
    await eventually(lambda: bool(heard))
    await house.publish(heard[0].watcher, house.record.change(theirs, Run.STATE_SUCCEEDED, output=b"4"))
    assert (await call).run.output == b"4"


async def test_a_call_that_is_left_frees_its_waiter(house: Any) -> None:
    call = run(house)
    known = await waited_for(house)
    call.cancel()
    await eventually(lambda: not house.gateway._hub._awaited and house.gateway._hub._open == 0)
    assert known.state == Run.STATE_QUEUED  # it goes on: nobody asked for its end
    for scheduler in house.schedulers:
        scheduler.gate.clear()
    before = len(house.record.batches)
    starting = run(house)
    await eventually(lambda: len(house.record.batches) > before and house.gateway._hub._open == 1)
    starting.cancel()
    await eventually(lambda: house.gateway._hub._open == 0)
    for scheduler in house.schedulers:
        scheduler.gate.set()


async def test_what_is_wrong_is_said_before_anything_is_started(house: Any, refused: Any) -> None:
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    with refused(invalid, "FIELD_INVALID") as caught:
        await run(house, workflow_id="Flow", version="one", input=b"{")
    found = [violation.field for violation in caught["error"].field_violations]
    assert found == ["start.workflow_id", "start.version", "start.input"]
    for timeout_ms in (-1, 600_001):
        with refused(invalid, "FIELD_INVALID") as caught:
            await run(house, timeout_ms)
        assert [violation.field for violation in caught["error"].field_violations] == ["timeout"]
    for parent in ("", "workflows", "namespaces/Default"):
        with refused(invalid, "FIELD_INVALID") as caught:
            await run(house, parent=parent)
        assert [violation.field for violation in caught["error"].field_violations] == ["start.parent"]
    with refused(invalid, "FIELD_INVALID"):
        await house.admin.call(house.admin.runs.RunWorkflow, runs_pb2.RunWorkflowRequest())
    assert house.record.batches == []
    with refused(grpc.StatusCode.NOT_FOUND, "WORKFLOW_NOT_FOUND"):
        await run(house, workflow_id="missing")
    assert house.gateway._hub._open == 0


async def test_waits_in_one_call_count_as_waits(empty_house: Any, refused: Any) -> None:
    house = empty_house
    await house.open("limits.watches=1")
    call = run(house)
    known = await waited_for(house)
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_WATCHES") as caught:
        await run(house)
    assert caught["error"].retry_after_s
    assert len(house.record.runs) == 1, "it was refused, and started all the same"
    await house.finish(known)
    await call


async def test_a_stopping_gateway_answers_what_it_has_started(house: Any) -> None:
    call = run(house)
    known = await waited_for(house)
    closing = asyncio.create_task(house.gateway.close())
    answer = await call
    assert (answer.created, answer.run.name, answer.run.state) == (True, known.name, Run.STATE_QUEUED)
    await closing


async def test_without_the_record_the_run_is_answered_as_it_was_accepted(
    house: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "_STANDING_S", 0.05)
    for scheduler in house.schedulers:
        scheduler.reading.clear()
    answer = await run(house, 0, request_id="r1", level=3)
    (known,) = house.record.runs.values()
    assert (answer.created, answer.run.name, answer.run.state) == (True, known.name, Run.STATE_QUEUED)
    assert (answer.run.workflow, answer.run.level, answer.run.request_id) == (known.workflow, 3, "r1")
    for scheduler in house.schedulers:
        scheduler.reading.set()


async def test_who_may_start_may_run(house: Any, refused: Any) -> None:
    denied = grpc.StatusCode.PERMISSION_DENIED
    viewer = house.client(house.record.key("default", identity_pb2.ROLE_VIEWER))
    other = house.client(house.record.key("other", identity_pb2.ROLE_ADMIN))
    for caller in (viewer, other):
        with refused(denied, "ROLE_INSUFFICIENT"):
            await caller.call(caller.runs.RunWorkflow, request_of())
    with refused(grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_MISSING"):
        await house.client("").runs.RunWorkflow(request_of(), timeout=20)
    assert house.record.batches == []
    operator = house.client(house.record.key("default", identity_pb2.ROLE_OPERATOR))
    answer = await operator.call(operator.runs.RunWorkflow, request_of(0))
    assert answer.created


class _Context:
    """A call with so much time left."""

    def __init__(self, left_s: float | None) -> None:
        self._left_s = left_s

    def time_remaining(self) -> float | None:
        return self._left_s


@pytest.mark.parametrize(
    ("timeout_s", "left_s", "expected_s"),
    [(60, None, 60), (60, 120, 60), (60, 30, 29), (60, 5, 4.5), (0, 5, 0), (60, 0, 0)],
)
def test_a_wait_is_over_before_its_calls_deadline(timeout_s: float, left_s: float | None, expected_s: float) -> None:
    assert math.isclose(runs._before_deadline(_Context(left_s), timeout_s), expected_s)  # type: ignore[arg-type]
