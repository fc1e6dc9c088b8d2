"""Single starts, coalesced by natural batching: starts that come while a call is under way travel in the next one.

A start that comes alone goes out at once, as a call of its own. Calls go as messages on a stream where there is one
(`_start_stream.py`). Starts of one namespace form a lane. States of a lane:
IDLE → CALLED (the next call goes out when the event loop comes to it, so that starts of the same moment travel
together) → FLYING → IDLE or CALLED. A call that takes long holds the others back no more: the next one goes out beside
it, and the more calls are late, the longer each next one waits (at most a second), so that a gateway that hangs is not
flooded.

A start that was refused for good within a batch is told so in the words that it would have heard alone. One that was
refused because something was away or full waits and goes with a later call, until its caller's deadline. A batch that
is refused as a whole is halved until the start that is to blame is alone. Nothing runs while nobody starts; a call is a
task of its own, and if it dies of a defect, its callers get that defect.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_sdk._errors import (
    FieldViolation,
    FlintError,
    PermissionDenied,
    TimedOut,
    Unauthenticated,
    Unavailable,
    error_from_status,
)
from flint_sdk._start_stream import StartStream
from flint_sdk._starting import BATCH_BYTES, BATCH_STARTS, send_again
from flint_sdk._transport import Backoff, Transport

_AT_ONCE: Final = 1
"""Calls under way, late ones apart, beside which a start waits for company."""
_LATE_S: Final = 0.05
_LATE_MOST_S: Final = 1.0
_ALONE_BYTES: Final = 2**16
"""A start this large goes by itself: its bytes cost more than a call does."""
_WAITING: Final = 20_000
"""When so many wait, further starts go by themselves, too."""
_LANES: Final = 8
"""When there are more, those that are idle are let go."""
_SLACK_S: Final = 1.0
"""A call ends at the first deadline of its starts; those whose own comes so soon after it end with it."""


class _Flight:
    """A call under way. `timer`: when it is late; None when it holds nobody back any more."""

    __slots__ = ("timer",)

    def __init__(self) -> None:
        self.timer: asyncio.TimerHandle | None = None


class _Waiting:
    """A start whose call has not been answered. Its answer may be a flight: then it is alone, and its caller calls."""

    __slots__ = ("answer", "backoff", "deadline", "request", "size")

    def __init__(
        self,
        request: runs_pb2.StartRunRequest,
        size: int,
        deadline: float,
        answer: asyncio.Future[runs_pb2.StartRunResponse | _Flight],
    ) -> None:
        self.request = request
        self.size = size
        self.deadline = deadline
        self.answer = answer
        self.backoff: Backoff | None = None

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class Starts:
    """The single starts of one client. Belongs to the event loop in which it is first used; see the module."""

    def __init__(self, transport: Transport, *, coalesce: bool) -> None:
        self._transport = transport
        self._coalesce = coalesce
        self._lanes: dict[str, _Lane] = {}
        self._closed = False

    async def start(self, request: runs_pb2.StartRunRequest) -> runs_pb2.StartRunResponse:
        """The answer once the run is stored. Raises the typed error of a refusal, Unavailable or TimedOut."""
        size = request.ByteSize() + 8
        if self._closed or not self._coalesce or size > _ALONE_BYTES:
            return await self._transport.call(lambda gateway: gateway.runs.StartRun, request)
        lane = self._lanes.get(request.parent)
        if lane is None:
            lane = self._lanes[request.parent] = _Lane(self._transport, request.parent)
        try:
            return await lane.start(request, size)
        finally:
            if len(self._lanes) > _LANES and lane.idle and self._lanes.get(request.parent) is lane:
                del self._lanes[request.parent]
                await lane.close()

    async def close(self) -> None:
        """Starts that wait or are under way fail with FlintError; they may have happened."""
        self._closed = True
        lanes, self._lanes = self._lanes, {}
        for lane in lanes.values():
            await lane.close()


class _Lane:
    """The starts of one namespace."""

    def __init__(self, transport: Transport, parent: str) -> None:
        self._transport = transport
        self._parent = parent
        self._loop = asyncio.get_running_loop()
        self._late_s = min(_LATE_S, transport.timeout_s / 20)
        self._slack_s = min(_SLACK_S, transport.timeout_s / 10)
        self._waiting: deque[_Waiting] = deque()
        self._resting: dict[_Waiting, asyncio.TimerHandle] = {}
        self._most = BATCH_STARTS
        self._called = False
        self._holding = 0
        self._late = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._stream = StartStream(transport)

    @property
    def idle(self) -> bool:
        """Nothing waits, rests or flies."""
        return not (self._waiting or self._resting or self._called or self._holding or self._late)

    async def start(self, request: runs_pb2.StartRunRequest, size: int) -> runs_pb2.StartRunResponse:
        deadline = self._loop.time() + self._transport.timeout_s
        if len(self._waiting) >= _WAITING:
            return await self._transport.call(lambda gateway: gateway.runs.StartRun, request)
        waiting = _Waiting(request, size, deadline, self._loop.create_future())
        self._waiting.append(waiting)
        self._call()
        while True:
            try:
                answer = await waiting.answer
            except asyncio.CancelledError:
                self._left(waiting)
                raise
            if not isinstance(answer, _Flight):
                return answer
            try:
                response = await self._alone(waiting)
            finally:
                self._landed(answer)
            if response is not None:
                return response

    async def _alone(self, waiting: _Waiting) -> runs_pb2.StartRunResponse | None:
        """Sends one start by its caller's task; None when it goes with a later call, or fails with it."""
        request = waiting.request
        batch = runs_pb2.StartRunsRequest(parent=self._parent, requests=[request])
        answer = await self._stream.send(batch, waiting.deadline)
        if answer is None:
            return await self._transport.call(lambda gateway: gateway.runs.StartRun, request, deadline=waiting.deadline)
        (result,) = answer.results
        if result.WhichOneof("result") != "error":
            return result.response
        waiting.answer = self._loop.create_future()
        self._answer_error(waiting, 0, error_from_status(result.error))
        return None

    async def close(self) -> None:
        self._stream.close()
        for timer in self._resting.values():
            timer.cancel()
        for waiting in (*self._waiting, *self._resting):
            waiting.fail(_closed())
        self._waiting.clear()
        self._resting.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _left(self, waiting: _Waiting) -> None:
        """Its caller was cancelled. It may have been told, in the same moment, to make the call."""
        answer = waiting.answer
        if answer.done() and not answer.cancelled() and answer.exception() is None:
            flight = answer.result()
            if isinstance(flight, _Flight):
                self._landed(flight)

    # -- turns --------------------------------------------------------------------------------------------------------

    def _call(self) -> None:
        """When a call may go out: does so once the event loop has run what is ready now."""
        if self._waiting and not self._called and self._holding < _AT_ONCE:
            self._called = True
            self._loop.call_soon(self._launch)

    def _launch(self) -> None:
        self._called = False
        batch = self._take()
        if not batch:
            return
        flight = _Flight()
        self._holding += 1
        hold_s = min(_LATE_MOST_S, self._late_s * (self._late + 1))
        flight.timer = self._loop.call_later(hold_s, self._is_late, flight)
        if len(batch) == 1:
            batch[0].answer.set_result(flight)
        else:
            task = self._loop.create_task(self._fly(batch, flight), name="flint-starts")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._call()

    def _take(self) -> list[_Waiting]:
        """All that wait, up to a batch; those whose caller has gone are left out."""
        batch: list[_Waiting] = []
        size = 0
        while self._waiting:
            head = self._waiting[0]
            if len(batch) >= self._most or (batch and size + head.size > BATCH_BYTES):
                break
            self._waiting.popleft()
            if not head.answer.done():
                batch.append(head)
                size += head.size
        return batch

    def _is_late(self, flight: _Flight) -> None:
        flight.timer = None
        self._holding -= 1
        self._late += 1
        self._call()

    def _landed(self, flight: _Flight) -> None:
        if flight.timer is not None:
            flight.timer.cancel()
            flight.timer = None
            self._holding -= 1
        else:
            self._late -= 1
        self._call()

    # -- calls --------------------------------------------------------------------------------------------------------

    async def _fly(self, batch: list[_Waiting], flight: _Flight) -> None:
        try:
            await self._send(batch)
        except asyncio.CancelledError:
            for waiting in batch:
                waiting.fail(_closed())
            raise
        except Exception as error:
            for waiting in batch:
                waiting.fail(error)
        finally:
            self._landed(flight)

    async def _send(self, batch: list[_Waiting]) -> None:
        request = runs_pb2.StartRunsRequest(parent=self._parent, requests=[waiting.request for waiting in batch])
        deadline = min(waiting.deadline for waiting in batch)
        try:
            answer = await self._stream.send(request, deadline)
            if answer is None:
                answer = await self._transport.call(lambda gateway: gateway.runs.StartRuns, request, deadline=deadline)
        except FlintError as error:
            await self._refused(batch, deadline, error)
            return
        for index, (waiting, result) in enumerate(zip(batch, answer.results, strict=True)):
            if waiting.answer.done():
                continue
            if result.WhichOneof("result") == "error":
                self._answer_error(waiting, index, error_from_status(result.error))
                continue
            # A copy: what came shares its memory with all of the batch, and its caller may keep it.
            response = runs_pb2.StartRunResponse()
            response.CopyFrom(result.response)
            waiting.answer.set_result(response)

    async def _refused(self, batch: list[_Waiting], deadline: float, error: FlintError) -> None:
        """A whole call failed."""
        given_up = isinstance(error, (Unavailable, TimedOut)) or send_again(error)
        if given_up and not self._transport.closed:
            # The first of the deadlines does not allow another try; later ones do.
            for waiting in batch:
                if waiting.deadline > deadline + self._slack_s:
                    self._rest(waiting, _told(error), _told(error))
                else:
                    waiting.fail(_told(error))
        elif len(batch) == 1 or self._transport.closed or isinstance(error, (Unauthenticated, PermissionDenied)):
            for waiting in batch:
                waiting.fail(_told(error))
        else:
            middle = len(batch) // 2
            if any(violation.field == "requests" for violation in error.violations):
                self._most = min(self._most, middle)  # a gateway that takes fewer at a time
            await self._send(batch[:middle])
            await self._send(batch[middle:])

    def _answer_error(self, waiting: _Waiting, index: int, error: FlintError) -> None:
        told = _told(error, f"requests[{index}].")
        if send_again(told):
            self._rest(waiting, told, self._transport.given_up(told))
        else:
            waiting.fail(told)

    def _rest(self, waiting: _Waiting, error: FlintError, last: FlintError) -> None:
        """Sends it again after a pause; if its deadline comes first, it fails with `last`."""
        waiting.backoff = waiting.backoff or Backoff()
        pause_s = max(waiting.backoff.next_s(), error.retry_after_s or 0.0)
        if self._loop.time() + pause_s >= waiting.deadline:
            waiting.fail(last)
        elif not waiting.answer.done():
            self._resting[waiting] = self._loop.call_later(pause_s, self._again, waiting)

    def _again(self, waiting: _Waiting) -> None:
        self._resting.pop(waiting, None)
        self._waiting.append(waiting)
        self._call()


def _closed() -> FlintError:
    return FlintError("this client is closed")


def _told(error: FlintError, prefix: str = "") -> FlintError:
    """An error of a batch as one of its callers hears it: its own, and without its place in the batch."""
    if not prefix:
        prefix = "requests[0]."
    return type(error)(
        error.message.replace(prefix, ""),
        reason=error.reason,
        violations=[FieldViolation(found.field.removeprefix(prefix), found.description) for found in error.violations],
        retry_after_s=error.retry_after_s,
    )
