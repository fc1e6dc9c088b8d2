from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from eventually import eventually
from nats_server import NatsServer
from worker_bench import STREAM, Bench, https, noops

from flint_bus.subjects import journal_subject
from flint_contracts.gen.flint.journal.v1 import journal_pb2
from flint_core.events import CallFailed, CallSucceeded, decode_events
from flint_core.problems import Problem, ProblemType
from flint_ops.clock import boottime, now_ms
from flint_worker.executors import ExecutionFailed, ResolvedCall
from flint_worker.lease import Lease


def end_of(entry: journal_pb2.JournalEntry) -> str:
    return entry.end.WhichOneof("end") or ""


async def test_ten_steps_are_ten_entries(bench: Bench) -> None:
    job = bench.job(bench.define(noops(10)))
    assert await bench.run(job) == "succeeded"
    entries = await bench.entries(job)
    assert [entry.index for entry in entries] == list(range(1, 11))
    assert all(len(decode_events(entry.events)) == 1 for entry in entries)
    assert [end_of(entry) for entry in entries] == [""] * 9 + ["succeeded"]
    assert orjson.loads(entries[-1].end.succeeded.output) == {"n": 9}
    assert {entry.leg_nonce for entry in entries} == {job.leg_nonce}
    assert {entry.claimant for entry in entries} == {job.claimant}
    calls = [step for entry in entries for step in entry.steps if step.kind == "call"]
    assert [step.step for step in calls] == [f"/do/{n}/step{n}" for n in range(10)]


async def test_pure_steps_cost_no_append(bench: Bench) -> None:
    job = bench.job(bench.define([{"a": {"set": {"x": 1}}}, {"b": {"set": {"y": "${ .x + 1 }"}}}]))
    assert await bench.run(job) == "succeeded"
    (entry,) = await bench.entries(job)
    assert orjson.loads(entry.end.succeeded.output) == {"y": 2}
    assert [step.step for step in entry.steps if step.kind == "set"] == ["/do/0/a", "/do/1/b"]


async def test_the_next_leg_goes_on_where_the_record_ends_and_executes_nothing_again(bench: Bench) -> None:
    program = bench.define(https(4))
    job = bench.job(program)
    hold = asyncio.Event()

    def act(call: ResolvedCall) -> Any:
        if len(bench.probe.calls) == 2:
            bench.probe.hold, _ = hold, bench.probe.begun.clear()
        return {"step": call.step}

    bench.probe.act = act
    leg = bench.leg(job)
    task = leg.start()
    await eventually(lambda: len(bench.probe.calls) == 3 and leg.in_progress)
    leg.drop()  # as if the worker had been lost in its third step
    await asyncio.wait({task})
    assert task.cancelled()
    assert bench.probe.cancelled == 1
    entries = await bench.entries(job)
    assert [entry.index for entry in entries] == [1, 2]

    bench.probe.hold, bench.probe.act = None, lambda call: {"step": call.step}
    first = [call.idempotency_key for call in bench.probe.calls]
    bench.probe.calls.clear()
    following = bench.next_job(job, entries, await bench.seal(job))
    assert await bench.run(following) == "succeeded"
    assert [call.step for call in bench.probe.calls] == ["/do/2/step2", "/do/3/step3"]
    assert bench.probe.calls[0].idempotency_key == first[2]
    entries = await bench.entries(job)
    assert [(entry.leg, entry.index) for entry in entries if not entry.seal] == [(1, 1), (1, 2), (2, 3), (2, 4)]
    told = [step.step for entry in entries for step in entry.steps if step.kind == "call"]
    assert told == [f"/do/{n}/step{n}" for n in range(4)]


async def test_a_leg_behind_a_seal_stops_without_a_word(bench: Bench) -> None:
    job = bench.job(bench.define(https(3)), level=0)  # on its run's own subject
    bench.probe.hold = asyncio.Event()
    task = bench.leg(job).start()
    await bench.probe.begun.wait()
    await bench.seal(job)
    bench.probe.hold.set()
    assert await task == "superseded"
    assert [entry.seal for entry in await bench.entries(job)] == [True]
    assert len(bench.probe.calls) == 1


async def test_nothing_is_begun_after_the_lease(bench: Bench) -> None:
    job = bench.job(bench.define(https(3)))
    lease = Lease(job.claimant, 1, boottime() - 10, 5)
    assert await bench.leg(job, lease).run() == "lease"
    assert bench.probe.calls == []
    assert await bench.entries(job) == []


async def test_an_outcome_is_not_appended_after_the_lease(bench: Bench) -> None:
    job = bench.job(bench.define(https(3)))
    lease = Lease(job.claimant, 1, boottime(), 300)
    bench.probe.hold = asyncio.Event()
    task = bench.leg(job, lease).start()
    await bench.probe.begun.wait()
    lease.end()
    bench.probe.hold.set()
    assert await task == "lease"
    assert await bench.entries(job) == []


async def test_a_failed_call_fails_the_run_with_its_problem(bench: Bench) -> None:
    def act(call: ResolvedCall) -> Any:
        raise ExecutionFailed(Problem(ProblemType.COMMUNICATION, 503, "Unreachable", "no answer", call.step))

    bench.probe.act = act
    job = bench.job(bench.define(https(2)))
    assert await bench.run(job) == "failed"
    (entry,) = await bench.entries(job)
    error = entry.end.failed.error
    assert (error.type, error.status, error.instance) == (ProblemType.COMMUNICATION, 503, "/do/0/step0")
    (event,) = decode_events(entry.events)
    assert isinstance(event, CallFailed)


async def test_a_defect_of_an_executor_is_a_failed_step_and_its_text_is_not_recorded(bench: Bench) -> None:
    def act(call: ResolvedCall) -> Any:
        raise ValueError("hunter2")

    bench.probe.act = act
    job = bench.job(bench.define(https(2)))
    assert await bench.run(job) == "failed"
    (entry,) = await bench.entries(job)
    assert entry.end.failed.error.type == ProblemType.RUNTIME
    assert b"hunter2" not in entry.SerializeToString()


async def test_an_output_beyond_the_limit_is_a_typed_problem(bench: Bench) -> None:
    bench.probe.act = lambda call: "x" * (65 * 2**20)
    job = bench.job(bench.define(https(1)))
    assert await bench.run(job) == "failed"
    (entry,) = await bench.entries(job)
    assert entry.end.failed.error.type == ProblemType.PAYLOAD_TOO_LARGE


async def test_a_state_beyond_the_limit_is_a_typed_problem(bench: Bench) -> None:
    bench.probe.act = lambda call: "x" * 200_000
    steps = https(3)
    steps[2]["step2"]["with"]["body"] = "${ $steps.step0 }"
    steps += [{"sleep": {"wait": {"seconds": 60}}}]
    steps += [{"last": {"set": {"a": "${ $steps.step0 }", "b": "${ $steps.step1 }"}}}]
    job = bench.job(bench.define(steps))
    await bench.run(job)
    entries = await bench.entries(job)
    assert entries[-1].end.failed.error.type == ProblemType.PAYLOAD_TOO_LARGE
    assert entries[-1].end.failed.error.instance == "/do/1/step1"


async def test_a_long_wait_blocks_and_the_next_leg_goes_on_after_it(bench: Bench) -> None:
    do = [*https(1), {"sleep": {"wait": {"hours": 1}}}, {"after": {"set": {"done": True}}}]
    job = bench.job(bench.define(do))
    assert await bench.run(job) == "blocked"
    entries = await bench.entries(job)
    assert [end_of(entry) for entry in entries] == ["blocked"]
    last = entries[-1]
    assert abs(last.end.blocked.wake_at_ms - now_ms() - 3_600_000) < 60_000
    assert last.snapshot
    # An hour later, as the clock of the next leg's worker sees it: the timer is due as soon as it is looked at.
    due = last.snapshot.replace(str(last.end.blocked.wake_at_ms).encode(), str(now_ms() - 1).encode())
    following = bench.next_job(job, entries, await bench.seal(job))
    following.snapshot = due
    assert await bench.run(following) == "succeeded"
    assert len(bench.probe.calls) == 1
    final = (await bench.entries(job))[-1]
    assert orjson.loads(final.end.succeeded.output) == {"done": True}


async def test_a_short_wait_keeps_its_slot(bench: Bench) -> None:
    job = bench.job(bench.define([{"sleep": {"wait": {"milliseconds": 30}}}, *https(1)]))
    assert await bench.run(job) == "succeeded"
    assert all(end_of(entry) != "blocked" for entry in await bench.entries(job))


async def test_a_cancel_stops_the_call_in_progress(bench: Bench) -> None:
    job = bench.job(bench.define(https(3)))
    bench.probe.hold = asyncio.Event()
    leg = bench.leg(job)
    task = leg.start()
    await bench.probe.begun.wait()
    leg.request_cancel()
    assert await task == "cancelled"
    assert bench.probe.cancelled == 1
    (entry,) = await bench.entries(job)
    assert end_of(entry) == "cancelled"


async def test_a_cancel_that_came_before_the_leg(bench: Bench) -> None:
    job = bench.job(bench.define(https(3)), cancel_requested=True)
    assert await bench.run(job) == "cancelled"
    assert bench.probe.calls == []


async def test_draining_gives_the_run_back_at_the_boundary(bench: Bench) -> None:
    job = bench.job(bench.define(https(3)))
    bench.probe.hold = asyncio.Event()
    leg = bench.leg(job)
    task = leg.start()
    await bench.probe.begun.wait()
    leg.drain()
    assert not task.done()
    bench.probe.hold.set()
    assert await task == "yielded"
    (entry,) = await bench.entries(job)
    assert end_of(entry) == "yielded"
    assert entry.snapshot
    assert isinstance(decode_events(entry.events)[0], CallSucceeded)
    following = bench.next_job(job, [entry], await bench.seal(job))
    assert await bench.run(following) == "succeeded"
    assert len(bench.probe.calls) == 3


async def test_a_leg_not_begun_is_given_back_without_a_snapshot(bench: Bench) -> None:
    job = bench.job(bench.define(https(3)))
    leg = bench.leg(job)
    leg.drain()
    assert await leg.run() == "yielded"
    (entry,) = await bench.entries(job)
    assert end_of(entry) == "yielded"
    assert (entry.snapshot, entry.events, len(entry.steps)) == (b"", b"", 0)


@pytest.mark.parametrize(
    ("told", "asked"), [("pause", True), ("pause pause", True), ("pause drain", False), ("drain pause pause", False)]
)
async def test_a_leg_says_whether_it_was_asked_for(bench: Bench, told: str, asked: bool) -> None:
    """However often: who was only asked for a leg is not taken for a worker that drains."""
    job = bench.job(bench.define(https(3)))
    leg = bench.leg(job)
    for what in told.split():
        getattr(leg, what)()
    assert await leg.run() == "yielded"
    (entry,) = await bench.entries(job)
    assert entry.end.yielded.asked is asked


async def test_branches_run_at_once_and_a_failing_one_cancels_the_others(bench: Bench) -> None:
    branches = [{"slow": https(1)[0]["step0"]}, {"bad": {"call": "noop", "with": {"fail": {"title": "no"}}}}]
    bench.probe.hold = asyncio.Event()
    job = bench.job(bench.define([{"both": {"fork": {"branches": branches}}}]))
    assert await bench.run(job) == "failed"
    assert bench.probe.cancelled == 1
    assert (await bench.entries(job))[-1].end.failed.error.title == "no"


async def test_branches_outcomes_are_all_recorded(bench: Bench) -> None:
    branches = [{f"b{n}": https(1)[0]["step0"]} for n in range(20)]
    job = bench.job(bench.define([{"all": {"fork": {"branches": branches}}}]))
    assert await bench.run(job) == "succeeded"
    entries = await bench.entries(job)
    assert sum(len(decode_events(entry.events)) for entry in entries) == 20
    assert [entry.index for entry in entries] == list(range(1, len(entries) + 1))


async def test_a_timeout_is_a_timer_of_the_machine_and_cancels_the_call(bench: Bench) -> None:
    step = https(1)[0]
    step["step0"]["timeout"] = {"after": {"milliseconds": 500}}
    bench.probe.hold = asyncio.Event()
    job = bench.job(bench.define([step]))
    assert await bench.run(job) == "failed"
    assert bench.probe.cancelled == 1
    assert (await bench.entries(job))[-1].end.failed.error.type == ProblemType.TIMEOUT
    deadline = bench.probe.calls[0].deadline_s
    assert deadline is not None
    assert 0 <= deadline <= 0.601


async def test_expressions_for_jq_are_evaluated_under_guard_also_on_replay(bench: Bench) -> None:
    do: list[dict[str, Any]] = [
        {"a": {"set": {"xs": "${ [range(3)] | map(. * 2) }"}}},
        *https(1),
        {"b": {"set": {"sum": "${ [limit(2; .n, 1)] | add }"}}},
        {"c": https(1)[0]["step0"]},
    ]
    program = bench.define(do)
    job = bench.job(program)
    assert await bench.run(job) == "succeeded"
    entries = await bench.entries(job)
    assert len(entries) == 2
    following = bench.next_job(job, entries[:1], await bench.seal(job))
    bench.probe.calls.clear()
    assert await bench.run(following) == "succeeded"
    assert [call.step for call in bench.probe.calls] == ["/do/3/c"]


async def test_a_defect_of_the_runner_fails_the_run_not_the_worker(bench: Bench) -> None:
    program = bench.define(https(2))
    job = bench.job(program, snapshot=b"not a snapshot")
    assert await bench.run(job) == "failed"
    (entry,) = await bench.entries(job)
    assert entry.end.failed.error.type == ProblemType.RUNTIME


async def test_a_definition_that_nobody_has_fails_the_run(bench: Bench) -> None:
    job = bench.job(bench.define(https(1)), definition_hash=bytes(32))
    assert await bench.run(job) == "failed"
    (entry,) = await bench.entries(job)
    assert entry.end.failed.error.type == ProblemType.CONFIGURATION


async def test_a_long_loop_of_pure_steps_is_recorded_in_parts_with_snapshots(bench: Bench) -> None:
    do = [{"loop": {"for": {"in": "${ .items }"}, "do": [{"set": {"set": {"n": "${ $item }"}}}]}}]
    job = bench.job(bench.define(do), {"items": list(range(3000))})
    assert await bench.run(job) == "succeeded"
    entries = await bench.entries(job)
    assert len(entries) >= 3
    assert all(entry.snapshot for entry in entries[:-1])
    assert sum(1 for entry in entries for step in entry.steps if step.step.endswith("/set")) == 3000
    following = bench.next_job(job, entries[:1], await bench.seal(job))
    assert await bench.run(following) == "succeeded"
    again = [entry for entry in await bench.entries(job) if entry.leg == 2]
    told = sum(1 for entry in [entries[0], *again] for step in entry.steps if step.step.endswith("/set"))
    assert told == 3000


@pytest.mark.parametrize("paused", [True, False])
async def test_an_outcome_is_held_while_the_journal_does_not_answer_and_never_executed_again(
    own_bench: Bench, own_nats: NatsServer, paused: bool
) -> None:
    bench = own_bench
    job = bench.job(bench.define(https(3)))
    bench.probe.hold = asyncio.Event()
    task = bench.leg(job).start()
    await bench.probe.begun.wait()
    if paused:
        own_nats.pause()
    else:
        own_nats.kill()
        await eventually(lambda: not bench.bus.connected.is_set())
    bench.probe.hold.set()
    await eventually(lambda: not bench.probe.hold or len(bench.probe.calls) == 1)
    await asyncio.sleep(0)
    if paused:
        own_nats.resume()
    else:
        own_nats.start()
    async with asyncio.timeout(60):
        assert await task == "succeeded"
    assert len(bench.probe.calls) == 3
    assert [entry.index for entry in await bench.entries(job)] == [1, 2, 3]


async def test_a_lost_journal_is_held_until_the_owner_says_so(own_bench: Bench) -> None:
    bench = own_bench
    job = bench.job(bench.define(https(3)))
    bench.probe.hold = asyncio.Event()
    leg = bench.leg(job)
    task = leg.start()
    await bench.probe.begun.wait()
    await bench.bus.delete_stream(STREAM)
    bench.probe.hold.set()
    await eventually(lambda: leg._journal.unsure)
    assert not task.done()
    assert not leg.in_progress
    leg.give_up()
    async with asyncio.timeout(60):
        assert await task == "given-up"
    assert len(bench.probe.calls) == 1


@pytest.mark.parametrize("level", [0, 5])
async def test_an_acknowledgement_that_was_lost_is_found_again(bench: Bench, level: int) -> None:
    """R9: the entry was stored, the answer was not seen; the subject's last message is mine."""
    job = bench.job(bench.define(https(2)), level=level)
    bench.probe.hold = asyncio.Event()
    leg = bench.leg(job)
    task = leg.start()
    await bench.probe.begun.wait()
    # What the leg is about to append, stored before it does.
    lane = leg._journal._lane
    assert (lane._subject == journal_subject(1, 0, job.run_id)) == (level == 0)
    assert (lane._name == job.leg_nonce.hex()) == (level == 0)
    data = journal_pb2.JournalEntry(run_id=job.run_id).SerializeToString()
    await bench.bus.append(lane._subject, data, msg_id=f"{lane._name}.1", stream=STREAM, expected_sequence=0)
    bench.probe.hold.set()
    assert await task == "succeeded"
    assert [entry.index for entry in await bench.entries(job)] == [0, 2]
