"""Calls of custom functions through a real Flint: typed, watched, retried, cancelled, shared out."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import BaseModel

from flint_core.problems import ProblemType
from flint_sdk import (
    FunctionContext,
    FunctionError,
    FunctionWorker,
    PermissionDenied,
    Role,
    RunState,
    Severity,
    StartRequest,
    StepBegan,
    function,
)
from support.house import House, definition
from support.stack import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")


@asynccontextmanager
async def serving(house: House, *functions: Any, **options: Any) -> AsyncIterator[FunctionWorker]:
    worker = FunctionWorker(functions, address=house.stack.gateway, key=house.stack.admin_key, **options)
    task = asyncio.create_task(worker.serve())
    try:
        await asyncio.wait_for(worker.connected(), 60)
        yield worker
        worker.stop()
        await asyncio.wait_for(task, 60)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def call(name: str, arguments: str = "{}", more: str = "") -> str:
    return f"do: [{{work: {{call: '{name}', with: {arguments}{more}}}}}]"


class Picture(BaseModel):
    url: str
    width: int


@function(name="tests/resize", version="1.2.0")
async def resize(url: str, width: int = 640) -> Picture:
    """Resizes."""
    return Picture(url=f"{url}?w={width}", width=width)


@function(name="tests/resize-slowly", version="1.0.0")
def resize_in_a_thread(picture: Picture, *, context: FunctionContext) -> list[str]:
    return [picture.url, context.idempotency_key, str(context.attempt), threading.current_thread().name]


async def test_async_and_threaded_functions(house: House) -> None:
    async with serving(house, resize, resize_in_a_thread):
        run = await house.run(call("tests/resize:1.2.0", "{url: 'http://x', width: '${ .w }'}"), {"w": 7})
        assert run.error is None, run.error
        assert run.output == {"url": "http://x?w=7", "width": 7}
        run = await house.run(call("tests/resize-slowly", "{picture: {url: u, width: 3}}"))
        assert run.error is None, run.error
        url, key, attempt, thread = run.output
        assert (url, attempt) == ("u", "1")
        assert key
        assert thread.startswith("flint-function")


async def test_arguments_and_results_that_do_not_fit_are_typed_problems(house: House) -> None:
    @function(name="tests/lies", version="1.0.0")
    async def lies() -> int:
        return "no number"  # type: ignore[return-value]

    async with serving(house, resize, lies):
        run = await house.run(call("tests/resize", "{url: u, width: '${ .w }'}"), {"w": "wide"})
        assert run.error is not None
        assert (run.error.type, run.error.status) == (ProblemType.VALIDATION, 400)
        assert "/width" in run.error.detail
        run = await house.run(call("tests/lies"))
        assert run.error is not None
        assert (run.error.type, run.error.title) == (ProblemType.VALIDATION, "Invalid result")


async def test_progress_is_seen(house: House) -> None:
    gate = asyncio.Event()

    @function(name="tests/progress", version="1.0.0")
    async def progress(context: FunctionContext) -> str:
        context.progress(42, "halfway, nearly")
        await gate.wait()
        return "done"

    async with serving(house, progress):
        handle = await house.flint.start(await house.apply(call("tests/progress")))
        async with asyncio.timeout(60):
            async for event in handle.watch():
                if isinstance(event, StepBegan) and event.step.progress_percent == 42:
                    assert event.step.progress_message == "halfway, nearly"
                    assert event.step.provisional
                    gate.set()
        assert await handle.result(60) == "done"


async def test_a_failure_is_caught_by_type_and_retried(house: House) -> None:
    attempts: list[tuple[int, str]] = []

    @function(name="tests/flaky", version="1.0.0")
    def flaky(context: FunctionContext) -> int:
        attempts.append((context.attempt, context.idempotency_key))
        if len(attempts) < 3:
            raise FunctionError("not yet", type="https://x.test/busy", retryable=True, retry_after_s=0.05)
        return len(attempts)

    body = """
do:
  - t:
      try: [{work: {call: 'tests/flaky:1.0.0', with: {}}}]
      catch:
        errors: {with: {type: 'https://x.test/busy', status: 503}}
        retry: {delay: {milliseconds: 10}, limit: {attempt: {count: 5}}}
"""
    async with serving(house, flaky):
        run = await house.run(body)
    assert run.output == 3
    assert [number for number, _ in attempts] == [1, 2, 3]
    assert len({key for _, key in attempts}) == 1


async def test_an_exception_is_a_problem_too(house: House) -> None:
    @function(name="tests/breaks", version="1.0.0")
    async def breaks() -> None:
        raise ZeroDivisionError("by zero")

    async with serving(house, breaks):
        run = await house.run(call("tests/breaks"))
    assert run.error is not None
    assert (run.error.type, run.error.status) == (ProblemType.RUNTIME, 500)
    assert "ZeroDivisionError" in run.error.detail
    assert run.error.instance.endswith("/work")


async def test_a_timeout_and_a_cancel_reach_the_function(house: House) -> None:
    began, cancelled, told = asyncio.Event(), asyncio.Event(), threading.Event()

    @function(name="tests/endless", version="1.0.0")
    async def endless() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    @function(name="tests/endless-thread", version="1.0.0")
    def endless_thread(context: FunctionContext) -> None:
        if context.wait_cancelled(120):
            told.set()

    async with serving(house, endless, endless_thread) as worker:
        run = await house.run(call("tests/endless", "{}", ", timeout: {after: {seconds: 3}}"))
        assert run.error is not None
        assert run.error.type == ProblemType.TIMEOUT
        await asyncio.wait_for(cancelled.wait(), 60)
        began.clear()
        cancelled.clear()
        handle = await house.flint.start(await house.apply(call("tests/endless")))
        await asyncio.wait_for(began.wait(), 60)
        await handle.cancel()
        await asyncio.wait_for(cancelled.wait(), 60)
        assert (await house.flint.wait(handle.id, 60)).state is RunState.CANCELLED
        await house.run(call("tests/endless-thread", "{}", ", timeout: {after: {seconds: 3}}"))
        await asyncio.to_thread(told.wait, 60)
        assert told.is_set()
        await eventually(lambda: worker.running == 0)


async def test_an_unknown_version_waits_and_runs_when_it_registers(house: House) -> None:
    @function(name="tests/late", version="1.0.0")
    async def first() -> str:
        return "first"

    @function(name="tests/late", version="2.0.0")
    async def second() -> str:
        return "second"

    async with serving(house, first):
        handle = await house.flint.start(await house.apply(call("tests/late:2.0.0")))
        run = await house.run(call("tests/late"))
        assert run.output == "first"
        assert (await handle.get()).state is RunState.RUNNING
        async with serving(house, second):
            assert await handle.result(60) == "second"
            # The highest version that is connected is what a call without one gets.
            run = await house.run(call("tests/late"))
            assert run.output == "second"


async def test_credit_is_respected_and_many_calls_are_shared_out(house: House) -> None:
    workers, concurrency, runs = 3, 7, 500
    busy: Counter[int] = Counter()
    most: Counter[int] = Counter()
    served: Counter[int] = Counter()

    def make(number: int) -> Any:
        @function(name="tests/many", version="1.0.0")
        async def many(n: int) -> int:
            busy[number] += 1
            most[number] = max(most[number], busy[number])
            served[number] += 1
            await asyncio.sleep(0.005)
            busy[number] -= 1
            return n * 2

        return many

    name = await house.apply(call("tests/many:1.0.0", "{n: '${ .n }'}"))
    async with (
        serving(house, make(0), concurrency=concurrency),
        serving(house, make(1), concurrency=concurrency),
        serving(house, make(2), concurrency=concurrency),
    ):
        handles = await house.flint.start_many([StartRequest(name, {"n": n}) for n in range(runs)])
        results = await asyncio.gather(*(handle.result(90) for handle in handles))  # type: ignore[union-attr]
    assert results == [n * 2 for n in range(runs)]
    assert sum(served.values()) == runs, "a call was executed twice"
    assert all(0 < most[number] <= concurrency for number in range(workers)), most
    assert all(served[number] > runs // 10 for number in range(workers)), served


async def test_a_key_without_the_role_is_refused(house: House) -> None:
    created = await house.flint.create_key("looks", Role.VIEWER)
    worker = FunctionWorker([resize], address=house.stack.gateway, key=created.secret)
    with pytest.raises(PermissionDenied):
        await asyncio.wait_for(worker.serve(), 60)


async def test_the_registry_lists_what_was_connected(house: House) -> None:
    async with serving(house, resize):

        async def listed() -> bool:
            found = {(f.name, f.version): f async for f in house.flint.list_functions()}
            entry = found.get(("tests/resize", "1.2.0"))
            return entry is not None and entry.connected and entry.description == "Resizes."

        await eventually(listed)


async def test_applying_warns_of_unknown_functions_and_wrong_constants(house: House) -> None:
    async with serving(house, resize):

        async def rules(body: str) -> list[tuple[str, str]]:
            applied = await house.flint.apply(definition(body, house.name()))
            found = [finding for finding in applied.findings if finding.rule in ("unknown-function", "arguments")]
            assert all(finding.severity is Severity.WARNING and finding.line > 1 for finding in found)
            return [(finding.rule, finding.message) for finding in found]

        async def registered() -> bool:
            return not await rules(call("tests/resize:1.2.0", "{url: u}"))

        await eventually(registered)
        ((rule, message),) = await rules(call("tests/resise", "{url: u}"))
        assert rule == "unknown-function"
        assert "did you mean 'tests/resize'?" in message
        ((rule, message),) = await rules(call("tests/resize:9.0.0", "{url: u}"))
        assert "version 9.0.0" in message
        assert [rule for rule, _ in await rules(call("tests/resize", "{url: 5, width: '${ .w }', more: 1}"))] == [
            "arguments",
            "arguments",
        ]
