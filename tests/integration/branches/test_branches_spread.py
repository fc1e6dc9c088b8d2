"""Wide forks on a real stack: spread over workers, executed once, joined in order, cancelled, shown."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import orjson
import psutil
import pytest

from flint_bus import Message
from flint_bus.subjects import PAYLOADS
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_contracts.gen.flint.payloads.v1 import payloads_pb2
from flint_sdk import Run, RunState, Step, StepBegan
from support.house import House
from support.outside import Outside
from support.random_runs import Batch
from support.random_workflows import chosen_seed, generate_batch
from support.random_world import expect, random_world
from support.stack import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

CALLS = """
do:
  - each:
      metadata: {flint: {parallel: 200}}
      for: {each: n, in: '${ [range(.count)] }'}
      do:
        - ask: {call: http, with: {method: post, endpoint: '${ $workflow.input.url + "/steps/s" }'}}
        - keep: {set: '${ {n: $n, index: $index, of: $workflow.input.count} }'}
  - after: {set: {all: '${ . }'}}
"""
LEFT = "SELECT (SELECT count(*) FROM run_await) + (SELECT count(*) FROM inbox)"


async def execute(house: House, name: str, data: Any, timeout_s: float) -> Run:
    started = await house.flint.start(name, data)
    return await house.flint.wait(started.id, timeout_s=timeout_s)


async def branch_runs(house: House, run: str) -> list[Run]:
    return [r async for r in house.flint.list_runs(branches_of=run, page_size=500)]


async def test_branches_are_spread_executed_once_and_joined_in_order(house: House, world: Outside) -> None:
    name = await house.apply(CALLS)
    world.executions.clear()
    world.gate.clear()
    started = await house.flint.start(name, {"count": 200, "url": world.url})
    await eventually(lambda: len(world.executions) >= 16, timeout_s=60)
    waiting = await house.flint.get_run(started.id)
    assert waiting.state is RunState.WAITING
    assert waiting.worker == ""
    running = await branch_runs(house, started.id)
    assert len({r.worker for r in running if r.worker}) == 3
    world.gate.set()
    run = await house.flint.wait(started.id, timeout_s=120)
    assert run.error is None
    assert run.output == {"all": [{"n": n, "index": n, "of": 200} for n in range(200)]}
    keys = [execution.key for execution in world.executions]
    assert sorted(keys) == sorted(f"{run.id}/0/do/0/each/do/0/ask/{n}" for n in range(200))

    branches = await branch_runs(house, run.id)
    assert sorted((r.branches.first, r.branches.count) for r in branches) == [(4 * n, 4) for n in range(50)]
    assert {r.state for r in branches} == {RunState.SUCCEEDED}
    assert {r.branches.run for r in branches} == {run.name}
    listed = [r.id async for r in house.flint.list_runs(workflow=name)]
    assert listed == [run.id]
    steps: list[Step] = []
    for branch in branches:
        steps += [step async for step in _steps(house, branch.id)]
    assert sorted(int(s.iteration) for s in steps if s.step.endswith("/ask")) == list(range(200))
    assert {s.state.value for s in steps} == {"SUCCEEDED"}
    mine = [s async for s in _steps(house, run.id)]
    assert [(s.step, s.state.value) for s in mine] == [
        ("/do/0/each", "WAITING"),
        ("/do/0/each", "SUCCEEDED"),
        ("/do/1/after", "SUCCEEDED"),
    ]

    async def settled() -> bool:
        return not await house.record.number(LEFT)

    await eventually(settled, timeout_s=30)


async def _steps(house: House, run: str) -> AsyncIterator[Step]:
    async for entry in house.flint.history(run):
        for step in entry.steps:
            yield step


async def test_a_failing_branch_fails_the_fork_and_cancels_the_others(house: House, world: Outside) -> None:
    name = await house.apply(
        """
do:
  - attempt:
      try:
        - each:
            metadata: {flint: {parallel: 100}}
            for: {each: n, in: '${ [range(100)] }'}
            do:
              - fails: {if: '${ $n == 57 }', raise: {error: {type: 'https://example.com/e', status: 418, title: no}}}
              - waits: {wait: PT1H}
      catch: {do: [{told: {set: '${ {status: $error.status, at: $error.instance} }'}}]}
"""
    )
    run = await execute(house, name, {}, 120)
    assert run.output == {"status": 418, "at": "/do/0/attempt/try/0/each/do/0/fails"}
    branches = await branch_runs(house, run.id)

    async def ended() -> bool:
        states = [r.state for r in await branch_runs(house, run.id)]
        return all(s in (RunState.FAILED, RunState.CANCELLED) for s in states)

    await eventually(ended, timeout_s=60)
    assert len(branches) > 10


async def test_cancelling_the_run_cancels_its_branches(house: House) -> None:
    name = await house.apply(
        "do: [{l: {metadata: {flint: {parallel: 50}}, for: {in: '${ [range(50)] }'}, do: [{w: {wait: PT1H}}]}}]"
    )
    started = await house.flint.start(name, {})

    async def out() -> bool:
        return len(await branch_runs(house, started.id)) == 50

    await eventually(out, timeout_s=60)
    await house.flint.cancel(started.id, "enough")
    assert (await house.flint.wait(started.id, timeout_s=60)).state is RunState.CANCELLED

    async def ended() -> bool:
        return {r.state for r in await branch_runs(house, started.id)} == {RunState.CANCELLED}

    await eventually(ended, timeout_s=60)


async def test_no_more_at_once_than_the_loop_allows(house: House, world: Outside) -> None:
    name = await house.apply(CALLS.replace("parallel: 200", "parallel: 7"))
    world.executions.clear()
    world.gate.clear()
    started = await house.flint.start(name, {"count": 60, "url": world.url})
    await eventually(lambda: len(world.executions) >= 7, timeout_s=60)
    assert len(await branch_runs(house, started.id)) == 7
    world.gate.set()
    run = await house.flint.wait(started.id, timeout_s=120)
    assert [each["n"] for each in run.output["all"]] == list(range(60))


async def test_forks_race_and_nest(house: House) -> None:
    branches = ", ".join(f"{{b{n}: {{set: '${{ {n} }}'}}}}" for n in range(9))
    slow = ", ".join(
        f"{{b{n}: {{do: [{{w: {{wait: PT1H}}}}, {{s: {{set: '${{ {n} }}'}}}}]}}}}"
        if n != 6
        else "{b6: {set: '${ 6 }'}}"
        for n in range(9)
    )
    inner = (
        "{metadata: {flint: {parallel: 9}}, for: {each: y, in: '${ [range(6)] }'},"
        " do: [{s: {set: '${ $x * 10 + $y }'}}]}"
    )
    name = await house.apply(
        f"do: [{{f: {{fork: {{branches: [{branches}]}}, output: {{as: '${{ {{f: .}} }}'}}}}}},"
        f" {{c: {{fork: {{compete: true, branches: [{slow}]}}, output: {{as: '${{ {{f: $input.f, c: .}} }}'}}}}}},"
        f" {{l: {{metadata: {{flint: {{parallel: 9}}}}, for: {{each: x, in: '${{ [range(5)] }}'}},"
        f" do: [{{i: {inner}}}],"
        " output: {as: '${ $input + {l: .} }'}}}]"
    )
    run = await execute(house, name, {}, 120)
    assert run.error is None
    assert run.output == {
        "f": list(range(9)),
        "c": 6,
        "l": [[x * 10 + y for y in range(6)] for x in range(5)],
    }


async def test_large_collections_travel_by_reference(house: House) -> None:
    name = await house.apply(
        """
do:
  - each:
      metadata: {flint: {parallel: 500}}
      for: {each: n, in: '${ [range(10000)] | map({n: ., pad: ("x" * 40)}) }'}
      do:
        - same: {set: '${ {n: $n.n, pad: $n.pad} }'}
  - check: {set: '${ {sum: (map(.n) | add), size: length} }'}
"""
    )
    before = _memory(house)
    run = await execute(house, name, {}, 240)
    assert run.error is None
    assert run.output == {"sum": 10000 * 9999 // 2, "size": 10000}
    assert len(await branch_runs(house, run.id)) <= 70
    grown = {process: size - before[process] for process, size in _memory(house).items()}
    assert max(grown.values()) < 150 * 2**20, grown  # whatever the number of iterations


async def test_iterations_do_not_fetch_the_large_input_that_they_do_not_read(house: House) -> None:
    name = await house.apply(
        """
do:
  - each:
      metadata: {flint: {parallel: 500}}
      for: {each: n, in: '${ .items }'}
      do:
        - mine: {set: {n: '${ $n.n }', pad: '${ $n.pad | ascii_upcase }', of: '${ $workflow.input.name + "!" }'}}
  - check: {set: '${ {size: length, first: .[0], last: .[-1]} }'}
"""
    )
    items = [{"n": n, "pad": "x" * 4_000} for n in range(600)]  # 2.4 MB
    run = await execute(house, name, {"name": "a", "items": items}, 240)
    assert run.error is None
    ends = [{"n": n, "pad": "X" * 4_000, "of": "a!"} for n in (0, 599)]
    assert run.output == {"size": 600, "first": ends[0], "last": ends[1]}
    assert len(await branch_runs(house, run.id)) > 10


def _memory(house: House) -> dict[str, int]:
    """Resident bytes of the services' own processes."""
    services = ("gateway", "scheduler", "worker")
    pids = {name: pid for name, pid in house.stack.pids.items() if name.startswith(services)}
    return {name: psutil.Process(pid).memory_info().rss for name, pid in pids.items()}


async def test_watching_tells_how_far_the_branches_are(house: House, world: Outside) -> None:
    name = await house.apply(
        """
do:
  - each:
      metadata: {flint: {parallel: 40}}
      for: {each: n, in: '${ [range(40)] }'}
      do:
        - held:
            if: ${ $n >= 30 }
            call: http
            with: {method: post, endpoint: '${ $workflow.input.url + "/steps/s" }'}
"""
    )
    world.gate.clear()
    started = await house.flint.start(name, {"url": world.url})
    told: list[str] = []
    try:
        async with asyncio.timeout(120):
            async for event in house.flint.watch(started.id):
                if isinstance(event, StepBegan) and event.step.step == "/do/0/each":
                    told.append(event.step.progress_message)
                    if told[-1] == "30 of 40 branches have ended":
                        world.gate.set()
    finally:
        world.gate.set()
    assert "30 of 40 branches have ended" in told
    assert (await house.flint.get_run(started.id)).state is RunState.SUCCEEDED


async def test_the_command_shows_the_steps_of_branches(house: House) -> None:
    name = await house.apply(
        "do: [{l: {metadata: {flint: {parallel: 4}}, for: {in: '${ [range(4)] }'}, do: [{s: {set: '${ $item }'}}]}}]"
    )
    run = await execute(house, name, {}, 60)
    lines = []
    for option in ([], ["--branches"]):
        program = [sys.executable, "-c", "from flint_cli.main import main; main()"]
        command = [*program, "runs", "history", run.id, "--output", "json", *option]
        process = await asyncio.create_subprocess_exec(
            *command,
            env={**os.environ, "FLINT_ADDRESS": house.stack.gateway, "FLINT_KEY": house.stack.admin_key},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(60):
            out, error = await process.communicate()
        assert process.returncode == 0, error.decode()
        lines.append([step["iteration"] for entry in orjson.loads(out) for step in entry["steps"]])
    assert lines == [["", ""], ["", "", "0", "1", "2", "3"]]


async def test_many_forks_at_the_same_time(house: House) -> None:
    name = await house.apply(
        "do: [{l: {metadata: {flint: {parallel: 20}}, for: {each: n, in: '${ [range(20)] }'},"
        " do: [{s: {set: '${ $n + $workflow.input.at }'}}]}}]"
    )
    runs = await asyncio.gather(*(execute(house, name, {"at": at}, 120) for at in range(40)))
    assert [run.output for run in runs] == [list(range(at, at + 20)) for at in range(40)]


async def test_random_workflows_give_the_same_when_every_fork_is_wide(house: House) -> None:
    seed = chosen_seed(60_633)
    async with random_world() as world:
        batch = Batch(house.stack, world, generate_batch(seed, 40), 1)
        try:
            await batch.apply()
            outcomes = await batch.run("wide")
            for (workflow, given), outcome in zip(outcomes.given, outcomes.outcomes, strict=True):
                expected, _ = expect(workflow, batch.by_name, given)
                assert outcome == expected, f"FLINT_RANDOM_SEED={seed}: {workflow.name}"
        finally:
            await batch.close()


READING = """
do:
  - each:
      metadata: {flint: {parallel: 100}}
      for: {each: n, in: '${ .items }'}
      do: [{keep: {set: '${ {n: $n, name: $workflow.input.name, id: $workflow.input.deep.id} }'}}]
  - count: {set: '${ {count: length, last: .[-1]} }'}
"""


@pytest.mark.parametrize("by_reference", [True, False])
async def test_small_members_of_a_large_input_are_read_without_it(house: House, by_reference: bool) -> None:
    """However the input came: as one reference, which any client may send, or by the client of this house."""
    fetched: Counter[str] = Counter()

    def noted(message: Message) -> None:
        request = dispatch_pb2.PayloadRequest.FromString(message.data)
        if request.HasField("get") and request.get.index == 0:
            fetched[request.get.sha256.hex()] += 1

    value = {
        "items": list(range(300)),
        "name": "small",
        "deep": {"id": 7, "blob": "y" * 200_000},
        "rows": [f"{by_reference} {number}" + "x" * 90 for number in range(45_000)],
    }
    data = orjson.dumps(value)
    given: Any = value
    if by_reference:
        given = {"$payload": {"sha256": await uploaded(house, data), "bytes": len(data)}}
    name = await house.apply(READING)
    watching = await house.bus.subscribe(PAYLOADS, noted)
    try:
        run = await execute(house, name, given, 120)
        assert run.output == {"count": 300, "last": {"n": 299, "name": "small", "id": 7}}
    finally:
        await watching.close()
    large = [hashlib.sha256(data).hexdigest(), hashlib.sha256(orjson.dumps(value["rows"])).hexdigest()]
    # Each of the three workers meets it twice, and once it is made an input for all branches.
    assert sum(fetched[digest] for digest in large) <= (8 if by_reference else 0)
    assert sum(fetched.values()) < 100


async def uploaded(house: House, data: bytes) -> str:
    pieces = [payloads_pb2.UploadPayloadRequest(parent="namespaces/default", size=len(data))]
    pieces += [payloads_pb2.UploadPayloadRequest(data=data[at : at + 2**19]) for at in range(0, len(data), 2**19)]
    answer = await house.raw.payloads.UploadPayload(iter(pieces), metadata=house.raw.metadata)
    return str(answer.sha256)
