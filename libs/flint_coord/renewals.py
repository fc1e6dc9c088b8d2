"""Renewal of any number of leases over one stream.

States: **idle** (nothing waits; a stream may be open, costs nothing) → **renewing** (requests were written, their
answers are awaited) → **reopening** (the stream broke, or an answer took longer than `ANSWER_TIMEOUT_S`: a new
stream, to the next member, and what is still awaited is written again). Repeating is harmless, and safe for the
asker, who measures validity from before the first writing. If the loop's task died, every waiter would be told with
the error; each has its own deadline besides.

etcd answers a stream's requests in their order, so answers are matched first in, first out per lease. Two renewals of
one lease never share an answer: the later asker would measure from a moment after the writing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Any

import grpc
import grpc.aio
import structlog

from flint_coord.connection import STREAM_METADATA, Connection, read_stream, translate
from flint_coord.errors import CoordRefused, CoordUnavailable
from flint_coord.wire import rpc

__all__ = ["ANSWER_TIMEOUT_S", "Renewals"]

_log = structlog.get_logger(room="flint_coord.renewals")

ANSWER_TIMEOUT_S = 1.0
"""How long an answer may take before the stream is given up for one to another member."""

_MAX_WAITING = 20_000
_REOPEN_PAUSE_S = 0.05


class Renewals:
    """The keep-alive stream of one process. Any number of tasks may renew at the same time."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._waiting: dict[int, deque[asyncio.Future[int]]] = {}
        self._count = 0
        self._unwritten: deque[int] = deque()
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def renew(self, lease_id: int, *, timeout_s: float) -> int:
        """Renews one lease: its new time to live in seconds, 0 when it has ended. Raises CoordUnavailable."""
        return (await self.renew_many([lease_id], timeout_s=timeout_s))[0]

    async def renew_many(self, lease_ids: Iterable[int], *, timeout_s: float) -> list[int]:
        """Renews many leases together: their new times to live in order, 0 for those that have ended.

        Raises CoordUnavailable when not all were answered in time; some may have been renewed then.
        """
        ids = list(lease_ids)
        if not ids:
            return []
        if self._count + len(ids) > _MAX_WAITING:
            raise CoordUnavailable("too many renewals are waiting for etcd")
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in ids]
        for lease_id, future in zip(ids, futures, strict=True):
            self._waiting.setdefault(lease_id, deque()).append(future)
        self._count += len(ids)
        self._unwritten.extend(ids)
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._run(), name="coord-renewals")
        self._work.set()
        try:
            async with asyncio.timeout(timeout_s):
                return list(await asyncio.gather(*futures))
        except TimeoutError:
            raise CoordUnavailable(f"etcd renewed not all of {len(ids)} leases within {timeout_s:.1f} s") from None

    async def close(self) -> None:
        """Stops. Who still waits is refused."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._fail(CoordUnavailable("the connection to etcd was closed"))

    async def _run(self) -> None:
        try:
            while True:
                await self._work.wait()
                try:
                    await self._stream()
                except grpc.aio.AioRpcError as error:
                    failure = translate(error)
                    if isinstance(failure, CoordRefused):
                        self._fail(failure)
                except (CoordUnavailable, TimeoutError) as error:
                    # The member ended the stream or hangs; the next stream goes to another.
                    _log.info("renewals_reopen", reason=str(error) or "no answer in time", waiting=self._count)
                self._rewind()
                await asyncio.sleep(_REOPEN_PAUSE_S)
        except Exception as error:
            self._fail(CoordUnavailable(f"renewals stopped: {error!r}"))
            raise

    async def _stream(self) -> None:
        """Writes what is unwritten and reads answers until the stream ends or hangs."""
        loop = asyncio.get_running_loop()
        call = self._connection.lease.LeaseKeepAlive(metadata=STREAM_METADATA, wait_for_ready=True)
        writer: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(None) as patience:
                writer = loop.create_task(self._write(call, patience), name="coord-renewals-writer")
                while True:
                    answer = await read_stream(call)
                    if answer is grpc.aio.EOF:
                        return
                    self._settle(answer.ID, answer.TTL)
                    patience.reschedule(loop.time() + ANSWER_TIMEOUT_S if self._count else None)
        finally:
            call.cancel()
            if writer is not None:
                writer.cancel()
                await asyncio.wait([writer])

    async def _write(self, call: Any, patience: asyncio.Timeout) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._work.wait()
            self._work.clear()
            if self._unwritten and patience.when() is None:
                patience.reschedule(loop.time() + ANSWER_TIMEOUT_S)
            while self._unwritten:
                lease_id = self._unwritten.popleft()
                try:
                    await call.write(rpc.LeaseKeepAliveRequest(ID=lease_id))
                except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError):
                    return  # The reader sees the same end and reopens.

    def _settle(self, lease_id: int, ttl_s: int) -> None:
        queue = self._waiting.get(lease_id)
        if not queue:
            return
        future = queue.popleft()
        self._count -= 1
        if not queue:
            del self._waiting[lease_id]
        if not future.done():
            future.set_result(max(ttl_s, 0))

    def _rewind(self) -> None:
        """After a break: forget who gave up, write the rest again."""
        self._unwritten.clear()
        self._count = 0
        for lease_id, queue in list(self._waiting.items()):
            alive = deque(future for future in queue if not future.done())
            if alive:
                self._waiting[lease_id] = alive
                self._count += len(alive)
                self._unwritten.extend([lease_id] * len(alive))
            else:
                del self._waiting[lease_id]
        if self._unwritten:
            self._work.set()
        else:
            self._work.clear()

    def _fail(self, error: Exception) -> None:
        for queue in self._waiting.values():
            for future in queue:
                if not future.done():
                    future.set_exception(error)
        self._waiting.clear()
        self._unwritten.clear()
        self._count = 0
        self._work.clear()
