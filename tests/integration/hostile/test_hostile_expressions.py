"""Expressions and patterns made to take all time and all memory, beside runs that mean well."""

from __future__ import annotations

import asyncio

import psutil
import pytest
import pytest_asyncio

from flint_sdk import AsyncRunHandle, Run, RunState, StartRequest
from support.house import House
from support.houses import Houses

pytestmark = pytest.mark.asyncio(loop_scope="session")

NORMAL, EACH = 200, 2
SMALL, LARGE = 40, 400 * 1024  # characters of the value; the large one travels by reference
LIMITS = {"evaluate_bytes": 64 * 2**20, "evaluate_large_bytes": 160 * 2**20}
BASE = "https://serverlessworkflow.io/spec/1.0.0/errors/"
TOO_LARGE = "https://flint.dev/errors/payload-too-large"


def chain(step: str, times: int) -> str:
    return " | ".join([step] * times)


EXPRESSIONS = {
    "endless": "last(repeat(1))",
    "bomb": "[range(1e9)] | length",
    "doubling": chain(". + .", 40) + " | length",
    "nesting": chain("[., ., ., ., ., ., ., .]", 20) + " | tojson | length",
    "interpolation": chain('"\\(.)\\(.)\\(.)\\(.)"', 20) + " | length",
}
MAKE = """
do:
  - make: {set: '${ "x" * .size }'}
"""
PATTERN = MAKE + "  - bad: {input: {schema: {document: {pattern: '^(x+)+y$'}}}, set: {done: true}}\n"
NORMAL_BODY = """
do:
  - one: {set: {n: "${ .n + 1 }"}}
  - guarded: {set: {n: "${ [range(.n)] | length }"}}
  - pause: {wait: {milliseconds: 50}}
  - two: {set: {n: "${ .n + 1 }"}}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def house(houses: Houses) -> House:
    return await houses.get("hostile", limits=LIMITS)


async def incarnations(house: House) -> set[str]:
    return {worker.name async for worker in house.flint.list_workers()}


async def apply_hostile(house: House) -> dict[str, str]:
    names = {"pattern": await house.apply(PATTERN)}
    for kind, source in EXPRESSIONS.items():
        names[kind] = await house.apply(f"{MAKE}  - bad:\n      set:\n        value: |-\n          ${{ {source} }}\n")
    return names


async def start(house: House, workflow: str, inputs: list[dict[str, int]]) -> list[AsyncRunHandle]:
    handles = await house.flint.start_many([StartRequest(workflow, each) for each in inputs])
    assert all(isinstance(handle, AsyncRunHandle) for handle in handles), handles
    return [handle for handle in handles if isinstance(handle, AsyncRunHandle)]


async def ended(house: House, handles: list[AsyncRunHandle]) -> list[Run]:
    return list(await asyncio.gather(*(house.flint.wait(handle.id, 240) for handle in handles)))


async def test_each_hostile_run_fails_its_own_step_and_no_other_run(house: House) -> None:
    hostile = await apply_hostile(house)
    normal = await house.apply(NORMAL_BODY)
    before = await incarnations(house)
    processes = {name: psutil.Process(house.stack.pid(name)) for name in ("worker-1", "worker-2")}
    memory = {name: process.memory_info().rss for name, process in processes.items()}
    inputs = [{"size": size} for size in (SMALL, LARGE) for _ in range(EACH)]
    bad = {kind: await start(house, workflow, inputs) for kind, workflow in hostile.items()}
    good = await start(house, normal, [{"n": number} for number in range(NORMAL)])

    for number, run in enumerate(await ended(house, good)):
        assert (run.state, run.output) == (RunState.SUCCEEDED, {"n": number + 2}), run.error
    for kind, handles in bad.items():
        for run, given in zip(await ended(house, handles), inputs, strict=True):
            assert run.state is RunState.FAILED, (kind, given, run.output)
            assert run.error is not None
            assert run.error.instance == "/do/1/bad", (kind, given, run.error)
            allowed = {BASE + "validation"} if kind == "pattern" else {BASE + "expression", TOO_LARGE}
            assert run.error.type in allowed, (kind, given, run.error)
    assert await incarnations(house) == before
    for name, process in processes.items():
        assert process.is_running() and house.stack.pid(name) == process.pid
        assert process.memory_info().rss - memory[name] < 256 * 2**20


async def test_a_pattern_that_could_only_backtrack_is_refused_with_its_place(house: House) -> None:
    with pytest.raises(Exception, match="linear time"):
        await house.apply(PATTERN.replace("^(x+)+y$", "(?=x)x+"))
