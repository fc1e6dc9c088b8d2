"""Approvals through the public door: asked, decided, overdue, escalated, cancelled."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from flint_sdk import (
    Approval,
    ApprovalClosed,
    ApprovalDecided,
    ApprovalNotFound,
    ApprovalState,
    InvalidArgument,
    PermissionDenied,
    Role,
    RunFailed,
    RunState,
)
from support.house import House, refusal

pytestmark = pytest.mark.asyncio(loop_scope="session")

ASK = """
do:
  - ask:
      call: approval
      with:
        title: Pay ${ .amount }?
        description: As the invoice says
        assignees: [ann, bob]
        form:
          type: object
          required: [limit]
          properties: {limit: {type: integer, maximum: 100}}
"""


async def asked(house: House, workflow: str, **filters: Any) -> Approval:
    """The approval that a run of this workflow asks for, once it is shown."""
    async with asyncio.timeout(60):
        while True:
            async for found in house.flint.list_approvals(workflow=workflow, **filters):
                return found
            await asyncio.sleep(0.05)


async def state_of(house: House, approval: Approval, wanted: ApprovalState) -> Approval:
    async with asyncio.timeout(60):
        while (found := await house.flint.get_approval(approval.id)).state is not wanted:
            await asyncio.sleep(0.05)
        return found


async def test_approved_with_the_forms_fields(house: House) -> None:
    name = await house.apply(ASK)
    handle = await house.flint.start(name, {"amount": 30})
    listed = await asked(house, name, states=["OPEN"], assignee="bob")
    assert (listed.title, listed.assignees, listed.form) == ("Pay 30?", ("ann", "bob"), None)
    assert listed.run == handle.name
    shown = await house.flint.get_approval(listed.name)
    assert shown.form["required"] == ["limit"]
    with pytest.raises(InvalidArgument) as raised:
        await house.flint.decide_approval(listed.id, approve=True, fields={"limit": 500})
    assert raised.value.violations[0].field == "fields"
    with pytest.raises(InvalidArgument):
        await house.flint.decide_approval(listed.id, approve=True)
    decided = await house.flint.decide_approval(
        listed.id, approve=True, comment="fine", fields={"limit": 50}, decided_by="bob"
    )
    assert decided.state is ApprovalState.APPROVED
    assert decided.decision is not None
    assert (decided.decision.decided_by, decided.decision.fields) == ("bob", {"limit": 50})
    result = await handle.result(60)
    assert (result["decision"], result["by"], result["comment"]) == ("approved", "bob", "fine")
    assert result["fields"] == {"limit": 50}
    again = await house.flint.decide_approval(listed.id, approve=True, fields={"limit": 50}, decided_by="bob")
    assert again.end_time == decided.end_time
    for other in ({"approve": False, "decided_by": "bob"}, {"approve": True, "decided_by": "ann"}):
        with pytest.raises(ApprovalDecided):
            await house.flint.decide_approval(listed.id, **other)  # type: ignore[arg-type]
    assert [a.id async for a in house.flint.list_approvals(workflow=name, states=["OPEN"])] == []
    assert [a.id async for a in house.flint.list_approvals(workflow=name)] == [listed.id]


async def test_rejected_by_the_key(house: House) -> None:
    name = await house.apply(ASK)
    handle = await house.flint.start(name, {"amount": 1})
    approval = await asked(house, name)
    rejected = await house.flint.decide_approval(approval.id, approve=False, comment="no")
    me = await house.flint.who_am_i()
    assert rejected.state is ApprovalState.REJECTED
    assert rejected.decision is not None and rejected.decision.key == me.name
    result = await handle.result(60)
    assert (result["decision"], result["by"], result["comment"]) == ("rejected", rejected.decision.decided_by, "no")


async def test_two_decisions_at_once(house: House) -> None:
    name = await house.apply("do:\n  - ask: {call: approval, with: {title: Which?}}\n")
    handle = await house.flint.start(name, {})
    approval = await asked(house, name)
    answers = await asyncio.gather(
        *[house.flint.decide_approval(approval.id, approve=n % 2 == 0, decided_by=f"person {n}") for n in range(8)],
        return_exceptions=True,
    )
    won = [a for a in answers if isinstance(a, Approval)]
    assert len(won) == 1
    assert sum(isinstance(a, ApprovalDecided) for a in answers) == 7
    assert won[0].decision is not None
    assert (await handle.result(60))["by"] == won[0].decision.decided_by


async def test_the_deadline_closes_it(house: House) -> None:
    name = await house.apply("do:\n  - ask: {call: approval, with: {title: Soon?, deadline: {seconds: 2}}}\n")
    handle = await house.flint.start(name, {})
    approval = await asked(house, name)
    assert approval.deadline is not None
    with pytest.raises(RunFailed) as raised:
        await handle.result(60)
    assert raised.value.problem.status == 408
    closed = await state_of(house, approval, ApprovalState.CLOSED)
    assert closed.decision is None
    with pytest.raises(ApprovalClosed):
        await house.flint.decide_approval(approval.id, approve=True)


async def test_a_cancelled_run_closes_it(house: House) -> None:
    name = await house.apply("do:\n  - ask: {call: approval, with: {title: Ever?}}\n")
    handle = await house.flint.start(name, {})
    approval = await asked(house, name)
    await handle.cancel()
    assert (await house.flint.wait(handle.id, 60)).state is RunState.CANCELLED
    await state_of(house, approval, ApprovalState.CLOSED)


async def test_escalation_survives_the_schedulers(house: House) -> None:
    name = await house.apply(
        "do:\n  - ask: {call: approval, with: {title: Now?, assignees: [ann], "
        "escalation: {after: {seconds: 8}, assignees: [boss, ann]}}}\n"
    )
    handle = await house.flint.start(name, {})
    approval = await asked(house, name)
    for scheduler in [child for child in house.stack.pids if child.startswith("scheduler")]:
        await house.stack.kill(scheduler)
    assert approval.escalated_time is None
    async with asyncio.timeout(60):
        while (found := await house.flint.get_approval(approval.id)).escalated_time is None:
            await asyncio.sleep(0.2)
    assert found.assignees == ("ann", "boss")
    assert found.state is ApprovalState.OPEN
    async with asyncio.timeout(60):
        async for received in house.flint.subscribe_events(
            types=["dev.flint.approval.escalated"], cursor="0.0", lifecycle=False
        ):
            if received.data["approval"] == approval.name:
                break
    assert received.data["assignees"] == ["ann", "boss"]
    await house.flint.decide_approval(approval.id, approve=True, decided_by="boss")
    assert (await handle.result(60))["by"] == "boss"


async def test_pages_and_refusals(house: House) -> None:
    name = await house.apply("do:\n  - ask: {call: approval, with: {title: Page?}}\n")
    handles = [await house.flint.start(name, {}) for _ in range(5)]
    async with asyncio.timeout(60):
        while len([a async for a in house.flint.list_approvals(workflow=name)]) < 5:
            await asyncio.sleep(0.05)
    paged = [a.run async for a in house.flint.list_approvals(workflow=name, page_size=2)]
    assert sorted(paged) == sorted(h.name for h in handles)
    with pytest.raises(ApprovalNotFound):
        await house.flint.get_approval(f"{handles[0].id}/999")
    with pytest.raises(InvalidArgument):
        await house.flint.get_approval("nonsense")
    with pytest.raises(InvalidArgument):
        await house.flint.decide_approval(f"{handles[0].id}/not-a-key", approve=True)
    viewer = house.as_key((await house.flint.create_key("reads", Role.VIEWER)).secret)
    from flint_sdk._approvals import decide_request

    request = decide_request(f"{handles[0].name}/approvals/1", approve=True, comment="", fields=None, decided_by="")
    assert isinstance(
        await refusal(viewer.approvals.DecideApproval(request, metadata=viewer.metadata)), PermissionDenied
    )
    for handle in handles:
        await handle.cancel()
