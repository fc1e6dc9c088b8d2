"""What the fleet says about a definition that is applied: functions that no live worker can execute are refused.

Only those that depend on the machine are asked for (containers need an engine). While no worker lives nothing is
refused: the next one may have what is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flint_contracts.gen.flint.fleet.v1 import fleet_pb2
from flint_contracts.gen.flint.registry.v1 import registry_pb2
from flint_core.definition.findings import Rule
from flint_core.program import Program
from flint_gateway.functions_advice import Fault
from flint_ops.logging import get_logger
from flint_rpc.errors import Refused
from flint_rpc.upstream import Client

if TYPE_CHECKING:
    from flint_contracts.gen.flint.registry.v1.registry_pb2_grpc import RegistryServiceAsyncStub

__all__ = ["FleetAdvice"]

_TIMEOUT_S: Final = 5.0
_DEPENDS: Final = {
    "container": "no worker found a container engine: install Docker or Podman beside a worker and start it again "
    "(worker.containers.engine), or use run: shell",
}

_log = get_logger("flint_gateway.fleet")


class FleetAdvice:
    """See the module."""

    def __init__(self, client: Client[RegistryServiceAsyncStub]) -> None:
        self._client = client

    async def refusals(self, program: Program) -> list[Fault]:
        """Rule, message and pointer of each task that nobody could execute now."""
        wanted = {task.function for task in program.tasks} & _DEPENDS.keys()
        if not wanted:
            return []
        try:
            request = registry_pb2.ListWorkersRequest()
            response = await self._client.call(lambda stub: stub.ListWorkers, request, _TIMEOUT_S)
        except Refused as error:
            _log.warning("fleet_not_asked", error=error.message)
            return []
        living = [worker for worker in response.workers if worker.state == fleet_pb2.Worker.STATE_READY]
        offered = {name for worker in living for name in worker.functions}
        return [
            (Rule.UNSUPPORTED, _DEPENDS[task.function], f"{task.pointer}/{task.kind}/{task.function}")
            for task in program.tasks
            if living and task.function in wanted - offered
        ]
