"""Streams on which requests are answered in turn: what a call for each costs beside its work is paid once for all.

States of a stream: IDLE (waits for a request, or for this server to stop) → ANSWERING → IDLE; ENDED when its client
ends it, when a request is refused (with the refusal), or when this server stops: never between a request and its
answer. The client then asks by a call of its own; so what is asked for must be safe to repeat.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Generic, TypeVar

import grpc

from flint_ops import metrics

__all__ = ["Turns"]

Context = grpc.aio.ServicerContext[Any, Any]

_TURNS = metrics.counter("rpc_server_turns", "Requests answered on streams that stay open", ("method",))

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class Turns(Generic[_Request, _Response]):
    """All streams of one method of a server."""

    def __init__(self, method: str, answer: Callable[[_Request, Context], Awaitable[_Response]]) -> None:
        """`method`: `package.Service/Method`, for metrics. `answer`: answers one request, or raises `Refused`."""
        self._answer = answer
        self._turns = _TURNS.labels(method)
        self._closed = False
        self._idle: set[asyncio.Task[Any]] = set()

    def close(self) -> None:
        """Ends each stream as soon as it is idle, and every one that is opened from now on."""
        self._closed = True
        idle, self._idle = self._idle, set()
        for task in idle:
            task.cancel()

    async def serve(self, requests: AsyncIterator[_Request], context: Context) -> AsyncIterator[_Response]:
        """The answers of one stream."""
        reader = aiter(requests)
        while not self._closed:
            request = await self._next(reader)
            if request is None:
                return
            response = await self._answer(request, context)
            self._turns.inc()
            yield response

    async def _next(self, reader: AsyncIterator[_Request]) -> _Request | None:
        """The next request; None when there will be none. Read by the stream's own task: a task for each would cost
        turns of the event loop, which somebody waits for.
        """
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a stream is served by a task")
        self._idle.add(task)
        try:
            return await anext(reader, None)
        except asyncio.CancelledError:
            if task not in self._idle and task.uncancel() == 0:
                return None  # by `close`, and by nobody else
            raise
        finally:
            self._idle.discard(task)
