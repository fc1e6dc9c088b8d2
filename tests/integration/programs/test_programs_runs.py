"""Programs of definitions through the whole engine."""

from __future__ import annotations

import shutil

import psutil
import pytest

from flint_core.problems import ProblemType
from flint_sdk import RunState
from support.eventually import eventually
from support.house import House

pytestmark = pytest.mark.asyncio(loop_scope="session")

ALL = """
do:
  - count:
      run:
        shell: {command: 'wc -w; echo "$1 $LANGUAGE"', arguments: ["${ .word }"], stdin: "${ .text }",
                environment: {LANGUAGE: "${ .language }"}}
  - mean:
      input: {from: "${ $workflow.input }"}
      run:
        script:
          language: python
          arguments: {prices: "${ .prices }"}
          code: |
            import json
            print(json.dumps({"sum": sum(prices)}))
      output: {as: "${ fromjson }"}
  - code:
      run:
        shell: {command: "exit 3"}
        return: code
  - all:
      run:
        shell: {command: "echo out; echo err >&2; exit 4"}
        return: all
  - nothing:
      run:
        shell: {command: "echo x"}
        return: none
  - detached:
      input: {from: '${ "passes on" }'}
      run:
        await: false
        shell: {command: "true"}
  - answer:
      set: {count: "${ $steps.count }", mean: "${ $steps.mean }", code: "${ $steps.code }", all: "${ $steps.all }",
            nothing: "${ $steps.nothing }", detached: "${ . }"}
"""


async def test_programs_in_a_run(house: House) -> None:
    given = {"text": "one two three", "word": "$(id)", "language": "C; true", "prices": [1, 2.5]}
    run = await house.run(ALL, given)
    assert run.state is RunState.SUCCEEDED, run.error
    assert run.output == {
        "count": "3\n$(id) C; true\n",
        "mean": {"sum": 3.5},
        "code": 3,
        "all": {"code": 4, "stdout": "out\n", "stderr": "err\n"},
        "nothing": None,
        "detached": "passes on",
    }


@pytest.mark.skipif(shutil.which("node") is None, reason="NODE.JS IS NOT ON THIS MACHINE: JavaScript is not tested")
async def test_javascript_in_a_run(house: House) -> None:
    body = """
do:
  - shout:
      run:
        script:
          language: js
          arguments: {text: "${ .text }"}
          code: "console.log(JSON.stringify(text.toUpperCase()))"
      output: {as: "${ fromjson }"}
"""
    run = await house.run(body, {"text": "hi"})
    assert run.output == "HI"


async def test_a_failed_program_can_be_caught(house: House) -> None:
    body = """
do:
  - careful:
      try:
        - break: {run: {shell: {command: "echo why >&2; exit 9"}}}
      catch:
        errors: {with: {type: https://serverlessworkflow.io/spec/1.0.0/errors/runtime}}
        as: problem
        do:
          - tell: {set: {why: "${ $problem.detail }", title: "${ $problem.title }"}}
"""
    run = await house.run(body)
    assert run.output == {"why": "why", "title": "The command ended with exit code 9"}


def sleepers(seconds: str) -> list[int]:
    return [p.pid for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", seconds]]


async def test_a_timeout_ends_the_program(house: House) -> None:
    body = "do: [{long: {timeout: {after: {milliseconds: 700}}, run: {shell: {command: 'sleep 81.25 & sleep 81.25'}}}}]"
    run = await house.run(body)
    assert run.error is not None
    assert run.error.type == ProblemType.TIMEOUT
    await eventually(lambda: sleepers("81.25") == [])


async def test_cancelling_the_run_ends_the_program(house: House) -> None:
    name = await house.apply("do: [{long: {run: {shell: {command: 'sleep 82.25'}}}}]")
    handle = await house.flint.start(name)
    await eventually(lambda: sleepers("82.25") != [])
    await house.flint.cancel(handle.id)
    run = await house.flint.wait(handle.id, 60)
    assert run.state is RunState.CANCELLED
    await eventually(lambda: sleepers("82.25") == [])


async def test_a_killed_worker_leaves_no_program_and_the_step_runs_again(house: House) -> None:
    name = await house.apply("do: [{long: {run: {shell: {command: 'sleep 83.25', arguments: []}}}}]")
    handle = await house.flint.start(name)
    await eventually(lambda: sleepers("83.25") != [])
    (first,) = sleepers("83.25")
    for worker in ("worker-1", "worker-2"):
        await house.stack.kill(worker)
    await eventually(lambda: first not in sleepers("83.25"))
    await eventually(lambda: sleepers("83.25") != [], timeout_s=60)
    await house.flint.cancel(handle.id)
    await house.flint.wait(handle.id, 60)
    await eventually(lambda: sleepers("83.25") == [])
