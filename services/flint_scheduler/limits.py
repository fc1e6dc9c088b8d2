"""LimitStoreService: named limits, answered from the record on any replica."""

from __future__ import annotations

from typing import Any, Final

import grpc
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_contracts.gen.flint.scheduling.v1 import limits_pb2 as pb
from flint_contracts.gen.flint.scheduling.v1 import limits_pb2_grpc
from flint_rpc.errors import field_invalid
from flint_scheduler.refusals import store_refusals
from flint_store import limits

__all__ = ["LimitStoreServicer"]

_MOST: Final = 501

Context = grpc.aio.ServicerContext[Any, Any]


class LimitStoreServicer(limits_pb2_grpc.LimitStoreServiceServicer):
    """Stores and reads; gateways have validated what they send."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def PutLimit(self, request: pb.PutLimitRequest, context: Context) -> pb.PutLimitResponse:
        """Set what a limit allows."""
        with store_refusals():
            limit = await limits.put_limit(self._engine, request.namespace, request.limit_id, request.limit)
        return pb.PutLimitResponse(limit=limit)

    async def ReadLimits(self, request: pb.ReadLimitsRequest, context: Context) -> pb.ReadLimitsResponse:
        """A page, by id."""
        if not 1 <= request.limit <= _MOST:
            raise field_invalid(("limit", f"must be 1 to {_MOST}"))
        with store_refusals():
            found = await limits.read_limits(self._engine, request.namespace, request.after, request.limit)
        return pb.ReadLimitsResponse(limits=found)

    async def DropLimit(self, request: pb.DropLimitRequest, context: Context) -> pb.DropLimitResponse:
        """Forget a limit."""
        with store_refusals():
            return pb.DropLimitResponse(
                found=await limits.drop_limit(self._engine, request.namespace, request.limit_id)
            )
