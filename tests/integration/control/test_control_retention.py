"""Old runs go from a running Flint: what is asked of them then, and what is there to be seen."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import psycopg
import pytest

from flint_sdk import AsyncFlint, InvalidArgument, PermissionDenied, Role, RunNotFound, RunState
from support.house import House, definition
from support.stack import eventually

pytestmark = pytest.mark.asyncio(loop_scope="package")

WAIT_S = 60
CHILD = "do:\n  - nap: { wait: { hours: 1 } }\n"
ECHO = "do:\n  - echo: { set: { text: '${ .text }' } }\n"
TEXT = "word " * 80_000  # above limits.payload_bytes


def parent(child: str) -> str:
    return f"""
do:
  - apart: {{ run: {{ await: false, workflow: {{ namespace: default, name: {child}, version: 1.0.0 }} }} }}
"""


def keep_briefly(house: House, *workflows: str) -> None:
    """What a definition cannot ask for: its ended runs are kept for a second."""
    dsn = house.stack.settings.postgres.dsn.get_secret_value()
    with psycopg.connect(dsn, autocommit=True, connect_timeout=10) as connection:
        connection.execute(
            "UPDATE workflow_version SET retention_s = 1 WHERE workflow_id = ANY(%s)", (list(workflows),)
        )


def gone(house: House, *run_ids: str) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        for run_id in run_ids:
            try:
                await house.flint.get_run(run_id)
            except RunNotFound:
                continue
            return False
        return True

    return look


async def test_an_old_run_is_gone_for_everybody(house: House) -> None:
    """With its record, its history and its large values; others stay, and its request id is free again."""
    workflow, other = await house.apply(ECHO), await house.apply(ECHO)
    run = await house.flint.start(workflow, {"text": TEXT}, request_id=f"once-{workflow}")
    neighbour = await house.flint.start(other, {"text": TEXT})
    assert await run.result(WAIT_S) == await neighbour.result(WAIT_S) == {"text": TEXT}
    uses = await house.record.number("SELECT count(*) FROM payload_use WHERE run_id = CAST(:r AS uuid)", r=run.id)
    assert uses, "the value is not a large one"
    before = await house.flint.describe_retention()
    assert before.cluster_s == before.namespace_s == 30 * 86_400
    keep_briefly(house, workflow)
    await eventually(gone(house, run.id), WAIT_S)
    for call in (
        lambda: house.flint.get_run(run.id),
        lambda: house.flint.cancel(run.id),
        lambda: house.flint.retry(run.id),
        lambda: house.flint.signal(run.id, "hello", {}),
    ):
        with pytest.raises(RunNotFound):
            await call()
    with pytest.raises(RunNotFound):
        async for _ in house.flint.watch(run.id):
            pass
    with pytest.raises(RunNotFound):
        _ = [event async for event in house.flint.history(run.id)]
    assert [found.id async for found in house.flint.list_runs(workflow=workflow)] == []
    for table in ("run", "run_entry", "payload_use"):
        rows = await house.record.number(f"SELECT count(*) FROM {table} WHERE run_id = CAST(:r AS uuid)", r=run.id)
        assert rows == 0, table
    # The other run's value is the same one: it is there.
    assert (await house.flint.get_run(neighbour.id)).state is RunState.SUCCEEDED
    assert await neighbour.result(WAIT_S) == {"text": TEXT}
    again = await house.flint.start(workflow, {"text": "another"}, request_id=f"once-{workflow}")
    assert again.id != run.id

    async def counted() -> bool:
        found = await house.flint.describe_retention()
        return found.runs_deleted > before.runs_deleted and found.last_sweep_time is not None

    await eventually(counted, WAIT_S)
    found = await house.flint.describe_retention()
    assert found.rows_deleted - before.rows_deleted >= 2 and found.last_deletion_time is not None
    assert found.workflows[workflow] == 1 and found.oldest_run_time is not None


async def test_a_run_stays_while_a_run_that_it_started_goes_on(house: House) -> None:
    child = await house.apply(CHILD)
    workflow = await house.apply(parent(child))
    run = await house.flint.start(workflow, {})
    await run.result(WAIT_S)

    async def asleep() -> bool:
        return [found.state async for found in house.flint.list_runs(workflow=child)] == [RunState.WAITING]

    await eventually(asleep, WAIT_S)
    (sleeper,) = [found.id async for found in house.flint.list_runs(workflow=child)]
    bystander = await house.apply(ECHO)
    sacrifice = await house.flint.start(bystander, {})
    await sacrifice.result(WAIT_S)
    keep_briefly(house, workflow, child, bystander)
    await eventually(gone(house, sacrifice.id), WAIT_S)  # so the sweep came by
    assert (await house.flint.get_run(run.id)).state is RunState.SUCCEEDED
    assert (await house.flint.get_run(sleeper)).state is RunState.WAITING
    await house.flint.terminate(sleeper)
    await eventually(gone(house, run.id, sleeper), WAIT_S)


async def test_a_namespace_says_how_long_and_the_command_shows_it(house: House) -> None:
    settings = await house.flint.set_namespace(retention_days=7)
    try:
        assert settings.retention_days == 7
        assert (await house.flint.describe_retention()).namespace_s == 7 * 86_400
        shown = await asyncio.to_thread(
            subprocess.run,
            [str(Path(sys.executable).with_name("flint")), "retention"],
            env={
                **os.environ,
                "FLINT_ADDRESS": house.stack.gateway,
                "FLINT_KEY": house.stack.admin_key,
                "COLUMNS": "100",
            },
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert shown.returncode == 0, shown.stderr
        assert "7 days" in shown.stdout and "30 days" in shown.stdout and "runs deleted" in shown.stdout
        for days in (-2, 40_000):
            with pytest.raises(InvalidArgument):
                await house.flint.set_namespace(retention_days=days)
        assert (await house.flint.set_namespace(retention_days=-1)).retention_days == -1
        assert (await house.flint.describe_retention()).namespace_s == 0
        key = await house.flint.create_key(role=Role.OPERATOR, display_name="operator")
        flint = AsyncFlint(address=house.stack.gateway, key=key.secret)
        try:
            assert (await flint.describe_retention()).namespace_s == 0
            with pytest.raises(PermissionDenied):
                await flint.set_namespace(retention_days=1)
        finally:
            await flint.close()
    finally:
        await house.flint.set_namespace(retention_days=0)


async def test_a_definition_says_it(house: House) -> None:
    name = house.name("kept")
    head = definition("do: [{nothing: {set: {a: 1}}}]", name).replace(
        "version: 1.0.0}", "version: 1.0.0, metadata: {flint: {retention: {days: 400}}}}"
    )
    await house.flint.apply(head)
    assert (await house.flint.describe_retention()).workflows[name] == 400 * 86_400
