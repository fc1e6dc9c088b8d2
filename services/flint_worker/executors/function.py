"""`function`: a custom function, executed by a function worker that is connected to some gateway."""

from __future__ import annotations

from typing import Any, Final

import orjson

from flint_bus import Bus
from flint_contracts.gen.flint.functions.v1 import functions_pb2 as pb
from flint_core.problems import Problem, ProblemType
from flint_ops.clock import now_ms
from flint_ops.config import Settings
from flint_worker.executors import ExecutionFailed, ResolvedCall
from flint_worker.executors.arguments import check_arguments, failure
from flint_worker.function_calls import FunctionCalls, FunctionLost

__all__ = ["FunctionExecutor"]

_FRAMING: Final = 65_536


class FunctionExecutor:
    """The function `function`."""

    unfinished = 0  # a task whose call has ended is cancelled at its function worker

    def __init__(self, settings: Settings, bus: Bus) -> None:
        self._calls = FunctionCalls(bus)
        self._most_bytes = min(settings.limits.value_bytes, settings.limits.message_bytes - _FRAMING)

    async def close(self) -> None:
        """Ends the listening for gateways."""
        await self._calls.close()

    async def execute(self, call: ResolvedCall) -> Any:
        """What the function returns. Waits for a function worker as long as the step's timeout lets it."""
        named = check_arguments(call)
        function, version = named["name"], named["version"]
        arguments = orjson.dumps(named["arguments"])
        if len(arguments) > self._most_bytes:
            detail = f"the arguments of {function} are {len(arguments)} bytes; the limit is {self._most_bytes}"
            raise failure(call, ProblemType.PAYLOAD_TOO_LARGE, 413, "Payload too large", detail)
        task = pb.Task(
            function=function,
            version=version,
            arguments=arguments,
            idempotency_key=call.idempotency_key,
            attempt=call.attempt,
            run=f"namespaces/{call.namespace}/runs/{call.run_id}",
            step=call.step,
            trace_id=call.trace_id,
        )
        if call.deadline_s is not None:
            task.deadline.FromMilliseconds(now_ms() + int(call.deadline_s * 1000))
        wanted = f"{function}:{version}" if version else function
        call.report(None, f"waits for a function worker of {wanted}")
        try:
            outcome = await self._calls.call(call.namespace, task, call.report)
        except FunctionLost as lost:
            detail = f"{wanted}: {lost}"
            raise failure(call, ProblemType.COMMUNICATION, 503, "Function worker lost", detail) from None
        if outcome.WhichOneof("outcome") == "complete":
            return orjson.loads(outcome.complete.output)  # the gateway has read it once: it is JSON
        raise _failed(outcome.fail, call)


def _failed(fail: pb.Fail, call: ResolvedCall) -> ExecutionFailed:
    problem = fail.problem
    retry_after_ms = fail.retry_after.ToMilliseconds() if fail.HasField("retry_after") else None
    return ExecutionFailed(
        Problem(problem.type, problem.status, problem.title, problem.detail, call.step), retry_after_ms
    )
