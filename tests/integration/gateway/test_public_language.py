"""What real runs do: control flow, retries, waits, limits; and that one run's harm stays its own."""

from __future__ import annotations

import asyncio
from datetime import datetime

import pytest

from flint_core.problems import ProblemType
from flint_sdk import RunState, StepState
from support.house import House
from support.outside import Outside
from support.stack import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_for_fork_switch_and_try(house: House) -> None:
    body = """
do:
  - each:
      for: {each: item, in: .items, at: index}
      do:
        - double: {call: noop, with: {output: '${ {sum: ((.sum // 0) + $item * 2), last: $index} }'}}
  - route:
      switch:
        - large: {when: .sum > 10, then: both}
        - small: {then: exit}
  - never: {raise: {error: {type: 'https://x.test/never', status: 500, title: never}}}
  - both:
      fork:
        branches:
          - left: {call: noop, with: {output: '${ .sum }'}}
          - right: {call: noop, with: {output: '${ .last }', delay_ms: 50}}
  - guarded:
      try:
        - fails: {call: noop, with: {fail: {type: 'https://x.test/odd', status: 418, title: odd}}}
      catch:
        errors: {with: {status: 418}}
        as: caught
        do:
          - note: {set: {both: '${ $steps.both }', why: '${ $caught.title }'}}
"""
    run = await house.run(body, {"items": [1, 2, 3]})
    assert run.error is None, run.error
    assert run.output["why"] == "odd"
    assert run.output["both"] in ([12, 2], {"left": 12, "right": 2})
    steps = [step async for entry in house.flint.history(run.id) for step in entry.steps]
    assert [step.iteration for step in steps if step.step.endswith("/double")] == ["0", "1", "2"]
    assert {step.state for step in steps if step.step.endswith("/fails")} == {StepState.FAILED}
    assert not [step for step in steps if "/never" in step.step]


async def test_a_failed_attempt_is_seen_and_tried_again_later(house: House, world: Outside) -> None:
    world.failures["flaky"] = 2
    body = """
do:
  - t:
      try:
        - flaky: {call: http, with: {method: post, endpoint: '${ .url + "/steps/flaky" }'}}
      catch:
        errors: {with: {status: 503}}
        retry: {delay: {milliseconds: 100}, backoff: {exponential: {}}, limit: {attempt: {count: 5}}}
"""
    run = await house.run(body, {"url": world.url})
    assert run.state is RunState.SUCCEEDED
    steps = [
        step
        async for entry in house.flint.history(run.id)
        for step in entry.steps
        if step.step.endswith("/flaky") and step.state in (StepState.FAILED, StepState.SUCCEEDED)
    ]
    assert [(step.attempt, step.state.value) for step in steps] == [(1, "FAILED"), (2, "FAILED"), (3, "SUCCEEDED")]
    assert [step.error.status if step.error else 0 for step in steps] == [503, 503, 0]
    came = [execution.came_at for execution in world.executions]
    assert len(came) == 3
    assert len({execution.key for execution in world.executions}) == 1, "an attempt has a key of its own"
    assert came[1] - came[0] >= 0.1
    assert came[2] - came[1] >= 0.2


async def test_a_wait_gives_the_slot_back(house: House) -> None:
    handle = await house.flint.start(await house.apply("do: [{a: {call: noop}}, {w: {wait: PT1H}}]"))

    async def waits() -> bool:
        return (await handle.get()).state is RunState.WAITING

    async def free() -> bool:
        return not await house.record.open_legs() and not sum([w.legs async for w in house.flint.list_workers()])

    await eventually(waits)
    await eventually(free)
    run = await handle.get()
    assert (run.leg, run.worker) == (1, "")
    assert isinstance(run.wake_time, datetime)
    assert [entry.leg_end async for entry in house.flint.history(handle.id)] == ["blocked"]
    await handle.cancel()
    await house.flint.wait(handle.id, 60)


async def test_a_run_goes_on_as_a_new_leg_when_its_time_has_come(house: House) -> None:
    run = await house.run("do: [{a: {call: noop, with: {output: 7}}}, {w: {wait: PT2S}}, {b: {call: noop}}]")
    assert (run.state, run.leg) == (RunState.SUCCEEDED, 2)
    entries = [entry async for entry in house.flint.history(run.id)]
    # The first outcome and the block are one entry, as are the last outcome and the end; between them the timer's
    # firing is recorded before the next call begins.
    assert [(entry.leg, entry.leg_end) for entry in entries] == [(1, "blocked"), (2, ""), (2, "succeeded")]


@pytest.mark.parametrize(
    "expression",
    [
        "[range(1000000000000)] | length",
        "def f: f; f",
        '[limit(100000000; repeat("x"))] | add',
        'reduce range(40) as $i ("x"; . + .)',
        "error",
        "1, 2",
        ".a.b.c | .[0] | keys",
    ],
)
async def test_a_hostile_expression_faults_its_step_alone(house: House, expression: str) -> None:
    hostile = await house.apply(f"do:\n  - bad:\n      set:\n        n: '${{ {expression} }}'\n")
    # Guarded expressions, too: they share the evaluators with the hostile one.
    good = await house.apply("do: [{ok: {set: {n: '${ [.list[] | select(. > 1)] | add }'}}}]")
    workers = {worker.name async for worker in house.flint.list_workers()}
    harm = await house.flint.start(hostile, {"a": {"b": {"c": [1]}}})
    others = [await house.flint.start(good, {"list": [1, 2, 3]}) for _ in range(10)]
    assert [await other.result(60) for other in others] == [{"n": 5}] * 10
    ended = await house.flint.wait(harm.id, 60)
    assert ended.state is RunState.FAILED
    assert ended.error is not None
    assert ended.error.type in (ProblemType.EXPRESSION, ProblemType.PAYLOAD_TOO_LARGE)
    assert ended.error.instance == "/do/0/bad"
    assert {worker.name async for worker in house.flint.list_workers()} == workers, "a worker was lost"


async def test_a_list_beyond_the_limit_of_the_state_is_not_iterated(house: House) -> None:
    body = """
do:
  - make: {set: {rows: '${ [range(60000)] }'}}
  - each:
      for: {each: i, in: .rows}
      do: [{look: {set: {i: '${ $i }'}}}]
"""
    run = await house.run(body)
    assert run.error is not None
    assert (run.error.type, run.error.status) == (ProblemType.PAYLOAD_TOO_LARGE, 413)
    assert run.error.instance == "/do/1/each"
    assert run.leg == 1


async def test_a_large_output_can_be_caught(house: House) -> None:
    body = f"""
do:
  - t:
      try:
        - big: {{set: {{text: 'All of it: ${{ [range(60000)] }}', more: '${{ [range(60000)] }}'}}}}
        - told: {{set: {{text: 'All of it: ${{ .more }}'}}}}
      catch:
        errors: {{with: {{type: '{ProblemType.PAYLOAD_TOO_LARGE}'}}}}
        do: [{{small: {{set: {{caught: true}}}}}}]
"""
    assert (await house.run(body)).output == {"caught": True}


async def test_an_endless_loop_ends_by_its_limit_and_nothing_waits_for_it(house: House) -> None:
    loop = await house.apply("do: [{a: {set: {n: '${ (.n // 0) + 1 }'}}}, {b: {set: {n: '${ .n }'}, then: a}}]")
    good = await house.apply("do: [{ok: {call: noop, with: {output: 1}}}]")
    before = {worker.name: worker.heartbeat_time async for worker in house.flint.list_workers()}
    handles = [await house.flint.start(loop) for _ in range(4)]
    assert await (await house.flint.start(good)).result(60) == 1

    async def beaten() -> bool:
        now = {worker.name: worker.heartbeat_time async for worker in house.flint.list_workers()}
        assert now.keys() == before.keys(), "a worker was lost"
        return all(str(now[name]) > str(before[name]) for name in before)

    await eventually(beaten)
    for ended in await asyncio.gather(*(house.flint.wait(handle.id, 120) for handle in handles)):
        assert ended.error is not None
        assert (ended.error.type, ended.leg) == (ProblemType.LIMIT_EXCEEDED, 1)
    assert {worker.name async for worker in house.flint.list_workers()} == set(before)
