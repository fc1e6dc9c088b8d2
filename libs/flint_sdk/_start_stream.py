"""Batches of starts on a stream that stays open: a start arrives in a third of the time that a call takes.

States: CLOSED → OPEN (idle, or with one batch under way) → CLOSED, when nothing was started for ten seconds, or at the
first thing that goes wrong: the gateway stopped or was lost, refused a batch as a whole, did not answer in time, or is
too old to know such streams. It is opened again a second later at the earliest. Nothing is decided here: a batch
without an answer goes by a call, which says why, tries other gateways and may be repeated, as each start has a request
id. Nothing runs here beside the caller but the timer that closes an idle stream.
"""

from __future__ import annotations

import asyncio
from typing import Final

import grpc

from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_sdk._transport import ATTEMPT_TIMEOUT_S, Gateway, Transport

_LINGER_S: Final = 10.0
_REST_S: Final = 1.0
_LONG_REST_S: Final = 60.0
_BROKEN: Final = (grpc.RpcError, grpc.aio.UsageError, asyncio.InvalidStateError)

_Call = grpc.aio.StreamStreamCall[runs_pb2.StreamStartsRequest, runs_pb2.StreamStartsResponse]


class StartStream:
    """See the module. Belongs to one event loop."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._gateway: Gateway | None = None
        self._call: _Call | None = None
        self._busy = False
        self._used_at = self._loop.time() - _LINGER_S
        self._rests_until = 0.0
        self._linger: asyncio.TimerHandle | None = None

    async def send(self, batch: runs_pb2.StartRunsRequest, deadline: float) -> runs_pb2.StartRunsResponse | None:
        """What became of the batch; None when it has to be asked by a call (it may have been accepted).

        None also while the stream is in use, or rests, and for the first batch in a while: one start alone is not worth
        a stream. `deadline`: the event loop's time.
        """
        now = self._loop.time()
        lately = now - self._used_at < _LINGER_S
        self._used_at = now
        if self._busy or not lately or now < self._rests_until or self._transport.closed:
            return None
        gateway = self._transport.gateway()
        call = self._call
        if call is None or call.done() or gateway is not self._gateway:
            if call is not None:
                call.cancel()
            call = self._call = gateway.runs.StreamStarts(metadata=self._transport.metadata)
            self._gateway = gateway
        if self._linger is None:
            self._linger = self._loop.call_later(_LINGER_S, self._look)
        self._busy = True
        answer = None
        try:
            async with asyncio.timeout_at(min(deadline, now + ATTEMPT_TIMEOUT_S)):
                await call.write(runs_pb2.StreamStartsRequest(batch=batch))
                answer = await call.read()
        except TimeoutError:
            self._transport.leave(gateway)
        except _BROKEN as error:
            if isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.UNIMPLEMENTED:
                self._rests_until = now + _LONG_REST_S
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # grpc cancelled the call: its channel was closed. The call that follows says so.
        finally:
            self._busy = False
            if not isinstance(answer, runs_pb2.StreamStartsResponse):
                self._rests_until = max(self._rests_until, self._loop.time() + _REST_S)
                self.close()
        return answer.answer if isinstance(answer, runs_pb2.StreamStartsResponse) else None

    def close(self) -> None:
        """Ends the stream; the next batch but one may open it again."""
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _look(self) -> None:
        self._linger = None
        left_s = self._used_at + _LINGER_S - self._loop.time()
        if self._busy or left_s > 0:
            self._linger = self._loop.call_later(max(left_s, 0.1), self._look)
        else:
            self.close()
