"""FunctionService and FunctionWorkerService: which custom functions there are, and the streams of who executes them.

A stream: hello → welcome → credit, heartbeats and outcomes up; tasks, acknowledgements and cancels down. Its functions
are registered in the background, again and again while no scheduler can be reached; tasks come after that, while the
tasks that it holds already are served at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

import grpc

from flint_contracts.gen.flint.functions.v1 import functions_pb2 as pb
from flint_contracts.gen.flint.functions.v1.functions_pb2_grpc import (
    FunctionServiceServicer,
    FunctionWorkerServiceServicer,
)
from flint_contracts.gen.flint.identity.v1 import identity_pb2
from flint_contracts.gen.flint.scheduling.v1 import functions_pb2 as registry
from flint_gateway.auth import authorise, current_principal
from flint_gateway.functions_catalog import FunctionCatalog
from flint_gateway.functions_hub import FunctionHub
from flint_gateway.functions_schemas import check_declarations
from flint_gateway.functions_session import CREDIT, Session
from flint_gateway.functions_tokens import decode_token
from flint_gateway.functions_values import failure_outcome, result_outcome
from flint_gateway.validation import namespace_of_parent
from flint_ops.config import LimitSettings
from flint_rpc.errors import ErrorReason, Refused, field_invalid
from flint_rpc.paging import PageBinding, page_size
from flint_rpc.upstream import Client

if TYPE_CHECKING:
    from flint_contracts.gen.flint.scheduling.v1.functions_pb2_grpc import FunctionRegistryServiceAsyncStub

__all__ = ["FunctionServicer", "FunctionWorkerServicer"]

_TIMEOUT_S: Final = 15.0
_HELLO_S: Final = 10.0
_AGAIN_S: Final = 1.0
_HEARTBEAT_S: Final = 10
_HELLO_TASKS: Final = 10_000
_NAME: Final = 63
_FRAMING: Final = 65_536
_SEPARATOR: Final = "\n"

Context = grpc.aio.ServicerContext[Any, Any]


class FunctionServicer(FunctionServiceServicer):
    """Lists functions. Callers are authenticated and authorised by the interceptor."""

    def __init__(self, client: Client[FunctionRegistryServiceAsyncStub]) -> None:
        self._client = client

    async def ListFunctions(self, request: pb.ListFunctionsRequest, context: Context) -> pb.ListFunctionsResponse:
        """A page, by name, the highest version first."""
        namespace = namespace_of_parent(request.parent)
        size = page_size(request.page_size, default=50, most=200)
        binding = PageBinding("functions", namespace)
        name, _, version = binding.decode(request.page_token).partition(_SEPARATOR)
        inner = registry.ReadFunctionsRequest(
            namespace=namespace, limit=size + 1, after=registry.FunctionVersion(name=name, version=version)
        )
        response = await self._client.call(lambda stub: stub.ReadFunctions, inner, _TIMEOUT_S)
        page = response.functions[:size]
        token = ""
        if len(response.functions) > size:
            token = binding.encode(f"{page[-1].name}{_SEPARATOR}{page[-1].version}")
        return pb.ListFunctionsResponse(functions=page, next_page_token=token)


class FunctionWorkerServicer(FunctionWorkerServiceServicer):
    """Serves the streams. See the module."""

    def __init__(self, hub: FunctionHub, catalog: FunctionCatalog, limits: LimitSettings) -> None:
        self._hub = hub
        self._catalog = catalog
        self._most = limits.function_workers
        self._output_bytes = min(limits.value_bytes, limits.message_bytes - _FRAMING)

    async def Connect(
        self, requests: AsyncIterator[pb.ConnectRequest], context: Context
    ) -> AsyncIterator[pb.ConnectResponse]:
        """One function worker, until either side ends it."""
        if self._hub.sessions >= self._most:
            raise Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                ErrorReason.ERROR_REASON_QUEUE_FULL,
                f"{self._hub.sessions} function workers are connected to this gateway, which is its limit",
                retry_after_s=2.0,
            )
        stream = aiter(requests)
        session, tokens = await self._hello(stream)
        welcome = pb.Welcome(output_bytes=self._output_bytes, credit=CREDIT)
        welcome.heartbeat_interval.seconds = _HEARTBEAT_S
        self._hub.join(session, tokens)
        reading = asyncio.create_task(self._read(stream, session), name="function-worker-reader")
        registering = asyncio.create_task(self._register(session), name="function-worker-registration")
        told = False
        try:
            yield pb.ConnectResponse(welcome=welcome)
            while (response := await session.next()) is not None:
                yield response
            told = True
        finally:
            self._hub.leave(session, told=told)
            reading.cancel()
            registering.cancel()
            await asyncio.gather(reading, registering, return_exceptions=True)

    async def _hello(self, stream: AsyncIterator[pb.ConnectRequest]) -> tuple[Session, list[str]]:
        try:
            async with asyncio.timeout(_HELLO_S):
                first = await anext(stream)
        except (StopAsyncIteration, TimeoutError):
            raise field_invalid(("hello", f"must be the first message, within {_HELLO_S:g} s")) from None
        if first.WhichOneof("message") != "hello":
            raise field_invalid(("hello", "must be the first message"))
        hello = first.hello
        namespace = namespace_of_parent(hello.parent, "hello.parent")
        authorise(current_principal(), identity_pb2.ROLE_OPERATOR, namespace)
        if not 0 < len(hello.worker) <= _NAME or not hello.worker.isprintable():
            raise field_invalid(("hello.worker", f"must be 1 to {_NAME} printable characters"))
        if len(hello.tasks) > _HELLO_TASKS:
            raise field_invalid(("hello.tasks", f"must hold at most {_HELLO_TASKS}"))
        functions = await asyncio.to_thread(check_declarations, list(hello.functions))
        return Session(namespace, hello.worker, functions), list(hello.tasks)

    async def _register(self, session: Session) -> None:
        declarations = [declared.declaration for declared in session.functions.values()]
        while True:
            try:
                await self._catalog.register(session.namespace, declarations)
            except Refused as error:
                if error.code is not grpc.StatusCode.UNAVAILABLE:
                    session.fail(error)
                    return
                await asyncio.sleep(_AGAIN_S)
            else:
                self._hub.serve(session)
                return

    async def _read(self, stream: AsyncIterator[pb.ConnectRequest], session: Session) -> None:
        """Takes what the function worker says until it says no more; a refusal ends the stream."""
        try:
            async for request in stream:
                kind = request.WhichOneof("message")
                if kind == "credit":
                    if request.credit.tasks < 1:
                        raise field_invalid(("credit.tasks", "must be at least 1"))
                    session.add_credit(request.credit.tasks)
                    self._hub.credited(session)
                elif kind == "heartbeat":
                    self._hub.beat(session, request.heartbeat)
                elif kind == "complete":
                    self._complete(session, request.complete)
                    await session.calm()
                elif kind == "fail":
                    self._hub.settle(session, request.fail.token, failure_outcome(request.fail))
                elif kind == "drain":
                    session.draining = True
                elif kind == "goodbye":
                    for token in request.goodbye.tasks[:_HELLO_TASKS]:
                        self._hub.give_back(session, token)
                    session.finish()
                    return
                else:
                    raise field_invalid(("message", "must be credit, heartbeat, complete, fail, drain or goodbye"))
                if not session.open:
                    return
                await asyncio.sleep(0)  # one function worker that says much must not keep others from their turn
        except Exception as error:
            session.fail(error)
        else:
            session.fail(_ended())

    def _complete(self, session: Session, complete: pb.Complete) -> None:
        token = decode_token(complete.token)
        declared = session.functions.get((token.function, token.version)) if token is not None else None
        self._hub.settle(session, complete.token, result_outcome(declared, complete, self._output_bytes))


def _ended() -> Refused:
    """The function worker closed its side without a goodbye."""
    return Refused(
        grpc.StatusCode.CANCELLED,
        ErrorReason.ERROR_REASON_COMPONENT_UNAVAILABLE,
        "the function worker ended the stream without a goodbye",
    )
