"""Channels to the gateways, and the one place where a call is tried again.

Every call has an overall deadline. Within it an attempt that found no gateway (or one that went silent) is repeated
at the next address, with exponential backoff once every address was tried. Only idempotent calls are repeated; the
client makes starts idempotent by giving each a request_id. Belongs to the event loop in which it is first used.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import grpc

from flint_contracts.gen.flint.approvals.v1 import approvals_pb2_grpc
from flint_contracts.gen.flint.events.v1 import events_pb2_grpc
from flint_contracts.gen.flint.fleet.v1 import fleet_pb2_grpc
from flint_contracts.gen.flint.functions.v1 import functions_pb2_grpc
from flint_contracts.gen.flint.identity.v1 import identity_pb2_grpc
from flint_contracts.gen.flint.limits.v1 import limits_pb2_grpc
from flint_contracts.gen.flint.namespaces.v1 import namespaces_pb2_grpc
from flint_contracts.gen.flint.payloads.v1 import payloads_pb2_grpc
from flint_contracts.gen.flint.runs.v1 import control_pb2_grpc, runs_pb2_grpc
from flint_contracts.gen.flint.schedules.v1 import schedules_pb2_grpc
from flint_contracts.gen.flint.workflows.v1 import workflows_pb2_grpc
from flint_sdk._endpoint import Endpoint
from flint_sdk._errors import FlintError, ResourceExhausted, TimedOut, Unavailable, error_from_rpc

if TYPE_CHECKING:
    from flint_contracts.gen.flint.approvals.v1.approvals_pb2_grpc import ApprovalServiceAsyncStub
    from flint_contracts.gen.flint.events.v1.events_pb2_grpc import EventServiceAsyncStub
    from flint_contracts.gen.flint.fleet.v1.fleet_pb2_grpc import FleetServiceAsyncStub
    from flint_contracts.gen.flint.functions.v1.functions_pb2_grpc import FunctionServiceAsyncStub
    from flint_contracts.gen.flint.identity.v1.identity_pb2_grpc import IdentityServiceAsyncStub
    from flint_contracts.gen.flint.limits.v1.limits_pb2_grpc import LimitServiceAsyncStub
    from flint_contracts.gen.flint.namespaces.v1.namespaces_pb2_grpc import NamespaceServiceAsyncStub
    from flint_contracts.gen.flint.payloads.v1.payloads_pb2_grpc import PayloadServiceAsyncStub
    from flint_contracts.gen.flint.runs.v1.control_pb2_grpc import RunControlServiceAsyncStub
    from flint_contracts.gen.flint.runs.v1.runs_pb2_grpc import RunServiceAsyncStub
    from flint_contracts.gen.flint.schedules.v1.schedules_pb2_grpc import ScheduleServiceAsyncStub
    from flint_contracts.gen.flint.workflows.v1.workflows_pb2_grpc import WorkflowServiceAsyncStub

Q = TypeVar("Q")
R = TypeVar("R")

ATTEMPT_TIMEOUT_S: Final = 10.0
"""A gateway that is silent this long is left for the next one; the overall deadline still holds."""

_FIRST_BACKOFF_S: Final = 0.05
_LAST_BACKOFF_S: Final = 1.0
_MAX_RECEIVE_BYTES: Final = 64 * 2**20

_OPTIONS: Final[tuple[tuple[str, Any], ...]] = (
    ("grpc.max_receive_message_length", _MAX_RECEIVE_BYTES),
    ("grpc.enable_retries", 0),  # this module repeats calls, with the client's deadline
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
)

_BROKEN: Final = (
    "stream removed",
    "rst_stream",
    "socket closed",
    "connection reset",
    "goaway",
    "broken pipe",
    "internal error from core",  # of grpc's own here: the stream ended while it was written to
)


def is_disconnect(error: grpc.aio.AioRpcError) -> bool:
    """Whether the connection or the gateway failed, rather than the request."""
    code = error.code()
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return True
    if code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
        details = (error.details() or "").lower()
        return any(text in details for text in _BROKEN)
    return False


class Backoff:
    """Growing pauses with jitter, from 50 ms to 1 s."""

    def __init__(self) -> None:
        self._next_s = _FIRST_BACKOFF_S

    def next_s(self) -> float:
        """The next pause."""
        pause = self._next_s
        self._next_s = min(_LAST_BACKOFF_S, pause * 2)
        return pause * random.uniform(0.7, 1.3)

    def reset(self) -> None:
        """Begins with the shortest pause again."""
        self._next_s = _FIRST_BACKOFF_S


class Gateway:
    """One address: its channel and stubs."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self.runs: RunServiceAsyncStub = runs_pb2_grpc.RunServiceStub(self.channel)
        self.control: RunControlServiceAsyncStub = control_pb2_grpc.RunControlServiceStub(self.channel)
        self.workflows: WorkflowServiceAsyncStub = workflows_pb2_grpc.WorkflowServiceStub(self.channel)
        self.fleet: FleetServiceAsyncStub = fleet_pb2_grpc.FleetServiceStub(self.channel)
        self.namespaces: NamespaceServiceAsyncStub = namespaces_pb2_grpc.NamespaceServiceStub(self.channel)
        self.limits: LimitServiceAsyncStub = limits_pb2_grpc.LimitServiceStub(self.channel)
        self.functions: FunctionServiceAsyncStub = functions_pb2_grpc.FunctionServiceStub(self.channel)
        self.identity: IdentityServiceAsyncStub = identity_pb2_grpc.IdentityServiceStub(self.channel)
        self.payloads: PayloadServiceAsyncStub = payloads_pb2_grpc.PayloadServiceStub(self.channel)
        self.events: EventServiceAsyncStub = events_pb2_grpc.EventServiceStub(self.channel)
        self.approvals: ApprovalServiceAsyncStub = approvals_pb2_grpc.ApprovalServiceStub(self.channel)
        self.schedules: ScheduleServiceAsyncStub = schedules_pb2_grpc.ScheduleServiceStub(self.channel)


class Transport:
    """The gateways of one client. The current one is kept until it fails."""

    def __init__(self, endpoint: Endpoint, timeout_s: float) -> None:
        self.endpoint = endpoint
        self.timeout_s = timeout_s
        self.metadata: Final = (("authorization", f"Bearer {endpoint.key}"),)
        self._gateways: list[Gateway] = []
        self._current = 0
        self._closed = False

    def gateway(self) -> Gateway:
        """The gateway to use now. Raises FlintError after `close`."""
        if self._closed:
            raise FlintError("this client is closed")
        if not self._gateways:
            self._gateways = [Gateway(address) for address in self.endpoint.addresses]
        return self._gateways[self._current]

    def leave(self, gateway: Gateway) -> bool:
        """Moves on from a gateway that failed. True when another address is next."""
        if self._gateways[self._current] is gateway:
            self._current = (self._current + 1) % len(self._gateways)
        return len(self._gateways) > 1

    async def call(
        self,
        method: Callable[[Gateway], grpc.aio.UnaryUnaryMultiCallable[Q, R]],
        request: Q,
        *,
        timeout_s: float | None = None,
        deadline: float | None = None,
        idempotent: bool = True,
    ) -> R:
        """One unary call, repeated while it is safe and there is time.

        Raises the typed error of a refusal; Unavailable or TimedOut when `timeout_s` (default: the client's) passed.
        `deadline`: the event loop's time when it has passed, for a call whose caller has waited before.
        """
        loop = asyncio.get_running_loop()
        if deadline is None:
            deadline = loop.time() + (self.timeout_s if timeout_s is None else timeout_s)
        backoff = Backoff()
        untried = len(self.endpoint.addresses)
        told: FlintError | None = None  # what a gateway said last of why it cannot serve
        while True:
            gateway = self.gateway()
            remaining = max(0.001, deadline - loop.time())
            try:
                return await method(gateway)(request, timeout=min(ATTEMPT_TIMEOUT_S, remaining), metadata=self.metadata)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if self._closed and task is not None and not task.cancelling():
                    raise FlintError("this client is closed") from None  # grpc cancels the calls of a closed channel
                raise
            except grpc.aio.AioRpcError as error:
                disconnect = is_disconnect(error)
                silent = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
                typed = error_from_rpc(error)
            if not silent:
                told = typed
            pause = backoff.next_s()
            if disconnect or silent:
                self.leave(gateway)
                untried -= 1
                if untried > 0:
                    pause = 0.0
                if typed.retry_after_s is not None and untried <= 0:
                    pause = max(pause, typed.retry_after_s)
            elif isinstance(typed, ResourceExhausted) and typed.retry_after_s is not None:
                pause = max(pause, typed.retry_after_s)  # the server asks for patience, and nothing was done
            else:
                raise typed
            if loop.time() + pause >= deadline or not idempotent:
                raise self.given_up(told or typed, told is None, timeout_s) from None
            await asyncio.sleep(pause)

    def given_up(self, last: FlintError, silent: bool = False, timeout_s: float | None = None) -> FlintError:
        """What is raised when there is no time for another try. `last`: what was told; `silent`: nothing ever was."""
        if isinstance(last, ResourceExhausted):
            return last
        where = ", ".join(self.endpoint.addresses)
        within = self.timeout_s if timeout_s is None else timeout_s
        if silent:
            return TimedOut(f"no answer from {where} within {within:g} s")
        return Unavailable(
            f"no gateway could be reached at {where} within {within:g} s ({last.message})",
            reason=last.reason,
            retry_after_s=last.retry_after_s,
        )

    @property
    def closed(self) -> bool:
        """After `close`."""
        return self._closed

    async def close(self) -> None:
        """Closes every channel; calls in flight end."""
        self._closed = True
        gateways, self._gateways = self._gateways, []
        await asyncio.gather(*(gateway.channel.close() for gateway in gateways))
