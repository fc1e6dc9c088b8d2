"""A function worker: serves custom functions over one stream to a gateway, for as long as it runs.

States: CONNECTING (one gateway after the other, with growing pauses, for ever) → CONNECTED → CONNECTING … → DRAINING
(told to stop: no more tasks, those in hand are finished within `drain_s`) → ended. Tasks outlive connections: while
there is none they go on, and their outcomes are said until they are acknowledged.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import grpc

from flint_contracts.gen.flint.functions.v1 import functions_pb2 as pb
from flint_contracts.gen.flint.functions.v1 import functions_pb2_grpc
from flint_sdk._endpoint import find_endpoint
from flint_sdk._errors import FlintError, InvalidArgument, PermissionDenied, Unauthenticated, error_from_rpc
from flint_sdk._function_task import RunningTask
from flint_sdk._functions import Function
from flint_sdk._transport import Backoff

__all__ = ["FunctionWorker"]

_MESSAGE_BYTES: Final = 64 * 2**20
_WELCOME_S: Final = 10.0
_TICK_S: Final = 0.2
_AGAIN_S: Final = 5.0
_STOP_S: Final = 2.0
_GOODBYE_S: Final = 3.0
_DEFAULT_OUTPUT: Final = 4 * 2**20 - 65_536
_OPTIONS: Final[tuple[tuple[str, Any], ...]] = (
    ("grpc.max_receive_message_length", _MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MESSAGE_BYTES),
    ("grpc.enable_retries", 0),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.use_local_subchannel_pool", 1),
)

_log = logging.getLogger("flint_sdk.functions")


class FunctionWorker:
    """Executes tasks of the given functions, up to `concurrency` at a time.

        FunctionWorker([resize], concurrency=20).run()

    `address`, `key`: as for `Flint`; the key needs the role operator in the namespace. `name`: shown to people who
    watch a run; the host's name and process id unless told. `drain_s`: how long tasks may go on after SIGTERM or
    `stop`; those that are not finished then are given to other function workers.

    `run` blocks until SIGTERM or SIGINT; `serve` is its asyncio form. Both raise FlintError when the gateway refuses
    the function worker itself (its key, its functions); that no gateway can be reached is waited out.
    """

    def __init__(
        self,
        functions: Iterable[Function[..., Any]],
        *,
        address: str | Sequence[str] | None = None,
        key: str | None = None,
        namespace: str = "default",
        name: str | None = None,
        concurrency: int = 10,
        drain_s: float = 20.0,
    ) -> None:
        self._functions = {(function.name, function.version): function for function in functions}
        if not self._functions:
            raise ValueError("a function worker needs at least one function")
        if not 1 <= concurrency <= 1000:
            raise ValueError("concurrency must be 1 to 1000")
        self._endpoint = find_endpoint(address, key)
        self._namespace = namespace
        self._name = (name or f"{socket.gethostname()}-{os.getpid()}")[:63]
        self._concurrency = concurrency
        self._drain_s = drain_s
        self._tasks: dict[str, RunningTask] = {}
        self._stopping = asyncio.Event()
        self._changed = asyncio.Event()
        self._connected = asyncio.Event()
        self._leaving = False
        self._unused = 0
        """Credit that the gateway has and has not used."""
        self._outgoing: _Outgoing | None = None
        self._output_bytes = _DEFAULT_OUTPUT
        self._heartbeat_s = 10.0
        self._threads: ThreadPoolExecutor | None = None

    # -- life ---------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serves until SIGTERM or SIGINT, then drains. Call it from the main thread."""
        asyncio.run(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        await self.serve()

    def stop(self) -> None:
        """Begins to drain. From the event loop's thread."""
        self._stopping.set()

    @property
    def running(self) -> int:
        """Tasks in hand."""
        return len(self._tasks)

    async def connected(self) -> None:
        """Returns when a gateway has welcomed this function worker."""
        await self._connected.wait()

    async def serve(self) -> None:
        """Serves until `stop`. Cancelling it gives the tasks up at once: they are given to others after a while."""
        self._threads = ThreadPoolExecutor(self._concurrency, thread_name_prefix="flint-function")
        connecting = asyncio.create_task(self._stay_connected(), name="function-worker-connection")
        ticking = asyncio.create_task(self._tick(), name="function-worker-heartbeats")
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({connecting, ticking, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not stopping.done():
                for ended in (connecting, ticking):
                    if ended.done():
                        ended.result()
            await self._drain(connecting)
        finally:
            connecting.cancel()
            ticking.cancel()
            stopping.cancel()
            await asyncio.gather(connecting, ticking, stopping, return_exceptions=True)
            for running in self._tasks.values():
                running.cancel()
            await asyncio.gather(*(running.stop(_STOP_S) for running in self._tasks.values()))
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def _drain(self, connecting: asyncio.Task[None]) -> None:
        self._say(pb.ConnectRequest(drain=pb.Drain()))
        try:
            async with asyncio.timeout(self._drain_s):
                while self._tasks and not connecting.done():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            _log.warning("%d tasks are given back unfinished", len(self._tasks))
        outgoing = self._outgoing
        if outgoing is not None:
            for running in self._tasks.values():
                running.cancel()
            self._leaving = True
            outgoing.put(pb.ConnectRequest(goodbye=pb.Goodbye(tasks=list(self._tasks))))
            await asyncio.wait([connecting], timeout=_GOODBYE_S)

    # -- the connection -----------------------------------------------------------------------------------------------

    async def _stay_connected(self) -> None:
        backoff = Backoff()
        turn = 0
        while True:
            address = self._endpoint.addresses[turn % len(self._endpoint.addresses)]
            turn += 1
            try:
                await self._connect(address, backoff)
            except grpc.aio.AioRpcError as error:
                typed = error_from_rpc(error)
                if isinstance(typed, InvalidArgument | PermissionDenied | Unauthenticated):
                    raise typed from None
                self._lost(address, typed)
            except (TimeoutError, FlintError) as error:
                self._lost(address, error)
            if self._leaving or (self._stopping.is_set() and not self._tasks):
                return
            await asyncio.sleep(backoff.next_s())

    def _lost(self, address: str, error: Exception) -> None:
        if self._connected.is_set():
            _log.warning("the connection to %s ended: %s", address, error)
        self._connected.clear()

    async def _connect(self, address: str, backoff: Backoff) -> None:
        """One stream, to its end."""
        async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
            stub: Any = functions_pb2_grpc.FunctionWorkerServiceStub(channel)
            outgoing = _Outgoing()
            outgoing.put(pb.ConnectRequest(hello=self._hello()))
            stream = stub.Connect(outgoing.messages(), metadata=(("authorization", f"Bearer {self._endpoint.key}"),))
            try:
                async with asyncio.timeout(_WELCOME_S):
                    first = await stream.read()
                if first is grpc.aio.EOF:
                    return  # the stream's status tells why
                self._welcomed(first.welcome, outgoing)
                backoff.reset()
                while (response := await stream.read()) is not grpc.aio.EOF:
                    self._hear(response)
            finally:
                self._outgoing = None
                outgoing.close()
                stream.cancel()

    def _hello(self) -> pb.Hello:
        hello = pb.Hello(
            parent=f"namespaces/{self._namespace}",
            worker=self._name,
            # Those with an outcome are settled by saying it.
            tasks=[token for token, running in self._tasks.items() if not running.unwanted and running.outcome is None],
        )
        for function in self._functions.values():
            declared = hello.functions.add(
                name=function.name,
                version=function.version,
                description=function.description,
                input_schema=function.input_schema,
                output_schema=function.output_schema,
            )
            declared.heartbeat_timeout.FromMilliseconds(int(function.heartbeat_timeout_s * 1000))
        return hello

    def _welcomed(self, welcome: pb.Welcome, outgoing: _Outgoing) -> None:
        self._output_bytes = welcome.output_bytes or _DEFAULT_OUTPUT
        self._heartbeat_s = max(0.1, welcome.heartbeat_interval.ToMilliseconds() / 1000)
        self._outgoing = outgoing
        self._unused = 0
        if self._stopping.is_set():
            outgoing.put(pb.ConnectRequest(drain=pb.Drain()))
        now = asyncio.get_running_loop().time()
        for running in self._tasks.values():
            if running.outcome is not None and not running.unwanted:
                running.said_at = now
                outgoing.put(running.outcome)
        self._give_credit()
        self._connected.set()

    def _hear(self, response: pb.ConnectResponse) -> None:
        kind = response.WhichOneof("message")
        if kind == "task":
            self._take(response.task)
        elif kind == "ack":
            self._settled(response.ack.token)
        elif kind == "cancel":
            running = self._tasks.get(response.cancel.token)
            if running is not None:
                _log.info("%s is cancelled: %s", running.task.function, response.cancel.reason)
                running.cancel()
                self._release(running)
        elif kind == "drain":
            raise FlintError("the gateway is going to stop")

    def _take(self, task: pb.Task) -> None:
        self._unused = max(0, self._unused - 1)
        function = self._functions.get((task.function, task.version))
        if function is None or self._threads is None:  # a gateway sends only what was declared
            _log.error("a task of %s:%s, which is not served here", task.function, task.version)
            return
        running = RunningTask(task, function, self._threads, self._output_bytes)
        running.beat_at = asyncio.get_running_loop().time()
        self._tasks[task.token] = running
        running.start(self._ended)

    # -- tasks --------------------------------------------------------------------------------------------------------

    def _ended(self, running: RunningTask) -> None:
        if running.outcome is not None and not running.unwanted:
            running.said_at = asyncio.get_running_loop().time()
            self._say(running.outcome)
        else:
            self._release(running)

    def _settled(self, token: str) -> None:
        running = self._tasks.get(token)
        if running is not None:
            running.unwanted = True
            self._release(running)

    def _release(self, running: RunningTask) -> None:
        """Its slot is free, unless the function still runs (in a thread that cannot be stopped)."""
        if running.runs or self._tasks.get(running.token) is not running:
            return
        del self._tasks[running.token]
        self._changed.set()
        self._give_credit()

    def _give_credit(self) -> None:
        free = self._concurrency - len(self._tasks) - self._unused
        if free > 0 and self._outgoing is not None and not self._stopping.is_set():
            self._unused += free
            self._outgoing.put(pb.ConnectRequest(credit=pb.Credit(tasks=free)))

    def _say(self, request: pb.ConnectRequest) -> None:
        if self._outgoing is not None:
            self._outgoing.put(request)

    async def _tick(self) -> None:
        """Heartbeats, and outcomes that nobody acknowledged."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_TICK_S)
            if self._outgoing is None:
                continue
            now = loop.time()
            for running in self._tasks.values():
                if running.unwanted:
                    continue
                if running.outcome is not None:
                    if now - running.said_at >= _AGAIN_S:
                        running.said_at = now
                        self._say(running.outcome)
                elif running.news or now - running.beat_at >= min(running.interval_s, self._heartbeat_s):
                    self._say(running.heartbeat(now))


class _Outgoing:
    """What is to be said on one stream, in order. Bounded by the tasks in hand: each says a few things at a time."""

    def __init__(self) -> None:
        self._queue: deque[pb.ConnectRequest] = deque()
        self._wake = asyncio.Event()
        self._closed = False

    def put(self, request: pb.ConnectRequest) -> None:
        self._queue.append(request)
        self._wake.set()

    def close(self) -> None:
        self._closed = True
        self._wake.set()

    async def messages(self) -> AsyncIterator[pb.ConnectRequest]:
        while not self._closed:
            while self._queue:
                yield self._queue.popleft()
            self._wake.clear()
            if not self._queue and not self._closed:
                await self._wake.wait()
