"""Waits for the end of many runs over one AwaitRuns stream.

States: *idle* (no stream; nobody waits), *streaming* (names are sent as callers come, ended runs resolve them),
*reconnecting* (the stream broke: pause, next gateway, every open name is sent again). From streaming back to idle when
nobody has waited for a while. When the reconnecting lasts longer than `reconnect_s`, all waiters get Unavailable and
the state is idle again; the next waiter tries anew. A stream that is silent for a minute is replaced, so that a peer
which vanished without a word is noticed. If the task that drives the stream dies of a defect, all waiters get that
defect.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Final

import grpc

from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_sdk._deadlines import Deadlines
from flint_sdk._errors import (
    FlintError,
    ResourceExhausted,
    Unavailable,
    error_from_rpc,
    error_from_status,
)
from flint_sdk._transport import Backoff, Gateway, Transport, is_disconnect

_NAMES_PER_MESSAGE: Final = 1000
_MAX_OPEN: Final = 100_000
_SILENCE_S: Final = 60.0
_LINGER_S: Final = 10.0

_Call = grpc.aio.StreamStreamCall[runs_pb2.AwaitRunsRequest, runs_pb2.AwaitRunsResponse]


class Waiting:
    """The waits of one client. At most 100,000 names are open at a time."""

    def __init__(self, transport: Transport, reconnect_s: float) -> None:
        self._transport = transport
        self._reconnect_s = reconnect_s
        self._open: dict[str, set[asyncio.Future[runs_pb2.Run]]] = {}
        self._unsent: deque[str] = deque()
        self._refused_since: dict[str, float] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._deadlines = Deadlines()

    async def ended(self, name: str, timeout_s: float | None) -> runs_pb2.Run:
        """The run once it has ended; shared, do not change it. Cancel the caller to stop waiting.

        Raises FlintError: TimedOut after `timeout_s` (None: no limit).
        """
        if name not in self._open and len(self._open) >= _MAX_OPEN:
            raise ResourceExhausted(f"this client already waits for {_MAX_OPEN} runs")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[runs_pb2.Run] = loop.create_future()
        if timeout_s is not None:
            self._deadlines.add(future, timeout_s, name)
        if name in self._open:
            self._open[name].add(future)
        else:
            self._open[name] = {future}
            self._send(name)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drive(), name="flint-await-runs")
        try:
            return await future
        finally:
            if timeout_s is not None:
                self._deadlines.discard(future, timeout_s)
            waiters = self._open.get(name)
            if waiters is not None:
                waiters.discard(future)
                if not waiters:
                    self._forget(name)

    async def close(self) -> None:
        """Ends the stream; whoever still waits gets FlintError."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._fail_all(FlintError("this client was closed"))
        self._deadlines.close()

    def _send(self, name: str) -> None:
        self._unsent.append(name)
        self._wake.set()

    def _forget(self, name: str) -> set[asyncio.Future[runs_pb2.Run]]:
        self._refused_since.pop(name, None)
        return self._open.pop(name, set())

    async def _drive(self) -> None:
        loop = asyncio.get_running_loop()
        backoff = Backoff()
        down_since: float | None = None
        untried = len(self._transport.endpoint.addresses)
        try:
            while self._open:
                gateway = self._transport.gateway()
                try:
                    async for _ in self._stream(gateway):
                        down_since, untried = None, len(self._transport.endpoint.addresses)
                        backoff.reset()
                except grpc.aio.AioRpcError as error:
                    typed = error_from_rpc(error)
                    if not is_disconnect(error):
                        self._fail_all(typed)
                        return
                    now = loop.time()
                    down_since = now if down_since is None else down_since
                    if now - down_since > self._reconnect_s:
                        where = ", ".join(self._transport.endpoint.addresses)
                        self._fail_all(
                            Unavailable(
                                f"no gateway could be reached at {where} for {self._reconnect_s:g} s ({typed.message})"
                            )
                        )
                        return
                    self._transport.leave(gateway)
                    untried -= 1
                    await asyncio.sleep(0 if untried > 0 else backoff.next_s())
        except Exception as error:
            self._fail_all(error)
            raise

    async def _stream(self, gateway: Gateway) -> AsyncIterator[None]:
        """One stream's life; yields after each answer. Ends when it was silent for too long or nobody waits."""
        call: _Call = gateway.runs.AwaitRuns(metadata=self._transport.metadata)
        self._unsent = deque(self._open)
        self._wake.set()
        writer = asyncio.create_task(self._write(call), name="flint-await-runs-writer")
        try:
            while True:
                try:
                    async with asyncio.timeout(_SILENCE_S if self._open else _LINGER_S):
                        answer = await call.read()
                except TimeoutError:
                    return
                if not isinstance(answer, runs_pb2.AwaitRunsResponse):  # end of stream
                    await self._raise_status(call)
                    await asyncio.sleep(0.05)  # a server that ends streams at once is not to be asked in a busy loop
                    return
                for awaited in answer.runs:
                    self._resolve(awaited)
                yield
        finally:
            writer.cancel()
            await asyncio.wait([writer])
            call.cancel()

    async def _write(self, call: _Call) -> None:
        """Sends names as they come. A broken stream ends it; the reader reports why."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._unsent:
                    count = min(_NAMES_PER_MESSAGE, len(self._unsent))
                    names = [self._unsent.popleft() for _ in range(count)]
                    await call.write(runs_pb2.AwaitRunsRequest(names=[name for name in names if name in self._open]))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return

    @staticmethod
    async def _raise_status(call: _Call) -> None:
        code = await call.code()
        if code is not grpc.StatusCode.OK:
            raise grpc.aio.AioRpcError(
                code, await call.initial_metadata(), await call.trailing_metadata(), await call.details()
            )

    def _resolve(self, awaited: runs_pb2.AwaitedRun) -> None:
        if awaited.WhichOneof("result") == "error":
            error = error_from_status(awaited.error)
            if isinstance(error, Unavailable) and self._retry_later(awaited.name, error):
                return
            for future in self._forget(awaited.name):
                if not future.done():
                    future.set_exception(error)
            return
        for future in self._forget(awaited.name):
            if not future.done():
                future.set_result(awaited.run)

    def _retry_later(self, name: str, error: Unavailable) -> bool:
        """Asks for one name again soon, while a component behind the gateway is away. False when that took too long."""
        loop = asyncio.get_running_loop()
        since = self._refused_since.setdefault(name, loop.time())
        if name not in self._open or loop.time() - since > self._reconnect_s:
            return False
        loop.call_later(max(0.2, error.retry_after_s or 0.5), self._send, name)
        return True

    def _fail_all(self, error: Exception) -> None:
        for name in list(self._open):
            for future in self._forget(name):
                if not future.done():
                    future.set_exception(error)
        self._unsent.clear()
