"""FleetService: workers and pools, as the registry knows them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from flint_contracts.gen.flint.fleet.v1 import fleet_pb2
from flint_contracts.gen.flint.fleet.v1.fleet_pb2_grpc import FleetServiceServicer
from flint_contracts.gen.flint.registry.v1 import registry_pb2
from flint_rpc.errors import ErrorReason, Refused, field_invalid
from flint_rpc.names import is_label, parse_pool, parse_worker
from flint_rpc.paging import PageBinding, page_size
from flint_rpc.upstream import Client

if TYPE_CHECKING:  # these names exist in the stubs only
    from flint_contracts.gen.flint.registry.v1.registry_pb2_grpc import RegistryServiceAsyncStub

__all__ = ["FleetServicer"]

_TIMEOUT_S = 10.0
_SEPARATOR = "\n"

Context = grpc.aio.ServicerContext[Any, Any]


class FleetServicer(FleetServiceServicer):
    """See the module. Callers are authenticated and authorised by the interceptor."""

    def __init__(self, client: Client[RegistryServiceAsyncStub]) -> None:
        self._client = client

    async def ListWorkers(
        self, request: fleet_pb2.ListWorkersRequest, context: Context
    ) -> fleet_pb2.ListWorkersResponse:
        """A page, by pool, worker id, incarnation."""
        size = page_size(request.page_size, default=100, most=1000)
        if request.pool and not is_label(request.pool):
            raise field_invalid(("pool", "must be a DNS label of at most 63 characters, or empty"))
        binding = PageBinding("workers", request.pool, str(request.show_ended))
        cursor = tuple(binding.decode(request.page_token).split(_SEPARATOR))
        workers = [
            worker
            for worker in await self._workers(show_ended=request.show_ended)
            if not request.pool or worker.pool == request.pool
        ]
        workers.sort(key=_place)
        if request.page_token:
            workers = [worker for worker in workers if _place(worker) > cursor]
        page = workers[:size]
        token = binding.encode(_SEPARATOR.join(_place(page[-1]))) if len(workers) > size else ""
        return fleet_pb2.ListWorkersResponse(workers=page, next_page_token=token)

    async def ListPools(self, request: fleet_pb2.ListPoolsRequest, context: Context) -> fleet_pb2.ListPoolsResponse:
        """Pools that have workers, work or settings, by name and region."""
        return fleet_pb2.ListPoolsResponse(pools=await self._pools())

    async def GetPool(self, request: fleet_pb2.GetPoolRequest, context: Context) -> fleet_pb2.GetPoolResponse:
        """One that nobody has heard of is not found."""
        region, name = parse_pool(request.name)
        for pool in await self._pools():
            if (pool.region, pool.pool) == (region, name):
                return fleet_pb2.GetPoolResponse(pool=pool)
        raise Refused(
            grpc.StatusCode.NOT_FOUND, ErrorReason.ERROR_REASON_POOL_NOT_FOUND, f"there is no pool {request.name}"
        )

    async def UpdatePool(self, request: fleet_pb2.UpdatePoolRequest, context: Context) -> fleet_pb2.UpdatePoolResponse:
        """The registry checks the values."""
        region, pool = parse_pool(request.pool.name, "pool.name")
        paths = list(request.update_mask.paths)
        if not paths:
            raise field_invalid(("update_mask", "is required: settings, or settings.minimum_workers and the like"))
        if paths == ["settings"]:
            paths = [f"settings.{field.name}" for field in fleet_pb2.PoolSettings.DESCRIPTOR.fields]
        wrong = [path for path in paths if not path.startswith("settings.")]
        if wrong:
            raise field_invalid(("update_mask", f"names what cannot be changed: {wrong[0][:100]}"))
        inner = registry_pb2.UpdatePoolRequest(
            region=region,
            pool=pool,
            settings=request.pool.settings,
            fields=[path.removeprefix("settings.") for path in paths],
        )
        response = await self._client.call(lambda stub: stub.UpdatePool, inner, _TIMEOUT_S)
        return fleet_pb2.UpdatePoolResponse(pool=response.pool)

    async def ListScalingDecisions(
        self, request: fleet_pb2.ListScalingDecisionsRequest, context: Context
    ) -> fleet_pb2.ListScalingDecisionsResponse:
        """A page, the latest first."""
        size = page_size(request.page_size, default=100, most=1000)
        region, pool = parse_pool(request.pool, "pool") if request.pool else ("", "")
        binding = PageBinding("scaling-decisions", request.pool, str(request.changes_only))
        cursor = binding.decode(request.page_token)
        inner = registry_pb2.ListScalingDecisionsRequest(
            limit=size,
            before_id=int(cursor) if cursor.isdigit() else 0,
            region=region,
            pool=pool,
            changes_only=request.changes_only,
        )
        response = await self._client.call(lambda stub: stub.ListScalingDecisions, inner, _TIMEOUT_S)
        full = len(response.decisions) == size
        token = binding.encode(str(response.decisions[-1].id)) if full else ""
        return fleet_pb2.ListScalingDecisionsResponse(decisions=response.decisions, next_page_token=token)

    async def DrainWorker(
        self, request: fleet_pb2.DrainWorkerRequest, context: Context
    ) -> fleet_pb2.DrainWorkerResponse:
        """Passes the wish on; the worker hears of it with its next heartbeat."""
        inner = registry_pb2.DrainWorkerRequest(incarnation=parse_worker(request.name))
        response = await self._client.call(lambda stub: stub.DrainWorker, inner, _TIMEOUT_S)
        return fleet_pb2.DrainWorkerResponse(worker=response.worker)

    async def ReleaseWorker(
        self, request: fleet_pb2.ReleaseWorkerRequest, context: Context
    ) -> fleet_pb2.ReleaseWorkerResponse:
        """Passes it on."""
        inner = registry_pb2.ReleaseWorkerRequest(incarnation=parse_worker(request.name))
        response = await self._client.call(lambda stub: stub.ReleaseWorker, inner, _TIMEOUT_S)
        return fleet_pb2.ReleaseWorkerResponse(worker=response.worker, released=response.released)

    async def _pools(self) -> list[fleet_pb2.Pool]:
        response = await self._client.call(lambda stub: stub.ListPools, registry_pb2.ListPoolsRequest(), _TIMEOUT_S)
        return sorted(response.pools, key=lambda pool: (pool.pool, pool.region))

    async def _workers(self, *, show_ended: bool) -> list[fleet_pb2.Worker]:
        request = registry_pb2.ListWorkersRequest(show_ended=show_ended)
        response = await self._client.call(lambda stub: stub.ListWorkers, request, _TIMEOUT_S)
        return list(response.workers)


def _place(worker: fleet_pb2.Worker) -> tuple[str, ...]:
    return (worker.pool, worker.worker_id, worker.name)
