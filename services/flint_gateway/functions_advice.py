"""What the registry of custom functions says about a definition that is applied: warnings, never refusals.

A function may be registered after the definition that calls it, so nothing here is an error: a call waits for its
function worker.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from flint_contracts.gen.flint.functions.v1 import functions_pb2 as pb
from flint_contracts.gen.flint.scheduling.v1 import functions_pb2 as registry
from flint_core.definition.findings import Rule, suggestion
from flint_core.program import Program
from flint_gateway.functions_schemas import SchemaRefused, compile_schema
from flint_ops.logging import get_logger
from flint_rpc.errors import Refused
from flint_rpc.upstream import Client

if TYPE_CHECKING:
    from flint_contracts.gen.flint.scheduling.v1.functions_pb2_grpc import FunctionRegistryServiceAsyncStub

__all__ = ["Fault", "FunctionAdvice"]

_TIMEOUT_S: Final = 5.0
_FUNCTIONS: Final = 100
"""So many different functions of one definition are looked up."""
_KNOWN: Final = 1_000
_FAULTS: Final = 20
_SURE: Final = frozenset({"required", "additionalProperties", "minProperties", "maxProperties"})
"""What a schema says about an object whose members may be expressions, whatever their values."""

Fault = tuple[str, str, str]
"""Rule, message, pointer."""

_log = get_logger("flint_gateway.functions")


@dataclass(frozen=True, slots=True)
class _Call:
    pointer: str
    name: str
    version: str
    arguments: Any


class FunctionAdvice:
    """See the module."""

    def __init__(self, client: Client[FunctionRegistryServiceAsyncStub]) -> None:
        self._client = client

    async def warnings(self, program: Program, namespace: str) -> list[Fault]:
        """Functions that were never registered, and constant arguments that do not fit the registered schema."""
        calls = [
            _Call(task.pointer, task.arguments["name"], task.arguments["version"], task.arguments["arguments"])
            for task in program.tasks
            if task.kind == "call" and task.function == "function" and isinstance(task.arguments, dict)
        ]
        if not calls:
            return []
        try:
            return await self._check(calls, namespace)
        except Refused as error:
            _log.warning("functions_not_checked", error=error.message)
            return []

    async def _check(self, calls: list[_Call], namespace: str) -> list[Fault]:
        faults: list[Fault] = []
        known: dict[tuple[str, str], pb.Function | None] = {}
        names: list[str] | None = None
        for call in calls:
            key = (call.name, call.version)
            if key not in known:
                if len(known) >= _FUNCTIONS:
                    break
                known[key] = await self._find(namespace, *key)
            function = known[key]
            if function is not None:
                faults += await asyncio.to_thread(_argument_faults, call, function)
                continue
            if names is None:
                names = await self._names(namespace)
            wanted = f"{call.name}:{call.version}" if call.version else call.name
            if call.name in names:
                message = f"version {call.version} of '{call.name}' was never registered; a call waits until it is"
            else:
                hint = suggestion(call.name, names)
                message = f"no function worker has ever registered '{wanted}'; a call waits until one does{hint}"
            faults.append((Rule.UNKNOWN_FUNCTION, message, f"{call.pointer}/call"))
        return faults[:_FAULTS]

    async def _find(self, namespace: str, name: str, version: str) -> pb.Function | None:
        request = registry.ReadFunctionsRequest(namespace=namespace, names=[name], version=version, limit=1)
        response = await self._client.call(lambda stub: stub.ReadFunctions, request, _TIMEOUT_S)
        return response.functions[0] if response.functions else None

    async def _names(self, namespace: str) -> list[str]:
        request = registry.ReadFunctionsRequest(namespace=namespace, limit=_KNOWN, without_schemas=True)
        response = await self._client.call(lambda stub: stub.ReadFunctions, request, _TIMEOUT_S)
        return sorted({function.name for function in response.functions})


def _argument_faults(call: _Call, function: pb.Function) -> list[Fault]:
    try:
        validator = compile_schema(function.input_schema)
    except SchemaRefused:  # it was checked when it was registered, perhaps by another build
        return []
    if validator is None or not isinstance(call.arguments, dict):
        return []
    faults: list[Fault] = []
    for error in validator.iter_errors(call.arguments):
        path = list(error.instance_path)
        keyword = str(error.schema_path[-1]) if error.schema_path else ""
        if keyword not in _SURE and _dynamic(_at(call.arguments, path)):
            continue
        place = "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)
        message = f"{call.name}:{function.version} does not take this: {error.message[:300]}"
        faults.append((Rule.ARGUMENTS, message, f"{call.pointer}/with{place}"))
        if len(faults) >= _FAULTS:
            break
    return faults


def _at(value: Any, path: list[Any]) -> Any:
    for part in path:
        value = value[part]
    return value


def _dynamic(value: Any) -> bool:
    """Whether an expression stands anywhere in the value."""
    if isinstance(value, str):
        return "${" in value
    if isinstance(value, dict):
        return any(map(_dynamic, value.values()))
    if isinstance(value, list):
        return any(map(_dynamic, value))
    return False
