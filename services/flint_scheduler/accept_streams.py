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
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def close(self) -> None:
        """Ends each stream as soon as it is idle, and every one that is opened from now on."""
        if not self._closed.done():
            self._closed.set_result(None)

    async def serve(
        self, requests: AsyncIterator[pb.AcceptRunsStreamRequest], context: Context
    ) -> AsyncIterator[pb.AcceptRunsStreamResponse]:
        """The answers of one stream."""
        reader = aiter(requests)
        while not self._closed.done():
            reading = asyncio.ensure_future(anext(reader, None))
            try:
                await asyncio.wait((reading, self._closed), return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not reading.done():
                    reading.cancel()
            if reading.cancelled() or not reading.done() or (request := reading.result()) is None:
                return
            yield pb.AcceptRunsStreamResponse(answer=await self._accept(request.batch, context))
