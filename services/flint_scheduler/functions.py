"""FunctionRegistryService: the registry of custom functions, answered from the record on any replica."""

from __future__ import annotations

from typing import Any, Final

import grpc
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_contracts.gen.flint.scheduling.v1 import functions_pb2 as pb
from flint_contracts.gen.flint.scheduling.v1 import functions_pb2_grpc
from flint_rpc.errors import field_invalid
from flint_scheduler.refusals import store_refusals
from flint_store import functions

__all__ = ["FunctionRegistryServicer"]

_MOST_PUT: Final = 200
_MOST_TOUCHED: Final = 10_000
_MOST_NAMES: Final = 1_000
_MOST_READ: Final = 1_001
_MOST_WITH_SCHEMAS: Final = 201

Context = grpc.aio.ServicerContext[Any, Any]


class FunctionRegistryServicer(functions_pb2_grpc.FunctionRegistryServiceServicer):
    """Stores and reads; gateways have validated what they send."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def PutFunctions(self, request: pb.PutFunctionsRequest, context: Context) -> pb.PutFunctionsResponse:
        """Store what a function worker declares."""
        if not 1 <= len(request.functions) <= _MOST_PUT:
            raise field_invalid(("functions", f"must hold 1 to {_MOST_PUT}"))
        with store_refusals():
            await functions.put_functions(self._engine, request.namespace, request.functions)
        return pb.PutFunctionsResponse()

    async def TouchFunctions(self, request: pb.TouchFunctionsRequest, context: Context) -> pb.TouchFunctionsResponse:
        """Note what is connected."""
        if not 1 <= len(request.functions) <= _MOST_TOUCHED:
            raise field_invalid(("functions", f"must hold 1 to {_MOST_TOUCHED}"))
        with store_refusals():
            await functions.touch_functions(self._engine, {(f.namespace, f.name, f.version) for f in request.functions})
        return pb.TouchFunctionsResponse()

    async def ReadFunctions(self, request: pb.ReadFunctionsRequest, context: Context) -> pb.ReadFunctionsResponse:
        """A page, by name, the highest version first."""
        if request.limit < 1:
            raise field_invalid(("limit", f"must be 1 to {_MOST_READ}"))
        if len(request.names) > _MOST_NAMES:
            raise field_invalid(("names", f"must hold at most {_MOST_NAMES}"))
        with store_refusals():
            found = await functions.list_functions(
                self._engine,
                request.namespace,
                names=list(request.names),
                version=request.version,
                after=(request.after.name, request.after.version),
                with_schemas=not request.without_schemas,
                limit=min(request.limit, _MOST_READ if request.without_schemas else _MOST_WITH_SCHEMAS),
            )
        return pb.ReadFunctionsResponse(functions=found)
