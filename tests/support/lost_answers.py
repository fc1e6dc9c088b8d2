"""A door in front of a gateway that loses answers: the call went through, and the caller does not hear of it.

A real gRPC server on a free port. It passes unary calls on as they are; of a method in `lost` the first answer is kept
back until what stands there has come true, and then the connection seems to break.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

__all__ = ["LostAnswers", "losing_answers"]

_TIMEOUT_S = 60.0


@dataclass
class LostAnswers:
    """`lost`: methods (such as "ResetRun") whose next answer is lost, and what is awaited before. `calls`: requests."""

    address: str = ""
    lost: dict[str, Callable[[], Awaitable[Any]]] = field(default_factory=dict)
    calls: dict[str, list[bytes]] = field(default_factory=dict)


class _Door(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, channel: grpc.aio.Channel, answers: LostAnswers) -> None:
        self._channel = channel
        self._answers = answers

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        path = details.method
        method = path.rpartition("/")[2]

        async def serve(request: bytes, context: Any) -> bytes:
            self._answers.calls.setdefault(method, []).append(request)
            metadata = [(k, v) for k, v in context.invocation_metadata() if k == "authorization"]
            try:
                answer: bytes = await self._channel.unary_unary(path)(request, metadata=metadata, timeout=_TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                context.set_trailing_metadata(
                    [(k, v) for k, v in error.trailing_metadata() or () if k == "grpc-status-details-bin"]
                )
                await context.abort(error.code(), error.details() or "")
            if (taken := self._answers.lost.pop(method, None)) is not None:
                await taken()
                await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
            return answer

        return grpc.unary_unary_rpc_method_handler(serve)


@asynccontextmanager
async def losing_answers(gateway: str) -> AsyncIterator[LostAnswers]:
    """The door in front of this gateway (host:port), open."""
    answers = LostAnswers()
    async with grpc.aio.insecure_channel(gateway) as channel:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((_Door(channel, answers),))
        answers.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        try:
            yield answers
        finally:
            await asyncio.wait_for(server.stop(None), 10.0)
