"""FleetService: workers and pools, as the registry knows them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from flint_contracts.gen.flint.fleet.v1 import fleet_pb2
from flint_contracts.gen.flint.fleet.v1.fleet_pb2_grpc import FleetServiceServicer
from flint_contracts.gen.flint.registry.v1 import registry_pb2
from flint_rpc.errors import field_invalid
from flint_rpc.names import is_label, parse_worker
from flint_rpc.paging import PageBinding, page_size
from flint_rpc.upstream import Client

if TYPE_CHECKING:  # these names exist in the stubs only
    from flint_contracts.gen.flint.registry.v1.registry_pb2_grpc import RegistryServiceAsyncStub

__all__ = ["FleetServicer"]

_TIMEOUT_S = 10.0
_SEPARATOR = "\n"
_LIVE = (fleet_pb2.Worker.STATE_READY, fleet_pb2.Worker.STATE_DRAINING)

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
        """Pools that have live workers, by name and region."""
        pools: dict[tuple[str, str], fleet_pb2.Pool] = {}
        for worker in await self._workers(show_ended=False):
            if worker.state not in _LIVE:
                continue
            key = (worker.pool, worker.region)
            pool = pools.setdefault(key, fleet_pb2.Pool(pool=worker.pool, region=worker.region))
            pool.workers += 1
            pool.slots += worker.slots
            pool.legs += worker.legs
        return fleet_pb2.ListPoolsResponse(pools=[pools[key] for key in sorted(pools)])

    async def DrainWorker(
        self, request: fleet_pb2.DrainWorkerRequest, context: Context
    ) -> fleet_pb2.DrainWorkerResponse:
        """Passes the wish on; the worker hears of it with its next heartbeat."""
        inner = registry_pb2.DrainWorkerRequest(incarnation=parse_worker(request.name))
        response = await self._client.call(lambda stub: stub.DrainWorker, inner, _TIMEOUT_S)
        return fleet_pb2.DrainWorkerResponse(worker=response.worker)

    async def _workers(self, *, show_ended: bool) -> list[fleet_pb2.Worker]:
        request = registry_pb2.ListWorkersRequest(show_ended=show_ended)
        response = await self._client.call(lambda stub: stub.ListWorkers, request, _TIMEOUT_S)
        return list(response.workers)


def _place(worker: fleet_pb2.Worker) -> tuple[str, ...]:
    return (worker.pool, worker.worker_id, worker.name)
