"""Function workers, gateways and Flint's own workers that die while they have a call: it ends once, and right."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from flint_core.problems import ProblemType
from flint_sdk import FunctionWorker, function
from support.house import House
from support.stack import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

SERVER = Path(__file__).parents[2] / "support" / "function_server.py"
BODY = "do: [{work: {call: 'tests/held:1.0.0', with: {number: '${ .n // 0 }'}}}]"

Start = Callable[..., subprocess.Popen[bytes]]


@pytest_asyncio.fixture(loop_scope="session")
async def start(house: House, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts function workers by name; all are gone at the end."""
    children: list[subprocess.Popen[bytes]] = []

    def start(name: str, silence_s: int = 2) -> subprocess.Popen[bytes]:
        arguments = [sys.executable, str(SERVER), house.stack.gateway, house.stack.admin_key, str(tmp_path), name]
        arguments.append(str(silence_s))
        child = subprocess.Popen(arguments)
        children.append(child)
        return child

    yield start
    for child in children:
        child.kill()
    for child in children:
        await asyncio.to_thread(child.wait, 60)


def calls(folder: Path) -> list[list[str]]:
    log = folder / "calls.log"
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def open_gate(folder: Path) -> None:
    (folder / "gate").touch()


async def test_another_takes_over_from_one_that_was_killed(house: House, start: Start, tmp_path: Path) -> None:
    first = start("first")
    handle = await house.flint.start(await house.apply(BODY))
    await eventually(lambda: len(calls(tmp_path)) == 1)
    start("second")
    first.kill()
    await eventually(lambda: len(calls(tmp_path)) == 2, 60)
    open_gate(tmp_path)
    assert await handle.result(60) == {"by": "second", "number": 0, "dispatch": 2}
    (_, key, one, _), (_, again, two, _) = calls(tmp_path)
    assert key == again, "the repeat has another idempotency key"
    assert (one, two) == ("1", "2")


async def test_one_that_falls_silent_loses_its_call_and_comes_too_late(
    house: House, start: Start, tmp_path: Path
) -> None:
    first = start("first")
    handle = await house.flint.start(await house.apply(BODY))
    await eventually(lambda: len(calls(tmp_path)) == 1)
    start("second")
    os.kill(first.pid, signal.SIGSTOP)
    await eventually(lambda: len(calls(tmp_path)) == 2, 60)
    open_gate(tmp_path)
    os.kill(first.pid, signal.SIGCONT)  # it has an outcome now, of an older handing-out
    assert (await handle.result(60))["by"] == "second"


async def test_a_function_worker_that_is_told_to_stop_gives_back_what_it_cannot_finish(
    house: House, start: Start, tmp_path: Path
) -> None:
    first = start("first")
    handle = await house.flint.start(await house.apply(BODY))
    await eventually(lambda: len(calls(tmp_path)) == 1)
    start("second")
    first.terminate()
    await eventually(lambda: len(calls(tmp_path)) == 2, 60)
    assert await asyncio.to_thread(first.wait, 60) == 0
    open_gate(tmp_path)
    assert (await handle.result(60))["by"] == "second"


async def test_a_gateway_that_restarts_costs_nothing(house: House, start: Start, tmp_path: Path) -> None:
    start("only", silence_s=120)  # longer than any restart takes
    name = await house.apply(BODY)
    handles = [await house.flint.start(name, {"n": n}) for n in range(3)]
    await eventually(lambda: len(calls(tmp_path)) == 3)
    await house.stack.kill("gateway")
    open_gate(tmp_path)  # the outcomes come while there is no gateway
    await house.stack.ready("gateway")
    results = await asyncio.gather(*(handle.result(60) for handle in handles))
    assert [result["number"] for result in results] == [0, 1, 2]
    assert {result["dispatch"] for result in results} == {1}
    assert len(calls(tmp_path)) == 3, "a call was executed twice"


async def test_nats_that_restarts_costs_nothing(house: House, start: Start, tmp_path: Path) -> None:
    start("only", silence_s=120)
    handle = await house.flint.start(await house.apply(BODY))
    await eventually(lambda: len(calls(tmp_path)) == 1)
    await house.stack.kill("nats", hold=True)
    open_gate(tmp_path)  # the outcome comes while nobody can be told
    await house.stack.start("nats")
    assert (await handle.result(60))["dispatch"] == 1
    assert len(calls(tmp_path)) == 1


async def test_flints_own_worker_dies_and_the_next_leg_calls_again_with_the_same_key(
    house: House, start: Start, tmp_path: Path
) -> None:
    start("only")
    handle = await house.flint.start(await house.apply(BODY))
    await eventually(lambda: len(calls(tmp_path)) == 1)
    holder = (await handle.get()).worker
    workers = [worker async for worker in house.flint.list_workers()]
    child = next(w.worker_id for w in workers if holder in (w.incarnation, w.worker_id, w.name))
    await house.stack.kill(child)
    await eventually(lambda: len(calls(tmp_path)) == 2, 60)
    open_gate(tmp_path)
    assert (await handle.result(60))["by"] == "only"
    assert len({line[1] for line in calls(tmp_path)}) == 1


async def test_three_losses_fail_the_call(house: House) -> None:
    taken = 0

    @function(name="tests/deserter", version="1.0.0", heartbeat_timeout_s=1)
    async def deserter() -> None:
        nonlocal taken
        taken += 1
        await asyncio.Event().wait()

    async def serve_and_vanish() -> None:
        """Takes one task and is gone without a word."""
        before = taken
        worker = FunctionWorker([deserter], address=house.stack.gateway, key=house.stack.admin_key, concurrency=1)
        task = asyncio.create_task(worker.serve())
        await eventually(lambda: taken > before, 60)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    handle = await house.flint.start(await house.apply("do: [{work: {call: 'tests/deserter', with: {}}}]"))
    for _ in range(3):
        await serve_and_vanish()
    run = await house.flint.wait(handle.id, 60)
    assert run.error is not None
    assert (run.error.type, run.error.title) == (ProblemType.COMMUNICATION, "Function worker lost")
