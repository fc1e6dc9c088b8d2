"""Carrying out one call: arguments with secrets resolved, the executor run, the outcome made an event.

Every outcome is an event: what an executor raises never ends a leg. Only the loss of the lease (LegStopped) and the
cancellation of the task that performs the call pass through. No outcome holds a secret that the call was given.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Collection, Coroutine, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final, NamedTuple

import orjson

from flint_bus.payloads import PayloadMissing, PayloadsUnavailable, PayloadTooLarge
from flint_core.effects import Call
from flint_core.events import CallFailed, CallSucceeded
from flint_core.problems import Problem, ProblemType
from flint_core.sizes import VALUE_DEPTH, could_be_too_deep, nested_too_deeply
from flint_jq import EvaluationFailed
from flint_ops import failpoints
from flint_ops.clock import now_ms
from flint_ops.logging import get_logger
from flint_worker.executors import ExecutionFailed, Executor, RawJson, ResolvedCall, unheard
from flint_worker.figures import FIGURES
from flint_worker.journal import LegStopped
from flint_worker.lease import Lease
from flint_worker.redaction import Redaction
from flint_worker.secrets import SecretResolver, has_deferred
from flint_worker.telemetry import CALLS
from flint_worker.values import Values

__all__ = ["Caller", "Origin"]

_DETAIL_LIMIT: Final = 4_096
_GRACE_S: Final = 0.1
"""An executor's own limit comes this much after the machine's timer, which knows whose timeout has passed."""

_log = get_logger("flint_worker.calls")


class Origin(NamedTuple):
    """Whose calls they are: the same for all calls of a leg."""

    run_id: str
    run: bytes
    trace_id: str
    namespace: str
    workflow: str


class Caller:
    """Executes calls for all legs of the process."""

    def __init__(self, executors: Mapping[str, Executor], resolver: SecretResolver, values: Values) -> None:
        self._executors = executors
        self._resolver = resolver
        self._values = values
        self._performing = 0

    @property
    def unfinished(self) -> int:
        """Calls that have not ended, and side effects that go on although theirs has."""
        return self._performing + sum(executor.unfinished for executor in self._executors.values())

    async def perform(
        self,
        call: Call,
        lease: Lease,
        origin: Origin,
        report: Callable[[float | None, str], None] = unheard,
        large: bool = False,
        started_ms: int = 0,
    ) -> CallSucceeded | CallFailed:
        """The outcome of one call, executed now. Raises LegStopped when the lease does not allow it to begin (R6).

        `report` hears of its progress, without the secrets that it was given. `large`: the arguments may hold
        references to large values. `started_ms`: when it began, where somebody has looked already.
        """
        self._performing += 1
        started_ms = started_ms or now_ms()
        redaction: Redaction | None = None
        size = -1
        try:
            if call.cache_key:
                kept = await self._values.cached(origin.namespace, origin.run, call.cache_key)
                if kept is not None:
                    return CallSucceeded(call.effect_id, kept[0], started_ms, max(started_ms, now_ms()))
            arguments = call.arguments
            if call.may_defer and has_deferred(arguments):
                redaction = Redaction(self._resolver.values_in(arguments))
            executor = self._executors.get(call.function)
            if executor is None:
                raise ExecutionFailed(_not_here(call))
            if large:
                raw = getattr(executor, "raw_arguments", ())
                async with AsyncExitStack() as held:
                    arguments = await self._resolved(held, arguments, raw, call.step, lease, origin)
                    if redaction is not None:
                        arguments = await self._resolver.resolve(arguments, started_ms, call.step)
                    output = await self._begun(call, executor, arguments, lease, origin, report, redaction, started_ms)
                    del arguments
            else:
                if redaction is not None:
                    arguments = await self._resolver.resolve(arguments, started_ms, call.step)
                output = await self._begun(call, executor, arguments, lease, origin, report, redaction, started_ms)
            if failpoints.ARMED:
                failpoints.reach("call.after")
            if output is None or output is True:
                size = 4
            elif output is not False:
                output, size = await self._checked(output, call.step, redaction, lease, origin)
            if call.cache_key:
                await self._values.cache(origin.namespace, call.cache_key, output, call.cache_ttl_ms)
        except ExecutionFailed as failure:
            problem = failure.problem if redaction is None else redaction.problem(failure.problem)
            return self._failed(call, problem, started_ms, failure.retry_after_ms)
        except PayloadMissing as error:
            problem = Problem(ProblemType.RUNTIME, 404, "Large value not available", str(error), call.step)
            return self._failed(call, problem, started_ms, None)
        except LegStopped:
            raise
        except asyncio.CancelledError as cancelled:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Nobody cancelled us: an executor let somebody else's cancellation out. As one of ours it would end the
            # leg without a word, again and again.
            return self._failed(call, self._defect(call, cancelled), started_ms, None)
        except Exception as defect:
            return self._failed(call, self._defect(call, defect), started_ms, None)
        finally:
            self._performing -= 1
        at_ms = max(started_ms, now_ms())
        CALLS.add((call.function, "succeeded"), at_ms - started_ms)
        FIGURES.add_call(call.function, at_ms - started_ms, failed=False)
        return tuple.__new__(CallSucceeded, (call.effect_id, output, started_ms, at_ms, size))  # as in `Kernel.close`

    async def _resolved(
        self,
        held: AsyncExitStack,
        arguments: dict[str, Any],
        raw: Collection[str],
        step: str,
        lease: Lease,
        origin: Origin,
    ) -> dict[str, Any]:
        """The arguments with contents in place of references, for as long as `held` lasts."""
        while True:
            if not lease.valid():
                raise LegStopped("lease")
            try:
                return await held.enter_async_context(self._values.resolved(origin.namespace, arguments, raw))
            except PayloadTooLarge as error:
                problem = Problem(ProblemType.PAYLOAD_TOO_LARGE, 413, "Payload too large", str(error), step)
                raise ExecutionFailed(problem) from None
            except PayloadsUnavailable as error:
                # The step has not begun: an outage of the store is not its failure.
                _log.warning("large_arguments_wait_for_store", step=step, error=str(error))

    @staticmethod
    def _begun(
        call: Call,
        executor: Executor,
        arguments: Any,
        lease: Lease,
        origin: Origin,
        report: Callable[[float | None, str], None],
        redaction: Redaction | None,
        started_ms: int,
    ) -> Coroutine[Any, Any, Any]:
        """The execution, which is awaited at once: nothing may come between the look at the lease and it (R6)."""
        if not lease.valid():
            raise LegStopped("lease")
        deadline_ms = call.deadline_ms
        resolved = ResolvedCall(
            call.function,
            arguments,
            call.idempotency_key,
            call.step,
            origin.run_id,
            origin.trace_id,
            None if deadline_ms is None else max(0.0, (deadline_ms - started_ms) / 1000 + _GRACE_S),
            origin.namespace,
            call.attempt,
            report if redaction is None else _redacted(report, redaction),
            origin.workflow,
        )
        if failpoints.ARMED:
            failpoints.reach("call.before")
        return executor.execute(resolved)

    @staticmethod
    def _defect(call: Call, defect: BaseException) -> Problem:
        _log.error("executor_defect", step=call.step, function=call.function, where=_where(defect))
        return Problem(
            ProblemType.RUNTIME,
            500,
            "Function failed unexpectedly",
            f"{type(defect).__name__} in the executor of «{call.function}»",
            call.step,
        )

    async def _checked(
        self, output: Any, step: str, redaction: Redaction | None, lease: Lease, origin: Origin
    ) -> tuple[Any, int]:
        """The output as the JSON that a replay will read, and its size where that is known; a large one by reference.

        Raises ExecutionFailed.
        """
        unread: list[RawJson] = []
        try:
            encoded = orjson.dumps(output, default=partial(_as_fragment, unread))
        except TypeError as error:
            raise ExecutionFailed(
                Problem(ProblemType.RUNTIME, 500, "Output is not JSON", str(error)[:_DETAIL_LIMIT], step)
            ) from None
        if unread or len(encoded) > self._values.payload_bytes:
            redact = [text for raw in unread for text in raw.redact]
            redact += redaction.spellings if redaction is not None else []
            return await self._by_reference(encoded, step, redact, lease, origin), -1
        if isinstance(output, str | int):
            return (output, len(encoded)) if redaction is None else (redaction.value(output), -1)
        # Containers are read back: what the machine goes on with is then exactly what the journal holds (NaN, tuples,
        # and objects that the executor still holds included).
        read = orjson.loads(encoded)
        if could_be_too_deep(encoded):
            _check_depth(read, step)
        return (read, len(encoded)) if redaction is None else (redaction.value(read), -1)

    async def _by_reference(self, encoded: bytes, step: str, redact: list[str], lease: Lease, origin: Origin) -> Any:
        limit = self._values.value_bytes
        if len(encoded) > limit:
            detail = f"the output is {len(encoded)} bytes; the limit is {limit}"
            raise ExecutionFailed(Problem(ProblemType.PAYLOAD_TOO_LARGE, 413, "Payload too large", detail, step))
        while True:
            try:
                small = await self._values.spill(origin.namespace, origin.run, encoded, redact)
                _check_depth(small, step)
                return small
            except EvaluationFailed as failure:
                detail = f"the output of {len(encoded)} bytes cannot be kept: {failure}"
                raise ExecutionFailed(Problem(ProblemType.RUNTIME, 500, "Output is not JSON", detail, step)) from None
            except PayloadTooLarge as error:
                problem = Problem(ProblemType.PAYLOAD_TOO_LARGE, 413, "Payload too large", str(error), step)
                raise ExecutionFailed(problem) from None
            except PayloadsUnavailable as error:
                # The side effect has happened: its outcome is not given up while it can still be recorded.
                if not lease.valid():
                    raise LegStopped("lease") from None
                _log.warning("large_output_waits_for_store", step=step, error=str(error))

    def _failed(self, call: Call, problem: Problem, started_ms: int, retry_after_ms: int | None) -> CallFailed:
        at_ms = max(started_ms, now_ms())
        CALLS.add((call.function, "failed"), at_ms - started_ms)
        FIGURES.add_call(call.function, at_ms - started_ms, failed=True)
        if len(problem.detail) > _DETAIL_LIMIT:
            problem = Problem(
                problem.type, problem.status, problem.title, problem.detail[:_DETAIL_LIMIT], problem.instance
            )
        return CallFailed(call.effect_id, problem, started_ms, at_ms, retry_after_ms)


def _not_here(call: Call) -> Problem:
    detail = f"this worker cannot execute «{call.function}»"
    return Problem(ProblemType.CONFIGURATION, 400, "Function not available", detail, call.step)


def _check_depth(output: Any, step: str) -> None:
    if nested_too_deeply(output):
        detail = f"the output is nested more than {VALUE_DEPTH} levels deep"
        raise ExecutionFailed(Problem(ProblemType.PAYLOAD_TOO_LARGE, 413, "Output nested too deeply", detail, step))


def _as_fragment(unread: list[RawJson], value: Any) -> Any:
    if isinstance(value, RawJson):
        unread.append(value)
        return orjson.Fragment(value.data)
    raise TypeError(f"{type(value).__name__} is not JSON")


def _redacted(report: Callable[[float | None, str], None], redaction: Redaction) -> Callable[[float | None, str], None]:
    return lambda percent, message: report(percent, redaction.text(message))


def _where(defect: BaseException) -> list[str]:
    """The places of a defect, without its text, which might quote an argument."""
    frames = traceback.extract_tb(defect.__traceback__)[-6:]
    return [type(defect).__name__, *(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames)]
