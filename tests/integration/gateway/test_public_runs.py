"""RunService: starts and their repeats, batches, reads, pages, waits, cancels, history."""

from __future__ import annotations

import asyncio
import uuid
from datetime import timedelta

import pytest

from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_core.ids import group_of_run
from flint_sdk import (
    AsyncRunHandle,
    InvalidArgument,
    PageTokenInvalid,
    PayloadTooLarge,
    RequestIdReused,
    RunCancelled,
    RunEnded,
    RunNotFound,
    RunState,
    StartRequest,
    TimedOut,
    WorkflowNotFound,
)
from support.house import PARENT, House, refusal
from support.outside import Outside
from support.stack import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

ECHO = "do: [{a: {call: noop, with: {output: '${ . }'}}}]"
HOLD = "do: [{w: {wait: PT1H}}]"
CALL = "do: [{h: {call: http, with: {method: post, endpoint: '${ .url + \"/steps/held\" }'}}}]"


async def test_one_request_id_is_one_run(house: House) -> None:
    name, request_id = await house.apply(ECHO), house.name("request")
    first, *others = await asyncio.gather(
        *(house.flint.start(name, {"n": 1}, request_id=request_id) for _ in range(20))
    )
    assert {handle.id for handle in others} == {first.id}
    assert sum(handle.created for handle in (first, *others)) == 1
    await first.result(60)
    late = await house.flint.start(name, {"n": 1}, request_id=request_id)
    assert (late.id, late.created, late.run.state) == (first.id, False, RunState.SUCCEEDED)
    assert (await first.get()).request_id == request_id


@pytest.mark.parametrize("other", [{"input": {"n": 2}}, {"level": 1}, {"version": "1.0.0"}])
async def test_a_request_id_with_other_content_is_refused(house: House, other: dict[str, object]) -> None:
    name, request_id = await house.apply(ECHO), house.name("request")
    await house.flint.start(name, {"n": 1}, request_id=request_id)
    with pytest.raises(RequestIdReused) as refused:
        await house.flint.start(name, **{"input": {"n": 1}, "request_id": request_id, **other})  # type: ignore[arg-type]
    assert refused.value.reason == "REQUEST_ID_REUSED"


async def test_in_a_batch_each_start_is_for_itself(house: House) -> None:
    name, request_id = await house.apply(ECHO), house.name("request")
    starts = [
        StartRequest(name, {"n": 0}),
        StartRequest("no-such-workflow"),
        StartRequest(name, {"n": 1}, request_id=request_id),
        StartRequest(name, {"n": 1}, request_id=request_id),
        StartRequest(name, {"n": 2}, request_id=request_id),
        StartRequest(name, {"n": 3}, level=-1),
        StartRequest("Not A Label"),
        StartRequest(name, {"n": 3}, level=11),
    ]
    results = await house.flint.start_many(starts)
    kinds = [type(result) for result in results]
    assert kinds == [
        AsyncRunHandle,
        WorkflowNotFound,
        AsyncRunHandle,
        AsyncRunHandle,
        RequestIdReused,
        InvalidArgument,
        InvalidArgument,
        InvalidArgument,
    ]
    handles = [result for result in results if isinstance(result, AsyncRunHandle)]
    assert handles[1].id == handles[2].id
    assert [await handle.result(60) for handle in handles] == [{"n": 0}, {"n": 1}, {"n": 1}]
    fields = [v.field for result in results if isinstance(result, InvalidArgument) for v in result.violations]
    assert fields == ["requests[5].level", "requests[6].workflow_id", "requests[7].level"]


async def test_inputs_come_back_exactly(house: House) -> None:
    document = {
        "text": 'ä\n"😀"',
        "big": 2**63 - 1,
        "low": -(2**63),
        "unsigned": 2**64 - 1,
        "float": 0.1,
        "none": None,
        "list": [[], {}],
    }
    handle = await house.flint.start(await house.apply(ECHO), document)
    assert await handle.result(60) == document
    assert (await handle.get()).input == document


BAD_INPUTS = [
    (b"{nope", "is not JSON"),
    (b"", ""),
    (b'{"n": 18446744073709551616}', "does not fit 64 bits"),
    (b'{"n": -9223372036854775809}', "does not fit 64 bits"),
    (b'{"n": NaN}', "is not JSON"),
    (b"\xff", "is not JSON"),
    (b'"\\ud800"', "is not JSON"),
    (b"[" * 5000 + b"]" * 5000, "is not JSON"),
]


@pytest.mark.parametrize(("data", "what"), BAD_INPUTS, ids=range(len(BAD_INPUTS)))
async def test_inputs_that_are_no_json(house: House, data: bytes, what: str) -> None:
    name = await house.apply(ECHO)
    request = runs_pb2.StartRunRequest(parent=PARENT, workflow_id=name, input=data)
    if not what:  # an empty input is an empty object
        answer = await house.raw.runs.StartRun(request, metadata=house.raw.metadata)
        assert (await house.flint.wait(answer.run.name, 60)).output == {}
        return
    refused = await refusal(house.raw.runs.StartRun(request, metadata=house.raw.metadata))
    assert refused.reason == "FIELD_INVALID"
    assert [v.field for v in refused.violations] == ["input"]
    assert what in refused.violations[0].description


async def test_an_input_beyond_its_limit(house: House) -> None:
    name = await house.apply("do: [{a: {set: {n: 1}}}]")
    limit = house.stack.settings.limits.payload_bytes
    fits = "x" * (limit - 2)
    handle = await house.flint.start(name, fits)
    assert await handle.result(60) == {"n": 1}
    assert (await handle.get()).input == fits
    handle = await house.flint.start(name, "x" * 300 * 1024)  # by reference
    assert await handle.result(60) == {"n": 1}
    assert await house.flint.resolve((await handle.get()).input) == "x" * 300 * 1024
    with pytest.raises(PayloadTooLarge) as refused:
        await house.flint.start(name, "x" * (house.stack.settings.limits.value_bytes + 1))
    assert refused.value.reason == "PAYLOAD_TOO_LARGE"


async def test_every_wrong_field_is_named(house: House) -> None:
    request = runs_pb2.StartRunRequest(
        parent=PARENT, workflow_id="Not A Label", version="one", level=10, request_id="~mine", input=b"{"
    )
    refused = await refusal(house.raw.runs.StartRun(request, metadata=house.raw.metadata))
    assert {v.field for v in refused.violations} == {"workflow_id", "version", "level", "request_id", "input"}


async def test_unknown_names(house: House) -> None:
    with pytest.raises(WorkflowNotFound):
        await house.flint.start("no-such-workflow")
    name = await house.apply(ECHO)
    with pytest.raises(WorkflowNotFound):
        await house.flint.start(name, version="2.0.0")
    nobody = "0197b2a0-0000-7000-8000-000000000000"
    for call in (house.flint.get_run, house.flint.cancel, house.flint.wait):
        with pytest.raises(RunNotFound):
            await call(nobody)
    with pytest.raises(RunNotFound):
        [entry async for entry in house.flint.history(nobody)]
    with pytest.raises(RunNotFound):
        [event async for event in house.flint.watch(nobody)]
    raw = house.raw
    malformed = await refusal(raw.runs.GetRun(runs_pb2.GetRunRequest(name=f"{PARENT}/runs/7"), metadata=raw.metadata))
    assert [v.field for v in malformed.violations] == ["name"]


async def test_filters_and_pages_of_runs(house: House) -> None:
    name = await house.apply(ECHO)
    handles = [await house.flint.start(name, {"n": n}) for n in range(7)]
    runs = [await house.flint.wait(handle.id, 60) for handle in handles]
    failing = await house.apply("do: [{r: {raise: {error: {type: 'https://x.test/e', status: 400, title: no}}}}]")
    failed = await house.flint.wait((await house.flint.start(failing)).id, 30)
    newest_first = sorted((run.id for run in runs), reverse=True)  # two owners' clocks may differ by a moment
    assert [r.id async for r in house.flint.list_runs(workflow=name, page_size=3)] == newest_first
    listed = [r async for r in house.flint.list_runs(workflow=name, states=[RunState.SUCCEEDED])]
    assert {(r.input, r.output, r.state) for r in listed} == {(None, None, RunState.SUCCEEDED)}
    assert [r async for r in house.flint.list_runs(workflow=name, states=[RunState.FAILED])] == []
    both = [RunState.FAILED, RunState.SUCCEEDED]
    assert [r.id async for r in house.flint.list_runs(workflow=failing, states=both)] == [failed.id]
    middle = runs[3].create_time
    assert middle is not None
    after = [r.id async for r in house.flint.list_runs(workflow=name, created_after=middle)]
    before = [r.id async for r in house.flint.list_runs(workflow=name, created_before=middle)]
    assert sorted(after + before) == sorted(newest_first)
    assert runs[3].id in after
    assert [r async for r in house.flint.list_runs(workflow=name, created_before=middle - timedelta(days=1))] == []


async def test_page_tokens_belong_to_their_list(house: House) -> None:
    name = await house.apply(ECHO)
    for _ in range(2):
        await (await house.flint.start(name)).result(60)
    raw = house.raw
    request = runs_pb2.ListRunsRequest(parent=PARENT, workflow_id=name, page_size=1)
    token = (await raw.runs.ListRuns(request, metadata=raw.metadata)).next_page_token
    assert token
    for foreign in (
        runs_pb2.ListRunsRequest(parent=PARENT, page_token=token),
        runs_pb2.ListRunsRequest(parent=PARENT, workflow_id=name, states=[5], page_token=token),
        runs_pb2.ListRunsRequest(parent=PARENT, workflow_id=name, page_token=token[:-2]),
        runs_pb2.ListRunsRequest(parent=PARENT, page_token="nonsense"),
    ):
        refused = await refusal(raw.runs.ListRuns(foreign, metadata=raw.metadata))
        assert isinstance(refused, PageTokenInvalid), refused
    negative = runs_pb2.ListRunsRequest(parent=PARENT, page_size=-1)
    refused = await refusal(raw.runs.ListRuns(negative, metadata=raw.metadata))
    assert (refused.reason, [v.field for v in refused.violations]) == ("FIELD_INVALID", ["page_size"])
    unknown = runs_pb2.ListRunsRequest(parent=PARENT, states=[99])  # type: ignore[list-item]
    refused = await refusal(raw.runs.ListRuns(unknown, metadata=raw.metadata))
    assert [v.field for v in refused.violations] == ["states[0]"]


async def test_history_in_pages(house: House) -> None:
    body = "do:\n" + "".join(f"  - s{n}: {{call: noop, with: {{output: {n}}}}}\n" for n in range(7))
    run = await house.run(body)
    raw, seen, token = house.raw, [], ""
    while True:
        request = runs_pb2.GetRunHistoryRequest(name=run.name, page_size=3, page_token=token)
        page = await raw.runs.GetRunHistory(request, metadata=raw.metadata)
        assert len(page.entries) <= 3
        seen += page.entries
        token = page.next_page_token
        if not token:
            break
    assert [entry.index for entry in seen] == list(range(1, 8))
    assert [step.result for entry in seen for step in entry.steps] == [str(n).encode() for n in range(7)]
    assert {entry.worker for entry in seen} == {run.worker or seen[0].worker}
    assert [entry.leg_end for entry in seen] == [""] * 6 + ["succeeded"]
    other = await house.run(ECHO)
    request = runs_pb2.GetRunHistoryRequest(name=run.name, page_size=3)
    token = (await raw.runs.GetRunHistory(request, metadata=raw.metadata)).next_page_token
    foreign = runs_pb2.GetRunHistoryRequest(name=other.name, page_token=token)
    assert isinstance(await refusal(raw.runs.GetRunHistory(foreign, metadata=raw.metadata)), PageTokenInvalid)


async def test_a_wait_that_is_over_answers_the_run_as_it_is(house: House) -> None:
    handle = await house.flint.start(await house.apply(HOLD))
    request = runs_pb2.AwaitRunRequest(name=handle.name)
    request.timeout.FromMilliseconds(200)
    raw = house.raw
    answer = await raw.runs.AwaitRun(request, metadata=raw.metadata)
    assert answer.run.name == handle.name
    assert answer.run.state in (runs_pb2.Run.STATE_QUEUED, runs_pb2.Run.STATE_RUNNING, runs_pb2.Run.STATE_WAITING)
    request.timeout.FromSeconds(30)
    waiting = asyncio.ensure_future(raw.runs.AwaitRun(request, metadata=raw.metadata))
    with pytest.raises(TimedOut):
        await handle.result(0.2)
    await handle.cancel()
    assert (await waiting).run.state == runs_pb2.Run.STATE_CANCELLED
    request.timeout.FromSeconds(601)
    assert [v.field for v in (await refusal(raw.runs.AwaitRun(request, metadata=raw.metadata))).violations] == [
        "timeout"
    ]


async def test_a_waiting_run_is_cancelled_at_once(house: House) -> None:
    handle = await house.flint.start(await house.apply(HOLD))

    async def waits() -> bool:
        return (await handle.get()).state is RunState.WAITING

    await eventually(waits)
    await handle.cancel("enough")
    ended = await house.flint.wait(handle.id, 60)
    assert (ended.state, ended.wake_time, ended.cancel_requested) == (RunState.CANCELLED, None, True)
    with pytest.raises(RunCancelled):
        await handle.result(60)
    with pytest.raises(RunEnded):
        await handle.cancel()


async def test_a_running_run_is_cancelled_in_the_middle_of_a_call(house: House, world: Outside) -> None:
    world.gate.clear()
    handle = await house.flint.start(await house.apply(CALL), {"url": world.url})
    await eventually(lambda: world.executions)
    assert (await handle.get()).state is RunState.RUNNING
    await asyncio.gather(handle.cancel(), handle.cancel())  # twice is not an error
    ended = await house.flint.wait(handle.id, 60)
    assert not world.gate.is_set()
    assert (ended.state, ended.output, ended.leg) == (RunState.CANCELLED, None, 1)
    steps = [step async for entry in house.flint.history(handle.id) for step in entry.steps]
    assert [(step.step, step.state.value) for step in steps] == [("/do/0/h", "CANCELLED")]
    assert len(world.executions) == 1


async def fill(house: House, world: Outside) -> list[AsyncRunHandle]:
    """Starts runs that hold their slots until the gate opens; some must wait for one, the last of them least urgent."""
    world.gate.clear()
    name = await house.apply(CALL)
    workers = sum(name.startswith("worker-") for name in house.stack.pids)

    async def all_there() -> bool:  # one that a busy machine kept from its lease comes back
        return len([worker async for worker in house.flint.list_workers()]) == workers

    await eventually(all_there, 60)
    slots = sum([worker.slots async for worker in house.flint.list_workers()])
    # All at once, so at one scheduler: one that had borrowed the share of the other, before that gets runs of its own,
    # would open more legs than there is room for (decision 0009), and none of these ends.
    levels = [*(5 for _ in range(2 * slots - 1)), 9]
    answers = await house.flint.start_many([StartRequest(name, {"url": world.url}, level=level) for level in levels])
    taking = [answer for answer in answers if isinstance(answer, AsyncRunHandle)]
    assert len(taking) == len(answers), answers

    async def waiting() -> bool:
        queued = [r async for r in house.flint.list_runs(workflow=name, states=[RunState.QUEUED], page_size=500)]
        overcommit = house.stack.settings.scheduler.overcommit
        return len(world.executions) >= slots / 4 and len(queued) >= 2 * slots - overcommit * slots

    await eventually(waiting, 60)
    return taking


async def test_every_slot_of_the_fleet_is_used(house: House, world: Outside) -> None:
    taking = await fill(house, world)
    slots = sum([worker.slots async for worker in house.flint.list_workers()])
    try:
        await eventually(lambda: len(world.executions) == slots, 60)
    finally:
        world.gate.set()
    for handle in taking:
        await handle.result(60)
    assert len(world.executions) == 2 * slots


async def test_a_queued_run_is_cancelled_before_it_began(house: House, world: Outside) -> None:
    """With every slot taken, an accepted run waits in the queue, and ends from there."""
    taking = await fill(house, world)
    slots = sum([worker.slots async for worker in house.flint.list_workers()])
    handle = taking.pop()
    assert (await handle.get()).state is RunState.QUEUED
    await handle.cancel()
    ended = await house.flint.wait(handle.id, 60)
    assert (ended.state, ended.leg, ended.position) == (RunState.CANCELLED, 0, 0)
    assert not world.gate.is_set()
    begun = len(world.executions)
    assert begun <= slots, "more steps in progress than slots"
    world.gate.set()
    for other in taking:
        await other.result(60)
    assert handle.id not in {execution.key.split("/")[0] for execution in world.executions}


async def test_urgent_overtakes_what_waits_in_the_same_queue(house: House, world: Outside) -> None:
    """Each scheduler has a queue of its own: of the runs that waited in it, the urgent one gets its leg first."""
    taking = await fill(house, world)
    name = (await taking[0].get()).workflow_id
    slots = sum([worker.slots async for worker in house.flint.list_workers()])
    await eventually(lambda: len(world.executions) == slots, 60)  # no more legs are about to open
    groups = house.stack.settings.cluster.shard_groups
    owners = await house.record.owners()

    def owner(run: str) -> str:
        return owners[group_of_run(uuid.UUID(run).bytes, groups)]

    async def beside_urgent() -> tuple[AsyncRunHandle, list[str]]:
        for _ in range(50):  # which scheduler takes a start is the gateway's choice
            urgent = await house.flint.start(name, {"url": world.url}, level=0)
            taking.append(urgent)
            waiting = house.flint.list_runs(workflow=name, states=[RunState.QUEUED], page_size=500)
            beside = [run.id async for run in waiting if run.level and owner(run.id) == owner(urgent.id)]
            if beside:
                return urgent, beside
        raise AssertionError("nobody waited in an urgent run's queue")

    urgent, beside = await beside_urgent()
    world.gate.set()
    for other in taking:
        await other.result(60)
    first = (await urgent.get()).start_time
    assert first is not None
    for run in beside:
        started = (await house.flint.get_run(run)).start_time
        assert started is not None
        assert first <= started
