"""Starts, coalesced by natural batching: what arrives while a batch is under way is the next batch.

One lane per scheduler replica; a lane has one internal batch in flight. Lanes take turns: a second batch goes beside
the one under way only when enough starts wait to fill a batch well, or when that one takes long (its replica may be
gone). So batches are large where starts come one by one, and a batch costs every process about the same whether it
holds one start or twenty.

States of a lane: IDLE → CALLED (its turn) → SENDING → IDLE or CALLED. A batch goes first to the lane's replica and
fails over to the others, which is safe because each start carries a request_id. The waiting room is bounded by starts
and bytes: beyond it callers are refused (QUEUE_FULL). When a lane dies (it only dies of a defect) the gateway stops in
order; callers that wait are failed by `close`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import grpc

from flint_contracts.gen.flint.scheduling.v1 import scheduling_pb2
from flint_gateway.accepting import AcceptStreams
from flint_ops import failpoints, metrics
from flint_rpc.errors import ErrorReason, Refused, component_unavailable
from flint_rpc.upstream import Client

if TYPE_CHECKING:
    from flint_contracts.gen.flint.scheduling.v1.scheduling_pb2_grpc import SchedulingServiceAsyncStub

__all__ = ["StartBatcher"]

BATCH_BYTES = 8 * 2**20
"""One internal message; Flint's own services take more (flint_rpc.server.INTERNAL_MESSAGE_BYTES)."""

_TIMEOUT_S = 8.0
"""Then a start is refused with a hint; below the time after which the client library leaves a silent gateway."""
_ATTEMPT_S = 5.0
"""A replica that is silent this long is left for the next one."""
_LEAST_S = 1.0
_BESIDE_STARTS = 100
"""So many waiting starts go beside a batch under way."""
_LATE_S = 0.05
"""A batch that takes longer holds the others back no more."""
_SPLIT_ON = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNKNOWN})

_BATCH = metrics.histogram("gateway_start_batch", "Starts in one internal batch", buckets=metrics.COUNT_BUCKETS)
_ACCEPT = metrics.histogram("gateway_accept_seconds", "Duration of one internal batch")
_WAITING = metrics.gauge("gateway_starts_waiting", "Starts that wait for a batch")


class _Submission:
    """Starts of one client call: they travel together and are answered together."""

    __slots__ = ("answer", "size", "starts")

    def __init__(
        self,
        starts: Sequence[scheduling_pb2.Start],
        size: int,
        answer: asyncio.Future[Sequence[scheduling_pb2.AcceptResult]],
    ) -> None:
        self.starts = starts
        self.size = size
        self.answer = answer


class _Flight:
    """A batch under way. `holds`: it is not late yet, so the next one waits for it."""

    __slots__ = ("holds",)

    def __init__(self) -> None:
        self.holds = True


class StartBatcher:
    """See the module. Use as: `start`, many `submit`, `close`."""

    def __init__(
        self,
        client: Client[SchedulingServiceAsyncStub],
        *,
        lanes: int,
        watcher: str,
        batch_size: int = 1000,
        waiting_starts: int = 20_000,
        waiting_bytes: int = 64 * 2**20,
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        self._client = client
        self._watcher = watcher
        self._batch_size = batch_size
        self._waiting_starts = waiting_starts
        self._waiting_bytes = waiting_bytes
        self._timeout_s = timeout_s
        self._waiting: deque[_Submission] = deque()
        self._starts = 0
        self._bytes = 0
        self._lane_count = lanes
        self._streams = AcceptStreams(client, lanes)
        self._idle: deque[asyncio.Future[None]] = deque()
        self._turns = 0
        self._closed = False
        self._lanes: list[asyncio.Task[None]] = []

    def start(self) -> list[asyncio.Task[None]]:
        """Starts the lanes; the tasks are for supervision."""
        self._lanes = [
            asyncio.create_task(self._lane(index), name=f"start-lane-{index}") for index in range(self._lane_count)
        ]
        return self._lanes

    async def close(self) -> None:
        """Fails what still waits (UNAVAILABLE, with RetryInfo) and ends the lanes."""
        self._closed = True
        for task in self._lanes:
            task.cancel()
        await asyncio.gather(*self._lanes, return_exceptions=True)
        self._streams.close()
        while self._waiting:
            _fail([self._waiting.popleft()], component_unavailable("gateway", "it is stopping"))
        _WAITING.set(0)

    async def submit(self, starts: Sequence[scheduling_pb2.Start]) -> Sequence[scheduling_pb2.AcceptResult]:
        """Accepts 1 to `batch_size` starts in one commit; results in order. Raises `Refused` when the call as a whole
        fails.

        When the caller is cancelled the starts may still be accepted.
        """
        if self._closed:
            raise component_unavailable("gateway", "it is stopping")
        count = len(starts)
        size = sum(len(start.input) + 256 for start in starts)
        if self._starts + count > self._waiting_starts or self._bytes + size > self._waiting_bytes:
            raise Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                ErrorReason.ERROR_REASON_QUEUE_FULL,
                f"{self._starts} starts wait at this gateway already",
                retry_after_s=1.0,
            )
        answer: asyncio.Future[Sequence[scheduling_pb2.AcceptResult]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Submission(starts, size, answer))
        self._starts += count
        self._bytes += size
        self._call_lane()
        return await answer

    def _call_lane(self) -> None:
        """When a batch may go: gives the turn to the lane that was idle for longest. It takes all that has come by the
        time it runs.
        """
        if self._idle and self._waiting and (self._turns == 0 or self._starts >= _BESIDE_STARTS):
            self._turns += 1
            idle = self._idle.popleft()
            if not idle.done():
                idle.set_result(None)

    async def _lane(self, index: int) -> None:
        loop = asyncio.get_running_loop()
        while True:
            idle = loop.create_future()
            self._idle.append(idle)
            self._call_lane()
            await idle
            flight = _Flight()
            late = loop.call_later(_LATE_S, self._release, flight)
            try:
                batch = self._take()
                self._call_lane()  # more may wait than fits one batch
                if batch:
                    await self._send(batch, index)
            finally:
                late.cancel()
                self._release(flight)

    def _release(self, flight: _Flight) -> None:
        """The flight holds nobody back any more: it has ended, or it is late."""
        if flight.holds:
            flight.holds = False
            self._turns -= 1
            self._call_lane()

    def _take(self) -> list[_Submission]:
        """All that waits, up to a batch; submissions whose caller has gone are left out."""
        batch: list[_Submission] = []
        count = size = 0
        waiting = self._waiting
        while waiting:
            head = waiting[0]
            if batch and (count + len(head.starts) > self._batch_size or size + head.size > BATCH_BYTES):
                break
            waiting.popleft()
            self._starts -= len(head.starts)
            self._bytes -= head.size
            if head.answer.done():
                continue
            batch.append(head)
            count += len(head.starts)
            size += head.size
        _WAITING.set(self._starts)
        return batch

    async def _send(self, batch: list[_Submission], index: int) -> None:
        request = scheduling_pb2.AcceptRunsRequest(watcher=self._watcher)
        for submission in batch:
            request.starts.extend(submission.starts)
        begun = time.perf_counter()
        if failpoints.ARMED:
            failpoints.reach("start.before")
        try:
            response = await self._accept(request, index % max(1, self._lane_count))
        except Refused as error:
            if error.code in _SPLIT_ON and len(batch) > 1:
                # One caller's start must not fail the others': halve until it is alone.
                middle = len(batch) // 2
                await self._send(batch[:middle], index)
                await self._send(batch[middle:], index)
                return
            _fail(batch, error)
            return
        except asyncio.CancelledError:
            _fail(batch, component_unavailable("gateway", "it is stopping"))
            raise
        if failpoints.ARMED:
            failpoints.reach("start.after")
        _ACCEPT.observe(time.perf_counter() - begun)
        _BATCH.observe(len(request.starts))
        results = response.results
        if len(results) != len(request.starts):
            _fail(batch, component_unavailable("scheduler", "it answered another number of results than starts"))
            return
        position = 0
        for submission in batch:
            end = position + len(submission.starts)
            if not submission.answer.done():
                submission.answer.set_result(results[position:end])
            position = end

    async def _accept(
        self, request: scheduling_pb2.AcceptRunsRequest, replica: int
    ) -> scheduling_pb2.AcceptRunsResponse:
        begun = time.monotonic()
        response = await self._streams.accept(request, replica, min(_ATTEMPT_S, self._timeout_s))
        if response is not None:
            return response
        left_s = max(_LEAST_S, self._timeout_s - (time.monotonic() - begun))
        return await self._client.call(
            lambda stub: stub.AcceptRuns, request, left_s, attempt_timeout_s=_ATTEMPT_S, prefer=replica
        )


def _fail(batch: Sequence[_Submission], error: Refused) -> None:
    for submission in batch:
        if not submission.answer.done():
            submission.answer.set_exception(error)
