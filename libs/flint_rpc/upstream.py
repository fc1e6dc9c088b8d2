"""Channels to the replicas of another service, and calls that survive the loss of one of them.

States of a replica: GOOD → RESTING (a call found it unreachable: others are preferred for a moment that doubles up to
`_REST_MAX_S`) → GOOD (a call worked). Nothing runs in the background; gRPC reconnects by itself. When every replica
fails, a call tries them again, with a short pause between rounds, until its deadline. A replica whose queue is full
(QUEUE_FULL) is passed over, too; when none has room the call is refused at once, as the caller is to wait.

Every call that goes through here may arrive more than once, so it must be idempotent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import grpc

from flint_ops import metrics
from flint_rpc.errors import ErrorReason, Refused, component_unavailable, from_rpc_error
from flint_rpc.server import INTERNAL_MESSAGE_BYTES

__all__ = ["Client", "Upstream"]

_REST_MIN_S = 0.1
_REST_MAX_S = 2.0
_PAUSE_MAX_S = 0.25

_FAILOVERS = metrics.counter("rpc_client_failovers", "Calls that went on to another replica", ("upstream",))

_Stub = TypeVar("_Stub")
_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

_RETRIED = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})


class _Replica:
    """One address: its channel, and until when it rests."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.rest_s = 0.0
        self.rests_until = 0.0
        self.channel = grpc.aio.insecure_channel(
            address,
            options=[
                ("grpc.max_receive_message_length", INTERNAL_MESSAGE_BYTES),
                ("grpc.max_send_message_length", INTERNAL_MESSAGE_BYTES),
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.min_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 1_000),
                ("grpc.keepalive_time_ms", 10_000),
                ("grpc.keepalive_timeout_ms", 3_000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.max_pings_without_data", 0),
                # Each Upstream has connections of its own: no sharing with another one in the same process.
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )

    def worked(self) -> None:
        self.rest_s = 0.0
        self.rests_until = 0.0

    def failed(self) -> None:
        self.rest_s = min(_REST_MAX_S, self.rest_s * 2 or _REST_MIN_S)
        self.rests_until = time.monotonic() + self.rest_s


class Upstream:
    """The replicas of one service. One per process and service; close it at the end.

    `name` is for messages and metrics (`scheduler`). `token` is the cluster's. Used from one event loop only.
    """

    def __init__(self, addresses: Sequence[str], token: str, name: str) -> None:
        if not addresses:
            raise ValueError(f"no address of a {name}")
        self.name = name
        self._replicas = [_Replica(address) for address in dict.fromkeys(addresses)]
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._turn = 0
        self._reached: bool | None = None
        self._failovers = _FAILOVERS.labels(name)

    @property
    def size(self) -> int:
        """How many replicas there are."""
        return len(self._replicas)

    def client(self, stub: Callable[[grpc.aio.Channel], _Stub]) -> Client[_Stub]:
        """Calls of one service on these replicas: `client = upstream.client(RegistryServiceStub)`."""
        return Client(self, [stub(replica.channel) for replica in self._replicas])

    def problem(self) -> str | None:
        """For readiness: None when the last call (or connection attempt) reached a replica, else the reason."""
        if self._reached:
            return None
        return f"no {self.name} has answered yet" if self._reached is None else f"no {self.name} answers"

    async def probe(self, timeout_s: float) -> bool:
        """Connects to some replica; whether that worked. Also answers `problem`."""

        async def connect(replica: _Replica) -> None:
            state = replica.channel.get_state(try_to_connect=True)
            while state is not grpc.ChannelConnectivity.READY:
                await replica.channel.wait_for_state_change(state)
                state = replica.channel.get_state(try_to_connect=True)

        tasks = [asyncio.create_task(connect(replica)) for replica in self._replicas]
        try:
            done, _ = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self._reached = bool(done)
        return self._reached

    async def close(self) -> None:
        """Closes the channels; calls under way end as cancelled."""
        for replica in self._replicas:
            await replica.channel.close()

    async def _call(
        self, calls: Sequence[Any], request: Any, timeout_s: float, attempt_timeout_s: float, prefer: int | None
    ) -> Any:
        deadline = time.monotonic() + timeout_s
        last: Refused | None = None
        pause_s = 0.02
        while True:
            full: Refused | None = None
            for index in self._order(prefer):
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    self._reached = False
                    raise last or component_unavailable(self.name, f"no answer within {timeout_s:g} s")
                replica = self._replicas[index]
                try:
                    response = await calls[index](
                        request, timeout=min(remaining, attempt_timeout_s), metadata=self._metadata
                    )
                except grpc.aio.AioRpcError as error:
                    if error.code() not in _RETRIED:
                        self._reached = True
                        refused = from_rpc_error(error)
                        if refused.reason != ErrorReason.ERROR_REASON_QUEUE_FULL:
                            raise refused from None
                        full = refused  # nothing was done, and another replica may have room
                        replica.worked()
                        continue
                    replica.failed()
                    self._failovers.inc()
                    last = component_unavailable(self.name, error.details() or error.code().name)
                    continue
                replica.worked()
                self._reached = True
                return response
            if full is not None:
                raise full
            await asyncio.sleep(min(pause_s, max(0.0, deadline - time.monotonic())))
            pause_s = min(_PAUSE_MAX_S, pause_s * 2)

    def _order(self, prefer: int | None) -> list[int]:
        """Replicas to try: the preferred one (else the next in turn) first, resting ones last."""
        count = len(self._replicas)
        if prefer is None:
            prefer = self._turn
            self._turn = (self._turn + 1) % count
        order = [(prefer + step) % count for step in range(count)]
        now = time.monotonic()
        order.sort(key=lambda index: self._replicas[index].rests_until > now)
        return order


class Client(Generic[_Stub]):
    """Typed calls of one service on an upstream's replicas."""

    def __init__(self, upstream: Upstream, stubs: Sequence[_Stub]) -> None:
        self._upstream = upstream
        self._stubs = stubs

    async def call(
        self,
        select: Callable[[_Stub], grpc.aio.UnaryUnaryMultiCallable[_Request, _Response]],
        request: _Request,
        timeout_s: float,
        *,
        attempt_timeout_s: float = 5.0,
        prefer: int | None = None,
    ) -> _Response:
        """Calls a method: `await client.call(lambda stub: stub.Heartbeat, request, 2.0)`.

        Tries the next replica when one cannot be reached, refuses as UNAVAILABLE or QUEUE_FULL or does not answer
        within `attempt_timeout_s`, until `timeout_s` is over. Raises `Refused`: what the service refused with, or
        COMPONENT_UNAVAILABLE. `prefer` is the index of the replica to try first; else they take turns.
        """
        calls = [select(stub) for stub in self._stubs]
        response: _Response = await self._upstream._call(calls, request, timeout_s, attempt_timeout_s, prefer)
        return response

    def stream(
        self, select: Callable[[_Stub], grpc.aio.StreamStreamMultiCallable[_Request, _Response]], index: int
    ) -> grpc.aio.StreamStreamCall[_Request, _Response] | None:
        """A stream to one replica, without a deadline; None while that replica rests. What breaks it is the caller's to
        bear.
        """
        replica = self._upstream._replicas[index]
        if replica.rests_until > time.monotonic():
            return None
        return select(self._stubs[index])(metadata=self._upstream._metadata)

    def silent(self, index: int) -> None:
        """A replica did not answer on a stream: others are preferred for a moment."""
        self._upstream._replicas[index].failed()
        self._upstream._failovers.inc()
