"""The outermost wrapper of every server's handlers: counts and times calls, and turns exceptions into statuses.

Handlers are wrapped once, when they are registered (`Router`): per call there is no chain of interceptors, only the
wrapped coroutine, two clock reads and two bound metric children. A `Refused` is
answered with its details; anything else is logged with a fresh id and answered as INTERNAL with that id. Cancellation
passes.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, NoReturn

import grpc
from prometheus_client import Counter

from flint_ops import metrics
from flint_ops.logging import get_logger
from flint_rpc.errors import STATUS_DETAILS_KEY, ErrorReason, Refused, status_proto

__all__ = ["Boundary", "Handler", "HandlerWrapper", "Router", "abort"]

_log = get_logger("flint_rpc.boundary")

_CALLS = metrics.counter("rpc_server_calls", "Calls answered, by code", ("method", "code"))
_SECONDS = metrics.histogram("rpc_server_call_seconds", "Duration of unary calls", ("method",))
_OPEN = metrics.gauge("rpc_server_open_streams", "Streams open now", ("method",))

_CODES = {code.value[0]: code for code in grpc.StatusCode}

# The published types of handlers describe the synchronous server's.
Handler = Any


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: Refused) -> NoReturn:
    """Ends the call with the refusal and its details."""
    details = ((STATUS_DETAILS_KEY, status_proto(error).SerializeToString()),)
    await context.abort(error.code, error.message, trailing_metadata=details)
    raise AssertionError("abort returned")


class HandlerWrapper:
    """Wraps each method's handler once, when it is registered. Subclasses say how."""

    def wrap(self, method: str, handler: Handler) -> Handler:
        """The handler to use for a method (`/package.Service/Method`)."""
        raise NotImplementedError


class Router(grpc.GenericRpcHandler):
    """All handlers of one server, wrapped and found by path. Stands in for the server in `add_…_to_server`.

    The first wrapper is the outermost.
    """

    def __init__(self, wrappers: Sequence[HandlerWrapper]) -> None:
        self._wrappers = tuple(reversed(wrappers))
        self._handlers: dict[str, Handler] = {}

    @property
    def methods(self) -> frozenset[str]:
        """Paths of what is served."""
        return frozenset(self._handlers)

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Wraps and keeps the handlers of a service, by the methods' names."""
        for name, handler in handlers.items():
            method = f"/{service}/{name}"
            for wrapper in self._wrappers:
                handler = wrapper.wrap(method, handler)
            self._handlers[method] = handler

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """Nothing: generated code passes the same handlers by name, too."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        """The wrapped handler of a call; None for an unknown method (UNIMPLEMENTED)."""
        return self._handlers.get(handler_call_details.method)


class Boundary(HandlerWrapper):
    """See the module. Must be the first wrapper."""

    def wrap(self, method: str, handler: Handler) -> Handler:
        """The handler between metrics and error mapping."""
        measure = _Measure(method)
        if handler.request_streaming and handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                _stream(handler.stream_stream, measure), handler.request_deserializer, handler.response_serializer
            )
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                _stream(handler.unary_stream, measure), handler.request_deserializer, handler.response_serializer
            )
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(
                _unary(handler.stream_unary, measure), handler.request_deserializer, handler.response_serializer
            )
        return grpc.unary_unary_rpc_method_handler(
            _unary(handler.unary_unary, measure), handler.request_deserializer, handler.response_serializer
        )


class _Measure:
    """Bound metric children of one method."""

    def __init__(self, method: str) -> None:
        self.method = method.lstrip("/")
        self.seconds = _SECONDS.labels(self.method)
        self.open = _OPEN.labels(self.method)
        self._codes: dict[str, Counter] = {}

    def count(self, code: str) -> None:
        child = self._codes.get(code)
        if child is None:
            child = self._codes[code] = _CALLS.labels(self.method, code)
        child.inc()

    async def fail(self, context: grpc.aio.ServicerContext[Any, Any], error: Exception) -> NoReturn:
        if isinstance(error, Refused):
            self.count(error.code.name)
            await abort(context, error)
        if isinstance(error, grpc.aio.AbortError):
            # The handler has called context.abort itself (the health service does).
            sent: Any = context.code()  # a number on aio servers, whatever the types say
            code = _CODES.get(sent) if isinstance(sent, int) else sent
            self.count(code.name if code else "UNKNOWN")
            raise error
        self.count(grpc.StatusCode.INTERNAL.name)
        error_id = os.urandom(8).hex()
        _log.error("call failed unexpectedly", method=self.method, error_id=error_id, exc_info=error)
        internal = Refused(
            grpc.StatusCode.INTERNAL,
            ErrorReason.ERROR_REASON_INTERNAL,
            f"an unexpected error; its details are in the service's logs under {error_id}",
            metadata={"error_id": error_id},
        )
        await abort(context, internal)


def _unary(behaviour: Callable[[Any, Any], Awaitable[Any]], measure: _Measure) -> Callable[[Any, Any], Awaitable[Any]]:
    clock = time.perf_counter
    observe = measure.seconds.observe
    count = measure.count

    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        begun = clock()
        try:
            response = await behaviour(request, context)
        except asyncio.CancelledError:
            count("CANCELLED")
            raise
        except Exception as error:
            observe(clock() - begun)
            await measure.fail(context, error)
        observe(clock() - begun)
        count("OK")
        return response

    return call


def _stream(behaviour: Callable[[Any, Any], Any], measure: _Measure) -> Callable[[Any, Any], Any]:
    if not inspect.isasyncgenfunction(behaviour):

        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            measure.open.inc()
            try:
                await behaviour(request, context)
            except asyncio.CancelledError:
                measure.count("CANCELLED")
                raise
            except Exception as error:
                await measure.fail(context, error)
            finally:
                measure.open.dec()
            measure.count("OK")

        return call

    async def generate(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        measure.open.inc()
        try:
            async for response in behaviour(request, context):
                yield response
        except (asyncio.CancelledError, GeneratorExit):
            measure.count("CANCELLED")
            raise
        except Exception as error:
            await measure.fail(context, error)
        finally:
            measure.open.dec()
        measure.count("OK")

    return generate
