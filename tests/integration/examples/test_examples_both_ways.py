"""The project's own workflow tests, on the engine: what the test kit says of them is what Flint does.

Each test of `examples/**/*.test.yaml` whose world is people and events alone is run here too, and its outcome compared
with the kit's: state, output, error, which steps ended how in which order, and what was emitted.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest

from flint_sdk import ApprovalState, Run, RunState
from flint_sdk.testing._spec import TestCase, load_spec, simulated
from support.house import House
from support.stack import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

EXAMPLES = Path(__file__).parents[3] / "examples"
CASES = [case for file in sorted(EXAMPLES.rglob("*.test.yaml")) for case in load_spec(file)]
SOONER = {"deadline: P2D": "deadline: PT1S"}
"""What only a virtual clock brings comes sooner here, where a test waits for it to pass."""


def document_of(file: Path, case: TestCase) -> str:
    source = file.read_text(encoding="utf-8")
    if case.case.expect.error is not None and case.case.expect.error.get("status") == 408:
        version = "version: 1.0.0"
        for long, short in {**SOONER, version: f"{version[:-1]}1"}.items():
            assert long in source
            source = source.replace(long, short)
    return source


async def decide(house: House, run: Run, case: TestCase) -> None:
    """What the stubs of a test say people decide."""
    for stub in case.case.stubs.values():
        approval = None if isinstance(stub, list) else stub.approval
        if approval is None:
            continue

        async def asked() -> Any:
            open_ones = house.flint.list_approvals(states=[ApprovalState.OPEN])
            return [one async for one in open_ones if run.name in one.name]

        (waiting,) = await eventually(asked)
        await house.flint.decide_approval(
            waiting.name,
            approve=approval.decision == "approved",
            comment=approval.comment,
            fields=approval.fields or None,
            decided_by=approval.by,
        )


async def tell(house: House, run: str, case: TestCase) -> None:
    """The events of a test, once the run listens."""
    if not case.case.events:
        return

    async def listens() -> int:
        sql = "SELECT count(*) FROM run_await WHERE run_id = CAST(:r AS uuid) AND kind = 1 AND NOT closed"
        return int(await house.record.number(sql, r=run))

    await eventually(listens)
    for number, event in enumerate(case.case.events):
        envelope = {
            "specversion": "1.0",
            "id": f"{run}-{number}",
            "source": event.source,
            "type": event.type,
            "datacontenttype": "application/json",
            "data": event.data,
        }
        await house.flint.publish_events([envelope])


@pytest.mark.parametrize("case", CASES, ids=[f"{case.file.parent.name}: {case.name}" for case in CASES])
async def test_the_engine_does_what_the_kit_says(house: House, case: TestCase) -> None:
    expected = simulated(case)
    folder = case.file.parent
    for path in (*case.spec.workflows.values(), case.spec.workflow):
        of_case = path == case.spec.workflow
        applied = await house.flint.apply(
            document_of(folder / path, case) if of_case else (folder / path).read_text(encoding="utf-8")
        )
    workflow = applied.workflow
    handle = await house.flint.start(workflow.workflow_id, case.case.input, version=workflow.version)
    helping = asyncio.gather(decide(house, handle.run, case), tell(house, handle.id, case))
    run = await house.flint.wait(handle.id, 60)
    await helping
    assert run.state == RunState(expected.state.upper())
    if run.state is RunState.SUCCEEDED:
        assert await house.flint.resolve(run.output) == expected.output
    else:
        assert run.error is not None and expected.error is not None
        found = (run.error.type, run.error.status, run.error.title, run.error.instance)
        assert found == tuple(expected.error.get(name, "") for name in ("type", "status", "title", "instance"))
    history = [entry async for entry in house.flint.history(handle.id)]
    ended = [
        (step.step, step.iteration, step.attempt, step.state.value.lower())
        for entry in history
        for step in entry.steps
        if step.state.value in ("SUCCEEDED", "FAILED")
    ]
    wanted = [
        (made.step, made.iteration, made.attempt, made.state)
        for made in expected.attempts_made
        if made.state in ("succeeded", "failed")
    ]
    if "parallel:" in workflow.source:
        ended.sort()
        wanted.sort()
    assert ended == wanted
    for event in expected.events:
        content = "convert_from(content, 'UTF8')::jsonb"
        sql = f"SELECT count(*) FROM event WHERE type = :t AND {content} -> 'data' = CAST(:d AS jsonb)"
        data = orjson.dumps(event["data"]).decode()
        assert await house.record.number(sql, t=event["type"], d=data) == 1
