"""One AwaitRuns stream: names come in, ended runs go out, as many in one message as are there.

States: READING (names still come) → DRAINING (the client has half-closed) → ENDED (every name was answered). The names
are read by one task per stream; what it refuses ends the stream.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator
from functools import partial

import grpc

from flint_contracts.gen.flint.identity.v1 import identity_pb2
from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_gateway.auth import authorise, current_principal
from flint_gateway.principals import Principal
from flint_gateway.watching import Hub, Sink
from flint_rpc.errors import ErrorReason, Refused, field_invalid, status_proto
from flint_rpc.names import parse_run

__all__ = ["AwaitStream"]

_NAMES_PER_MESSAGE = 1000
_NAMES_PER_STREAM = 100_000
_ANSWER_RUNS = 1000
_ANSWER_BYTES = 2**20


class AwaitStream:
    """See the module. `answers` is used once."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._principal: Principal | None = None
        self._permitted: set[str] = set()
        self._open: dict[int, tuple[str, Sink]] = {}
        self._next = 0
        self._answers: deque[tuple[str, runs_pb2.Run | Refused]] = deque()
        self._wake = asyncio.Event()

    async def answers(
        self, requests: AsyncIterable[runs_pb2.AwaitRunsRequest]
    ) -> AsyncIterator[runs_pb2.AwaitRunsResponse]:
        """The responses. Raises `Refused` when the client breaks a limit of the stream."""
        reading = asyncio.create_task(self._read(requests), name="await-names")
        try:
            while True:
                if self._answers:
                    yield self._take()
                    continue
                if reading.done():
                    reading.result()
                    if not self._open:
                        return
                await self._wake.wait()
                self._wake.clear()
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            for name, sink in self._open.values():
                self._hub.leave(name, sink)

    async def _read(self, requests: AsyncIterable[runs_pb2.AwaitRunsRequest]) -> None:
        try:
            async for request in requests:
                if len(request.names) > _NAMES_PER_MESSAGE:
                    raise field_invalid(("names", f"holds more than {_NAMES_PER_MESSAGE} names"))
                if len(self._open) + len(self._answers) + len(request.names) > _NAMES_PER_STREAM:
                    raise Refused(
                        grpc.StatusCode.RESOURCE_EXHAUSTED,
                        ErrorReason.ERROR_REASON_TOO_MANY_WATCHES,
                        f"more than {_NAMES_PER_STREAM} names are open on this stream",
                        retry_after_s=1.0,
                    )
                principal = current_principal()
                if principal is not self._principal:  # looked up anew: its role may have changed
                    self._principal = principal
                    self._permitted.clear()
                for name in request.names:
                    self._wait(name, principal)
        finally:
            self._wake.set()

    def _wait(self, name: str, principal: Principal) -> None:
        try:
            self._permit(name, principal)
            number = self._next
            self._next += 1
            sink = partial(self._answered, number, name)
            self._open[number] = (name, sink)
            try:
                self._hub.wait(name, sink)
            except Refused:
                del self._open[number]
                raise
        except Refused as error:
            self._answers.append((name, error))
            self._wake.set()

    def _permit(self, name: str, principal: Principal) -> None:
        parts = name.split("/", 2)
        namespace = parts[1] if len(parts) == 3 else ""
        if namespace not in self._permitted:
            namespace = parse_run(name, "names").namespace
            authorise(principal, identity_pb2.ROLE_VIEWER, namespace)
            self._permitted.add(namespace)

    def _answered(self, number: int, name: str, result: runs_pb2.Run | Refused) -> None:
        if self._open.pop(number, None) is not None:
            self._answers.append((name, result))
            self._wake.set()

    def _take(self) -> runs_pb2.AwaitRunsResponse:
        response = runs_pb2.AwaitRunsResponse()
        size = count = 0
        while self._answers and count < _ANSWER_RUNS and size < _ANSWER_BYTES:
            name, result = self._answers.popleft()
            answer = response.runs.add()
            answer.name = name
            if isinstance(result, Refused):
                answer.error.CopyFrom(status_proto(result))
            else:
                answer.run.CopyFrom(result)
                size += len(result.output) + 256
            count += 1
        return response
