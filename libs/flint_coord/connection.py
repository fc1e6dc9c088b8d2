"""One gRPC channel to all etcd endpoints, and unary calls on it that always end.

The channel balances over the members that answer (`round_robin`) and reconnects for ever with a short backoff, so
there is no state of ours to lose: a call waits for a connection until its deadline. A call that got no usable answer
is tried again until the deadline when the caller says that repeating it is harmless. Each attempt has a shorter time
of its own, so that one member that hangs does not use up the whole deadline while its neighbours are well.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio

from flint_coord.errors import CoordError, CoordRefused, CoordUnavailable, LeaseEnded
from flint_coord.wire import stubs
from flint_ops import failpoints

__all__ = ["REQUEST_TIMEOUT_S", "STREAM_METADATA", "Connection", "read_stream", "translate"]

REQUEST_TIMEOUT_S = 5.0
"""Default deadline of a unary request, retries included."""

ATTEMPT_TIMEOUT_S = 1.5
"""Deadline of one attempt: after it the next member is asked."""

STREAM_METADATA = (("hasleader", "true"),)
"""Asks a member to break a stream when it has lost its leader, instead of serving a frozen view."""

_RETRY_PAUSE_S = 0.05
_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Despite its name the time that one attempt to connect may take, handshake included.
    ("grpc.min_reconnect_backoff_ms", 2000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # etcd refuses pings more often than every five seconds.
    ("grpc.keepalive_time_ms", 6000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.max_receive_message_length", 64 * 2**20),
    # Connections are the process's own: two Coords never share one, nor its backoff.
    ("grpc.use_local_subchannel_pool", 1),
]
_UNANSWERED = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.ABORTED,
    }
)


def translate(error: grpc.aio.AioRpcError) -> CoordError:
    """etcd's gRPC error as one of this room's."""
    text = error.details() or error.code().name
    if error.code() in _UNANSWERED:
        return CoordUnavailable(f"etcd: {text}")
    if error.code() == grpc.StatusCode.NOT_FOUND and "lease not found" in text:
        return LeaseEnded(f"etcd: {text}")
    return CoordRefused(f"etcd: {error.code().name}: {text}")


async def read_stream(call: Any) -> Any:
    """The next message of a stream, or grpc.aio.EOF. Raises AioRpcError, or CoordUnavailable when etcd cancelled it.

    grpc.aio raises CancelledError also when the *server* ended the stream as cancelled (etcd does on losing its
    leader); in a task that nobody cancelled that would end the task silently.
    """
    try:
        return await call.read()
    except asyncio.CancelledError:
        if _cancelled_by_caller():
            raise
        raise CoordUnavailable("etcd cancelled the stream") from None


def _cancelled_by_caller() -> bool:
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


class Connection:
    """The channel and its stubs. Belongs to the event loop it was made in."""

    def __init__(self, target: str) -> None:
        self.target = target
        self._channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
        self.kv: Any = stubs.KVStub(self._channel)
        self.lease: Any = stubs.LeaseStub(self._channel)
        self.watch: Any = stubs.WatchStub(self._channel)
        self._failing = False

    @classmethod
    async def open(cls, endpoints: Sequence[str]) -> Connection:
        """A channel to these `host:port` endpoints. Host names are resolved; connecting happens in the background.

        Raises CoordUnavailable when a name cannot be resolved.
        """
        return cls(await _target(endpoints))

    @property
    def connected(self) -> bool:
        """Whether a member is connected and the last request was answered. Costs nothing, asks nobody."""
        ready = self._channel.get_state(try_to_connect=True) == grpc.ChannelConnectivity.READY
        return ready and not self._failing

    async def unary(
        self, method: Any, request: Any, *, timeout_s: float = REQUEST_TIMEOUT_S, repeat: bool, wait: bool = True
    ) -> Any:
        """Calls `method` and returns its answer.

        `repeat` says that a request whose fate is unknown may be sent again. `wait` waits for a connection up to the
        deadline. Raises CoordUnavailable, LeaseEnded or CoordRefused.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        if failpoints.ARMED:
            failpoints.reach(f"etcd.{type(request).__name__}.before")
        while True:
            left = deadline - loop.time()
            attempt = min(left, ATTEMPT_TIMEOUT_S) if repeat else left
            try:
                answer = await method(request, timeout=max(attempt, 0.001), wait_for_ready=wait)
            except asyncio.CancelledError:
                if _cancelled_by_caller():
                    raise
                raise CoordUnavailable("the connection to etcd was closed") from None
            except grpc.aio.AioRpcError as error:
                failure = translate(error)
                self._failing = isinstance(failure, CoordUnavailable)
                left = deadline - loop.time()
                if not (self._failing and repeat and left > _RETRY_PAUSE_S):
                    raise failure from error
                await asyncio.sleep(_RETRY_PAUSE_S)
            else:
                self._failing = False
                if failpoints.ARMED:
                    failpoints.reach(f"etcd.{type(request).__name__}.after")
                return answer

    async def close(self) -> None:
        """Closes the channel; calls under way are cancelled."""
        await self._channel.close()


async def _target(endpoints: Sequence[str]) -> str:
    if not endpoints:
        raise CoordRefused("no etcd endpoint is configured")
    loop = asyncio.get_running_loop()
    four: list[str] = []
    six: list[str] = []
    for endpoint in endpoints:
        address = endpoint.removeprefix("http://").rstrip("/")
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        if not host or not port.isdigit():
            raise CoordRefused(f"etcd endpoint {endpoint!r} is not host:port")
        try:
            parsed = [ipaddress.ip_address(host)]
        except ValueError:
            try:
                async with asyncio.timeout(REQUEST_TIMEOUT_S):
                    found = await loop.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
            except (OSError, TimeoutError) as error:
                raise CoordUnavailable(f"etcd endpoint {endpoint!r} cannot be resolved: {error}") from error
            parsed = [ipaddress.ip_address(entry[4][0]) for entry in found]
        for ip in parsed:
            (four if ip.version == 4 else six).append(f"{ip}:{port}" if ip.version == 4 else f"[{ip}]:{port}")
    # One target names one family; a host name that has both is reached by the older one.
    return "ipv4:" + ",".join(dict.fromkeys(four)) if four else "ipv6:" + ",".join(dict.fromkeys(six))
