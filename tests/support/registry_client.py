"""A client of one registry, as a worker or a gateway is one."""

from __future__ import annotations

from typing import Any

import grpc

from flint_contracts.gen.flint.fleet.v1 import fleet_pb2
from flint_contracts.gen.flint.registry.v1 import registry_pb2, registry_pb2_grpc
from flint_rpc.errors import from_rpc_error

TOKEN = "a-token-of-this-test"


class RegistryClient:
    """Calls one registry. Raises what the registry refused with."""

    def __init__(self, address: str, token: str = TOKEN) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        self._stub: Any = registry_pb2_grpc.RegistryServiceStub(self._channel)
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()

    async def call(self, method: str, request: Any) -> Any:
        try:
            return await getattr(self._stub, method)(request, timeout=15, metadata=self._metadata, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    async def register(self, worker_id: str = "worker-1", **fields: Any) -> registry_pb2.WorkerCard:
        card = {"pool": "default", "region": "local", "slots": 8} | fields
        request = registry_pb2.RegisterRequest(card=registry_pb2.WorkerCard(worker_id=worker_id, **card))
        return (await self.call("Register", request)).card  # type: ignore[no-any-return]

    async def beat(self, *beats: registry_pb2.Beat) -> list[tuple[bool, bool]]:
        response = await self.call("Heartbeat", registry_pb2.HeartbeatRequest(beats=beats))
        return [(result.renewed, result.drain) for result in response.results]

    async def deregister(self, card: registry_pb2.WorkerCard) -> None:
        request = registry_pb2.DeregisterRequest(incarnation=card.incarnation, lease_id=card.lease_id)
        await self.call("Deregister", request)

    async def drain(self, incarnation: str) -> fleet_pb2.Worker:
        request = registry_pb2.DrainWorkerRequest(incarnation=incarnation)
        return (await self.call("DrainWorker", request)).worker  # type: ignore[no-any-return]

    async def workers(self, *, ended: bool = False) -> dict[str, fleet_pb2.Worker]:
        """By incarnation, in the order of the answer."""
        response = await self.call("ListWorkers", registry_pb2.ListWorkersRequest(show_ended=ended))
        return {worker.name.removeprefix("workers/"): worker for worker in response.workers}

    async def close(self) -> None:
        await self._channel.close()
