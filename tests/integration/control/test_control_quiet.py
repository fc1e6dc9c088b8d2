"""What comes for a run on a Flint where nothing else happens: nobody else wakes those who must act."""

from __future__ import annotations

import pytest

from flint_sdk import RunState
from support.house import House
from support.stack import eventually

pytestmark = pytest.mark.asyncio(loop_scope="package")

WAIT_S = 60


async def test_a_queued_run_that_no_owner_remembers_goes_on_with_what_comes_for_it(house: House) -> None:
    """As a takeover may find it: the record says that it is ready, and it is in nobody's memory."""
    text = "do: [{heard: {listen: {to: {one: {with: {type: dev.flint.signal.go}}}}}}]"
    handle = await house.flint.start(await house.apply(text), {})

    async def waits() -> bool:
        return (await house.flint.get_run(handle.id)).state is RunState.WAITING

    await eventually(waits, WAIT_S)
    changed = await house.record.rows("UPDATE run SET state = 1 WHERE run_id::text = :r RETURNING state", r=handle.id)
    assert changed == [(1,)]
    await house.flint.signal(handle.id, "go", {"n": 1})
    assert (await house.flint.wait(handle.id, WAIT_S)).output == [{"n": 1}]
