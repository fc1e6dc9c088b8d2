"""Runs that start runs, on a real stack: awaited and detached, failing, cancelled, refused, many at once."""

from __future__ import annotations

import asyncio

import pytest
import pytest_asyncio

from flint_sdk import AsyncRunHandle, Run, StartRequest
from support.house import House
from support.houses import Houses
from support.stack import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

DEPTH = 4
CHILDREN = 12
TREE = 20


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def house(houses: Houses) -> House:
    return await houses.get("children", limits={"run_depth": DEPTH, "children_per_run": CHILDREN, "tree_runs": TREE})


DOUBLE = "do: [{double: {set: '${ {n: (.n * 2)} }'}}]"
SLEEP = "do: [{sleep: {wait: {hours: 1}}}]"
FAIL = "do: [{fail: {raise: {error: {type: https://example.org/odd, status: 418, title: Odd, detail: it is odd}}}}]"


def parent(child: str, more: str = "") -> str:
    return f"do: [{{child: {{run: {{workflow: {{name: {child}, input: '${{ . }}'}}{more}}}}}}}]"


async def children_of(house: House, run: str) -> list[tuple[str, int]]:
    rows = await house.record.rows(
        "SELECT run_id, state FROM run WHERE parent_run_id = CAST(:r AS uuid) ORDER BY run_id", r=run
    )
    return [(str(run_id), int(str(state))) for run_id, state in rows]


async def nothing_left(house: House, *runs: str) -> bool:
    """No await, and nothing in an inbox."""
    left = [
        await house.record.number(f"SELECT count(*) FROM {table} WHERE run_id = CAST(:r AS uuid)", r=run)
        for table in ("run_await", "inbox")
        for run in runs
    ]
    return not any(left)


async def test_a_parent_gets_its_childs_output(house: House) -> None:
    child = await house.apply(DOUBLE)
    run = await house.run(parent(child), {"n": 21})
    assert run.state == "SUCCEEDED", run.error
    assert run.output == {"n": 42}
    ((child_id, _),) = await children_of(house, run.id)
    found = await house.flint.get_run(child_id)
    assert (found.state, found.output) == ("SUCCEEDED", {"n": 42})
    assert not found.request_id
    assert found.trace_id == run.trace_id
    await eventually(lambda: nothing_left(house, run.id, child_id))


async def test_a_detached_child_is_not_waited_for(house: House) -> None:
    child = await house.apply(SLEEP)
    run = await house.run(parent(child, ", await: false"), {"n": 1})
    assert (run.state, run.output) == ("SUCCEEDED", {"n": 1})
    ((child_id, _),) = await children_of(house, run.id)
    await eventually(lambda: nothing_left(house, run.id))

    async def sleeps() -> bool:
        return bool((await house.flint.get_run(child_id)).state == "WAITING")

    await eventually(sleeps)
    await house.flint.cancel(child_id)
    assert (await house.flint.wait(child_id, 60)).state == "CANCELLED"


async def test_a_childs_error_is_caught_in_the_parent(house: House) -> None:
    child = await house.apply(FAIL)
    body = f"""
do:
  - attempt:
      try: [{{child: {{run: {{workflow: {{name: {child}}}}}}}}}]
      catch:
        errors: {{with: {{status: 418}}}}
        as: problem
        do: [{{note: {{set: '${{ {{caught: $problem.detail}} }}'}}}}]
"""
    run = await house.run(body)
    assert (run.state, run.output) == ("SUCCEEDED", {"caught": "it is odd"}), run.error
    failed = await house.run(parent(child))
    assert failed.state == "FAILED"
    assert failed.error is not None
    assert (failed.error.status, failed.error.title, failed.error.instance) == (418, "Odd", "/do/0/child")


async def test_a_parents_cancel_cancels_its_child(house: House) -> None:
    child = await house.apply(SLEEP)
    middle = await house.apply(parent(child))
    handle = await house.flint.start(await house.apply(parent(middle)))

    async def grandchild() -> str:
        for child_id, _ in await children_of(house, handle.id):
            for run_id, state in await children_of(house, child_id):
                if state == 3:
                    return run_id
        return ""

    bottom = await eventually(grandchild)
    ((middle_id, _),) = await children_of(house, handle.id)
    await house.flint.cancel(handle.id)
    for run_id in (handle.id, middle_id, bottom):
        assert (await house.flint.wait(run_id, 60)).state == "CANCELLED"
    await eventually(lambda: nothing_left(house, handle.id, middle_id, bottom))


async def test_a_parents_timeout_cancels_its_child(house: House) -> None:
    child = await house.apply(SLEEP)
    body = f"do: [{{child: {{run: {{workflow: {{name: {child}}}}}, timeout: {{after: PT5S}}}}}}]"
    run = await house.run(body)
    assert run.error is not None
    assert run.error.status == 408
    ((child_id, _),) = await children_of(house, run.id)
    assert (await house.flint.wait(child_id, 60)).state == "CANCELLED"


async def test_a_cancelled_child_fails_its_parent(house: House) -> None:
    child = await house.apply(SLEEP)
    handle = await house.flint.start(await house.apply(parent(child)))
    ((child_id, _),) = await eventually(lambda: children_of(house, handle.id))
    await house.flint.cancel(child_id, reason="enough")
    run = await house.flint.wait(handle.id, 60)
    assert run.error is not None
    assert (run.state, run.error.status) == ("FAILED", 499)


async def test_what_does_not_exist_is_refused(house: House) -> None:
    run = await house.run(parent("no-such-workflow"))
    assert (run.state, await children_of(house, run.id)) == ("FAILED", [])
    assert run.error is not None
    assert (run.error.status, run.error.title) == (404, "Workflow not found")
    await eventually(lambda: nothing_left(house, run.id))


async def test_a_name_that_cannot_be_stored_is_refused(house: House) -> None:
    run = await house.run("do: [{c: {run: {workflow: {name: '${ \"a\" + ([0] | implode) }', version: 1.0.0}}}}]")
    assert run.error is not None
    assert (run.error.status, run.error.title) == (404, "Workflow not found")
    await eventually(lambda: nothing_left(house, run.id))


async def test_a_run_that_starts_itself_fails_typed(house: House) -> None:
    name = house.name("self")
    run = await house.flint.start(await house.apply(parent(name), name))
    ended = await house.flint.wait(run.id, 60)
    assert ended.error is not None
    assert (ended.error.status, ended.error.title) == (429, "Runs nested too deeply")
    assert await house.record.number(
        "SELECT count(*) FROM run r JOIN workflow_version d USING (definition_id) WHERE d.workflow_id = :n", n=name
    ) == (DEPTH + 1)


async def test_a_run_starts_so_many_others_and_no_more(house: House) -> None:
    child = await house.apply(DOUBLE)
    body = f"""
do:
  - each:
      for: {{each: n, in: '${{ [range({CHILDREN + 1})] }}'}}
      do: [{{child: {{run: {{workflow: {{name: {child}, input: {{n: 1}}}}, await: false}}}}}}]
"""
    run = await house.run(body)
    assert run.error is not None
    assert (run.error.status, run.error.title) == (429, "Too many runs started")
    assert len(await children_of(house, run.id)) == CHILDREN


async def test_children_that_run_are_not_refused_when_their_awaits_are_served_again(house: House) -> None:
    """What a scheduler has done for an await, and died before it was settled, is done again."""
    child = await house.apply(SLEEP)
    branches = "".join(f"[{{b{n}: {{run: {{workflow: {{name: {child}}}}}}}}}]"[1:-1] + ", " for n in range(CHILDREN))
    handle = await house.flint.start(await house.apply(f"do: [{{all: {{fork: {{branches: [{branches}]}}}}}}]"))
    unserved = "SELECT count(*) FROM run_await WHERE run_id = CAST(:r AS uuid) AND NOT served"

    async def started() -> bool:
        there = len(await children_of(house, handle.id)) == CHILDREN
        return there and not await house.record.number(unserved, r=handle.id)

    await eventually(started)
    await house.record.rows(
        "UPDATE run_await SET served = false WHERE run_id = CAST(:r AS uuid) RETURNING run_id", r=handle.id
    )
    await eventually(started)
    assert (await house.flint.get_run(handle.id)).state == "WAITING"
    assert not await house.record.number("SELECT count(*) FROM inbox WHERE run_id = CAST(:r AS uuid)", r=handle.id)
    await house.flint.cancel(handle.id)
    assert (await house.flint.wait(handle.id, 60)).state == "CANCELLED"


async def test_a_tree_of_runs_has_a_bound(house: House) -> None:
    """Neither run starts more than it may, but together they do."""
    leaf = await house.apply(DOUBLE)
    each = "for: {{in: '${{ [1, 2, 3, 4, 5] }}'}}, do: [{{one: {}}}]"
    start = f"{{run: {{workflow: {{name: {leaf}, input: {{n: 1}}}}, await: false}}}}"
    middle = await house.apply(f"do: [{{all: {{{each.format(start)}}}}}]")
    attempt = f"{{try: [{{child: {{run: {{workflow: {{name: {middle}}}}}}}}}], catch: {{}}}}"
    run = await house.run(f"do: [{{all: {{{each.format(attempt)}}}}}]")
    assert run.state == "SUCCEEDED", run.error
    below = await house.record.rows(
        "SELECT run_id, depth FROM run WHERE root_run_id = CAST(:r AS uuid) ORDER BY run_id", r=run.id
    )
    assert len(below) == TREE - 1
    failed = [await house.flint.get_run(str(run_id)) for run_id, depth in below if depth == 1]
    errors = [(child.error.status, child.error.title) for child in failed if child.error is not None]
    assert errors == [(429, "Too many runs in the tree")]


async def test_branches_wait_for_children_beside_calls(house: House) -> None:
    child = await house.apply(DOUBLE)
    slow = await house.apply("do: [{pause: {wait: {milliseconds: 1500}}}, {out: {set: {n: 7}}}]")
    body = f"""
do:
  - all:
      fork:
        branches:
          - one: {{run: {{workflow: {{name: {child}, input: {{n: 1}}}}}}}}
          - two: {{run: {{workflow: {{name: {child}, input: {{n: 2}}}}}}}}
          - slow: {{run: {{workflow: {{name: {slow}}}}}}}
          - call: {{call: noop, with: {{output: {{n: 3}}}}}}
          - nap: {{wait: {{milliseconds: 300}}}}
"""
    run = await house.run(body, {"n": 0})
    assert run.output == [{"n": 2}, {"n": 4}, {"n": 7}, {"n": 3}, {"n": 0}], run.error
    await eventually(lambda: nothing_left(house, run.id))


async def test_two_hundred_parents(house: House) -> None:
    child = await house.apply("do: [{pause: {call: noop}}, {double: {set: '${ {n: ($workflow.input.n * 2)} }'}}]")
    name = await house.apply(parent(child))
    requests = [StartRequest(name, {"n": n}) for n in range(200)]
    handles = [h for h in await house.flint.start_many(requests) if isinstance(h, AsyncRunHandle)]
    ended: list[Run] = await asyncio.gather(*(house.flint.wait(handle.id, 60) for handle in handles))
    assert [run.output for run in ended] == [{"n": 2 * n} for n in range(200)]
    assert await house.record.number(
        "SELECT count(*) FROM run r JOIN workflow_version d USING (definition_id) WHERE d.workflow_id = :n", n=child
    ) == len(handles)

    async def settled() -> bool:
        left = await house.record.number("SELECT (SELECT count(*) FROM run_await) + (SELECT count(*) FROM inbox)")
        return not left

    await eventually(settled)
