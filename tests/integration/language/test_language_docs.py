"""Every example of the language's page that states an output gives it on a whole Flint."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import pytest_asyncio

from flint_sdk import Approval, FlintError, Run, RunState
from support.doc_examples import MAIL, Example, examples
from support.house import House

EXAMPLES = examples()
LISTENING = sorted((name for name in MAIL if "decision" not in MAIL[name][0]), reverse=True)
"""Their events have the same type, so they run one after the other: the last one tells its own apart by correlation."""


async def approval_of(house: House, workflow: str) -> Approval:
    while True:
        async for found in house.flint.list_approvals(workflow=workflow):
            return found
        await asyncio.sleep(0.05)  # an approval is shown a moment after the run asked: nothing tells


async def ended(house: House, name: str, example: Example) -> Run:
    await house.flint.apply(example.source)
    handle = await house.flint.start(name, example.input)
    if name in LISTENING:
        async for change in house.flint.watch(handle.id):
            run = getattr(change, "run", None)
            if run is not None and (run.state is RunState.WAITING or run.state.terminal):
                break
        for published in await house.flint.publish_events(MAIL[name]):
            assert not isinstance(published, FlintError), published
    elif name in MAIL:
        decision = MAIL[name][0]
        approval = await approval_of(house, name)
        await house.flint.decide_approval(
            approval.id,
            approve=decision["decision"] == "approved",
            decided_by=decision["by"],
            fields=decision["fields"],
        )
    return await house.flint.wait(handle.id, 60)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def runs(house: House) -> dict[str, Any]:
    async def listening() -> list[Run]:
        return [await ended(house, name, EXAMPLES[name]) for name in LISTENING]

    others = sorted(EXAMPLES.keys() - set(LISTENING))
    async with asyncio.timeout(120):
        first, *rest = await asyncio.gather(
            listening(), *(ended(house, name, EXAMPLES[name]) for name in others), return_exceptions=True
        )
    assert not isinstance(first, BaseException), first
    return dict(zip([*LISTENING, *others], [*first, *rest], strict=True))


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("name", EXAMPLES)
async def test_an_example_gives_what_the_page_says(name: str, runs: dict[str, Any]) -> None:
    run = runs[name]
    if isinstance(run, BaseException):
        raise run
    assert run.state is RunState.SUCCEEDED, run.error
    assert run.output == EXAMPLES[name].output


def test_the_examples_are_found() -> None:
    assert set(MAIL) <= set(EXAMPLES)
    assert {"ledger", "write"} <= set(EXAMPLES), "those with connections"
