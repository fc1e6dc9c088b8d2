"""Which custom functions are registered: written for the function workers of this gateway, read to find the highest
version that is connected.

States: IDLE (nobody is connected) → KEEPING (every 5 s what is connected here is touched, and what the namespaces hold
is read; also when another gateway tells of a registration). While the registry cannot be reached what was read last
stays in force. When the task dies the service ends (it is watched).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError

from flint_bus.bus import Bus
from flint_bus.messages import Message
from flint_bus.subjects import FUNCTIONS_REGISTERED
from flint_bus.subscription import Subscription
from flint_contracts.gen.flint.dispatch.v1 import functions_pb2 as dispatch
from flint_contracts.gen.flint.functions.v1 import functions_pb2 as pb
from flint_contracts.gen.flint.scheduling.v1 import functions_pb2 as registry
from flint_ops.logging import get_logger
from flint_rpc.errors import Refused
from flint_rpc.upstream import Client

if TYPE_CHECKING:
    from flint_contracts.gen.flint.scheduling.v1.functions_pb2_grpc import FunctionRegistryServiceAsyncStub

__all__ = ["FunctionCatalog"]

_TOUCH_S: Final = 5.0
_LEAST_PAUSE_S: Final = 0.1
_TIMEOUT_S: Final = 5.0
_NAMES: Final = 200
_TOUCHED: Final = 10_000
_PAGE: Final = 1_000

Served = Callable[[], Iterable[tuple[str, str, str]]]
"""The (namespace, name, version) that are connected here."""

_log = get_logger("flint_gateway.functions")


class FunctionCatalog:
    """See the module. One event loop."""

    def __init__(self, bus: Bus, client: Client[FunctionRegistryServiceAsyncStub], served: Served) -> None:
        self._bus = bus
        self._client = client
        self._served = served
        self._highest: dict[tuple[str, str], str] = {}
        self._due = asyncio.Event()
        self._told = True
        self._subscription: Subscription | None = None

    async def open(self) -> None:
        """Begins to hear of registrations elsewhere."""
        self._subscription = await self._bus.subscribe(FUNCTIONS_REGISTERED, self._on_registered)

    async def close(self) -> None:
        """Ends hearing."""
        if self._subscription is not None:
            await self._subscription.close()

    def highest(self, namespace: str, name: str) -> str:
        """The highest version of a function that is connected anywhere; empty while none is known."""
        return self._highest.get((namespace, name), "")

    async def register(self, namespace: str, functions: Iterable[pb.FunctionDeclaration]) -> None:
        """Stores what a function worker declared, and tells the other gateways. Raises `Refused`."""
        stored = list(functions)
        request = registry.PutFunctionsRequest(namespace=namespace, functions=stored)
        await self._client.call(lambda stub: stub.PutFunctions, request, _TIMEOUT_S)
        told = dispatch.FunctionsRegistered(namespace=namespace).SerializeToString()
        self._bus.publish_now(FUNCTIONS_REGISTERED, told)
        await self._read(namespace, sorted({function.name for function in stored}))

    async def keep(self) -> None:
        """For ever: see the module."""
        touched_at = 0.0
        while True:
            served = sorted(set(self._served()))
            if served:
                try:
                    if time.monotonic() - touched_at >= _TOUCH_S * 0.9:
                        await self._touch(served)
                        touched_at = time.monotonic()
                    await self._read_all(served)
                    self._told = False
                except Refused as error:
                    if not self._told:
                        _log.warning("functions_not_read", error=error.message)
                        self._told = True
            self._highest = {
                key: version for key, version in self._highest.items() if key in {(ns, n) for ns, n, _ in served}
            }
            await asyncio.sleep(_LEAST_PAUSE_S)
            try:
                async with asyncio.timeout(_TOUCH_S - _LEAST_PAUSE_S):
                    await self._due.wait()
            except TimeoutError:
                pass
            self._due.clear()

    def _on_registered(self, message: Message) -> None:
        try:
            namespace = dispatch.FunctionsRegistered.FromString(message.data).namespace
        except DecodeError:
            _log.warning("functions_registered_unreadable", size=len(message.data))
            return
        if any(served == namespace for served, _, _ in self._served()):
            self._due.set()

    async def _touch(self, served: list[tuple[str, str, str]]) -> None:
        for begin in range(0, len(served), _TOUCHED):
            request = registry.TouchFunctionsRequest(
                functions=[
                    registry.FunctionVersion(namespace=namespace, name=name, version=version)
                    for namespace, name, version in served[begin : begin + _TOUCHED]
                ]
            )
            await self._client.call(lambda stub: stub.TouchFunctions, request, _TIMEOUT_S)

    async def _read_all(self, served: list[tuple[str, str, str]]) -> None:
        names: dict[str, list[str]] = {}
        for namespace, name, _ in served:
            names.setdefault(namespace, []).append(name)
        for namespace, of_namespace in names.items():
            await self._read(namespace, sorted(set(of_namespace)))

    async def _read(self, namespace: str, names: list[str]) -> None:
        for begin in range(0, len(names), _NAMES):
            chunk = names[begin : begin + _NAMES]
            found: dict[str, str] = {}
            after = registry.FunctionVersion()
            while True:
                request = registry.ReadFunctionsRequest(
                    namespace=namespace, names=chunk, limit=_PAGE, after=after, without_schemas=True
                )
                response = await self._client.call(lambda stub: stub.ReadFunctions, request, _TIMEOUT_S)
                for function in response.functions:  # the highest first
                    if function.connected:
                        found.setdefault(function.name, function.version)
                if len(response.functions) < _PAGE:
                    break
                last = response.functions[-1]
                after = registry.FunctionVersion(namespace=namespace, name=last.name, version=last.version)
            for name in chunk:
                self._highest.pop((namespace, name), None)
                if name in found:
                    self._highest[namespace, name] = found[name]
