"""RunWorkflow against a whole Flint: a start and the wait for its end in one call, by plain gRPC."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import Any

import grpc
import orjson
import pytest
from google.protobuf import json_format

from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_contracts.gen.flint.runs.v1.runs_pb2_grpc import RunServiceStub
from flint_core.payloads import is_reference
from flint_sdk import RequestIdReused, WorkflowNotFound
from support.house import PARENT, House, refusal
from support.outside import Outside
from support.stack import eventually
from support.traffic import run_of

pytestmark = pytest.mark.asyncio(loop_scope="session")

Run = runs_pb2.Run
METHOD = "flint.runs.v1.RunService/RunWorkflow"
ROOT = Path(__file__).resolve().parents[3]
ECHO = "do: [{a: {call: noop, with: {output: '${ . }'}}}]"
HOLD = "do: [{w: {wait: PT1H}}]"
CALL = "do: [{h: {call: http, with: {method: post, endpoint: '${ .url + \"/steps/held\" }'}}}]"
FAIL = "do: [{r: {raise: {error: {type: 'https://x.test/e', status: 400, title: no}}}}]"


def request_of(workflow: str, data: Any = None, timeout_s: float = 60, **start: Any) -> runs_pb2.RunWorkflowRequest:
    started = runs_pb2.StartRunRequest(parent=PARENT, workflow_id=workflow, input=orjson.dumps(data or {}), **start)
    request = runs_pb2.RunWorkflowRequest(start=started)
    request.timeout.FromMilliseconds(round(timeout_s * 1000))
    return request


async def run(house: House, workflow: str, data: Any = None, timeout_s: float = 60, **start: Any) -> Any:
    request = request_of(workflow, data, timeout_s, **start)
    return await house.raw.runs.RunWorkflow(request, metadata=house.raw.metadata, timeout=120)


async def awaited(house: House, name: str) -> Run:
    """The run as AwaitRun answers it."""
    answer = await house.raw.runs.AwaitRun(runs_pb2.AwaitRunRequest(name=name), metadata=house.raw.metadata)
    assert isinstance(answer.run, Run)
    return answer.run


async def test_the_answer_is_the_ended_run_as_a_wait_would_tell_it(house: House) -> None:
    echo, fail = await house.apply(ECHO), await house.apply(FAIL)
    answers = await asyncio.gather(*(run(house, echo, {"n": n}) for n in range(50)), run(house, fail))
    failed = answers.pop()
    assert [orjson.loads(answer.run.output) for answer in answers] == [{"n": n} for n in range(50)]
    assert {(answer.created, answer.run.state) for answer in answers} == {(True, Run.STATE_SUCCEEDED)}
    assert (failed.run.state, failed.run.error.status, failed.run.output) == (Run.STATE_FAILED, 400, b"")
    for answer in (answers[0], failed):
        assert answer.run == await awaited(house, answer.run.name)


async def test_large_values_come_and_go_by_reference(house: House) -> None:
    value = [{"id": n, "name": "x" * 50} for n in range(8_000)]
    answer = await run(house, await house.apply("do: [{a: {set: {n: '${ length }', all: '${ . }'}}}]"), value)
    output = orjson.loads(answer.run.output)
    assert output["n"] == len(value)
    assert is_reference(output["all"])
    assert await house.flint.resolve(output["all"]) == value
    assert answer.run == await awaited(house, answer.run.name)


async def test_a_wait_that_is_over_and_its_repeat(house: House) -> None:
    name, request_id = await house.apply(HOLD), house.name("request")
    standing = await run(house, name, timeout_s=0.2, request_id=request_id)
    assert standing.created
    assert standing.run.state in (Run.STATE_QUEUED, Run.STATE_RUNNING, Run.STATE_WAITING)
    repeats = [asyncio.ensure_future(run(house, name, request_id=request_id)) for _ in range(2)]
    await house.flint.cancel(standing.run.name)
    for ended in await asyncio.gather(*repeats):
        assert (ended.created, ended.run.name, ended.run.state) == (False, standing.run.name, Run.STATE_CANCELLED)
    late = await run(house, name, request_id=request_id)
    assert late == ended
    other = house.raw.runs.RunWorkflow(
        request_of(name, {"other": 1}, request_id=request_id), metadata=house.raw.metadata
    )
    assert isinstance(await refusal(other), RequestIdReused)


async def test_a_killed_gateways_call_is_repeated_at_another(house: House, world: Outside) -> None:
    world.gate.clear()
    name, request_id = await house.apply(CALL), house.name("request")
    request = request_of(name, {"url": world.url}, request_id=request_id)
    other = house.name("gateway")
    async with grpc.aio.insecure_channel(await house.stack.add_gateway(other)) as channel:
        call = asyncio.ensure_future(
            RunServiceStub(channel).RunWorkflow(request, metadata=house.raw.metadata, timeout=120, wait_for_ready=True)
        )
        await eventually(lambda: world.executions or call.done())
        assert not call.done(), await call
        await house.stack.kill(other, hold=True)
        with pytest.raises(grpc.aio.AioRpcError) as broken:
            await call
        assert broken.value.code() is grpc.StatusCode.UNAVAILABLE
    repeat = asyncio.ensure_future(house.raw.runs.RunWorkflow(request, metadata=house.raw.metadata, timeout=120))
    world.gate.set()
    answer = await repeat
    assert (answer.created, answer.run.state) == (False, Run.STATE_SUCCEEDED)
    # A worker that a busy machine kept from its lease may be followed by another: the same step of the same run.
    assert {run_of(execution.key) for execution in world.executions} == {answer.run.name.rpartition("/")[2]}


async def test_a_call_that_is_left_goes_on_as_a_run(house: House, world: Outside) -> None:
    world.gate.clear()
    name, request_id = await house.apply(CALL), house.name("request")

    async def left() -> float:
        """How many calls the gateway has ended because their callers went away."""
        figures = await house.figures("gateway")
        return figures.total("flint_rpc_server_calls_total", method=METHOD, code="CANCELLED")

    before = await left()
    call = asyncio.ensure_future(run(house, name, {"url": world.url}, request_id=request_id))
    await eventually(lambda: world.executions)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)

    async def ended() -> bool:
        return await left() > before

    await eventually(ended)
    world.gate.set()
    answer = await run(house, name, {"url": world.url}, request_id=request_id)
    assert (answer.created, answer.run.state) == (False, Run.STATE_SUCCEEDED)


async def test_an_unknown_workflow(house: House) -> None:
    call = house.raw.runs.RunWorkflow(request_of("no-such-workflow"), metadata=house.raw.metadata)
    assert isinstance(await refusal(call), WorkflowNotFound)


async def test_the_readmes_command_runs_a_workflow_to_its_end(house: House, tmp_path: Path) -> None:
    blocks = re.findall(r"^```\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (command,) = (block for block in blocks if "RunService/RunWorkflow" in block)
    assert "127.0.0.1:7470" in command
    (tmp_path / ".flint").mkdir()
    (tmp_path / ".flint" / "admin.key").write_text(house.stack.admin_key, encoding="utf-8")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    await house.apply("do: [{a: {set: {hello: '${ .name }'}}}]", "slow")
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", command.replace("127.0.0.1:7470", house.stack.gateway), cwd=tmp_path,
        env=dict(os.environ), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(60):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    answer = json_format.Parse(output, runs_pb2.RunWorkflowResponse())
    assert (answer.created, answer.run.state) == (True, Run.STATE_SUCCEEDED)
    assert orjson.loads(answer.run.output) == {"hello": "Ada"}
