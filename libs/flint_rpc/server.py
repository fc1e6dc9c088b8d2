"""gRPC servers: one way to build them for all services.

Every server has the standard health service and reflection (v1alpha, and v1 by the same servicer: the messages are the
same), the boundary, message size limits, and keepalive settings that find dead peers.
"""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from flint_rpc.boundary import Boundary, Handler, HandlerWrapper, Router
from flint_rpc.errors import ErrorReason, Refused

__all__ = [
    "INTERNAL_MESSAGE_BYTES",
    "RpcServer",
    "Service",
    "TokenInterceptor",
    "create_server",
    "guarded",
    "is_open_method",
]

INTERNAL_MESSAGE_BYTES = 64 * 2**20
"""Between Flint's own services a batch may be larger than anything that a client may send."""

_REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"
_OPEN_PREFIXES = ("/grpc.health.v1.Health/", "/grpc.reflection.v1alpha.ServerReflection/", f"/{_REFLECTION_V1}/")


def is_open_method(method: str) -> bool:
    """Whether a method needs no credentials: health and reflection."""
    return method.startswith(_OPEN_PREFIXES)


@dataclass(frozen=True, slots=True)
class Service:
    """A service to serve: its descriptor, its generated `add_…_to_server`, and the servicer."""

    descriptor: ServiceDescriptor
    add: Callable[[Any, Any], None]
    servicer: object

    @property
    def name(self) -> str:
        """Full name, such as `flint.runs.v1.RunService`."""
        return self.descriptor.full_name

    @property
    def methods(self) -> list[str]:
        """Paths of its methods, such as `/flint.runs.v1.RunService/StartRun`."""
        methods: Sequence[MethodDescriptor] = self.descriptor.methods
        return [f"/{self.name}/{method.name}" for method in methods]


def guarded(handler: Handler, check: Callable[[Any], None]) -> Handler:
    """The handler with `check(context)` before it; the check refuses by raising `Refused`."""

    async def unary(request: Any, context: Any) -> Any:
        check(context)
        behaviour = handler.stream_unary if handler.request_streaming else handler.unary_unary
        return await behaviour(request, context)

    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        check(context)
        behaviour = handler.stream_stream if handler.request_streaming else handler.unary_stream
        async for response in behaviour(request, context):
            yield response

    makers = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    make: Any = makers[handler.request_streaming, handler.response_streaming]
    wrapped: Handler = make(
        stream if handler.response_streaming else unary, handler.request_deserializer, handler.response_serializer
    )
    return wrapped


class TokenInterceptor(HandlerWrapper):
    """Lets a call in when it carries the cluster's token (`authorization: Bearer <token>`).

    Health and reflection are open.

    Streaming methods behind it must be async generators.
    """

    def __init__(self, token: str) -> None:
        if not token:
            raise ValueError("the cluster's token is empty")
        self._expected = f"Bearer {token}".encode()

    def wrap(self, method: str, handler: Handler) -> Handler:
        """The handler behind the check."""
        return handler if is_open_method(method) else guarded(handler, self._check)

    def _check(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        for key, value in context.invocation_metadata() or ():
            if key == "authorization":
                sent = value if isinstance(value, bytes) else value.encode()
                if hmac.compare_digest(sent, self._expected):
                    return
                raise Refused(
                    grpc.StatusCode.UNAUTHENTICATED,
                    ErrorReason.ERROR_REASON_CREDENTIALS_INVALID,
                    "the token is not this cluster's",
                )
        raise Refused(
            grpc.StatusCode.UNAUTHENTICATED,
            ErrorReason.ERROR_REASON_CREDENTIALS_MISSING,
            "an internal service: the cluster's token is needed",
        )


class RpcServer:
    """A server with health and reflection. `start` binds and serves; `stop` drains."""

    def __init__(self, server: grpc.aio.Server, host: str, port: int, health_servicer: Any, names: list[str]) -> None:
        self._server = server
        self._health = health_servicer
        self._names = names
        self.port = port
        self.address = f"{host}:{port}"

    async def start(self) -> None:
        """Begins to serve; health answers SERVING for each service and for the whole."""
        for name in ("", *self._names):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Health answers NOT_SERVING, new calls are refused, those under way get `grace_s`, then are cancelled."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)


def create_server(
    listen: str,
    services: Sequence[Service],
    *,
    interceptors: Sequence[HandlerWrapper] = (),
    message_bytes: int = INTERNAL_MESSAGE_BYTES,
    send_bytes: int = INTERNAL_MESSAGE_BYTES,
) -> RpcServer:
    """Builds a server on `listen` (`host:port`; port 0 takes a free one). Raises OSError when it cannot be bound.

    `interceptors` wrap the handlers inside the boundary, in order. `message_bytes` bounds what a caller may send,
    `send_bytes` what is answered. Call from inside the event loop that will serve.
    """
    router = Router([Boundary(), *interceptors])
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", message_bytes),
            ("grpc.max_send_message_length", send_bytes),
            ("grpc.so_reuseport", 0),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ],
    )
    names = [service.name for service in services]
    for service in services:
        service.add(service.servicer, router)
    health_servicer = health.aio.HealthServicer()
    add_health: Any = health_pb2_grpc.add_HealthServicer_to_server
    add_health(health_servicer, router)
    # v1 is served but not listed: its descriptors are not installed, and clients that list would stumble over it.
    _add_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], router)
    missing = sorted({method for service in services for method in service.methods} - router.methods)
    if missing:
        raise RuntimeError(f"methods that no handler was registered for: {', '.join(missing)}")
    server.add_generic_rpc_handlers((router,))
    host = listen.rpartition(":")[0]
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {listen}: {error}") from None
    if port == 0:
        raise OSError(f"cannot listen on {listen}")
    return RpcServer(server, host, port, health_servicer, names)


def _add_reflection(names: list[str], router: Router) -> None:
    method = grpc.stream_stream_rpc_method_handler(
        ReflectionServicer(names).ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    # The v1 messages are field for field those of v1alpha; grpcio-reflection serves the older name only.
    for service in (reflection.SERVICE_NAME, _REFLECTION_V1):
        router.add_registered_method_handlers(service, {"ServerReflectionInfo": method})
