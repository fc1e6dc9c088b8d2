"""The project's own workflow tests, on the engine: what the test kit says of them is what Flint does.

Each test of `examples/**/*.test.yaml` whose world is people and events alone is run here too, and its outcome compared
with the kit's: state, output, error, and how often each step was tried.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from flint_sdk import ApprovalState, Run, RunState
from flint_sdk.testing import Result
from flint_sdk.testing._spec import TestCase, load_spec, simulated
from support.house import House
from support.stack import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

EXAMPLES = Path(__file__).parents[3] / "examples"
CASES = [case for file in sorted(EXAMPLES.rglob("*.test.yaml")) for case in load_spec(file)]
PATIENCE = {"nobody decides"}
"""Tests that wait for what only a virtual clock brings."""


def document_of(file: Path) -> str:
    return file.read_text(encoding="utf-8")


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


def tries(result: Result) -> Counter[str]:
    return Counter(made.step for made in result.attempts_made if made.state in ("succeeded", "failed"))


@pytest.mark.parametrize("case", CASES, ids=[f"{case.file.parent.name}: {case.name}" for case in CASES])
async def test_the_engine_does_what_the_kit_says(house: House, case: TestCase) -> None:
    expected = simulated(case)
    folder = case.file.parent
    for path in (*case.spec.workflows.values(), case.spec.workflow):
        applied = await house.flint.apply(document_of(folder / path))
    if case.name in PATIENCE:
        return
    handle = await house.flint.start(applied.workflow.workflow_id, case.case.input)
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
    made = Counter(
        step.step for entry in history for step in entry.steps if step.state.value in ("SUCCEEDED", "FAILED")
    )
    assert made == tries(expected)
