from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import SecretStr

from flint_core.effects import Call, Deferred
from flint_core.events import CallFailed, CallSucceeded
from flint_core.problems import Problem, ProblemType
from flint_jq import EvaluatorPool
from flint_ops.clock import boottime
from flint_worker.calls import Caller
from flint_worker.executors import ExecutionFailed, ResolvedCall
from flint_worker.executors.noop import NoopExecutor
from flint_worker.journal import LegStopped
from flint_worker.lease import Lease
from flint_worker.secrets import SecretResolver, has_deferred


class Fixed:
    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome
        self.seen: list[ResolvedCall] = []

    async def execute(self, call: ResolvedCall) -> Any:
        self.seen.append(call)
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome

    async def close(self) -> None: ...


@pytest.fixture
async def evaluators() -> AsyncIterator[EvaluatorPool]:
    pool = EvaluatorPool(1, 1000, 2**28, 100_000)
    await pool.start()
    yield pool
    await pool.close()


async def perform(outcome: Any, arguments: dict[str, Any] | None = None, pool: Any = None) -> tuple[Any, Fixed]:
    executor = Fixed(outcome)
    caller = Caller({"f": executor}, SecretResolver({"key": SecretStr("s3cr3t")}, pool), 1000)
    lease = Lease("inc", 1, boottime(), 60)
    event = await caller.perform(Call(1, "/do/0/a", "a", "", 1, "f", arguments or {}, "k"), lease, "run", "trace", None)
    return event, executor


@pytest.mark.parametrize("output", [None, True, 0, 7, "text", [1, {"a": [None]}], {"a": 1.5}])
async def test_json_passes_unchanged(output: Any) -> None:
    event, _ = await perform(output)
    assert isinstance(event, CallSucceeded)
    assert event.output == output


@pytest.mark.parametrize(("output", "seen"), [(math.nan, None), ((1, 2), [1, 2]), ({"a": math.inf}, {"a": None})])
async def test_what_goes_on_is_what_the_journal_will_hold(output: Any, seen: Any) -> None:
    event, _ = await perform(output)
    assert event.output == seen


@pytest.mark.parametrize(
    ("output", "kind"), [("x" * 1000, ProblemType.PAYLOAD_TOO_LARGE), (object(), ProblemType.RUNTIME)]
)
async def test_what_cannot_be_recorded_is_a_failed_call(output: Any, kind: str) -> None:
    event, _ = await perform(output)
    assert isinstance(event, CallFailed)
    assert event.problem.type == kind


async def test_a_wish_to_wait_is_passed_on() -> None:
    event, _ = await perform(ExecutionFailed(Problem("t", 503, "busy"), retry_after_ms=1500))
    assert (event.problem.status, event.retry_after_ms) == (503, 1500)


async def test_cancellation_passes() -> None:
    with pytest.raises(asyncio.CancelledError):
        await perform(asyncio.CancelledError())


async def test_an_unknown_function_and_a_lease_that_is_over() -> None:
    caller = Caller({}, SecretResolver({}, None), 1000)  # type: ignore[arg-type]
    call = Call(1, "/do/0/a", "a", "", 1, "f", {}, "k")
    event = await caller.perform(call, Lease("inc", 1, boottime(), 60), "run", "trace", None)
    assert isinstance(event, CallFailed)
    assert event.problem.type == ProblemType.CONFIGURATION
    caller = Caller({"f": Fixed(1)}, SecretResolver({}, None), 1000)  # type: ignore[arg-type]
    with pytest.raises(LegStopped):
        await caller.perform(call, Lease("inc", 1, boottime() - 61, 60), "run", "trace", None)


def deferred(source: str, template: bool, *secrets: str) -> Deferred:
    return Deferred(source, template, {"user": "ada"}, {}, secrets)


async def test_secrets_reach_the_executor_only(evaluators: EvaluatorPool) -> None:
    arguments = {
        "header": deferred("Bearer ${ $secrets.key }", True, "key"),
        "list": [{"deep": deferred("$secrets.key", False, "key")}],
        "jq": deferred('.user + ":" + $secrets.key | @base64', False, "key"),
        "plain": 1,
    }
    assert has_deferred(arguments)
    event, executor = await perform("ok", arguments, evaluators)
    assert isinstance(event, CallSucceeded)
    assert executor.seen[0].arguments == {
        "header": "Bearer s3cr3t",
        "list": [{"deep": "s3cr3t"}],
        "jq": "YWRhOnMzY3IzdA==",
        "plain": 1,
    }


async def test_a_missing_secret_and_a_failing_expression_are_problems_without_values(evaluators: EvaluatorPool) -> None:
    event, executor = await perform("ok", {"a": deferred("$secrets.other", False, "other")}, evaluators)
    assert event.problem.type == ProblemType.CONFIGURATION
    event, executor = await perform("ok", {"a": deferred("$secrets.key + 1", False, "key")}, evaluators)
    assert event.problem.type == ProblemType.EXPRESSION
    assert "s3cr3t" not in str(event)
    assert executor.seen == []


async def test_noop() -> None:
    noop = NoopExecutor()

    def call(**arguments: Any) -> ResolvedCall:
        return ResolvedCall("noop", arguments, "k", "/do/0/a", "run", "trace")

    assert await noop.execute(call()) is None
    assert await noop.execute(call(output={"a": 1}, delay_ms=1)) == {"a": 1}
    with pytest.raises(ExecutionFailed) as failed:
        await noop.execute(call(fail={"type": "t", "status": 418, "title": "x"}))
    assert failed.value.problem == Problem("t", 418, "x", "", "/do/0/a")
    for bad in (-1, "1", True, 10**9):
        with pytest.raises(ExecutionFailed):
            await noop.execute(call(delay_ms=bad))
