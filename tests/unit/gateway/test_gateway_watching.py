from __future__ import annotations

import asyncio
from typing import Any

import grpc

from flint_bus.subjects import OWNERS, RESETS, hints_subject, owner_subject
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_core.ids import group_of_run
from flint_rpc.errors import from_rpc_error
from support.eventually import eventually

Run = runs_pb2.Run


def wait(house: Any, name: str, timeout_ms: int | None = None) -> asyncio.Task[Any]:
    request = runs_pb2.AwaitRunRequest(name=name)
    if timeout_ms is not None:
        request.timeout.FromMilliseconds(timeout_ms)
    return asyncio.create_task(house.admin.call(house.admin.runs.AwaitRun, request))


def watch(house: Any, name: str, **fields: Any) -> Any:
    request = runs_pb2.WatchRunRequest(name=name, **fields)
    return house.admin.runs.WatchRun(request, metadata=house.admin.metadata, timeout=30)


async def listen_to_nudges(house: Any, run: Run) -> list[dispatch_pb2.Interest]:
    """What the owner of the run's group hears."""
    heard: list[dispatch_pb2.Interest] = []
    run_id = bytes.fromhex(run.name[-36:].replace("-", ""))
    await house.bus.subscribe(
        owner_subject(group_of_run(run_id, 16)),
        lambda message: heard.extend(dispatch_pb2.OwnerNudge.FromString(message.data).interests),
    )
    await house.bus.request("$SYS.REQ.USER.INFO", b"", 5.0)  # a round trip: the subscription stands
    return heard


async def test_a_run_started_here_is_answered_from_the_push_alone(house: Any) -> None:
    run = await house.admin.start()
    waiting = wait(house, run.name)
    await eventually(lambda: bool(house.gateway._hub._awaited))
    await house.finish(run, b'{"sum":3}')
    answer = await waiting
    assert (answer.run.state, answer.run.output) == (Run.STATE_SUCCEEDED, b'{"sum":3}')
    late = await wait(house, run.name)
    assert late.run == answer.run
    assert house.record.reads == 0


async def test_a_run_started_elsewhere_is_nudged_for_and_read(house: Any) -> None:
    run = house.record.add()
    nudges = await listen_to_nudges(house, run)
    waiting = wait(house, run.name)
    await eventually(lambda: bool(nudges))
    assert not nudges[0].steps
    change = house.record.change(run, Run.STATE_FAILED)
    await house.publish(nudges[0].watcher, change)
    assert (await waiting).run.state == Run.STATE_FAILED


async def test_an_ended_or_missing_run_is_answered_at_once(house: Any, refused: Any) -> None:
    run = house.record.add(state=Run.STATE_CANCELLED)
    assert (await wait(house, run.name)).run.state == Run.STATE_CANCELLED
    assert (
        await wait(house, run.name.upper().replace("NAMESPACES/DEFAULT/RUNS", "namespaces/default/runs"))
    ).run.name == run.name
    with refused(grpc.StatusCode.NOT_FOUND, "RUN_NOT_FOUND"):
        await wait(house, run.name.replace("default", "other"))  # the cache never crosses namespaces
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID"):
        await wait(house, "namespaces/default/runs/x")


async def test_when_the_wait_is_over_the_run_is_answered_as_it_is(house: Any) -> None:
    run = await house.admin.start()
    assert (await wait(house, run.name, 30)).run.state == Run.STATE_QUEUED
    assert not house.gateway._hub._awaited


async def test_a_lost_push_is_found_by_reading(house: Any) -> None:
    run = await house.admin.start()
    waiting = wait(house, run.name)
    await eventually(lambda: bool(house.gateway._hub._awaited))
    house.record.change(house.record.runs[bytes.fromhex(run.name[-36:].replace("-", ""))], Run.STATE_SUCCEEDED)
    assert (await waiting).run.state == Run.STATE_SUCCEEDED
    assert house.record.reads >= 1


async def test_interests_are_said_again_when_a_group_changes_hands(house: Any) -> None:
    run = house.record.add()
    nudges = await listen_to_nudges(house, run)
    waiting = wait(house, run.name)
    await eventually(lambda: len(nudges) == 1)
    groups = dispatch_pb2.OwnerChanged(groups=range(16))
    await house.bus.publish(OWNERS, groups.SerializeToString())
    await eventually(lambda: len(nudges) == 2)
    await house.publish(nudges[1].watcher, house.record.change(run, Run.STATE_SUCCEEDED))
    await waiting


async def test_what_an_earlier_owner_would_have_told_is_read(house: Any) -> None:
    run = await house.admin.start()
    assert house.gateway._hub._started
    house.record.change(house.record.runs[bytes.fromhex(run.name[-36:].replace("-", ""))], Run.STATE_SUCCEEDED)
    await house.bus.publish(OWNERS, dispatch_pb2.OwnerChanged(groups=range(16)).SerializeToString())
    await eventually(lambda: not house.gateway._hub._started)
    assert (await wait(house, run.name)).run.state == Run.STATE_SUCCEEDED


async def test_a_run_that_was_taken_back_is_waited_for_anew(house: Any) -> None:
    run = house.record.runs[bytes.fromhex((await house.admin.start()).name[-36:].replace("-", ""))]
    await house.finish(run, b"1")
    assert (await wait(house, run.name)).run.output == b"1"
    cached = house.gateway._hub._results
    assert cached.get(run.name) is not None
    again = runs_pb2.RunChange(run=Run(name=run.name, change=run.change + 1))
    await house.bus.publish(RESETS, dispatch_pb2.ChangeBatch(changes=[again]).SerializeToString())
    await eventually(lambda: cached.get(run.name) is None)
    house.record.change(run, Run.STATE_QUEUED)
    waiting = wait(house, run.name)
    await eventually(lambda: bool(house.gateway._hub._awaited))
    await house.finish(run, b"2")
    assert (await waiting).run.output == b"2"


async def test_a_stream_of_waits_answers_each_name_once_many_at_a_time(house: Any) -> None:
    runs = [await house.admin.start() for _ in range(40)]
    names = [run.name for run in runs]

    async def requests() -> Any:
        yield runs_pb2.AwaitRunsRequest(names=names[:20])
        yield runs_pb2.AwaitRunsRequest(names=[*names[20:], "nonsense", names[0]])

    call = house.admin.runs.AwaitRuns(requests(), metadata=house.admin.metadata, timeout=20)
    first = await call.read()
    assert [(entry.name, entry.WhichOneof("result")) for entry in first.runs] == [("nonsense", "error")]
    watcher = next(iter(house.record.watchers.values()))
    changes = [house.record.change(run, Run.STATE_SUCCEEDED) for run in house.record.runs.values()]
    await house.publish(watcher, *changes)
    answers = []
    messages = 0
    while (response := await call.read()) is not grpc.aio.EOF:
        messages += 1
        answers += [entry.name for entry in response.runs]
    assert sorted(answers) == sorted([*names, names[0]])
    assert messages <= 3
    assert not house.gateway._hub._awaited


async def test_a_stream_that_is_left_leaves_nothing(house: Any) -> None:
    run = await house.admin.start()
    call = house.admin.runs.AwaitRuns(metadata=house.admin.metadata, timeout=20)
    await call.write(runs_pb2.AwaitRunsRequest(names=[run.name]))
    await eventually(lambda: bool(house.gateway._hub._awaited))
    call.cancel()
    await eventually(lambda: not house.gateway._hub._awaited and house.gateway._hub._open == 0)


async def test_a_watch_is_a_snapshot_then_dense_changes_to_the_end(house: Any) -> None:
    run = house.record.add()
    house.record.change(run, Run.STATE_RUNNING)
    nudges = await listen_to_nudges(house, run)
    call = watch(house, run.name)
    first = await call.read()
    assert first.snapshot.run.change == first.cursor == 2
    assert [step.step for step in first.snapshot.steps] == ["/do/2"]
    await eventually(lambda: bool(nudges))
    assert nudges[0].steps
    watcher = nudges[0].watcher
    three = house.record.change(run, Run.STATE_RUNNING)
    four = house.record.change(run, Run.STATE_WAITING)
    await house.publish(watcher, three, three, four)
    await house.publish(watcher, house.record.change(run, Run.STATE_SUCCEEDED, output=b"7"))
    seen = [await call.read() for _ in range(3)]
    assert [(message.cursor, message.change.run.state) for message in seen] == [
        (3, Run.STATE_RUNNING),
        (4, Run.STATE_WAITING),
        (5, Run.STATE_SUCCEEDED),
    ]
    assert seen[2].change.run.output == b"7"
    assert await call.read() is grpc.aio.EOF
    await eventually(lambda: not house.gateway._hub._watches and house.gateway._hub._open == 0)


async def test_a_gap_is_closed_by_a_snapshot(house: Any) -> None:
    run = house.record.add()
    nudges = await listen_to_nudges(house, run)
    call = watch(house, run.name)
    assert (await call.read()).cursor == 1
    await eventually(lambda: bool(nudges))
    house.record.change(run, Run.STATE_RUNNING)  # its push is lost
    await house.publish(nudges[0].watcher, house.record.change(run, Run.STATE_RUNNING))
    second = await call.read()
    assert second.snapshot.run.change == second.cursor == 3
    assert len(second.snapshot.steps) == 2
    await house.publish(nudges[0].watcher, house.record.change(run, Run.STATE_SUCCEEDED))
    assert (await call.read()).change.run.state == Run.STATE_SUCCEEDED
    assert await call.read() is grpc.aio.EOF


async def test_the_last_push_may_be_lost_too(house: Any) -> None:
    run = house.record.add()
    call = watch(house, run.name)
    assert (await call.read()).cursor == 1
    house.record.change(run, Run.STATE_SUCCEEDED)
    assert (await call.read()).snapshot.run.state == Run.STATE_SUCCEEDED
    assert await call.read() is grpc.aio.EOF


async def test_a_watch_is_resumed_from_its_cursor(house: Any) -> None:
    run = house.record.add()
    house.record.change(run, Run.STATE_RUNNING)
    nudges, reads = await listen_to_nudges(house, run), house.record.reads
    call = watch(house, run.name, cursor=2)
    await eventually(lambda: bool(nudges) and house.record.reads > reads)
    await house.publish(nudges[0].watcher, house.record.change(run, Run.STATE_RUNNING))
    assert (await call.read()).change.run.change == 3  # nothing was missed: no snapshot
    call.cancel()
    behind = watch(house, run.name, cursor=1)
    assert (await behind.read()).snapshot.run.change == 3
    behind.cancel()
    house.record.change(run, Run.STATE_SUCCEEDED)
    ended = watch(house, run.name, cursor=4)
    assert await ended.read() is grpc.aio.EOF


async def test_hints_come_between_changes(house: Any) -> None:
    run = house.record.add()
    call = watch(house, run.name)
    await call.read()
    hints = dispatch_pb2.StepHints(steps=[runs_pb2.StepRecord(step="/do/0/slow")])
    await house.bus.publish(hints_subject(run.name[-36:]), hints.SerializeToString())
    message = await call.read()
    assert (message.hint.step, message.hint.provisional, message.cursor) == ("/do/0/slow", True, 1)
    call.cancel()


async def test_watches_have_a_limit(empty_house: Any, refused: Any) -> None:
    house = empty_house
    await house.open("limits.watches=1")
    run = await house.admin.start()
    waiting = wait(house, run.name)
    await eventually(lambda: house.gateway._hub._open == 1)
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_WATCHES"):
        await wait(house, run.name)
    await house.finish(run)
    await waiting


async def test_a_stop_sends_watchers_elsewhere_and_finishes_what_is_in_flight(house: Any) -> None:
    run = await house.admin.start()
    waiting = wait(house, run.name)
    call = watch(house, run.name)
    await call.read()
    for scheduler in house.schedulers:
        scheduler.gate.clear()
    start = asyncio.create_task(house.admin.start())
    await eventually(lambda: len(house.record.batches) == 2)
    closing = asyncio.create_task(house.gateway.close())
    for task in (waiting, asyncio.create_task(call.read())):
        (error,) = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(error, grpc.aio.AioRpcError)
        found = from_rpc_error(error)
        assert (found.code, found.reason_name) == (grpc.StatusCode.UNAVAILABLE, "COMPONENT_UNAVAILABLE")
        assert found.retry_after_s is not None
    for scheduler in house.schedulers:
        scheduler.gate.set()
    assert (await start).name
    await closing


async def test_the_gateway_is_ready_with_nats_and_a_scheduler(house: Any) -> None:
    await eventually(
        lambda: house.lifecycle.readiness.failing() == {"main": "starting"} or not house.lifecycle.readiness.failing()
    )
