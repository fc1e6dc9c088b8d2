"""A hundred random workflows, on the core and on the engine; and normal runs beside hostile expressions."""

from __future__ import annotations

import asyncio
import time

import pytest

from flint_sdk import RunState, StartRequest
from support.house import House
from support.random_runs import Batch
from support.random_workflows import chosen_seed, generate_batch
from support.random_world import random_world

pytestmark = pytest.mark.asyncio(loop_scope="session")

HOSTILE = {
    "endless": "[range(1e18)] | length",
    "never ending": "def f: f; f",
    "memory": '[limit(100000000; repeat("x" * 100))]',
    "doubling": 'reduce range(60) as $i ("x"; . + .)',
    "a catastrophic regex": '("a" * 40) + "b" | test("^(a+)+$") | until(false; .)',
    "recursion": "def f: [f]; f",
    "output flood": "[limit(20000000; range(20000000))]",
}


async def test_random_workflows_are_the_same_here(house: House) -> None:
    seed = chosen_seed(812)
    async with random_world() as world:
        batch = Batch(house.stack, world, generate_batch(seed, 50), 2)
        try:
            await batch.apply()
            wrong = await (await batch.run("here")).differences(attempts=True)
            assert not wrong, "\n".join([f"FLINT_RANDOM_SEED={seed}: {len(wrong)} differ", *wrong[:5]])
        finally:
            await batch.close()


async def test_hostile_expressions_disturb_nobody(house: House) -> None:
    names = {
        what: await house.apply(f"do: [{{bad: {{set: {{n: '${{ {source} }}'}}}}}}, {{never: {{set: {{n: 1}}}}}}]")
        for what, source in HOSTILE.items()
    }
    normal = await house.apply(
        "do: [{a: {set: {n: '${ .n + 1 }'}}}, {b: {set: {m: '${ [limit(2; .n, 1, 2)] | add }'}}}]"
    )
    starts = [StartRequest(list(names.values())[n % len(names)], {}) for n in range(20)]
    starts += [StartRequest(normal, {"n": n}) for n in range(200)]
    began = time.monotonic()
    handles = await house.flint.start_many(starts, timeout_s=60)
    runs = await asyncio.gather(*(house.flint.wait(h.id, 120) for h in handles))  # type: ignore[union-attr]
    for run in runs[:20]:
        assert run.state is RunState.FAILED
        assert run.error is not None
        assert run.error.instance == "/do/0/bad"
        assert run.error.type.endswith(("/expression", "/payload-too-large", "/limit-exceeded")), run.error
    for n, run in enumerate(runs[20:]):
        assert run.state is RunState.SUCCEEDED, run.error
        assert run.output == {"m": n + 2}
    assert time.monotonic() - began < 60
    assert all(house.stack.restarts(name) == 0 for name in ("worker-1", "worker-2", "scheduler-1", "gateway"))


@pytest.mark.parametrize("what", HOSTILE)
async def test_a_hostile_expression_faults_its_step_soon(house: House, what: str) -> None:
    run = await house.run(f"do: [{{bad: {{set: {{n: '${{ {HOSTILE[what]} }}'}}}}}}]")
    (step,) = [s async for entry in house.flint.history(run.name) for s in entry.steps if s.step == "/do/0/bad"]
    assert run.state is RunState.FAILED
    assert step.end_time is not None
    assert step.start_time is not None
    took = (step.end_time - step.start_time).total_seconds()
    assert took < 10, "0.5 s of processor time; by the clock 5 s on a machine that has none to give, until that is seen"
