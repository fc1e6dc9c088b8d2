"""How legs and incarnations end: never without a word where one can be said, and not before their work has ended."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import orjson
import pytest
import structlog
from eventually import eventually
from pydantic import SecretStr
from structlog.testing import capture_logs
from worker_bench import INCARNATION, Bench, Probe, https, noops

from flint_bus import AppendRefused
from flint_bus.payloads import PayloadClient
from flint_contracts.gen.flint.registry.v1 import registry_pb2
from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_core.problems import Problem, ProblemType
from flint_jq import EvaluationFailed
from flint_ops.clock import boottime
from flint_ops.config import Settings, WorkerSettings
from flint_worker.executors import ExecutionFailed, ResolvedCall
from flint_worker.executors.noop import NoopExecutor
from flint_worker.incarnation import Incarnation
from flint_worker.lease import Lease
from flint_worker.values import Values


class Evaluators:
    """Stands in for evaluators under pressure: refuses what it is asked from the moment it is told to."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.failing = False
        self.asked = 0

    async def evaluate_json(self, *question: Any) -> Any:
        self.asked += 1
        if self.failing:
            raise EvaluationFailed("timeout", "took longer than 500 ms")
        return await self.real.evaluate_json(*question)

    async def close(self) -> None:
        await self.real.close()


async def test_an_expression_that_cannot_be_replayed_ends_the_run(bench: Bench) -> None:
    evaluators = Evaluators(bench.evaluators)
    values = Values(PayloadClient(bench.bus, 2**20), evaluators, bench.services.limits)  # type: ignore[arg-type]
    bench.services = replace(bench.services, values=values)
    do = [{"a": {"set": {"x": "${ [limit(1; 7, 8)] | .[0] }"}}}, *https(1), {"w": {"wait": {"hours": 1}}}]
    job = bench.job(bench.define(do))
    assert await bench.run(job) == "blocked"
    entries = await bench.entries(job)
    following = bench.next_job(job, [], 0)
    following.position = entries[0].index
    following.events.append(entries[0].events)
    following.expected_sequence = await bench.seal(following)
    evaluators.failing = True
    assert await bench.run(following) == "failed"
    last = (await bench.entries(job))[-1]
    assert last.end.failed.error.type == ProblemType.EXPRESSION
    assert last.end.failed.error.title == "Run cannot be resumed"


class Refusing:
    """A bus whose journal refuses the first entries."""

    def __init__(self, bus: Any, times: int) -> None:
        self.bus = bus
        self.times = times

    def __getattr__(self, name: str) -> Any:
        return getattr(self.bus, name)

    def append_now(self, *arguments: Any, **options: Any) -> asyncio.Future[int]:
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if self.times:
            self.times -= 1
            answer.set_exception(AppendRefused("header too large (err_code 10099)"))
            return answer
        return self.bus.append_now(*arguments, **options)


async def test_an_entry_that_is_refused_ends_the_run(bench: Bench) -> None:
    bench.services = replace(bench.services, bus=Refusing(bench.bus, 1))  # type: ignore[arg-type]
    job = bench.job(bench.define(https(2)))
    assert await bench.run(job) == "failed"
    (entry,) = await bench.entries(job)
    assert entry.end.failed.error.type == ProblemType.UNSTORABLE


async def test_where_nothing_can_be_said_the_log_tells_the_run(bench: Bench) -> None:
    bench.services = replace(bench.services, bus=Refusing(bench.bus, 2))  # type: ignore[arg-type]
    job = bench.job(bench.define(https(1)), trace_id=bytes(range(16)))
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logs:
        assert await bench.run(job) == "refused"
    (line,) = [line for line in logs if line["event"] == "leg_end_not_appended"]
    assert line["log_level"] == "error"
    assert (line["run"], line["trace_id"]) == (bench.leg(job).run_id, bytes(range(16)).hex())
    assert await bench.entries(job) == []


async def test_a_defect_beside_another_call_ends_the_run(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a defect of ours")

    monkeypatch.setattr(bench.services.caller, "_failed", broken)
    bench.probe.act = lambda call: ExecutionFailed(Problem("t", 500, "no"))
    branches = [{"a": https(1)[0]["step0"]}, {"b": {"call": "noop", "with": {"fail": {"title": "no"}}}}]
    job = bench.job(bench.define([{"f": {"fork": {"branches": branches}}}]))
    assert await bench.run(job) == "failed"
    assert (await bench.entries(job))[-1].end.failed.error.title == "Defect in the worker"


async def test_lines_of_calls_carry_run_and_trace(bench: Bench) -> None:
    def defect(call: ResolvedCall) -> Any:
        raise RuntimeError("a defect")

    bench.probe.act = defect
    branches = [{"a": https(1)[0]["step0"]}, {"b": noops(1)[0]["step0"]}]
    job = bench.job(bench.define([{"f": {"fork": {"branches": branches}}}]), trace_id=bytes(range(16)))
    leg = bench.leg(job)
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logs:
        assert await leg.start() == "failed"
    (line,) = [line for line in logs if line["event"] == "executor_defect"]
    assert (line["run"], line["trace_id"], line["step"]) == (
        leg.run_id,
        bytes(range(16)).hex(),
        "/do/0/f/fork/branches/0/a",
    )


async def test_no_secret_reaches_the_journal(bench: Bench) -> None:
    secret = "tok/3n-5up3r"
    await bench.close()
    secretive = await Bench.open(bench.bus, Settings(secrets={"t": SecretStr(secret)}))
    try:

        def act(call: ResolvedCall) -> Any:
            address = call.arguments["endpoint"]
            assert secret in address
            if "fail" in address:
                raise ExecutionFailed(Problem(ProblemType.COMMUNICATION, 500, f"GET {address}", f"no: {address}"))
            return {"uri": address, "headers": {"x-echo": [secret]}}

        secretive.probe.act = act
        call = {"call": "http", "with": {"method": "get", "endpoint": "http://x/${ $secrets.t }/a"}}
        failing = {"call": "http", "with": {"method": "get", "endpoint": "http://x/${ $secrets.t }/fail"}}
        do = [
            {"a": {**call, "export": {"as": "{echo: .}"}}},
            {"t": {"try": [{"b": failing}], "catch": {"do": [{"c": {"set": {"why": "${ $error }"}}}]}}},
            {"w": {"wait": {"hours": 1}}},
            {"d": {"set": {"why": "${ . }", "a": "${ $steps.a }"}}},
        ]
        program = secretive.define(do, use={"secrets": ["t"]})
        job = secretive.job(program)
        assert await secretive.run(job) == "blocked"
        entries = await secretive.entries(job)
        assert all(secret.encode() not in entry.SerializeToString() for entry in entries)
        assert "***" in orjson.loads(entries[-1].snapshot)["context"]["echo"]["uri"]
        failed = [step for entry in entries for step in entry.steps if step.state == runs_pb2.StepRecord.STATE_FAILED]
        assert "***" in failed[0].error.detail
    finally:
        await secretive.close()


class Registrar:
    def __init__(self) -> None:
        self.deregistered: list[str] = []

    async def deregister(self, lease: Lease) -> None:
        self.deregistered.append(lease.incarnation)

    async def heartbeat(self, beat: Any, timeout_s: float) -> Any:
        await asyncio.Event().wait()


@pytest.mark.parametrize("unfinished", [0, 1])
async def test_the_lease_is_given_back_when_all_work_has_ended_only(bench: Bench, unfinished: int) -> None:
    bench.probe.unfinished = unfinished  # such as a statement in a thread that no driver can stop
    registrar = Registrar()
    lease = Lease(INCARNATION, 1, boottime(), 300)
    incarnation = Incarnation(
        bench.bus,
        WorkerSettings(),
        bench.services,
        registrar,  # type: ignore[arg-type]
        lease,
        60,
    )
    await incarnation.open()
    await incarnation.drain(1)
    assert registrar.deregistered == ([] if unfinished else [INCARNATION])


class Renewing(Registrar):
    """Renews, and remembers what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.beats: list[registry_pb2.Beat] = []

    async def heartbeat(self, beat: registry_pb2.Beat, timeout_s: float) -> registry_pb2.BeatResult:
        assert not self.deregistered, "a lease was renewed that had been given back"
        self.beats.append(beat)
        return registry_pb2.BeatResult(renewed=True)


async def test_the_lease_is_renewed_until_the_last_leg_has_ended(bench: Bench) -> None:
    """However long a step in progress takes: the worker that drains may go on with it, and nobody else begins it."""
    bench.probe.hold = asyncio.Event()
    registrar = Renewing()
    incarnation = Incarnation(
        bench.bus,
        WorkerSettings(),
        bench.services,
        registrar,  # type: ignore[arg-type]
        Lease(INCARNATION, 1, boottime(), 300),
        0.01,
    )
    await incarnation.open()
    incarnation.table.offer(bench.job(bench.define(https(2))))
    await asyncio.wait_for(bench.probe.begun.wait(), 60)
    draining = asyncio.create_task(incarnation.drain(300))
    try:
        await eventually(lambda: sum(beat.draining and beat.legs == 1 for beat in registrar.beats) >= 5)
        assert registrar.deregistered == []
        assert incarnation.lease.valid()
    finally:
        bench.probe.hold.set()
        await asyncio.wait_for(draining, 60)
    assert len(bench.probe.calls) == 1, "it went on after the step that was in progress"
    assert registrar.deregistered == [INCARNATION]


class Stubborn(Probe):
    """Does not stop when it is cancelled, until it is let go."""

    async def execute(self, call: ResolvedCall) -> Any:
        self.begun.set()
        assert self.hold is not None
        while not self.hold.is_set():
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
        return None


async def test_a_leg_that_does_not_stop_keeps_the_lease(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flint_worker.incarnation._DROP_S", 0.2)
    stubborn = Stubborn()
    stubborn.hold = asyncio.Event()
    bench.services.caller._executors = {"http": stubborn, "noop": NoopExecutor()}
    registrar = Registrar()
    incarnation = Incarnation(
        bench.bus,
        WorkerSettings(),
        bench.services,
        registrar,  # type: ignore[arg-type]
        Lease(INCARNATION, 1, boottime(), 300),
        60,
    )
    await incarnation.open()
    incarnation.table.offer(bench.job(bench.define(https(1))))
    await asyncio.wait_for(stubborn.begun.wait(), 10)
    await incarnation.drain(0.05)
    assert registrar.deregistered == []
    stubborn.hold.set()
    await asyncio.wait_for(incarnation.table.idle.wait(), 10)


async def test_a_branch_is_not_hurried_by_its_siblings_timeout(bench: Bench) -> None:
    timed, free = https(2)
    branches = [
        {"timed": {**timed["step0"], "timeout": {"after": {"seconds": 5}}}},
        {"free": free["step1"]},
        {"held": {"do": [{"inner": free["step1"]}], "timeout": {"after": {"minutes": 5}}}},
    ]
    job = bench.job(bench.define([{"f": {"fork": {"branches": branches}}}]))
    assert await bench.run(job) == "succeeded"
    given = {call.step.rsplit("/", 1)[1]: call.deadline_s for call in bench.probe.calls}
    assert given == {"timed": pytest.approx(5.1, abs=1), "free": None, "inner": pytest.approx(300.1, abs=1)}
