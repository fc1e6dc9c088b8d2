"""One task of a function worker: the function run, its progress, its outcome until that is acknowledged."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import traceback
from collections.abc import Callable
from concurrent.futures import Executor
from datetime import UTC
from functools import partial
from typing import Any, Final

from flint_contracts.gen.flint.functions.v1 import functions_pb2 as pb
from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_core.problems import ProblemType
from flint_sdk._functions import Function, FunctionContext, FunctionError, TaskFacts

__all__ = ["RunningTask"]

_LEAST_INTERVAL_S: Final = 0.1
_DETAIL: Final = 4_000

_log = logging.getLogger("flint_sdk.functions")


class RunningTask:
    """See the module. Belongs to the function worker's event loop."""

    def __init__(self, task: pb.Task, function: Function[..., Any], threads: Executor, output_bytes: int) -> None:
        self.task = task
        self.token = task.token
        self.outcome: pb.ConnectRequest | None = None
        """What is to be said until it is acknowledged; None while the function runs."""
        self.said_at = -1.0
        """When the outcome was said last."""
        self.beat_at = 0.0
        self.unwanted = False
        """Whether it was cancelled or settled: there is nothing more to say."""
        self.interval_s = max(_LEAST_INTERVAL_S, task.heartbeat_interval.ToMilliseconds() / 1000)
        self._function = function
        self._threads = threads
        self._output_bytes = output_bytes
        self._percent: float | None = None
        self._message = ""
        self._news = False
        deadline = task.deadline.ToDatetime(tzinfo=UTC) if task.HasField("deadline") else None
        facts = TaskFacts(
            task.function,
            task.version,
            task.idempotency_key,
            task.run,
            task.step,
            task.attempt,
            task.dispatch,
            task.trace_id,
            deadline,
        )
        self.context = FunctionContext(facts, self._report)
        self._running: asyncio.Task[None] | None = None

    def start(self, ended: Callable[[RunningTask], None]) -> None:
        """Begins; `ended` is called when the function has returned, however."""
        self._running = asyncio.create_task(self._run(), name=f"task {self.task.function}")
        self._running.add_done_callback(lambda _: ended(self))

    @property
    def runs(self) -> bool:
        """Whether the function is being executed."""
        return self._running is not None and not self._running.done()

    def cancel(self) -> None:
        """The outcome is not wanted any more."""
        self.unwanted = True
        self.context.cancel()
        if self._function.is_async and self._running is not None:
            self._running.cancel()

    async def stop(self, timeout_s: float) -> None:
        """Waits for the function to end after `cancel`. One in a thread may not."""
        if self._running is not None:
            await asyncio.wait([self._running], timeout=timeout_s)

    @property
    def news(self) -> bool:
        """Whether progress was made that nobody was told of."""
        return self._news

    def heartbeat(self, now: float) -> pb.ConnectRequest:
        """A sign of life with the newest progress."""
        self.beat_at, self._news = now, False
        beat = pb.Heartbeat(token=self.token, message=self._message)
        if self._percent is not None:
            beat.progress_percent = self._percent
        return pb.ConnectRequest(heartbeat=beat)

    def _report(self, percent: float | None, message: str) -> None:
        if percent is not None:
            self._percent = percent
        if message:
            self._message = message[:200]
        self._news = True

    async def _run(self) -> None:
        try:
            output = await self._execute()
        except FunctionError as error:
            self.outcome = self._failure(error)
        except asyncio.CancelledError:
            if not self.unwanted:
                self.outcome = self._failure(FunctionError("The function was cancelled", retryable=True))
            raise
        except Exception as error:
            _log.exception("%s:%s failed", self.task.function, self.task.version)
            detail = traceback.format_exception_only(error)[-1].strip()
            self.outcome = self._failure(FunctionError("The function failed", status=500, detail=detail[:_DETAIL]))
        else:
            if len(output) > self._output_bytes:
                size = f"the result is {len(output)} bytes; the limit is {self._output_bytes}"
                large = FunctionError("Payload too large", type=ProblemType.PAYLOAD_TOO_LARGE, status=413, detail=size)
                self.outcome = self._failure(large)
            else:
                self.outcome = pb.ConnectRequest(complete=pb.Complete(token=self.token, output=output))

    async def _execute(self) -> bytes:
        arguments = self._function.bind(self.task.arguments, self.context)
        if self._function.is_async:
            result = await self._function.python(**arguments)
        else:
            context = contextvars.copy_context()
            call = partial(context.run, partial(self._function.python, **arguments))
            result = await asyncio.get_running_loop().run_in_executor(self._threads, call)
        return self._function.encode(result)

    def _failure(self, error: FunctionError) -> pb.ConnectRequest:
        problem = runs_pb2.Problem(
            type=error.type, status=error.status, title=error.title[:1000], detail=error.detail[:_DETAIL]
        )
        fail = pb.Fail(token=self.token, problem=problem, retryable=error.retryable)
        if error.retry_after_s is not None:
            fail.retry_after.FromMilliseconds(max(0, int(error.retry_after_s * 1000)))
        return pb.ConnectRequest(fail=fail)
