"""LimitService: the named limits of a namespace, which definitions refer to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import grpc

from flint_contracts.gen.flint.limits.v1 import limits_pb2
from flint_contracts.gen.flint.limits.v1.limits_pb2_grpc import LimitServiceServicer
from flint_contracts.gen.flint.scheduling.v1 import limits_pb2 as scheduling_pb2
from flint_core.permit_hints import MOST_BURST, MOST_LIMIT, MOST_PERIOD_MS
from flint_gateway.validation import namespace_of_parent, page_token_invalid
from flint_rpc.errors import ErrorReason, FieldViolation, Refused, field_invalid
from flint_rpc.names import is_label, parse_limit
from flint_rpc.paging import PageBinding, page_size
from flint_rpc.upstream import Client

if TYPE_CHECKING:
    from flint_contracts.gen.flint.scheduling.v1.limits_pb2_grpc import LimitStoreServiceAsyncStub

__all__ = ["LimitServicer"]

_TIMEOUT_S: Final = 10.0

Context = grpc.aio.ServicerContext[Any, Any]


class LimitServicer(LimitServiceServicer):
    """See the module. Callers are authenticated and authorised by the interceptor."""

    def __init__(self, client: Client[LimitStoreServiceAsyncStub]) -> None:
        self._client = client

    async def SetLimit(self, request: limits_pb2.SetLimitRequest, context: Context) -> limits_pb2.SetLimitResponse:
        """Answers when it is stored; it counts from then on."""
        namespace, limit_id = parse_limit(request.name)
        limit = request.limit
        violations: list[FieldViolation] = []
        if not limit.HasField("concurrency") and not limit.HasField("rate"):
            violations.append(FieldViolation("limit", "needs a concurrency, a rate, or both"))
        if limit.HasField("concurrency") and not 0 <= limit.concurrency <= MOST_LIMIT:
            violations.append(FieldViolation("limit.concurrency", f"must be 0 to {MOST_LIMIT}"))
        if limit.HasField("rate"):
            rate = limit.rate
            if not 1 <= rate.count <= MOST_LIMIT:
                violations.append(FieldViolation("limit.rate.count", f"must be 1 to {MOST_LIMIT}"))
            if not 1 <= rate.period.ToMilliseconds() <= MOST_PERIOD_MS:
                violations.append(FieldViolation("limit.rate.period", "must be from a millisecond to 31 days"))
            if not 0 <= rate.burst <= MOST_BURST:
                violations.append(FieldViolation("limit.rate.burst", f"must be 0 to {MOST_BURST}"))
        if violations:
            raise field_invalid(*violations)
        inner = scheduling_pb2.PutLimitRequest(namespace=namespace, limit_id=limit_id, limit=limit)
        response = await self._client.call(lambda stub: stub.PutLimit, inner, _TIMEOUT_S)
        return limits_pb2.SetLimitResponse(limit=response.limit)

    async def ListLimits(
        self, request: limits_pb2.ListLimitsRequest, context: Context
    ) -> limits_pb2.ListLimitsResponse:
        """A page, by name."""
        namespace = namespace_of_parent(request.parent)
        size = page_size(request.page_size, default=50, most=500)
        binding = PageBinding("limits", namespace)
        after = binding.decode(request.page_token)
        if after and not is_label(after):
            raise page_token_invalid()
        inner = scheduling_pb2.ReadLimitsRequest(namespace=namespace, after=after or "", limit=size + 1)
        response = await self._client.call(lambda stub: stub.ReadLimits, inner, _TIMEOUT_S)
        page = response.limits[:size]
        token = binding.encode(page[-1].name.rpartition("/")[2]) if len(response.limits) > size else ""
        return limits_pb2.ListLimitsResponse(limits=page, next_page_token=token)

    async def DeleteLimit(
        self, request: limits_pb2.DeleteLimitRequest, context: Context
    ) -> limits_pb2.DeleteLimitResponse:
        """Forgets it; whoever names it waits."""
        namespace, limit_id = parse_limit(request.name)
        inner = scheduling_pb2.DropLimitRequest(namespace=namespace, limit_id=limit_id)
        response = await self._client.call(lambda stub: stub.DropLimit, inner, _TIMEOUT_S)
        if not response.found:
            raise Refused(
                grpc.StatusCode.NOT_FOUND, ErrorReason.ERROR_REASON_LIMIT_NOT_FOUND, f"there is no {request.name[:200]}"
            )
        return limits_pb2.DeleteLimitResponse()
