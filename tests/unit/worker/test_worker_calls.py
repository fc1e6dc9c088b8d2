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
from flint_ops.clock import boottime, now_ms
from flint_ops.config import LimitSettings
from flint_worker.calls import Caller, Origin
from flint_worker.executors import ExecutionFailed, ResolvedCall
from flint_worker.executors.noop import NoopExecutor
from flint_worker.journal import LegStopped
from flint_worker.lease import Lease
from flint_worker.redaction import Redaction
from flint_worker.secrets import SecretResolver, has_deferred
from flint_worker.values import Values
from support.eventually import eventually

ORIGIN = Origin("run", bytes(16), "trace", "default", "demo")
# No store is reached: everything here is small, or too large for any.
VALUES = Values(None, None, LimitSettings(payload_bytes=1_024, value_bytes=1_024))  # type: ignore[arg-type]


class Fixed:
    unfinished = 0

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
    caller = Caller({"f": executor}, SecretResolver({"key": SecretStr("s3cr3t")}, pool), VALUES)
    lease = Lease("inc", 1, boottime(), 60)
    event = await caller.perform(Call(1, "/do/0/a", "a", "", 1, "f", arguments or {}, "k"), lease, ORIGIN)
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
    ("output", "kind"), [("x" * 2000, ProblemType.PAYLOAD_TOO_LARGE), (object(), ProblemType.RUNTIME)]
)
async def test_what_cannot_be_recorded_is_a_failed_call(output: Any, kind: str) -> None:
    event, _ = await perform(output)
    assert isinstance(event, CallFailed)
    assert event.problem.type == kind


async def test_a_wish_to_wait_is_passed_on() -> None:
    event, _ = await perform(ExecutionFailed(Problem("t", 503, "busy"), retry_after_ms=1500))
    assert (event.problem.status, event.retry_after_ms) == (503, 1500)


async def test_cancellation_passes() -> None:
    class Holding(Fixed):
        async def execute(self, call: ResolvedCall) -> Any:
            self.seen.append(call)
            await asyncio.Event().wait()

    executor = Holding(None)
    caller = Caller({"f": executor}, SecretResolver({}, None), VALUES)  # type: ignore[arg-type]
    call = Call(1, "/do/0/a", "a", "", 1, "f", {}, "k")
    task = asyncio.ensure_future(caller.perform(call, Lease("inc", 1, boottime(), 60), ORIGIN))
    await eventually(lambda: bool(executor.seen))
    assert caller.unfinished == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert caller.unfinished == 0


async def test_a_cancellation_that_nobody_asked_for_is_a_failed_call() -> None:
    event, _ = await perform(asyncio.CancelledError())
    assert isinstance(event, CallFailed)
    assert event.problem.type == ProblemType.RUNTIME


async def test_work_that_outlives_its_call_is_counted() -> None:
    executor = Fixed(None)
    executor.unfinished = 2
    assert Caller({"f": executor}, SecretResolver({}, None), 1000).unfinished == 2  # type: ignore[arg-type]


@pytest.mark.parametrize(("deadline_ms", "seconds"), [(None, None), (5_000, 5.1), (-5_000, 0.0)])
async def test_the_executor_is_told_the_time_of_its_own_call(deadline_ms: int | None, seconds: float | None) -> None:
    executor = Fixed(None)
    caller = Caller({"f": executor}, SecretResolver({}, None), VALUES)  # type: ignore[arg-type]
    at = None if deadline_ms is None else now_ms() + deadline_ms
    call = Call(1, "/do/0/a", "a", "", 1, "f", {}, "k", at)
    await caller.perform(call, Lease("inc", 1, boottime(), 60), ORIGIN)
    given = executor.seen[0].deadline_s
    assert given == (None if seconds is None else pytest.approx(seconds, abs=0.5))


async def test_an_unknown_function_and_a_lease_that_is_over() -> None:
    caller = Caller({}, SecretResolver({}, None), VALUES)  # type: ignore[arg-type]
    call = Call(1, "/do/0/a", "a", "", 1, "f", {}, "k")
    event = await caller.perform(call, Lease("inc", 1, boottime(), 60), ORIGIN)
    assert isinstance(event, CallFailed)
    assert event.problem.type == ProblemType.CONFIGURATION
    caller = Caller({"f": Fixed(1)}, SecretResolver({}, None), VALUES)  # type: ignore[arg-type]
    with pytest.raises(LegStopped):
        await caller.perform(call, Lease("inc", 1, boottime() - 61, 60), ORIGIN)


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


SECRET = {"a": deferred("$secrets.key", False, "key")}


async def test_a_secret_does_not_come_back_in_an_output(evaluators: EvaluatorPool) -> None:
    output = {"echo": ["Bearer s3cr3t", {"s3cr3t": "a s3cr3t s3cr3t"}], "n": 1, "clean": "secret"}
    event, _ = await perform(output, SECRET, evaluators)
    assert event.output == {"echo": ["Bearer ***", {"***": "a *** ***"}], "n": 1, "clean": "secret"}
    event, _ = await perform("s3cr3t", SECRET, evaluators)
    assert event.output == "***"
    event, _ = await perform("s3cr3t", {"a": 1}, evaluators)
    assert event.output == "s3cr3t"  # a call without secrets has nothing to hide


async def test_a_secret_does_not_come_back_in_a_problem(evaluators: EvaluatorPool) -> None:
    problem = Problem("t", 500, "GET /s3cr3t", "quoted: 's3cr3t', cut: s3cr3")
    event, _ = await perform(ExecutionFailed(problem), SECRET, evaluators)
    assert event.problem == Problem("t", 500, "GET /***", "quoted: '***', cut: ***")


@pytest.mark.parametrize(
    ("secret", "text"),
    [
        ("a b/ü?", "https://x/a%20b/%C3%BC%3F"),
        ("a b/ü?", "?k=a+b%2F%C3%BC%3F"),
        ('say "no"', '{"k": "say \\"no\\""}'),
        ("line\nbreak", "'line\\nbreak'"),
    ],
)
def test_a_secret_is_found_in_other_spellings(secret: str, text: str) -> None:
    cleaned = Redaction([secret]).text(text)
    assert "***" in cleaned
    assert "no" not in cleaned
    assert "%" not in cleaned
    assert "break" not in cleaned


def test_the_longer_of_two_secrets_goes_first_and_short_ones_are_left() -> None:
    assert Redaction(["abcd", "abcdef", "xyz", ""]).value({"a": "abcdef abcd xyz"}) == {"a": "*** *** xyz"}


async def test_a_missing_secret_and_a_failing_expression_are_problems_without_values(evaluators: EvaluatorPool) -> None:
    event, executor = await perform("ok", {"a": deferred("$secrets.other", False, "other")}, evaluators)
    assert (event.problem.type, event.problem.status) == (ProblemType.AUTHORIZATION, 403)
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


@pytest.mark.parametrize("levels", [201, 300])
async def test_an_output_nested_too_deeply_fails_typed(levels: int) -> None:
    deep: Any = 1
    for _ in range(levels):
        deep = [deep]
    event, _ = await perform(deep)
    assert isinstance(event, CallFailed)
    assert event.problem.title in ("Output nested too deeply", "Output is not JSON")
    accepted, _ = await perform(deep[0] if levels == 201 else 1)
    assert isinstance(accepted, CallSucceeded)
