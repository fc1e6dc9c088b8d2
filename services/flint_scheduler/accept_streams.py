"""Streams of batches of starts: what a call for each batch costs beside the commit is paid once for all.

States of a stream: IDLE (waits for a batch, or for this replica to stop) → ACCEPTING → IDLE; ENDED when its gateway
ends it, when a batch is refused as a whole (with the refusal), or when this replica stops: never between a batch and
its answer. The gateway then asks by a call of its own, which is harmless, as every start has a request id.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from flint_contracts.gen.flint.scheduling.v1 import scheduling_pb2 as pb

__all__ = ["AcceptStreams"]

Context = grpc.aio.ServicerContext[Any, Any]
Accept = Callable[[pb.AcceptRunsRequest, Context], Awaitable[pb.AcceptRunsResponse]]


class AcceptStreams:
    """All streams of one scheduler. `accept` answers one batch, or raises `Refused`."""

    def __init__(self, accept: Accept) -> None:
        self._accept = accept
        self._closed = False
        self._idle: set[asyncio.Task[Any]] = set()

    def close(self) -> None:
        """Ends each stream as soon as it is idle, and every one that is opened from now on."""
        self._closed = True
        idle, self._idle = self._idle, set()
        for task in idle:
            task.cancel()

    async def serve(
        self, requests: AsyncIterator[pb.AcceptRunsStreamRequest], context: Context
    ) -> AsyncIterator[pb.AcceptRunsStreamResponse]:
        """The answers of one stream."""
        reader = aiter(requests)
        while not self._closed:
            request = await self._next(reader)
            if request is None:
                return
            yield pb.AcceptRunsStreamResponse(answer=await self._accept(request.batch, context))

    async def _next(self, reader: AsyncIterator[pb.AcceptRunsStreamRequest]) -> pb.AcceptRunsStreamRequest | None:
        """The next batch; None when there will be none. Read by the stream's own task: each hop costs a start a turn of
        the event loop.
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
